"""The folder is lost: git, DVC's remote and the registry give a version back in another clone.

What `hpgr lineage` prints is run as printed, by a shell. The version began from another one, and
its code differed from its commit.
"""

import json
import sys

import pytest
from workspace import contents, dvc, hpgr, run

pytestmark = pytest.mark.pipeline
NEW, CHANGED = "hpgr/training/notes.py", "hpgr/evaluation/ranking.py"
AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@localhost")
VERSION_1 = """
from pathlib import Path
from hpgr.config import load_config
from hpgr.registry import bundle, tracking

folder = Path("mlflow/store/first").absolute()
bundle.write_bundle(load_config(), folder / "artifacts" / "bundle")
client = tracking.connect()
client.create_registered_model("hpgr")
run = client.create_run(tracking.experiment_id(client, "hpgr"))
client.create_model_version("hpgr", folder.as_uri(), run.info.run_id)
"""  # all that a base is taken from: registering it in full takes as long as a training


def well(done):
    assert done.returncode == 0, done.output[-6000:]
    return done


def git(*arguments, cwd):
    return well(run("git", *AUTHOR, *arguments, cwd=cwd)).stdout.strip()


@pytest.fixture
def origin(project):
    """Version 2: began from version 1, by code that was changed; the remote has its outputs."""
    git("add", "-A", cwd=project)
    git("commit", "-qm", "start", cwd=project)
    remote = str(project.with_name("remote"))
    well(dvc("remote", "add", "-q", "--local", "--default", "shared", remote, cwd=project))
    well(run(sys.executable, "-c", VERSION_1, cwd=project))
    well(hpgr("base", "1", cwd=project))
    (project / NEW).write_bytes(b'"""New."""\r\n')
    (project / CHANGED).write_bytes((project / CHANGED).read_bytes() + b"\n# changed\r\n")
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("warm_steps: 15", "warm_steps: 5"))
    well(dvc("repro", "-q", cwd=project))
    well(hpgr("register", cwd=project))
    well(dvc("push", "-q", cwd=project))
    return project


def test_the_printed_commands_bring_a_version_back_in_another_clone(origin, tmp_path):
    message = well(hpgr("lineage", "2", cwd=origin)).stdout
    assert "warning" not in message
    commands = message.split("to restore it, in a clone:\n")[1]
    clone = tmp_path / "clone"
    git("clone", "-q", str(origin), str(clone), cwd=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "later", cwd=clone)
    remote = str(origin.with_name("remote"))
    well(dvc("remote", "add", "-q", "--local", "--default", "shared", remote, cwd=clone))
    assert "up to date" in well(run("sh", "-e", "-c", commands, cwd=clone)).stdout
    assert json.loads(dvc("status", "--json", cwd=clone).stdout) == {}
    for folder in ("data", "artifacts/sessions", "artifacts/finetune", "base"):
        assert contents(clone / folder) == contents(origin / folder), folder
    for file in (NEW, CHANGED):
        assert (clone / file).read_bytes() == (origin / file).read_bytes(), file
