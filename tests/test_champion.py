"""The server follows the registry: promotions, roll-backs, and a registry that is gone."""

import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import httpx
import mlflow
import pytest
from serving_project import (
    ONE,
    PYTHON,
    call,
    environment,
    promote,
    register_another,
)
from waiting import until

from hpgr.config import load_config
from hpgr.registry.bundle import write_bundle
from hpgr.registry.tracking import connect
from hpgr.registry.versions import BUNDLE
from hpgr.runtime import UserError, read_json, write_json
from hpgr.serving.champion import Champion, load
from hpgr.serving.server import create_app


@pytest.fixture
def champion(own_registry):
    watch = Champion("hpgr", connect)
    watch.look()
    assert watch.problem is None
    return watch


def test_a_promotion_and_a_roll_back_are_followed(own_registry):
    champion = Champion("hpgr", connect)
    app = create_app(champion, load_config().serve)
    champion.look()
    before = call(app, "POST", "/recommend", json=ONE)[1]
    second = register_another(7)
    champion.look()
    assert call(app, "POST", "/recommend", json=ONE)[1] == before
    promote(second)
    champion.look()
    after = call(app, "POST", "/recommend", json=ONE)[1]
    assert after["model"]["version"] == second
    assert after["answers"] != before["answers"]
    promote(1)
    champion.look()
    assert call(app, "POST", "/recommend", json=ONE)[1] == before


def test_a_registry_that_is_gone_leaves_the_model_and_says_so(champion):
    app = create_app(champion, load_config().serve)
    before = call(app, "POST", "/recommend", json=ONE)
    assert call(app, "GET", "/ready")[1]["problem"] is None

    def gone(*_):
        raise mlflow.exceptions.MlflowException("connection refused")

    champion._client.get_model_version_by_alias = gone
    champion.look()
    status, ready = call(app, "GET", "/ready")
    assert (status, ready["model"]["version"]) == (200, 1)
    assert ready["problem"] == "the registry cannot be reached: connection refused"
    assert call(app, "POST", "/recommend", json=ONE) == before
    del champion._client.get_model_version_by_alias
    champion.look()
    assert call(app, "GET", "/ready")[1]["problem"] is None


def test_a_champion_that_cannot_be_read_leaves_the_one_before(own_registry):
    champion = Champion("hpgr", connect)
    app = create_app(champion, load_config().serve)
    champion.look()
    promote(register_another(8))
    version = connect().get_model_version_by_alias("hpgr", "champion")
    model_id = version.source.removeprefix("models:/")
    stored = connect().get_logged_model(model_id).artifact_location.removeprefix("file://")
    weights = Path(stored) / BUNDLE / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    champion.look()
    ready = call(app, "GET", "/ready")[1]
    assert ready["model"]["version"] == 1
    assert ready["problem"]
    assert call(app, "POST", "/recommend", json=ONE)[0] == 200


def unknown_key(bundle):
    """As a later release of the project would write it."""
    serving = read_json(bundle / "serving.json")
    write_json(bundle / "serving.json", {**serving, "novelty": 1})


def fewer_keys(bundle):
    serving = read_json(bundle / "serving.json")
    write_json(bundle / "serving.json", {"gap_s": serving["gap_s"]})


def no_key_of_the_network(bundle):
    config = read_json(bundle / "model/config.json")
    del config["model"]["num_blocks"]
    write_json(bundle / "model/config.json", config)


def other_width(bundle):
    config = read_json(bundle / "model/config.json")
    config["model"]["dim"] *= 2
    write_json(bundle / "model/config.json", config)


def cut(name):
    def harm(bundle):
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content[: len(content) // 2])

    return harm


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (unknown_key, "unexpected keyword argument 'novelty'"),
        (fewer_keys, "missing 4 required"),
        (no_key_of_the_network, "num_blocks"),
        (other_width, "Error(s) in loading state_dict"),
        (cut("model/model.safetensors"), "(model/model.safetensors is damaged"),
        (cut("items.parquet"), "Parquet"),
        (lambda bundle: (bundle / "actions.parquet").unlink(), "(actions.parquet not found"),
    ],
)
def test_a_version_that_cannot_be_read_is_one_message(
    registered_project, tmp_path, monkeypatch, harm, why
):
    """A good bundle, harmed; the message names the version and no temporary file."""
    monkeypatch.chdir(registered_project)
    bundle = write_bundle(load_config(), tmp_path / "bundle")
    harm(bundle)
    version = SimpleNamespace(name="hpgr", version="7")
    with (
        patch("mlflow.artifacts.download_artifacts", return_value=str(bundle)),
        pytest.raises(UserError) as reported,
    ):
        load(version)
    message = str(reported.value)
    assert message.startswith("hpgr version 7 cannot be read by this installation (")
    assert message.endswith("): promote another version or register again")
    assert why in message
    assert str(tmp_path) not in message and "\n" not in message


def test_without_a_champion_it_says_why_and_takes_it_when_it_comes(own_registry):
    connect().delete_registered_model_alias("hpgr", "champion")
    champion = Champion("hpgr", connect)
    app = create_app(champion, load_config().serve)
    champion.look()
    for method, path, body in (("GET", "/ready", None), ("POST", "/recommend", ONE)):
        status, reported = call(app, method, path, json=body)
        assert status == 503
        assert "the registry has no hpgr@champion" in reported["detail"]
    assert call(app, "GET", "/health") == (200, {"status": "alive"})
    promote(1)
    champion.look()
    assert call(app, "POST", "/recommend", json=ONE)[0] == 200


def test_the_real_server_swaps_versions_without_dropping_a_request(own_registry):
    """Requests run all the time while the alias moves: each is answered, by one or the other."""
    params = own_registry / "params.yaml"
    params.write_text(params.read_text().replace("reload_s: 10 ", "reload_s: 0.1 "))
    base = f"http://127.0.0.1:{load_config().serve.port}"
    second = register_another(9)
    process = subprocess.Popen(
        [PYTHON, "-m", "hpgr.cli", "serve"],
        cwd=own_registry,
        env=environment(own_registry),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(lambda: status_of(f"{base}/ready") == 200, "the server is ready")
        seen, stop = [], threading.Event()

        def keep_asking():
            with httpx.Client() as client:
                while not stop.is_set():
                    reply = client.post(f"{base}/recommend", json=ONE)
                    seen.append((reply.status_code, reply.json()["model"]["version"]))

        askers = [threading.Thread(target=keep_asking) for _ in range(3)]
        for asker in askers:
            asker.start()
        for version in (second, 1):
            promote(version)
            until(lambda v=version: seen and seen[-1] == (200, v), "the swap")
        stop.set()
        for asker in askers:
            asker.join()
        assert {status for status, _ in seen} == {200}
        assert {version for _, version in seen} == {1, second}
        again = subprocess.run(
            [PYTHON, "-m", "hpgr.cli", "serve"],
            cwd=own_registry,
            env=environment(own_registry),
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 2
        assert "another process listens there" in again.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=300)[0]
    assert "Traceback" not in output, output


def status_of(url):
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return None
