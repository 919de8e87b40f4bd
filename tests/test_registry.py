"""Registration in a store of its own, with a small untrained network in place of a trained one."""

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from registry_project import make_project

from hpgr.config import load_config
from hpgr.monitoring.champions import history
from hpgr.registry import pipeline_runs, tracking
from hpgr.registry import register as registration
from hpgr.registry.bundle import check_bundle, content_hashes, write_bundle
from hpgr.registry.moves import move
from hpgr.registry.register import content_key, register
from hpgr.registry.versions import aliases
from hpgr.runtime import UserError, read_json, sole_writer, write_json
from hpgr.serving.recommender import Recommender
from hpgr.serving.request import Request


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def registered(project):
    """The first registration of the project's model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return register(load_config())


@pytest.fixture
def client(registered):
    return tracking.connect()


def test_the_first_version_is_champion(registered, client):
    assert (registered["version"], registered["alias"], registered["new"]) == (1, "champion", True)
    assert client.get_model_version_by_alias("hpgr", "champion").run_id == registered["run_id"]
    assert json.loads(Path("artifacts/registered.json").read_text())["key"] == registered["key"]


def test_the_same_model_and_data_make_no_second_version(registered, client):
    again = register(load_config())
    assert again == {**registered, "new": False}
    assert len(client.search_model_versions("name='hpgr'")) == 1


def test_the_parent_run_carries_headline_lineage_and_card(registered, client):
    run = client.get_run(registered["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["R1.hr_at_10"] == 0.5
    assert run.data.tags["dvc.data"] == "abc.dir"
    assert len(run.data.tags["environment.lock"]) == 64
    names = {entry.path for entry in client.list_artifacts(registered["run_id"])}
    assert {"report.html", "model_card.md"} <= names
    card = client.get_model_version("hpgr", "1").description
    assert "| hpgr | 0.5000 | 0.2500 |" in card
    assert registered["key"] in card


def test_a_version_that_a_baseline_beats_is_marked(tmp_path, monkeypatch, capsys):
    """With a tag and in its description; judged anew, the tag goes."""
    monkeypatch.chdir(make_project(tmp_path))
    sentence = "Serve transitions instead of hpgr: on 9 validation queries it reaches more."
    verdict = {"serve_instead": "transitions", "sentence": sentence}
    write_json(Path("artifacts/evaluation/verdict.json"), verdict)
    version = str(register(load_config())["version"])
    assert f"beaten_by transitions: {sentence}" in capsys.readouterr().out
    found = tracking.connect().get_model_version("hpgr", version)
    assert found.tags["beaten_by"] == "transitions"
    assert sentence in found.description
    write_json(Path("artifacts/evaluation/verdict.json"), {**verdict, "serve_instead": None})
    assert str(register(load_config())["version"]) == version
    assert "beaten_by" not in tracking.connect().get_model_version("hpgr", version).tags
    assert "beaten_by" not in capsys.readouterr().out


def test_every_stage_has_a_nested_run_with_its_parameters(registered, client):
    experiment = client.get_experiment_by_name("hpgr").experiment_id
    nested = {
        run.info.run_name: run
        for run in client.search_runs([experiment])
        if run.data.tags.get("mlflow.parentRunId") == registered["run_id"]
    }
    assert set(nested) == {"validate", "sessionize", "pretrain", "finetune", "evaluate"}
    assert nested["sessionize"].data.params["sessionize.gap_s"] == "1800"
    assert nested["finetune"].data.params["model.dim"] == "16"
    assert nested["validate"].data.tags["dvc.deps.data/x"] == "d1"
    assert nested["finetune"].data.tags["dvc.lock"] == "absent"
    assert nested["evaluate"].data.metrics["anchors.drops.random.ndcg_at_10.value"] == 0.125


def test_curves_and_resources_become_series(registered, client):
    experiment = client.get_experiment_by_name("hpgr").experiment_id
    (run,) = client.search_runs([experiment], "tags.`mlflow.runName` = 'finetune'")
    loss = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in loss] == [(10, 2.5), (20, 1.5)]
    cpu = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert [(m.timestamp, m.value) for m in cpu] == [(1000500, 50.0), (1001000, 75.0)]
    assert "note" not in run.data.metrics
    assert run.info.start_time == 1000500


def test_artifacts_lie_in_the_own_store(registered, client):
    location = client.get_run(registered["run_id"]).info.artifact_uri
    assert location.startswith(Path("mlflow/store/artifacts").resolve().as_uri())
    assert not Path("mlruns").exists()


def test_the_served_version_answers_like_the_artifacts(registered, client, tmp_path):
    events = {"item_ids": ["id3", "id4"], "timestamps": [100, 200], "actions": ["5", "1"]}
    model = mlflow.pyfunc.load_model("models:/hpgr@champion")
    frame = pd.DataFrame([{"request_time": 300, **events}])
    served = model.predict(frame, params={"k": 5})
    bundle = write_bundle(load_config(), tmp_path / "bundle")
    (answer,) = Recommender.load(bundle, device="cpu").recommend([Request(300, **events)], k=5)
    assert served["item_id"].tolist() == [item.item_id for item in answer.items]
    np.testing.assert_allclose(served["score"], [item.score for item in answer.items])
    assert served["rank"].tolist() == [1, 2, 3, 4, 5]


def test_the_served_version_refuses_events_after_the_request(registered, client):
    model = mlflow.pyfunc.load_model("models:/hpgr@champion")
    frame = pd.DataFrame([{"request_time": 50, "item_ids": ["id3"], "timestamps": [100]}])
    with pytest.raises(MlflowException, match="after the request time"):
        model.predict(frame)


def test_the_version_holds_no_pickle(registered, client):
    folder = Path(mlflow.artifacts.download_artifacts("models:/hpgr@champion"))
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
    assert (folder / "artifacts" / "bundle" / "items.parquet").is_file()


def changed_params(project, monkeypatch, tmp_path):
    """The project's artifacts beside a params.yaml that says something else by now."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("store"))
    text = (folder / "params.yaml").read_text()
    for old, new in (
        ("max_history: 200", "max_history: 7"),
        ("retrieve: 50", "retrieve: 9"),
        ("remove_history: auto", "remove_history: false"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text)
    monkeypatch.chdir(folder)
    return load_config()


def test_a_bundle_holds_the_rules_of_training_and_judgement(project, monkeypatch, tmp_path):
    cfg = changed_params(project, monkeypatch, tmp_path)
    rules = {"retrieve": 50, "remove_history": True, "like_weight": 0.2}
    write_json(Path("artifacts/evaluation/rules.json"), rules)
    serving = read_json(write_bundle(cfg, tmp_path / "bundle") / "serving.json")
    assert (serving["max_history"], serving["retrieve"]) == (200, 50)
    assert serving["remove_history"] is True
    assert serving["like_weight"] == 0.2


def test_a_bundle_of_an_evaluation_without_a_weight_has_none(project, monkeypatch, tmp_path):
    """It was judged in the order by pCTR alone, and that is what its version keeps."""
    cfg = changed_params(project, monkeypatch, tmp_path)
    write_json(Path("artifacts/evaluation/rules.json"), {"retrieve": 50, "remove_history": True})
    bundle = write_bundle(cfg, tmp_path / "bundle")
    assert "like_weight" not in read_json(bundle / "serving.json")
    assert check_bundle(bundle).blend.like_weight is None


def test_rules_of_a_model_that_was_never_judged_are_those_of_params(project, monkeypatch, tmp_path):
    cfg = changed_params(project, monkeypatch, tmp_path)
    serving = read_json(write_bundle(cfg, tmp_path / "bundle") / "serving.json")
    assert (serving["max_history"], serving["retrieve"]) == (200, 9)
    assert serving["remove_history"] is False
    assert serving["like_weight"] == 0  # retrieval's own order


@pytest.mark.parametrize("name", ["num_items", "num_actions", "gap_s"])
def test_a_model_of_another_log_makes_no_bundle(project, monkeypatch, tmp_path, name):
    cfg = changed_params(project, monkeypatch, tmp_path)
    meta = Path("artifacts/sessions/arrays/meta.json")
    write_json(meta, {**read_json(meta), name: 99})
    with pytest.raises(
        UserError, match=rf"another log .*\({name} is \d+, now 99\): run `dvc repro"
    ):
        write_bundle(cfg, tmp_path / "bundle")


def test_the_key_follows_weights_vocabulary_and_rules(project, tmp_path):
    cfg = load_config()
    bundle = write_bundle(cfg, tmp_path / "one")
    key = content_key(bundle)
    assert content_key(write_bundle(cfg, tmp_path / "two")) == key
    for name in content_hashes(bundle):
        changed = tmp_path / name.replace("/", "-")
        shutil.copytree(bundle, changed)
        (changed / name).write_bytes((changed / name).read_bytes() + b" ")
        assert content_key(changed) != key, name


def test_a_changed_model_becomes_the_challenger(registered, client, project):
    source = project / "artifacts" / "sessions" / "actions.parquet"
    before = source.read_bytes()
    table = pa.table({"action": pa.array([1, 2], pa.int16()), "name": ["1", "4"]})
    pq.write_table(table, source)
    try:
        second = register(load_config())
        assert (second["version"], second["alias"], second["new"]) == (2, "challenger", True)
        assert client.get_model_version_by_alias("hpgr", "champion").version == 1
    finally:
        source.write_bytes(before)
    assert register(load_config())["alias"] == "champion"


@pytest.fixture
def versions(registered, client):
    """The numbers of the versions; aliases and versions are put back afterwards."""

    def numbers():
        return sorted(int(v.version) for v in client.search_model_versions("name='hpgr'"))

    before, called = numbers(), aliases(client, "hpgr")
    yield numbers
    for alias in aliases(client, "hpgr"):
        client.delete_registered_model_alias("hpgr", alias)
    for number in set(numbers()) - set(before):
        client.delete_model_version("hpgr", str(number))
    for alias, number in called.items():
        client.set_registered_model_alias("hpgr", alias, str(number))


@pytest.fixture
def changed(project):
    """Another model than the registered one."""
    source = project / "artifacts" / "sessions" / "actions.parquet"
    before = source.read_bytes()
    table = pa.table({"action": pa.array([1, 2], pa.int16()), "name": ["0", "4"]})
    pq.write_table(table, source)
    yield
    source.write_bytes(before)


def test_two_clones_at_once_make_one_version(versions, changed, project, tmp_path, monkeypatch):
    before, make, other = versions(), registration._new_version, []
    clone = shutil.copytree(project, tmp_path / "clone")

    def interleaved(*arguments):
        """The other clone registers after this one has found nothing."""
        monkeypatch.setattr(registration, "_new_version", make)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow/store/mlflow.db")
        monkeypatch.chdir(clone)
        other.append(register(load_config()))
        monkeypatch.chdir(project)
        return make(*arguments)

    monkeypatch.setattr(registration, "_new_version", interleaved)
    mine = register(load_config())
    assert (mine["new"], other[0]["new"]) == (False, True)
    assert (mine["version"], mine["run_id"]) == (other[0]["version"], other[0]["run_id"])
    assert versions() == [*before, other[0]["version"]]


def test_a_version_made_twice_by_a_lost_reply_is_one(versions, changed, monkeypatch):
    before, make = versions(), MlflowClient.create_model_version

    def twice(*arguments, **keywords):
        make(*arguments, **keywords)
        return make(*arguments, **keywords)

    monkeypatch.setattr(MlflowClient, "create_model_version", twice)
    mine = register(load_config())
    assert mine["new"] and versions() == [*before, mine["version"]]


def test_two_processes_of_one_clone_wait_for_each_other(registered, monkeypatch):
    monkeypatch.setattr("hpgr.runtime.WRITER_WAIT_S", 0.0)
    with (
        sole_writer(Path("artifacts/registered.json")),
        pytest.raises(UserError, match=r"registered\.json is being written"),
    ):
        register(load_config())


@pytest.fixture
def others(versions, registered, client):
    """Two more versions."""
    made = [
        client.create_model_version("hpgr", source="file:///nowhere", run_id=registered["run_id"])
        for _ in range(2)
    ]
    return [str(version.version) for version in made]


def test_an_old_version_does_not_take_the_challengers_place(others, client):
    client.set_registered_model_alias("hpgr", "champion", others[0])
    client.set_registered_model_alias("hpgr", "challenger", others[1])
    assert register(load_config())["alias"] is None
    assert aliases(client, "hpgr")["challenger"] == int(others[1])
    client.delete_registered_model_alias("hpgr", "challenger")
    assert register(load_config())["alias"] == "challenger"


def test_a_version_that_fills_an_empty_place_is_not_called_the_first(others, client):
    client.delete_registered_model_alias("hpgr", "champion")
    assert register(load_config())["alias"] == "champion"
    why = client.get_model_version("hpgr", "1").tags["champion.why"]
    assert why == "registered when there was no champion"


def test_a_registration_finishes_a_move_that_was_cut_off(others, client, monkeypatch):
    """The repeated run of a flow that was cut off in its promotion registers the same version."""
    client.set_registered_model_alias("hpgr", "champion", others[0])
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_model_version_tag", None)
        with pytest.raises(TypeError):
            move(load_config(), 1, why="better", force=True)
    assert register(load_config())["alias"] == "champion"
    (last, *_) = history(load_config()).reigns[::-1]
    assert (last.version, last.why) == (1, "better")


def test_without_an_evaluation_nothing_is_registered(tmp_path, monkeypatch):
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.json not found"):
        register(load_config())
    assert not Path("mlflow").exists()


def test_a_configured_tracking_server_is_honoured(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.tracking_uri() == "http://127.0.0.1:1"


def test_lineage_says_absent_where_nothing_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert set(pipeline_runs.run_tags().values()) == {"absent"}


def test_nested_values_are_flattened_by_dots():
    nested = {"a": {"b": 1, "c": {"d": [1]}}, "e": None}
    assert pipeline_runs.flatten(nested) == {"a.b": 1, "a.c.d": [1], "e": None}


@pytest.mark.parametrize(
    ("name", "expected"), [("hr@10", "hr_at_10"), ("a b/c.d-e", "a b/c.d-e"), ("α%", "α_")]
)
def test_metric_names_are_made_acceptable(name, expected):
    assert pipeline_runs.metric_name(name) == expected
