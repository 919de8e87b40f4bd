"""The gate and the champion's moves in a store of their own: judged, promoted, rolled back."""

import json
import subprocess
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_log import random_log
from registry_project import make_project, write_network

from hpgr.config import load_config
from hpgr.data.log import TEST, EventLog
from hpgr.evaluation.contest import Change, Contest
from hpgr.monitoring.champions import history
from hpgr.registry import judge as judge_module
from hpgr.registry import moves, tracking
from hpgr.registry.gate import Past, decide
from hpgr.registry.judge import as_markdown, contestant, judge
from hpgr.registry.register import register
from hpgr.registry.trace import restore, trace
from hpgr.registry.versions import aliases, bundle_of, get_version
from hpgr.runtime import UserError


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A committed project with three versions: 1 champion, 3 challenger."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    (folder / ".gitignore").write_text("artifacts/\nmlflow/store/\n")
    (folder / "model.py").write_text("WIDTH = 16\n")
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for seed in range(3):
            write_network(folder / "artifacts/finetune", random_log(0), load_config(), seed=seed)
            if seed == 2:
                (folder / "model.py").write_text("WIDTH = 32\n")
            register(load_config())
    return folder


@pytest.fixture(autouse=True)
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def client():
    return tracking.connect()


@pytest.fixture
def start(client):
    """Aliases as after registration, whatever a test moved."""

    def reset():
        for alias in ("previous", "challenger", "champion"):
            if alias in aliases(client, "hpgr"):
                client.delete_registered_model_alias("hpgr", alias)
        client.set_registered_model_alias("hpgr", "champion", "1")
        client.set_registered_model_alias("hpgr", "challenger", "3")

    reset()
    return reset


def config(**gate):
    cfg = load_config()
    return cfg.model_copy(update={"gate": cfg.gate.model_copy(update=gate)})


GENEROUS = {"metric": "hr@10", "significance": 1.0, "max_slice_fall": 1.0, "guards": {}}


def last_move(client):
    experiment = client.get_experiment_by_name("hpgr").experiment_id
    runs = client.search_runs([experiment], "tags.`move.alias` = 'champion'")
    return max(runs, key=lambda run: run.info.start_time)


def accept(client, version, *, against):
    """The tags of an accepted verdict."""
    for tag, value in (("verdict", "accepted"), ("champion", against)):
        client.set_model_version_tag("hpgr", str(version), f"gate.{tag}", str(value))


def test_the_first_version_is_champion_by_registration_and_that_is_recorded(client, start):
    experiment = client.get_experiment_by_name("hpgr").experiment_id
    (first,) = client.search_runs([experiment], "tags.`move.kind` = 'register'")
    assert (first.data.tags["move.from"], first.data.tags["move.to"]) == ("none", "1")
    assert first.info.status == "FINISHED"


def test_a_verdict_is_file_tags_and_description(client, start):
    verdict = judge(config(**GENEROUS))
    assert (verdict["version"], verdict["champion"]) == (3, 1)
    version = client.get_model_version("hpgr", "3")
    assert version.tags["gate.verdict"] == verdict["verdict"]
    assert version.tags["gate.champion"] == "1"
    assert as_markdown(verdict) in version.description
    assert version.description.count("## Gate") == 1
    assert json.loads(Path("artifacts/gate/verdict.json").read_text()) == verdict
    stored = {entry.path for entry in client.list_artifacts(version.run_id, "gate")}
    assert stored == {"gate/verdict.html", "gate/verdict.json"}


def test_what_the_gate_found_of_the_champion_is_in_its_history(start):
    cfg = config(**GENEROUS)
    verdict = judge(cfg)
    (score,) = [score for score in history(cfg).scores if score.version == 1]
    assert score.metric == verdict["metrics"]["hr@10"]["champion"]
    assert (score.protocol, score.at.isoformat()) == ("R1", verdict["judged_at"])


def test_a_verdict_by_baskets_is_one_of_their_protocol(start, monkeypatch):
    cfg = config(**{**GENEROUS, "metric": "basket.ndcg@10"})
    figure = Change(0.2, 0.3, 0.05, 0.15, 0.01, 40)
    found = Contest(("R2", "B1"), {"basket.ndcg@10": figure}, {"user: more than 3": figure})
    decided = decide(found, cfg.gate, Past())
    monkeypatch.setattr(judge_module, "_decide", lambda *_: (found, decided))
    verdict = judge(cfg)
    assert (verdict["protocol"], verdict["verdict"]) == ("B1", "accepted")
    (score,) = history(cfg).scores
    assert (score.protocol, score.metric) == ("B1", 0.2)


def test_both_are_scored_on_the_same_queries(start):
    verdict = judge(config(**GENEROUS))
    assert {figure["queries"] for figure in verdict["metrics"].values()} == {40}


