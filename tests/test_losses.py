"""The losses of the first steps of both stages are those on record: a change of code moves none.

    PYTHONPATH=tests python tests/test_losses.py      writes fixtures/losses/*.txt anew

A line a step, a column a loss, of a generated log on the CPU with one thread. Products are exact
float32 here: training lets a processor that can round their factors to bfloat16, and thirty steps
of that noise would hide a change. Other processors add up in another order, so that the last digits
may differ.
"""

import csv
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from training_runs import STAGES, both, parameters, train_both, write_project

RECORDED = Path(__file__).parent / "fixtures/losses"
STEPS = 30
NETWORKS = {"hpgr": STAGES, "hstu": ("finetune",)}  # and the stages that are its own


def losses(network, folder):
    """By stage, the lines of its losses: a header and one line a step."""
    write_project(folder)
    os.chdir(folder)
    torch.set_num_threads(1)
    every_step = both(STEPS, "steps") | both(1, "validate_steps") | both(None, "max_minutes")
    torch.set_float32_matmul_precision("highest")
    with patch("torch.set_float32_matmul_precision"):
        train_both(parameters(model__name=network, finetune__patience=STEPS, **every_step))
    found = {}
    for stage in NETWORKS[network]:
        with (folder / f"artifacts/{stage}/curves.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        names = ["step", *(name for name in rows[0] if name.endswith("loss"))]
        found[stage] = [" ".join(names), *(" ".join(row[n] for n in names) for row in rows)]
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_the_first_losses_are_those_on_record(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage, (header, *lines) in losses(network, tmp_path).items():
        recorded = (RECORDED / f"{network}-{stage}.txt").read_text().splitlines()
        assert header == recorded[0] and len(lines) == len(recorded) - 1 == STEPS
        for line, expected in zip(lines, recorded[1:], strict=True):
            assert [*map(float, line.split())] == pytest.approx(
                [*map(float, expected.split())], rel=1e-3
            )


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    RECORDED.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        with TemporaryDirectory() as folder:
            for stage, lines in losses(name, Path(folder)).items():
                (RECORDED / f"{name}-{stage}.txt").write_text("\n".join(lines) + "\n")
