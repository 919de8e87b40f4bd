"""Addresses of servers that are wrong or dead: one message that says where they come from."""

import socket
from contextlib import closing

import httpx
import pytest
from prefect import flow
from prefect.context import use_profile
from prefect.settings import PREFECT_API_URL, Profile

from flows.faults import is_transient
from flows.launch import launch
from host.prefect_server import named_by, wait_for_server
from host.services import services
from hpgr.registry.tracking import check_address, connect, split_address
from hpgr.runtime import UserError

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
FILES = ("./mlruns", "mlruns", "/srv/mlruns", "file:///srv/mlruns", "file:mlruns")


@pytest.fixture
def dead():
    """A port on which nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder without a project, and nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in (*VARIABLES, "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("uri", FILES)
def test_plain_files_are_no_store_of_versions(alone, monkeypatch, variable, uri):
    monkeypatch.setenv(variable, uri)
    with pytest.raises(UserError, match=rf"^{variable} is '.*unset {variable}") as refused:
        connect()
    assert not is_transient(refused.value)
    assert not list(alone.iterdir())


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("kind", ["http", "https", "postgresql", "postgresql+psycopg2"])
def test_a_store_that_does_not_answer_is_named_with_its_variable(
    alone, monkeypatch, dead, variable, kind
):
    monkeypatch.setenv(variable, f"{kind}://me:secret@127.0.0.1:{dead}/there")
    named = (
        rf"^MLflow at {kind.replace('+', '.')}://\*\*\*@127.0.0.1:{dead}/there does not answer .*"
    )
    with pytest.raises(UserError, match=rf"{named} environment variable {variable}") as refused:
        connect()
    assert "secret" not in str(refused.value)
    assert is_transient(refused.value)
    assert not list(alone.iterdir())


@pytest.mark.parametrize("uri", ["http://host:port", "http://[1"])
def test_what_is_no_address_is_reported(uri):
    with pytest.raises(UserError, match=r"^V is not an address"):
        split_address("V", uri)


def test_a_store_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"^V begins with 'gopher', expected http"):
        split_address("V", "gopher://host/x")


def test_a_store_that_answers_anything_is_left_to_mlflow(alone):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        check_address("V", f"postgresql://me@127.0.0.1:{server.getsockname()[1]}/x")
    check_address("V", "sqlite:///mlflow.db")


def test_make_up_refuses_a_folder_for_mlflow(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI is '\./mlruns'"):
        services()


PLACES = {
    "the environment variable PREFECT_API_URL": lambda folder, patch: patch.setenv(
        "PREFECT_API_URL", "http://x"
    ),
    "PREFECT_API_URL in {folder}/.env": lambda folder, _: (folder / ".env").write_text(
        "A=b\nPREFECT_API_URL=http://x\n"
    ),
    "[api] url in {folder}/prefect.toml": lambda folder, _: (folder / "prefect.toml").write_text(
        '[api]\nurl = "http://x"\n'
    ),
    "[tool.prefect.api] url in {folder}/pyproject.toml": lambda folder, _: (
        folder / "pyproject.toml"
    ).write_text('[tool.prefect.api]\nurl = "http://x"\n'),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_place_that_names_the_server_is_reported(alone, monkeypatch, place):
    (alone / "prefect.toml").write_text("[server]\nanalytics_enabled = false\n")
    PLACES[place](alone, monkeypatch)
    assert f"comes from {place.format(folder=alone)}: " in named_by()


def test_a_profile_that_names_the_server_is_reported(alone):
    profile = Profile(name="old", settings={PREFECT_API_URL: "http://x"}, source=alone / "p.toml")
    with use_profile(profile, include_current_context=False):
        assert f"comes from the profile 'old' in {alone}/p.toml: " in named_by()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{dead}/api", "nonsense", "ftp://x/api"])
def test_a_flow_for_a_server_that_is_not_there_is_one_message(
    alone, monkeypatch, dead, uri, capsys
):
    monkeypatch.setattr("flows.launch.SERVER_DEADLINE_S", 0)

    @flow
    def never():
        raise AssertionError("it must not run")

    profile = Profile(name="old", settings={PREFECT_API_URL: uri.format(dead=dead)})
    with use_profile(profile, include_current_context=False), pytest.raises(SystemExit) as ended:
        launch(never)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "the profile 'old'" in said


def test_a_server_behind_the_profile_of_another_is_not_waited_for(alone):
    profile = Profile(name="old", settings={PREFECT_API_URL: "nonsense"})
    with (
        use_profile(profile, include_current_context=False),
        pytest.raises(UserError, match="is no address") as refused,
    ):
        wait_for_server(3600)
    assert isinstance(refused.value.__cause__, httpx.UnsupportedProtocol)
