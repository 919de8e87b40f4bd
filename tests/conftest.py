"""Fixtures that several test files share."""

import gc
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP; see hpgr.cli
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' processes fill the cores already

import pytest

with suppress(ModuleNotFoundError):  # before anything imports the networks
    import beartype  # noqa: F401
    from jaxtyping import install_import_hook

    # Every call of these modules has its arguments' shapes checked; see hpgr/model/shapes.py. Not
    # of Triton's kernels, which Triton compiles from their source.
    SHAPED = (
        "attention.bells", "attention.bias", "attention.cover", "attention.entry",
        "attention.key_attention", "attention.key_tiles", "attention.reference",
        "attention.select", "attention.tiles", "cross_features", "discounting", "dropout",
        "embedding", "hpgr", "hstu", "interface", "mtgr", "preference", "ranking_head", "sasrec",
        "session_encoder", "trunk", "unit",
    )  # fmt: skip
    install_import_hook([f"hpgr.model.{name}" for name in SHAPED], "beartype.beartype")

from evaluation_log import random_log, write_arrays
from once import made_once

from hpgr.runtime import TELEMETRY_OFF

# Nothing that a developer's machine sets may reach the repositories, remotes and stores of the
# tests: with GIT_DIR set, as in a git hook, their `git init` and `git commit` would hit this one.
for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_", "AWS_"))]:
    del os.environ[name]
here = Path(__file__).parent
os.environ |= TELEMETRY_OFF | {
    "GIT_CONFIG_GLOBAL": str(here / "gitconfig"),
    "GIT_CONFIG_NOSYSTEM": "1",
    "DVC_GLOBAL_CONFIG_DIR": str(here / "none"),
    "DVC_SYSTEM_CONFIG_DIR": str(here / "none"),
}

with suppress(ModuleNotFoundError):  # tests/gpu runs where there is no more than training needs
    from hypothesis import settings

    # The same examples at every run; to look for new ones: pytest --hypothesis-profile=default
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.load_profile("repeatable")


# What the collection imports stays to the end: no garbage collection need look through it, neither
# while it comes nor later.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """The long files first, so that no process of `make test` begins one when the others end."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)
    for item in items:
        # Drills kill processes, whose pipes and handles nobody is left to close.
        if "jvm" in item.fixturenames or "drills" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture
def jvm():
    """For tests that start Spark, whose sockets and pipes are left to the garbage collector."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def exact_products():
    """Training sets torch's precision of products for its process; each test begins without it."""
    if torch := sys.modules.get("torch"):
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def small_log():
    """Forty users with training, validation and test events."""
    return random_log(0)


@pytest.fixture(scope="session")
def arrays_writer():
    """Write a random log the way the sessionize stage does: (folder, num_users, seed)."""

    def write(folder, *, num_users, seed):
        write_arrays(random_log(seed, num_users=num_users), folder)

    return write


@pytest.fixture(scope="session")
def registered_project(tmp_path_factory):
    """A project folder with a small model, version 1 and champion of its registry; read it only."""
    from serving_project import make_project

    from hpgr.config import load_config
    from hpgr.registry.register import register

    def make(folder):
        make_project(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            register(load_config())

    return made_once("registered", make, tmp_path_factory)


@pytest.fixture
def own_registry(registered_project, tmp_path, monkeypatch):
    """A copy of the registered project to work in and change; its aliases may be moved."""
    import mlflow

    folder = tmp_path / "project"
    shutil.copytree(registered_project, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield folder
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory):
    """A database as Prefect's server makes it, in seconds, in a new PREFECT_HOME; copy it."""
    code = "from prefect.server.database import provide_database_interface as database\n"
    code += "import asyncio; asyncio.run(database().create_db())"

    def make(folder):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
        environment = {**kept, "PREFECT_HOME": str(folder)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)

    return made_once("prefect", make, tmp_path_factory) / "prefect.db"


@pytest.fixture(scope="module")
def prefect_server(prefect_database, tmp_path_factory):
    """A Prefect server with a database of its own, for flows of this process."""
    from prefect.testing import utilities

    folder = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, folder / "prefect-test.db")  # where the harness has it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        with utilities.prefect_test_harness(server_startup_timeout=120):
            yield
