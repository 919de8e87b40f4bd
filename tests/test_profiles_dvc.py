"""DVC compares values: a profile makes those stages stale whose values it changes, and no other."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from params_text import ROOT, params_text

from hpgr.profiles import set_params
from hpgr.runtime import TELEMETRY_OFF
from hpgr.workspace import STAGES


def dvc(folder, *arguments):
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, **TELEMETRY_OFF}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """The stages of dvc.yaml with their parameters alone, run under profile quick."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    (folder / "params.yaml").write_text(params_text("quick"))
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stages = {
        name: {"cmd": f"mkdir -p {out}", "params": declared[name]["params"], "outs": [out]}
        for name, out in ((name, stage.output) for name, stage in STAGES.items())
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    dvc(folder, "init", "-q", "--no-scm")
    dvc(folder, "repro", "-q")
    return folder


def stale(folder):
    return set(json.loads(dvc(folder, "status", "--json")))


@pytest.mark.parametrize(
    ("profile", "wanted"),
    [
        ("quick", set()),
        ("full", {"pretrain", "finetune"}),
        # model.max_history, which evaluate reads as well
        ("ranking", {"sessionize", "pretrain", "finetune", "evaluate"}),
        ("mine", {"evaluate"}),
    ],
)
def test_a_profile_makes_the_stages_stale_whose_values_it_changes(reproduced, profile, wanted):
    (reproduced / "profiles/mine.yaml").write_text("evaluate:\n  bootstrap_samples: 300\n")
    params, profiles = reproduced / "params.yaml", reproduced / "profiles"
    before = params.read_text()
    assert stale(reproduced) == set()  # a profile that was added changes nothing
    set_params(profile=profile, path=params, profiles=profiles)
    try:
        assert stale(reproduced) == wanted
        set_params(profile="quick", path=params, profiles=profiles)
        assert stale(reproduced) == set()
    finally:
        params.write_text(before)
