"""The whole pipeline on a real log, in a clone of the project, through Prefect, DVC and MLflow.

Every eighth user and fourth item of MovieLens-1M, which the package index carries, and profile
smoke: the network learns next to nothing, but every stage, every hand-over and the registry do
their work. First a training on what came before a date; then a refresh with what came later, which
starts from the first model and is judged against it. It needs the network; it is skipped, with the
reason, only where the log cannot be fetched.
"""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from working_tree import copy_working_tree

from hpgr.data.log import FIRST_ITEM, TRAIN
from hpgr.runtime import TELEMETRY_OFF

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).parents[1]
CUT = int(datetime(2001, 7, 1, tzinfo=UTC).timestamp())
# The log is a 32nd of its size, and so are the newest events that a batch is compared with.
LIMITS = ("--set", "refresh.reference_events=625")
NAMES = ["user_id", "item_id", "action", "timestamp"]
QUERIES = 20
NEW, CHANGED = "hpgr/training/notes.py", "hpgr/evaluation/ranking.py"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with the log before the date; what follows lies elsewhere, see `batch`."""
    folder = tmp_path_factory.mktemp("clone") / "a b?c%25d"  # signs of shells, URLs and patterns
    copy_working_tree(folder, without=("dvc.lock",))
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run(folder, "git", *author, "commit", "-qm", "clone")
    fetched = run(folder, *HPGR, "fetch", "ml-1m", check=False)
    if fetched.returncode != 0:
        pytest.skip(f"ml-1m cannot be fetched: {fetched.stderr.strip()[-400:]}")
    log = folder / "data/ml-1m/ratings.dat"
    rows = read(log)
    rows = rows[(rows.user_id % 8 == 0) & (rows.item_id % 4 == 0)]
    old = rows.timestamp < CUT
    for path, part in ((log, rows[old]), (batch(folder), rows[~old])):
        lines = part.astype(str).agg("::".join, axis=1)
        path.write_text("\n".join(lines) + "\n")
    run(folder, *DVC, "add", "-q", "data")
    return folder


def batch(clone):
    """The log from the date on."""
    return clone.parent.with_suffix(".dat")


def read(path):
    return pd.read_csv(path, sep="::", engine="python", names=NAMES)


@pytest.fixture(scope="module")
def raw(clone):
    """The raw events before the date."""
    return read(clone / "data/ml-1m/ratings.dat")


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


def flow(folder, name, *arguments):
    """Run a flow; its output and what it left."""
    done = run(folder, sys.executable, "-m", f"flows.{name}", *arguments)
    sessions = folder / "artifacts/sessions"
    tables = {
        table: pd.read_parquet(sessions / f"{table}.parquet")
        for table in ("events", "users", "items", "actions")
    }
    return {
        "message": done.stdout + done.stderr,
        "pin": (folder / "data.dvc").read_text(),
        "items": tables["items"].item_id.tolist(),
        "events": tables["events"].merge(tables["users"]).merge(tables["items"]),
        "vectors": load_file(folder / "artifacts/finetune/model.safetensors")[
            "trunk.items.item.weight"
        ],
        "base": json.loads((folder / "artifacts/finetune/config.json").read_text()).get("base"),
        "verdict": json.loads((folder / "artifacts/gate/verdict.json").read_text()),
        "metrics": json.loads((folder / "artifacts/evaluation/metrics.json").read_text())["R1"],
    }


@pytest.fixture(scope="module")
def before(clone):
    return flow(clone, "train", "--profile", "smoke")


@pytest.fixture(scope="module")
def trained(before):
    """Output of one run of the flow."""
    return before["message"]


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
        for pattern, condition in re.findall(r"`([^`]+)`( \()?", files):
            if condition:  # such as (K1), of another log
                continue
            assert [*(clone / "artifacts" / folder).glob(pattern.rstrip("/"))], (
                f"{folder}/{pattern}"
            )


def test_the_log_came_through_whole(trained, clone, raw):
    summary = json.loads((clone / "artifacts/sessions/arrays/meta.json").read_text())
    kept = raw[raw.groupby("user_id").user_id.transform("size") >= 3]
    assert summary["num_events"] == len(kept)
    assert summary["num_users"] == kept.user_id.nunique()
    assert summary["num_items"] == kept.item_id.nunique() + 2


def test_counting_beats_chance_and_every_model_is_judged(trained, clone, raw):
    rows = json.loads((clone / "artifacts/evaluation/metrics.json").read_text())["R1"]
    assert {"hpgr", "popularity", "recency", "transitions", "ease"} <= set(rows)
    assert rows["counts"]["queries"] == (raw.groupby("user_id").size() >= 3).sum()
    assert rows["transitions"]["hr@10"] > 5 * 10 / len(raw.item_id.unique())
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


def test_metrics_and_plots_are_dvcs(trained, clone, tmp_path):
    assert "hr@10" in run(clone, *DVC, "metrics", "show").stdout
    run(clone, *DVC, "plots", "show", "--out", str(tmp_path))
    assert "validation_ndcg@10" in (tmp_path / "index.html").read_text()
    assert list(tmp_path.rglob("*.png"))


def test_result_ends_in_one_json_line(trained, clone):
    *_, last = run(clone, *HPGR, "result").stdout.splitlines()
    line = json.loads(last)
    assert line["version"] == 1
    assert line["alias"] == "champion"
    assert 0 <= line["metrics"]["R1"]["hr@10"] <= 1


def test_recommend_prints_titles(trained, clone):
    message = run(
        clone, *HPGR, "recommend", "--history", "Forrest Gump, Fargo (1996)", "--k", "3"
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


@pytest.fixture(scope="module")
def after(before, clone):
    """The refresh, when all of the training has been looked at, by code that differs from git's."""
    (clone / NEW).write_bytes(b'"""New."""\r\n')
    (clone / CHANGED).write_bytes((clone / CHANGED).read_bytes() + b"\n# changed\r\n")
    return flow(clone, "refresh", str(batch(clone)), *LIMITS)


