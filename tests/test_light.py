"""The training core where little is installed: a GPU machine with torch and a few packages."""

import json
import os
import subprocess
import sys
import textwrap
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from training_runs import STAGES, last_row, write_project

ROOT = Path(__file__).parents[1]
THERE = ("torch", "numpy", "safetensors", "tqdm", "pyyaml")

TRAIN = textwrap.dedent(
    """
    import importlib.util
    import torch
    from training_runs import parameters, train_both
    for name in ("pyarrow", "pandas", "pydantic", "ruamel", "rich", "typer", "scipy"):
        assert importlib.util.find_spec(name) is None, name
    torch.set_num_threads(1)
    train_both(parameters())
    """
)


def with_requirements(*packages):
    """Names of the distributions and of all that they require."""
    needed, open_ = set(), [canonicalize_name(package) for package in packages]
    while open_:
        package = open_.pop()
        if package in needed:
            continue
        needed.add(package)
        for requirement in map(Requirement, distribution(package).requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_.append(canonicalize_name(requirement.name))
    return needed


def test_both_stages_train_where_nothing_else_is_installed(tmp_path):
    """Another site-packages, of links to what is there; Python does not look into its own (-S)."""
    packages, work = tmp_path / "packages", tmp_path / "work"
    packages.mkdir()
    for name in with_requirements(*THERE):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files} - {".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
    write_project(work)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", packages))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-S", "-c", TRAIN],
        cwd=work, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in STAGES:
        assert last_row(stage, work)["step"] > 0
        assert (work / "artifacts" / stage / "model.safetensors").is_file()
    config = json.loads((work / "artifacts" / "finetune" / "config.json").read_text())
    assert config["encoder"] == "hpgr" and config["model"]["tile"] == 16