def test_the_same_question_gets_the_same_answer_without_scoring_again(start, monkeypatch):
    first = judge(config(**GENEROUS))
    monkeypatch.setattr("hpgr.evaluation.contest.contest", None)
    assert judge(config(**GENEROUS)) == first


def test_other_rules_are_another_question(client, start):
    judge(config(**GENEROUS))
    verdict = judge(config(**{**GENEROUS, "margin": 1000.0}))
    assert verdict["verdict"] == "refused"
    description = client.get_model_version("hpgr", "3").description
    assert description.count("## Gate") == 1
    assert "**failed**" in description


def test_a_roll_back_is_another_question(client, start):
    """The same champion, version, rules and log as before: the mark alone asks anew."""
    rules = config(**GENEROUS)
    judge(rules, 3)
    moves.move(config(), 3, why="try", force=True)
    moves.move(config(), back=True, why="clicks fell")
    try:
        verdict = judge(rules, 3)
        assert verdict["verdict"] == "refused"
        assert any("rolled back" in reason for reason in verdict["reasons"])
    finally:
        client.delete_model_version_tag("hpgr", "3", "rolled_back")


def test_a_verdict_of_another_question_is_not_repeated(client, start):
    """Another clone put its verdict beside this one's key."""
    first = judge(config(**GENEROUS))
    other = json.dumps({**first, "key": "another", "verdict": "accepted", "reasons": ["mine"]})
    client.log_text(client.get_model_version("hpgr", "3").run_id, other, "gate/verdict.json")
    again = judge(config(**GENEROUS))
    assert (again["key"], again["reasons"]) == (first["key"], first["reasons"])


def test_what_is_published_is_what_was_judged_now(client, start, monkeypatch):
    """Another judge replaces artifacts/gate in between."""
    write = judge_module._write
    monkeypatch.setattr(
        judge_module, "_write", lambda to, files: write(to, dict.fromkeys(files, "{}"))
    )
    verdict = judge(config(**{**GENEROUS, "margin": 0.003}))
    run = client.get_model_version("hpgr", "3").run_id
    assert mlflow.artifacts.load_dict(f"runs:/{run}/gate/verdict.json") == verdict


def test_without_a_champion_there_is_nothing_to_compare_with(client, start):
    client.delete_registered_model_alias("hpgr", "champion")
    verdict = judge(config(), 2)
    assert (verdict["verdict"], verdict["champion"]) == ("unjudged", None)
    assert "there is no champion to compare version 2 with" in as_markdown(verdict)
    assert "no champion" in Path("artifacts/gate/verdict.html").read_text()


def test_the_champion_is_not_judged(start):
    verdict = judge(config(), 1)
    assert verdict["verdict"] == "champion"
    assert "nothing to compare" in as_markdown(verdict)


def test_versions_that_trained_on_todays_test_events_are_no_comparison(start):
    """Another split today: the first event of each user, which both were trained on, is test."""
    path = Path("artifacts/sessions/events.parquet")
    before, log = path.read_bytes(), pq.read_table(path)
    split = np.where(log["position"].to_numpy() == 0, TEST, log["split"].to_numpy())
    pq.write_table(log.drop_columns("split").append_column("split", pa.array(split)), path)
    try:
        verdict = judge(config(**{**GENEROUS, "margin": 0.001}))
    finally:
        path.write_bytes(before)
    assert verdict["verdict"] == "refused"
    for version in (1, 3):
        rule = f"version {version} has not trained on today's test events"
        (reason,) = [reason for reason in verdict["reasons"] if reason.startswith(rule)]
        assert "40 of 80" in reason


def test_a_refused_version_needs_force(client, start):
    judge(config(**{**GENEROUS, "margin": 1000.0}))
    with pytest.raises(UserError, match=r"the gate refused version 3: hr@10 gains"):
        moves.move(config(), why="I like it")
    assert aliases(client, "hpgr")["champion"] == 1
    moves.move(config(), why="I like it", force=True)
    assert aliases(client, "hpgr") == {"champion": 3, "previous": 1}


def test_a_version_that_was_never_judged_needs_force(start):
    with pytest.raises(UserError, match="never judged"):
        moves.move(config(), 2, why="try it")


def test_an_accepted_version_is_promoted_and_the_move_recorded(client, start):
    accept(client, 3, against=1)
    move = moves.move(config(), why="better")
    assert aliases(client, "hpgr") == {"champion": 3, "previous": 1}
    run = last_move(client)
    assert run.info.status == "FINISHED"
    found = {key: run.data.tags[f"move.{key}"] for key in ("from", "to", "why", "by", "at")}
    assert found == {"from": "1", "to": "3", "why": "better", "by": move.by, "at": move.at}
    assert run.data.tags["move.model"] == "hpgr"
    assert client.get_model_version("hpgr", "3").tags["champion.why"] == "better"