def test_the_parts_add_up_to_the_whole_log(raw, after, clone):
    batches = json.loads((clone / "artifacts/accepted/batches.json").read_text())
    assert [(Path(b["source"]).name, b["accepted"]) for b in batches] == [(batch(clone).name, True)]
    events = pd.read_parquet(clone / "artifacts/validated/events.parquet")
    expected = pd.concat([raw, read(batch(clone))], ignore_index=True)
    expected = expected.astype(dict.fromkeys(NAMES[:3], str))
    pd.testing.assert_frame_equal(events[NAMES], expected, check_dtype=False)


def test_the_batch_moves_the_pin_and_is_judged(before, after):
    assert before["pin"] != after["pin"]
    assert [state["verdict"]["version"] for state in (before, after)] == [1, 2]
    assert before["verdict"]["verdict"] == "champion"
    assert after["verdict"]["verdict"] in ("accepted", "refused")
    assert after["verdict"]["metrics"]["ndcg@10"]["queries"] > 500


def test_the_gate_judges_what_the_evaluation_measured(before, after):
    judged = after["verdict"]["metrics"]["hr@10"]["challenger"]
    assert judged == pytest.approx(after["metrics"]["hpgr"]["hr@10"], abs=1e-6)


def test_the_alias_follows_the_verdict(before, after, clone):
    last = after["verdict"]
    champion = last["version" if last["verdict"] == "accepted" else "champion"]
    again = run(clone, *HPGR, "promote", str(champion), "--why", "x").stdout
    assert again.startswith(f"version {champion} is champion already")


def test_the_training_goes_on_from_the_champion(before, after):
    assert after["base"]["version"] == 1 == after["verdict"]["champion"]
    new = len(after["items"]) - len(before["items"])
    assert f"starts from hpgr version 1; new: {new} items" in after["message"]
    assert after["items"][: len(before["items"])] == before["items"]


def test_vectors_of_known_items_stay_near_the_champions(before, after):
    old = before["vectors"]
    known = slice(FIRST_ITEM, FIRST_ITEM + len(old) - FIRST_ITEM - 1)  # without the mask's row
    one, other = (
        v[known] / np.linalg.norm(v[known], axis=1, keepdims=True) for v in (old, after["vectors"])
    )
    assert (one * other).sum(axis=1).mean() > 0.8  # of two trainings from nothing: about 0


def test_nothing_that_a_model_or_its_base_trained_on_is_held_out(before, after):
    keys = ["user_id", "item_id", "timestamp", "action"]
    learned = pd.DataFrame(columns=keys)
    for state in (before, after):
        events = state["events"]
        learned = pd.concat([learned, events[events.split == TRAIN][keys]]).drop_duplicates()
        held_out = events[events.split != TRAIN][keys]
        assert len(held_out) and held_out.merge(learned, on=keys).empty


def test_a_repro_afterwards_runs_nothing(before, after, clone):
    assert "Running stage" not in run(clone, *DVC, "repro").stdout


def test_the_flow_says_what_it_did(before, after):
    ran = re.findall(r"stage (\w+): (\w+)", after["message"])
    assert ran[-5:] == [
        ("validate", "skipped"),
        *((s, "ran") for s in ("sessionize", "pretrain", "finetune", "evaluate")),
    ]


@pytest.fixture(scope="module")
def another(after, clone):
    """The folder is lost: git, DVC's remote and the registry give version 2 back in another clone.

    The commands that `hpgr lineage` prints are run as printed, by a shell.
    """
    folder, remote = clone.with_name("another"), str(clone.with_name("remote"))
    add = (*DVC, "remote", "add", "-q", "--local", "--default", "shared", remote)
    run(clone, *add)
    run(clone, *DVC, "push", "-q")
    message = run(clone, *HPGR, "lineage", "2").stdout
    assert "warning" not in message
    commands = message.split("to restore it, in a clone:\n")[1]
    run(clone, "git", "clone", "-q", str(clone), str(folder))
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run(folder, "git", *author, "commit", "-q", "--allow-empty", "-m", "later")
    run(folder, *add)
    assert "up to date" in run(folder, "sh", "-e", "-c", commands).stdout
    return folder


def test_the_printed_commands_bring_data_outputs_and_code_back(another, clone):
    def contents(root, folder):
        files = sorted(path for path in (root / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    for folder in ("data", "artifacts/sessions", "artifacts/finetune", "base"):
        assert contents(another, folder) == contents(clone, folder), folder
    for file in (NEW, CHANGED):
        assert (another / file).read_bytes() == (clone / file).read_bytes(), file


def test_nothing_is_to_be_done_there(another):
    assert json.loads(run(another, *DVC, "status", "--json").stdout) == {}
