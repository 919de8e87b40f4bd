"""Python with no more than a bare GPU machine has: torch and a few packages."""

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
THERE = ("torch", "numpy", "safetensors", "tqdm", "pyyaml")


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


class BarePython:
    """Runs Python over a site-packages of links to what is there."""

    def __init__(self, packages: Path) -> None:
        for name in with_requirements(*THERE):
            found = distribution(name)
            for top in {file.parts[0] for file in found.files} - {".."}:
                if not (packages / top).exists():
                    (packages / top).symlink_to(found.locate_file(top))
        self.command = [sys.executable, "-S"]  # not its own site-packages
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", packages))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *arguments, folder):
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=folder, env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout
