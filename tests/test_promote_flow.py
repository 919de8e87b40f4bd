"""The gate and the moves as they stand on a Prefect run's page, read back from its server."""

import json

import mlflow
import pytest
from bare_registry import make_versions
from params_text import params_text
from prefect import flow
from prefect.client.orchestration import get_client

from flows import promote as flow_module
from hpgr.config import load_config
from hpgr.registry.tracking import connect
from hpgr.registry.versions import aliases

pytestmark = pytest.mark.usefixtures("prefect_server")
CHECKS = [
    {"rule": "ndcg@10 gains", "passed": True, "found": "0.1 to 0.2", "expected": "more"},
    {"rule": "hr@50 holds", "passed": False, "found": "0.5 to 0.4", "expected": "at most 2.0%"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all; each test has a model of its own in it."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def model(folder, monkeypatch, request):
    """Its name: version 1 is previous, 2 champion, 3 challenger."""
    name = request.node.name
    text = params_text("smoke").replace("model_name: hpgr", f"model_name: {name}")
    (folder / "params.yaml").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_versions(connect(), load_config())
    yield name
    mlflow.set_tracking_uri(None)


@pytest.fixture
def client(model):
    return connect()


@flow
def after_registration(version):
    return flow_module.judge_and_promote(version)


def run(started, **parameters):
    """The flow's return value, its run, and the run's artifacts by key."""
    state = started(**parameters, return_state=True)
    number = state.state_details.flow_run_id
    with get_client(sync_client=True) as prefect:
        found = {a.key: a for a in prefect.read_artifacts() if a.flow_run_id == number}
        return state.result(), prefect.read_flow_run(number), found


def judging(client, model, monkeypatch, word, *champions):
    """A gate that always says `word`, at its n-th call against the n-th of `champions`."""
    against = iter(champions)

    def judge(_, version):
        champion = next(against)
        for tag, value in (("verdict", word), ("champion", champion)):
            client.set_model_version_tag(model, str(version), f"gate.{tag}", str(value))
        checks = [{**check, "passed": word == "accepted" or check["passed"]} for check in CHECKS]
        facts = {"version": version, "champion": champion, "verdict": word}
        return {**facts, "reasons": ["ndcg@10 gains"], "checks": checks}

    monkeypatch.setattr(flow_module, "judge", judge)


def moved(client, model):
    (found,) = client.search_runs(
        [client.get_experiment_by_name("hpgr").experiment_id], f"tags.`move.model` = '{model}'"
    )
    return found.data.tags


def test_a_roll_back_shows_who_when_and_why(client, model):
    move, _, artifacts = run(flow_module.promote, roll_back=True, why="clicks fell", who="Ada")
    assert aliases(client, model) == {"champion": 1, "previous": 2, "challenger": 3}
    page = artifacts["champion"].data
    assert page.startswith("roll back: champion is version 1, before it version 2; clicks fell")
    for key in ("by", "at", "why"):
        assert f"| {key} | {move[key]} |" in page
    assert move["by"] == "Ada"


def test_a_move_names_the_run_of_the_flow(client, model):
    _, started, _ = run(flow_module.promote, version=1, why="try", force=True)
    assert moved(client, model)["move.via"] == f"Prefect flow run {started.name} ({started.id})"


def test_a_refused_version_is_a_table_and_moves_nothing(client, model, monkeypatch):
    judging(client, model, monkeypatch, "refused", 2)
    verdict, _, artifacts = run(after_registration, version=3)
    assert verdict["verdict"] == "refused"
    assert json.loads(artifacts["gate"].data) == [
        {**CHECKS[0], "passed": "yes"},
        {**CHECKS[1], "passed": "NO"},
    ]
    message = "**version 3: refused** against version 2, the champion at that time"
    assert artifacts["gate"].description == message
    assert "champion" not in artifacts
    assert aliases(client, model)["champion"] == 2


def test_an_accepted_version_becomes_the_champion(client, model, monkeypatch):
    judging(client, model, monkeypatch, "accepted", 2)
    _, _, artifacts = run(after_registration, version=3)
    assert aliases(client, model) == {"champion": 3, "previous": 2}
    assert "accepted by the gate: ndcg@10 gains" in artifacts["champion"].data


def test_where_the_gate_does_not_promote_a_person_does(client, model, monkeypatch):
    judging(client, model, monkeypatch, "accepted", 2)
    cfg = load_config()
    by_hand = cfg.model_copy(update={"gate": cfg.gate.model_copy(update={"promotes": False})})
    monkeypatch.setattr(flow_module, "load_config", lambda: by_hand)
    run(after_registration, version=3)
    assert aliases(client, model)["champion"] == 2


def test_a_champion_that_moved_meanwhile_is_judged_against_too(client, model, monkeypatch):
    judging(client, model, monkeypatch, "accepted", 1, 2)
    verdict, _, _ = run(after_registration, version=3)
    assert verdict["champion"] == 2
    assert aliases(client, model) == {"champion": 3, "previous": 2}


def test_nothing_to_judge_is_one_row(client, model, monkeypatch):
    nothing = {"version": 2, "champion": 2, "verdict": "champion", "checks": []}
    monkeypatch.setattr(flow_module, "judge", lambda *_: {**nothing, "reasons": ["it serves"]})
    _, _, artifacts = run(after_registration, version=2)
    assert json.loads(artifacts["gate"].data) == [
        {"rule": "nothing to judge", "found": "it serves"}
    ]
