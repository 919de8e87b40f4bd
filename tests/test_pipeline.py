"""The whole pipeline on a real log, in a clone of the project, through Prefect, DVC and MLflow.

Profile smoke on MovieLens-100K, which the package index carries: the network learns next to
nothing, but every stage, every hand-over and the registry do their work. (Later trainings:
test_refresh_ml1m.py.) It needs the network; it is skipped, with the reason, only where the log
cannot be fetched.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from working_tree import copy_working_tree

from hpgr.runtime import TELEMETRY_OFF

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).parents[1]
LOG = ("data.path=data/ml-100k", "data.format=movielens-100k")
QUERIES = 20


def make_clone(folder, log):
    """A repository of its own with this working tree's files and the log below data/."""
    copy_working_tree(folder, without=("dvc.lock",))
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run(folder, "git", *author, "commit", "-qm", "clone")
    fetched = run(folder, *HPGR, "fetch", log, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"{log} cannot be fetched: {fetched.stderr.strip()[-400:]}")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone") / "a b?c%25d"  # signs of shells, URLs and patterns
    make_clone(folder, "ml-100k")
    run(folder, *DVC, "add", "-q", "data")
    return folder


@pytest.fixture(scope="module")
def raw(clone):
    """The raw events: user, item, rating, time."""
    names = ["user", "item", "rating", "time"]
    return pd.read_csv(clone / "data/ml-100k/u.data", sep="\t", names=names)


HPGR = (sys.executable, "-m", "hpgr.cli")
DVC = (sys.executable, "-m", "dvc")


