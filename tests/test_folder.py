"""Names of the project's folder that its tools can work with, and those that they cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpgr.folder import SIGNS, require_folder, require_repository
from hpgr.runtime import UserError

ROOT = Path(__file__).parents[1]
FINE = "a b's (é) & ~x,2!+@_-.^"
REFUSED = [f"a{sign}b" for sign in SIGNS] + ["a\nb", "a\tb", "what?", "a%20b", "100%25", "$HOME"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes a folder of that name the current one."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def make(name):
        path = tmp_path / name
        path.mkdir()
        monkeypatch.chdir(path)
        return path

    return make


def call(*command, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
    )


def git_init():
    subprocess.run(["git", "init", "-q", "."], check=True)


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_signs_of_the_tools_are_refused_alike_by_python_and_make(folder, name):
    here = folder(name)
    with pytest.raises(UserError, match="rename or move it"):
        require_folder()
    git_init()
    shutil.copy(ROOT / "Makefile", here)
    made = call("make", "-s", "folder")
    assert made.returncode == 2
    assert made.stderr.startswith("error: the folder ") and "rename or move it" in made.stderr


def test_other_names_are_fine_for_python_and_make(folder):
    here = folder(FINE)
    require_folder()
    git_init()
    require_repository()
    shutil.copy(ROOT / "Makefile", here)
    assert call("make", "-s", "folder").returncode == 0


@pytest.mark.parametrize(
    "command",
    ["hpgr.cli params", "hpgr.cli register", "flows.train", "flows.services up", "flows.worker x"],
)
def test_a_command_in_such_a_folder_is_one_message_and_writes_nothing(folder, command):
    here = folder("what?")
    shutil.copy(ROOT / "params.yaml", here)
    done = call(sys.executable, "-m", *command.split())
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the folder ") and done.stderr.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["params.yaml"]
    assert [path.name for path in here.parent.iterdir()] == ["what?"]


def test_prefects_home_is_looked_at_as_well(folder):
    here = folder("project")
    home = here.parent / "home%20"
    done = call(sys.executable, "-m", "flows.monitor", PREFECT_HOME=str(home))
    assert done.returncode == 2
    assert done.stderr.startswith("error: the folder ") and "home%20" in done.stderr


@pytest.mark.parametrize("command", ["python", "make"])
def test_a_copy_without_git_says_how_to_make_a_repository(folder, command):
    """As it comes out of a zip."""
    here = folder("copy")
    for name in ("Makefile", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, here)
    before = sorted(here.iterdir())
    if command == "make":
        done = call("make", "-s", "run")
    else:
        done = call(sys.executable, "-m", "flows.train", PREFECT_HOME=str(here.parent / "home"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "git init && git add -A" in done.stderr
    assert sorted(here.iterdir()) == before
    with pytest.raises(UserError, match="git init"):
        require_repository()
