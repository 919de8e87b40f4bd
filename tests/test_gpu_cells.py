"""Cells to a GPU machine and back: packed, trained under a budget, stopped, judged at home."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from bare_python import ROOT, BarePython
from benchmark_project import TINY
from evaluation_log import random_log, write_arrays
from waiting import until

from benchmarks import gpu_cells, matrix, train_light
from benchmarks.gpu_cells import collect, prepare
from benchmarks.matrix import Cell, made_by, made_file, read_matrix
from benchmarks.train_light import CellRun, check_code
from hpgr.runtime import UserError, write_text

RUNNER = ROOT / "benchmarks" / "train_light.py"
NAMES = ("broken", "short", "long", "later")
MODELS = {
    "broken": {stage: {"device": "cuda"} for stage in ("pretrain", "finetune")},
    "short": {"finetune": {"steps": 6}},
    "long": {"finetune": {"steps": 10**6}},
    "later": {"finetune": {"steps": 6}},
}
BROKEN, SHORT, LONG, LATER = (Cell("tiny", "leave-one-out", name, "0") for name in NAMES)
CELLS = [BROKEN, SHORT, LONG, LATER]


def write_benchmark(**finetune):
    """benchmarks/params.yaml of the project in the working folder."""
    every = {name: value for name, value in TINY["finetune"].items() if name != "steps"}
    tiny = {**TINY, "finetune": every | finetune}
    models = {name: {"leave-one-out": "quick", "set": own} for name, own in MODELS.items()}
    lists = {"dataset": ["tiny"], "split": ["leave-one-out"], "model": [*NAMES], "seed": [0]}
    content = {"cells": lists, "datasets": {"tiny": tiny}, "models": models}
    Path("benchmarks/params.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose sessions are current, and what the runner left when it was stopped."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copyfile(ROOT / "params.yaml", "params.yaml")
        shutil.copytree(ROOT / "profiles", "profiles")
        Path("benchmarks").mkdir()
        write_benchmark()
        split, made = Cell(*SHORT[:2]), made_by(SHORT, read_matrix())
        write_arrays(random_log(0), split.workspace.arrays)
        write_text(made_file(split, "sessionize"), made["sessionize"])
        prepare(Path("cells.tar.gz"), CELLS)
        Path("scratch").mkdir()
        bare = BarePython(tmp_path_factory.mktemp("packages"))
        command = [*bare.command, str(RUNNER), "cells.tar.gz", "--out", "out", "--at-once", "1",
                   "--seconds", "3600", "--part-mib", "0.02", "--parts", "500"]  # fmt: skip
        env = bare.env | {"TMPDIR": str(folder / "scratch")}
        process = subprocess.Popen(command, env=env)
        checkpoint = f"cells-*/{'-'.join(LONG)}/checkpoints/finetune-*/checkpoint.safetensors"
        until(lambda: [*Path("scratch").glob(checkpoint)] or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 1  # for the broken one
    return folder


@pytest.fixture
def back(project, tmp_path, monkeypatch):
    """A copy of the project, as working folder."""
    folder = tmp_path / "copy"
    shutil.copytree(project, folder)
    monkeypatch.chdir(folder)
    return folder


def found():
    """Cell to its entry in the summary."""
    return {e["cell"]: e for e in json.loads(Path("out/cells.json").read_text())["cells"]}


@pytest.mark.usefixtures("back")
def test_the_most_wanted_is_first_and_the_end_leaves_a_checkpoint():
    entries = found()
    assert [*entries] == [str(cell) for cell in CELLS]
    states = [(entry["state"], entry["exit_code"]) for entry in entries.values()]
    assert states == [("failed", 1), ("done", 0), ("stopped", 143), ("not started", None)]
    assert "torch sees no CUDA device" in entries[str(BROKEN)]["error"]
    assert entries[str(SHORT)]["stages"]["finetune"]["steps"] == 6
    assert 0 < entries[str(LONG)]["stages"]["finetune"]["steps"] < 10**6
    assert entries[str(SHORT)]["device"] == "cpu, float32"
    assert not any(Path("scratch").iterdir())


@pytest.mark.usefixtures("back")
def test_equal_arrays_are_stored_once():
    with tarfile.open("cells.tar.gz") as archive:
        items = [m for m in archive.getmembers() if m.name.endswith("arrays/item.npy")]
    assert [member.islnk() for member in items] == [False, True, True, True]


@pytest.mark.usefixtures("back")
def test_what_came_back_is_current_and_a_stopped_training_goes_on(monkeypatch):
    collect(Path("out"))
    ran = []

    class Reached(BaseException):
        """Training would begin here."""

    def train(*_, scratch, **__):
        raise Reached(scratch)

    training = ("validate", "sessionize", "pretrain", "finetune")
    write_text(made_file(Cell("tiny"), "validate"), made_by(SHORT, read_matrix())["validate"])
    Cell("tiny").workspace.validated.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(matrix, "run_stage", lambda *call: ran.append(call))
        matrix.run_cell(SHORT, training)
    assert not ran
    monkeypatch.setattr("hpgr.training.finetune.train", train)
    with pytest.raises(Reached) as reached:
        matrix.run_cell(LONG, training)
    (scratch,) = reached.value.args
    wanted = found()[str(LONG)]["stages"]["finetune"]["steps"]
    assert train_light.counters(scratch)["step"] == wanted
    assert {path.name for path in scratch.iterdir()} <= {
        "checkpoint.safetensors",
        "best.safetensors",
    }


@pytest.mark.usefixtures("back")
def test_a_second_turn_takes_what_the_first_left(capsys):
    collect(Path("out"))
    prepare(Path("cells.tar.gz"), CELLS)
    assert f"{SHORT}: trained already" in capsys.readouterr().out
    with tarfile.open("cells.tar.gz") as archive:
        names = archive.getnames()
        manifest = json.load(archive.extractfile("manifest.json"))
    assert [entry["cell"] for entry in manifest["cells"]] == [*map(str, (BROKEN, LONG, LATER))]
    of_long = [name for name in names if name.startswith("-".join(LONG))]
    assert any(name.endswith("artifacts/pretrain/model.safetensors") for name in of_long)
    assert any(name.endswith("/checkpoint.safetensors") for name in of_long)


@pytest.mark.usefixtures("back")
def test_a_further_checkpoint_at_home_is_kept(capsys):
    collect(Path("out"))
    collect(Path("out"))
    assert f"{LONG}: stopped; nothing new" in capsys.readouterr().out


@pytest.mark.usefixtures("back")
def test_other_parameters_are_refused_and_named():
    write_benchmark(learning_rate=0.5)
    with pytest.raises(UserError, match=rf"other parameters or code.*{SHORT} \(finetune\)"):
        collect(Path("out"))
    assert not SHORT.workspace.finetuned.exists()


@pytest.mark.usefixtures("back")
def test_a_part_that_is_missing_is_one_message():
    Path("out/trained.tar.5").unlink()
    with pytest.raises(UserError, match=r"not the archive of cells.json: copy .*trained.tar.0"):
        collect(Path("out"))


def test_other_code_is_refused():
    with pytest.raises(UserError, match="the code of finetune differs"):
        check_code(train_light.code_digests() | {"finetune": "0"})


def test_what_does_not_fit_is_left_out_and_the_finished_come_first(tmp_path):
    runs = []
    for name, state in (("a", "stopped"), ("b", "done"), ("c", "not started")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.log").write_text("x" * 20_000)
        runs.append(CellRun({"folder": name}, tmp_path))
        runs[-1].state = state
    asked = argparse.Namespace(parts=4, part_mib=10_000 / 2**20, out=tmp_path)
    digest = train_light.pack(asked, runs, tmp_path)
    assert [run.brought for run in runs] == [False, True, False]
    gpu_cells.unpack(tmp_path, digest, tmp_path / "back")
    assert [*(tmp_path / "back").iterdir()] == [tmp_path / "back" / "b"]


@pytest.mark.parametrize("seconds", ["0", "59"])
def test_nothing_starts_in_less_time_than_a_start_is_worth(seconds, tmp_path, monkeypatch):
    archive = tmp_path / "cells.tar"
    manifest = {"code": train_light.code_digests(), "cells": [{"cell": "a", "folder": "a"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(archive, "w") as made:
        made.add(tmp_path / "manifest.json", "manifest.json")
    command = ["train_light.py", str(archive), "--out", str(tmp_path), "--seconds", seconds]
    monkeypatch.setattr(sys, "argv", command)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as left:
        train_light.main()
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)
    assert left.value.code == 0
    (entry,) = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert entry["state"] == "not started"


def test_the_whole_stays_in_its_time_and_no_part_stops_the_next(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1\necho "$@" >>"$OUT/calls"\nexit 3\n')
    python.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "OUT": str(tmp_path), "PYTHON": str(python), "SMALL": "1"}
    command = ["sh", str(ROOT / "benchmarks" / "gpu.sh"), "cells.tar.gz"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    attention, training, cells = (tmp_path / "calls").read_text().splitlines()
    assert attention.split()[:2] == ["benchmarks/attention_long.py", "--small"]
    assert training.split()[:2] == ["benchmarks/training_device.py", "--small"]
    assert cells.split()[:2] == ["benchmarks/train_light.py", "cells.tar.gz"]
    assert 300 < int(cells.split()[-1]) < 9 * 60 - 15
    limits = [int(line.split()[1]) for line in done.stdout.splitlines() if " s: " in line]
    assert limits[:2] == [110, 70] and 300 < limits[2] < 9 * 60
