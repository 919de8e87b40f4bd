"""The benchmark's matrix: its cells, their parameters, and cells run, killed and run at once."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from benchmark_project import CELLS, ROOT, TINY, make_project, write_matrix
from safetensors import safe_open
from waiting import until

from benchmarks import matrix, paired, results_file
from benchmarks.matrix import Cell, read_matrix, settings, write_settings
from flows.benchmark import benchmark, chosen, prepare, stale, targets
from flows.faults import StageFailed
from hpgr.config import ConfigError, load_config
from hpgr.runtime import UserError
from hpgr.workspace import STAGES, Workspace

HPGR, HSTU = (Cell("tiny", "leave-one-out", model, "0") for model in ("hpgr", "hstu"))
DVC = yaml.safe_load((ROOT / "benchmarks/dvc.yaml").read_text())["stages"]
TIMES = {"seconds", "train_seconds", "events_per_second"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dvc(*arguments):
    command = [sys.executable, "-m", "dvc", "--cd", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_dvc_and_the_flow_mean_the_same_stages(project):
    listed = dvc("stage", "list", "--name-only").split()
    assert {*listed} == {"settings", *(t for cell in read_matrix().cells for t in targets(cell))}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_and_writes_what_the_table_says(stage, monkeypatch):
    monkeypatch.chdir("/")  # paths alone, no file
    depth = {"validate": 1, "sessionize": 2}.get(stage, 4)
    names = [f"${{item.{part}}}" for part in matrix.PARTS[:depth]]
    workspace = Cell(*names).workspace
    inputs = [path for path in STAGES[stage].inputs if path != "base"]  # cells start from nothing
    made = {s.output: workspace.output(name) for name, s in STAGES.items()}
    expected = []
    for path in inputs:
        output = next(o for o in made if path.startswith(f"{o}/"))
        expected.append(str(made[output].relative_to(matrix.FOLDER)) + path.removeprefix(output))
    raw = ["../data/${item.dataset}"] if stage == "validate" else []
    assert DVC[stage]["deps"] == raw + expected
    code, params = DVC[stage]["params"]
    assert code == {"cells/code.yaml": [stage]}
    own = str(workspace.params.relative_to(matrix.FOLDER))
    assert {own: list(STAGES[stage].params)} == params
    assert str(workspace.output(stage).relative_to(matrix.FOLDER)) == DVC[stage]["outs"][0]
    assert DVC[stage]["cmd"].endswith(" ".join(["benchmarks.matrix", stage, *names]))


def test_the_projects_own_matrix_is_possible(tmp_path, monkeypatch):
    for name in ("params.yaml", "profiles", "benchmarks/params.yaml"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            shutil.copyfile(source, target)
    monkeypatch.chdir(tmp_path)
    write_settings()
    described = read_matrix()
    assert described.cells
    for cell in described.cells:
        cfg = load_config(cell.workspace.params)
        assert str(cfg.data.path) == f"data/{cell.dataset}"
        assert cfg.sessionize.split == cell.split
        assert (cfg.pretrain.seed, cfg.finetune.seed) == (int(cell.seed), int(cell.seed))
        assert cfg.pretrain.max_minutes is cfg.finetune.max_minutes is None


def test_every_model_that_is_described_is_possible_and_differs_as_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    described = read_matrix()
    for name, entry in described.models.items():
        for split in {"leave-one-out", "global-time"} & entry.keys():
            values = settings(Cell("ml-1m", split, name, "0"), described)
            for section, own in entry.get("set", {}).items():
                assert own.items() <= values[section].items()


@pytest.mark.parametrize("dataset", ["complete-journey", "online-retail", "trivago"])
def test_logs_of_baskets_are_judged_by_baskets_and_others_are_not(monkeypatch, dataset):
    monkeypatch.chdir(ROOT)
    values = settings(Cell(dataset, "global-time", "hpgr", "0"), read_matrix())
    assert values["evaluate"]["baskets"] is (dataset != "trivago")
    assert not values["evaluate"]["remove_history"]


@pytest.mark.parametrize("split", ["", "leave-one-out", "global-time"])
def test_only_where_baskets_are_held_out_do_they_stop_training(monkeypatch, split):
    monkeypatch.chdir(ROOT)
    cell = Cell("online-retail", split, *(("hpgr-quick", "0") if split else ()))
    monitor = settings(cell, read_matrix())["finetune"]["monitor"]
    baskets = split == "global-time"
    assert monitor == ("validation_basket_ndcg@10" if baskets else "validation_ndcg@10")


def test_every_result_names_the_commit_that_made_it():
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        assert len(json.loads(path.read_text())["commit"].rstrip("+")) == 40, path


def test_a_result_is_named_by_what_it_holds():
    for path in (ROOT / "benchmarks/results").glob("[BRK][12]-*.json"):
        found = json.loads(path.read_text())
        parts = (found[key] for key in ("protocol", "dataset", "model", "seed"))
        assert path.stem == "-".join(map(str, parts))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"dataset": ["other"]}, "datasets describes only tiny"),
        ({"model": ["rnn"]}, "models describes only esasrec"),
        ({"split": ["by-user"]}, "expected a profile for by-user"),
        ({"seed": []}, "cells.seed is []"),
        ({"seed": [0, 0]}, "without repeats"),
        ({"dataset": ["../tiny"]}, "names folders"),
    ],
)
def test_a_wrong_matrix_is_one_message(project, cells, message):
    write_matrix(project, {**CELLS, **cells})
    with pytest.raises(ConfigError, match=r"^benchmarks/params.yaml: ") as refusal:
        read_matrix()
    assert message in str(refusal.value)


def test_an_impossible_value_names_the_cell_and_the_key(project):
    write_matrix(project, CELLS, {"tiny": {**TINY, "finetune": {"stepz": 3}}})
    with pytest.raises(ConfigError, match=r"^tiny in benchmarks/params.yaml: .*finetune.stepz"):
        write_settings()
    assert not Path("benchmarks/cells").exists()


def test_settings_that_stay_are_not_written_again(project):
    write_settings()
    before = HPGR.workspace.params.stat().st_mtime_ns
    write_settings()
    assert HPGR.workspace.params.stat().st_mtime_ns == before


def test_a_cell_beside_the_lists_runs_what_is_not_current(project, monkeypatch):
    ran = []

    def run_stage(stage, workspace):
        ran.append(stage)
        workspace.output(stage).mkdir(parents=True)

    monkeypatch.setattr(matrix, "run_stage", run_stage)
    monkeypatch.setattr(matrix, "write_results", lambda *_: None)
    cell = Cell("tiny", "leave-one-out", "hpgr-no-anchors", "7")
    assert cell not in read_matrix().cells

    def again():
        ran.clear()
        matrix.run_cell(cell)
        return ran

    assert again() == [*STAGES]
    assert not load_config(cell.workspace.params).model.preference
    assert again() == []
    shutil.rmtree(cell.workspace.finetuned)
    assert again() == ["finetune"]
    for changed in ("finetuned", "evaluation"):
        shutil.rmtree(getattr(cell.workspace, changed))
    write_matrix(project, CELLS, {"tiny": {**TINY, "finetune": {"steps": 61}}})
    assert again() == ["finetune", "evaluate"]


def test_a_cell_that_is_not_described_is_one_message(project):
    with pytest.raises(ConfigError, match="does not describe other/leave-one-out/hpgr/0"):
        matrix.run_cell(Cell("other", "leave-one-out", "hpgr", "0"))


def test_patterns_choose_cells():
    cells = [Cell("a", split, model, "0") for split in ("s", "t") for model in ("m", "n")]
    assert chosen(cells, []) == cells
    assert chosen(cells, ["*/n/*"]) == [cells[1], cells[3]]
    assert chosen(cells, ["a/s/m/0", "a/t/*"]) == [cells[0], *cells[2:]]
    with pytest.raises(UserError, match=r"'b/\*'; it has a/s/m/0, a/s/n/0"):
        chosen(cells, ["a/s/m/0", "b/*"])


def test_the_most_alike_results_say_how_long_a_cell_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    for number, (protocol, dataset, model, seconds) in enumerate(
        [("R1", "a", "m", 10), ("R1", "a", "m", 20), ("R2", "a", "m", 70), ("R1", "b", "m", 500)]
    ):
        found = {"protocol": protocol, "dataset": dataset, "model": model, "train_seconds": seconds}
        (tmp_path / f"{number}.json").write_text(json.dumps(found))
    assert results_file.seconds("a", "leave-one-out", "m") == 15
    assert results_file.seconds("a", "global-time", "m") == 70
    assert results_file.seconds("a", "global-time", "other") == 70
    assert results_file.seconds("c", "leave-one-out", "m") is None


def kill_when(condition, *command):
    """Run `command` in a process group of its own; SIGKILL to all of it on the condition."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        until(lambda: condition() or process.poll() is not None)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def step_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="np") as file:
        return json.loads(file.metadata()["state"])["step"]


