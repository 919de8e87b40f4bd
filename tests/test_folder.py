"""Names of the project's folder that its tools can work with, and those that they cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.store.db import utils
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_HOME,
    temporary_settings,
)
from registry_project import make_project
from sqlalchemy import make_url

from host.prefect_server import own_database
from hpgr.folder import (
    QUOTED_SIGNS,
    SHELL_SIGNS,
    SIGNS,
    require_folder,
    require_repository,
    sqlite_file,
)
from hpgr.registry.tracking import own_uri
from hpgr.runtime import UserError

ROOT = Path(__file__).parents[1]
FINE = "a b?c%25d#e=f's (é) & ~x,2!+@_-.^[x]*;|<>"
FINE_WITHOUT_SPACE = '$HOME%20"\\q`'
LONG = "x" * 120
REFUSED = [f"a{sign}b" for sign in SIGNS] + ["a\nb", "a\tb"]
REFUSED += [f"a {sign}b" for sign in QUOTED_SIGNS] + [f"{LONG}{sign}b" for sign in SHELL_SIGNS]


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
    made = call("make", "-s", "folder", f"PYTHON={sys.executable}")
    assert made.returncode == 2
    assert made.stderr.startswith("error: the folder ") and "rename or move it" in made.stderr


@pytest.mark.parametrize("name", [FINE, FINE_WITHOUT_SPACE, LONG, f"{LONG} [x]'"])
def test_other_names_are_fine_for_python_and_make(folder, name):
    here = folder(name)
    require_folder()
    git_init()
    require_repository()
    shutil.copy(ROOT / "Makefile", here)
    assert call("make", "-s", "folder", f"PYTHON={sys.executable}").returncode == 0


@pytest.mark.parametrize(
    "command",
    ["hpgr.cli params", "hpgr.cli register", "flows.train", "host.services up", "host.worker x"],
)
def test_a_command_in_such_a_folder_is_one_message_and_writes_nothing(folder, command):
    here = folder("what {}")
    shutil.copy(ROOT / "params.yaml", here)
    done = call(sys.executable, "-m", *command.split())
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the folder ") and done.stderr.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["params.yaml"]
    assert [path.name for path in here.parent.iterdir()] == ["what {}"]


def test_what_is_registered_there_is_found_from_elsewhere_and_nothing_lies_beside_it(folder):
    """By the address that `hpgr lineage` prints for other clones."""
    here = folder(FINE)
    make_project(here)
    before = {path.name for path in here.iterdir()}
    register = "import hpgr.config as c, hpgr.registry.register as r; r.register(c.load_config())"
    done = call(sys.executable, "-c", register)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in here.iterdir()} == before
    assert sqlite_file(own_uri()) == here / "mlflow/store/mlflow.db"
    assert sqlite_file(own_uri()).is_file()
    assert len([*here.glob("mlflow/store/artifacts/models/*")]) == 1
    address = own_uri()
    elsewhere = folder("elsewhere")
    shutil.copy(here / "params.yaml", elsewhere)
    base = (sys.executable, "-m", "hpgr.cli", "base", "1")
    done = call(*base, MLFLOW_TRACKING_URI=address)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "base/base.json").is_file()
    assert sorted(path.name for path in here.parent.iterdir()) == sorted([FINE, "elsewhere"])


def test_a_percent_sign_in_mlflows_own_folder_reaches_its_migrations(folder, monkeypatch):
    """The environment lies in the clone."""
    here = folder("100%25")
    mlflow = Path(utils.__file__).parents[2]
    (here / "mlflow").symlink_to(mlflow)
    code = "import hpgr.registry.tracking as t; print(len(t.connect().search_experiments()))"
    folder("project")
    done = call(sys.executable, "-c", code, PYTHONPATH=os.pathsep.join([str(here), str(ROOT)]))
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize("name", [FINE, FINE_WITHOUT_SPACE])
def test_prefects_database_lies_in_its_home(tmp_path, name):
    with temporary_settings({PREFECT_HOME: tmp_path / name}):
        (uri,) = own_database(tmp_path / name).values()
        assert make_url(uri).database == str(tmp_path / name / "prefect.db")
        with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: "postgresql+asyncpg://h/d"}):
            assert own_database(tmp_path / name) == {}


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