def test_accepted_against_another_champion_is_not_accepted(client, start):
    accept(client, 3, against=2)
    message = r"judged against version 2, the champion is 1: run `hpgr gate 3`"
    with pytest.raises(moves.OldVerdict, match=message):
        moves.move(config(), why="better")
    assert aliases(client, "hpgr")["champion"] == 1


def test_a_move_keeps_who_decided_and_what_started_it(client, start):
    moves.move(config(), 3, why="x", back=False, force=True, who="Ada", via="a run")
    tags = last_move(client).data.tags
    assert (tags["move.by"], tags["move.via"]) == ("Ada", "a run")
    assert client.get_model_version("hpgr", "3").tags["champion.by"] == "Ada"


def test_promoting_the_champion_changes_nothing(client, start):
    before = last_move(client).info.run_id
    assert moves.move(config(), 1, why="").kind == "none"
    assert last_move(client).info.run_id == before


def test_the_way_back_and_no_further(client, start):
    moves.move(config(), 3, why="try", force=True)
    moves.move(config(), back=True, why="clicks fell")
    assert aliases(client, "hpgr") == {"champion": 1, "previous": 3}
    assert "clicks fell" in client.get_model_version("hpgr", "3").tags["rolled_back"]
    with pytest.raises(UserError, match=r"previous is version 3, which was rolled back"):
        moves.move(config(), back=True, why="again")
    client.set_registered_model_alias("hpgr", "challenger", "3")
    verdict = judge(config(**{**GENEROUS, "margin": 0.002}))
    assert any("rolled back" in reason for reason in verdict["reasons"])
    moves.move(config(), 3, why="the clicks were the season's", force=True)
    assert "rolled_back" not in client.get_model_version("hpgr", "3").tags


def test_without_a_previous_champion_there_is_no_way_back(start):
    with pytest.raises(UserError, match="no previous champion"):
        moves.move(config(), back=True, why="x")


@pytest.mark.parametrize("back", [True, False])
def test_a_move_without_a_reason_is_refused(client, start, back):
    client.set_registered_model_alias("hpgr", "previous", "2")
    with pytest.raises(UserError, match="say why"):
        moves.move(config(), None, why=" ", back=back, force=True)


def test_a_roll_back_names_no_version(start):
    with pytest.raises(UserError, match="promote it"):
        moves.move(config(), 2, why="x", back=True, force=False)


def test_an_interrupted_move_shows_and_keeps_a_champion(client, start, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(moves, "_point", die)
    with pytest.raises(KeyboardInterrupt):
        moves.move(config(), 3, why="try", force=True)
    assert last_move(client).info.status == "FAILED"
    assert aliases(client, "hpgr")["champion"] == 1


def test_an_unknown_version_is_reported_with_those_that_exist(client, start):
    with pytest.raises(UserError, match=r"no version 9 of hpgr; it has 1, 2, 3"):
        get_version(client, "hpgr", 9)


def test_a_bundle_in_another_vocabulary_is_read_by_external_ids(start, tmp_path):
    """The same items in reversed order: every id of the log finds its own."""
    log = EventLog.open(Path("artifacts/sessions/arrays"))
    with bundle_of("hpgr", 1) as bundle:
        items = pq.read_table(bundle / "items.parquet")
        names = items["item_id"].to_pylist()
        reverse = items.set_column(1, "item_id", [names[::-1]])
        pq.write_table(reverse, bundle / "items.parquet")
        found = contestant(bundle, "cpu")
    np.testing.assert_array_equal(found.ids.item, [0, 1, *range(log.meta.num_items - 1, 1, -1)])


def test_lineage_tells_where_a_version_comes_from(client, start):
    message = trace(config(), 3)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f"git checkout {commit}" in message
    assert "dvc.data          abc.dir" in message
    assert "  model.dim: 16" in message
    assert "dvc pull" in message


def test_lineage_restores_files_and_code_as_they_were(project, start, tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow/store/mlflow.db")
    monkeypatch.chdir(clone)
    (clone / "params.yaml").write_text((clone / "params.yaml").read_text() + "# mine\n")
    restore(load_config(), 3)
    assert (clone / "model.py").read_text() == "WIDTH = 32\n"
    for name in ("params.yaml", "data.dvc", "dvc.lock"):
        assert (clone / name).read_text() == (project / name).read_text()
    restore(load_config(), 3)  # a second time changes nothing
    assert (clone / "model.py").read_text() == "WIDTH = 32\n"


def test_lineage_at_another_commit_says_which(project, start, tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(
        ["git", *author, "commit", "-qm", "next", "--allow-empty"], cwd=clone, check=True
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow/store/mlflow.db")
    monkeypatch.chdir(clone)
    with pytest.raises(UserError, match=r"was made at commit \w{40}.*git checkout"):
        restore(load_config(), 3)