def by_plain_calls(cell):
    """The same cell as function calls in one process without DVC."""

    from hpgr.data.sessionize import sessionize
    from hpgr.evaluation.evaluate import evaluate
    from hpgr.training.finetune import finetune
    from hpgr.training.pretrain import pretrain

    cfg = load_config(cell.workspace.params)
    workspace = Workspace(Path("plain") / str(cell), cell.workspace.validated)
    for stage in (sessionize, pretrain, finetune, evaluate):
        stage(cfg, workspace)
    for folder in ("finetuned", "evaluation"):
        yield getattr(workspace, folder), getattr(cell.workspace, folder)


def compared(folder):
    """Bytes of a stage's files, without those that hold times."""
    skipped = {"metrics.json"} if folder.name == "finetune" else set()
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in {"resources.csv", *skipped}
    }


def test_a_log_that_is_missing_fails_the_cells_of_its_data_set_alone(project):
    write_settings()
    shutil.rmtree("data/tiny")
    failed = prepare([HPGR, HSTU])
    assert list(failed) == [HPGR, HSTU]
    assert failed[HPGR].startswith("data/tiny not found: put the log there")


@pytest.mark.pipeline
@pytest.mark.usefixtures("prefect_server")
def test_cells_killed_run_at_once_and_left_alone(project, monkeypatch, caplog):
    """One project through its life, since every step needs what the one before it has trained."""
    # Killed while it trains: a checkpoint is left, and the next run goes on from it.
    write_settings()
    scratch = HPGR.workspace.checkpoints
    checkpoints = lambda: [*scratch.glob("finetune-*/checkpoint.safetensors")]  # noqa: E731
    target = HPGR.target("finetune")
    command = (sys.executable, "-m", "dvc", "--cd", "benchmarks", "repro", target)
    kill_when(checkpoints, *command)
    reached = max(map(step_of, scratch.glob("finetune-*/[cp]*.safetensors")))
    assert 0 < reached < TINY["finetune"]["steps"]
    pretrained = compared(HPGR.workspace.pretrained)
    age = (HPGR.workspace.pretrained / "config.json").stat().st_mtime_ns

    # Two at once, and only those that are asked for.
    logging.getLogger("prefect.task_runs").addHandler(caplog.handler)
    files = benchmark(only=["*/0"], limit=2)
    assert f"finetune: goes on at step {reached} of {TINY['finetune']['steps']}" in caplog.text
    assert [Path(f).name for f in files] == [f"R1-tiny-{m}-0.json" for m in ("hpgr", "hstu")]
    assert compared(HPGR.workspace.pretrained) == pretrained
    assert (HPGR.workspace.pretrained / "config.json").stat().st_mtime_ns == age
    assert not any(Path("benchmarks/cells").glob("tiny/leave-one-out/*/1/artifacts"))
    for plain, cell in by_plain_calls(HPGR):
        assert compared(plain) == compared(cell)
    found = json.loads(Path(files[0]).read_text())
    judged = json.loads((HPGR.workspace.evaluation / "metrics.json").read_text())["R1"]
    assert found["metrics"] == judged["hpgr"]
    assert {*judged} - {"hpgr", "counts"} == {*found["same_queries"]}
    assert found.keys() >= TIMES
    assert found["curve"]["step"] == [20, 40, 60]
    sliced = dict(zip(found["slices"]["slice"], found["slices"]["queries"], strict=True))
    history = [count for name, count in sliced.items() if name.startswith("history")]
    assert sum(history) == judged["counts"]["queries"]

    # Judged on the same queries, so that differences are paired.
    difference = paired.differences(HPGR, HSTU)["hr@10"]
    own, other = (json.loads(Path(f).read_text())["metrics"]["hr@10"] for f in files)
    assert difference.value == pytest.approx(own - other, abs=1e-6)
    assert [*paired.pairs(read_matrix().cells, ("hstu", "hpgr"))] == [(HSTU, HPGR)]

    # Finished cells never run twice, whatever other parameters change.
    assert not stale([HPGR, HSTU])
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("port: 8000", "port: 8001"))
    lock, before = Path("benchmarks/dvc.lock").read_bytes(), compared(Path("benchmarks/cells"))
    Path(files[0]).unlink()  # what was only published comes back
    monkeypatch.setattr("flows.benchmark.repro", None)
    assert benchmark(only=["*/0"]) == files
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert Path(files[0]).is_file()
    assert Path("benchmarks/dvc.lock").read_bytes() == lock
    trained = {k: v for k, v in before.items() if not k.endswith("params.yaml")}
    assert trained.items() <= compared(Path("benchmarks/cells")).items()

    # One that fails does not stop the other, and is named.
    broken = Cell(*HPGR[:3], "1")
    broken.workspace.artifacts.write_text("a file where a folder has to be")
    shutil.rmtree(HSTU.workspace.evaluation)
    with pytest.raises(StageFailed, match=rf"1 of 2 cells failed:\n{broken}: "):
        benchmark(only=[str(broken), str(HSTU)])
    assert (HSTU.workspace.evaluation / "metrics.json").is_file()