def run(folder, *command, check=True, **variables):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))},
        **TELEMETRY_OFF,
        "PYTHONPATH": str(folder),  # before the installed package, which is this working tree
        "PREFECT_HOME": str(folder / ".prefect"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    if check:
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


@pytest.fixture(scope="module")
def trained(clone):
    """Output of one run of the flow."""
    overrides = [argument for entry in LOG for argument in ("--set", entry)]
    done = run(clone, sys.executable, "-m", "flows.train", "--profile", "smoke", *overrides)
    return done.stdout + done.stderr


def test_the_flow_runs_every_stage_and_registers(trained, clone):
    ran = re.findall(r"stage (\w+): ran", trained)
    assert ran == ["validate", "sessionize", "pretrain", "finetune", "evaluate"]
    registered = json.loads((clone / "artifacts/registered.json").read_text())
    assert (registered["version"], registered["alias"], registered["new"]) == (1, "champion", True)


def test_all_that_the_flow_wrote_lies_in_the_clone(trained, clone):
    assert {path.name for path in clone.parent.iterdir()} == {clone.name}
    assert (clone / ".prefect/prefect.db").is_file() and (clone / "mlflow/store").is_dir()


def test_the_flow_ends_without_a_traceback(trained):
    assert "Finished in state Completed()" in trained
    assert "Traceback" not in trained
    assert "database is locked" not in trained


def test_every_documented_artifact_is_there(trained, clone):
    documented = (clone / "docs/artifacts.md").read_text()
    rows = re.findall(r"^\| (\w+) \|[^|]*\| `(\w+)/`: ([^|]*)\|$", documented, re.MULTILINE)
    assert len(rows) == 5
    for _, folder, files in rows:
        for pattern in re.findall(r"`([^`]+)`", files):
            if "(" in pattern:
                continue
            found = list((clone / "artifacts" / folder).glob(pattern.rstrip("/")))
            if pattern != "candidates.parquet":  # K1 only
                assert found, f"{folder}/{pattern}"


def test_the_log_came_through_whole(trained, clone, raw):
    summary = json.loads((clone / "artifacts/sessions/arrays/meta.json").read_text())
    kept = raw[raw.groupby("user").user.transform("size") >= 3]
    assert summary["num_events"] == len(kept)
    assert summary["num_users"] == kept.user.nunique()
    assert summary["num_items"] == kept.item.nunique() + 2


def test_counting_beats_chance_and_every_model_is_judged(trained, clone, raw):
    rows = json.loads((clone / "artifacts/evaluation/metrics.json").read_text())["R1"]
    assert {"hpgr", "popularity", "recency", "transitions", "ease"} <= set(rows)
    assert rows["counts"]["queries"] == (raw.groupby("user").size() >= 3).sum()
    assert rows["transitions"]["hr@10"] > 5 * 10 / 1682
    assert all(0 <= value <= 1 for value in rows["hpgr"].values())


def test_a_second_repro_runs_nothing(trained, clone):
    again = run(clone, *DVC, "repro").stdout
    assert "Running stage" not in again
    assert again.count("didn't change, skipping") == 6  # data.dvc and five stages


def test_a_second_registration_makes_no_second_version(trained, clone):
    assert "already there: hpgr version 1" in run(clone, *HPGR, "register").stdout


def test_a_changed_report_reruns_evaluation_alone(trained, clone):
    source = clone / "hpgr/evaluation/report.py"
    text = source.read_text()
    source.write_text(text + "\n# changed\n")
    try:
        changed = json.loads(run(clone, *DVC, "status", "--json").stdout)
        assert list(changed) == ["evaluate"]
    finally:
        source.write_text(text)


def test_metrics_and_plots_are_dvcs(trained, clone):
    assert "hr@10" in run(clone, *DVC, "metrics", "show").stdout
    run(clone, *DVC, "plots", "show", "--out", "plots_page")
    page = (clone / "plots_page/index.html").read_text()
    assert "validation_ndcg@10" in page
    assert list((clone / "plots_page").rglob("*.png"))


def test_result_ends_in_one_json_line(trained, clone):
    *_, last = run(clone, *HPGR, "result").stdout.splitlines()
    line = json.loads(last)
    assert line["version"] == 1
    assert line["alias"] == "champion"
    assert 0 <= line["metrics"]["R1"]["hr@10"] <= 1


def test_recommend_prints_titles(trained, clone):
    message = run(
        clone, *HPGR, "recommend", "--history", "Toy Story, Fargo (1996)", "--k", "3"
    ).stdout
    assert re.search(r"│ 3 │ .+ │", message)


def test_served_answers_equal_the_offline_evaluation(trained, clone, monkeypatch):
    """The recommender puts a query's hidden item where `evaluate` found it."""
    from hpgr.config import load_config
    from hpgr.data.log import TEST, EventLog
    from hpgr.serving.answer import from_artifacts
    from hpgr.serving.request import Request

    monkeypatch.chdir(clone)
    cfg = load_config()
    recommender = from_artifacts(cfg)
    log = EventLog.open(clone / "artifacts/sessions/arrays")
    names = {v: k for k, v in recommender.actions.items()}
    queries = pd.read_parquet(clone / "artifacts/evaluation/queries.parquet")
    ranked = queries.sort_values("rank_hpgr_then_rank", kind="stable").head(QUERIES)
    depth = cfg.evaluate.retrieve
    assert (ranked["rank_hpgr_then_rank"] <= depth).any()
    for query in ranked.itertuples(index=False):
        start, stop = log.user_offsets[query.user : query.user + 2]
        rows = np.arange(start, stop)
        (hidden,) = rows[log.split[rows] == TEST]
        rows = rows[rows < hidden]
        request = Request(
            request_time=int(query.request_time),
            item_ids=[recommender.names[int(i)][0] for i in log.item[rows]],
            timestamps=log.timestamp[rows].tolist(),
            actions=[names.get(int(a)) for a in log.action[rows]],
            session_ids=[str(s) for s in log.session[rows]],
        )
        (answer,) = recommender.recommend([request], k=depth)
        target = recommender.names[query.target][0]
        rank = query[ranked.columns.get_loc("rank_hpgr_then_rank")]
        found = [item.item_id for item in answer.items]
        assert (target in found) == (rank <= depth)
        if target in found:
            assert found.index(target) + 1 == rank
