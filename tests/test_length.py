"""Length of a training: the plan, the budget, patience, and what is said at the end."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hpgr.training import loop
from hpgr.training.device import Device
from hpgr.training.ending import Ending
from hpgr.training.length import Schedule, learning_rate_scale
from hpgr.training.loop import Stopped, train

CPU = Device(torch.device("cpu"), torch.float32, 0, 1)
SCHEDULE = Schedule(
    steps=60, validate_steps=10, patience=None, max_minutes=None, warmup_steps=4, decay=True,
    clip_norm=1.0, checkpoint_steps=7, monitor="validation_score",
)  # fmt: skip


class Windows:
    """Three batches an epoch; a batch is its own position."""

    batches_per_epoch = 3

    def plan(self, epoch):
        return [np.array([n]) for n in range(3)]

    def batch(self, numbers, epoch, index):
        return SimpleNamespace(target=np.array([epoch, index, numbers[0]], dtype=np.float32))


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


def run(folder, schedule=SCHEDULE, *, scores=None, step_s=0.0, validation_s=0.0, clock=None, at=()):
    """Train a small net with dropout; returns its outcome and the rates of its steps.

    `at`: steps in which a signal to stop arrives.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    rates, given = [], iter(scores or range(10**6))

    def loss(network, batch, epoch, index):
        rates.append(optimizer.param_groups[0]["lr"])
        if clock:
            clock.now += step_s
        if len(rates) in at:
            loop.signal.raise_signal(loop.signal.SIGTERM)
        return {"loss": network(torch.from_numpy(batch.target)).square().mean()}

    def validate():
        assert not model.training
        if clock:
            clock.now += validation_s
        return {"validation_score": float(next(given))}

    outcome = train(
        model, optimizer, Windows(), loss=loss, validate=validate, device=CPU, schedule=schedule,
        scratch=folder, name="finetune",
    )  # fmt: skip
    return outcome, rates


def same(one, other):
    return all(torch.equal(one.best_weights[k], other.best_weights[k]) for k in one.best_weights)


def test_the_steps_are_as_planned_whatever_an_epoch_holds(tmp_path):
    outcome, rates = run(tmp_path)
    assert len(rates) == outcome.ending.steps == 60 and outcome.ending.epochs == 20
    assert [row["step"] for row in outcome.curves] == [10, 20, 30, 40, 50, 60]


def test_the_end_of_a_plan_is_validated_too(tmp_path):
    outcome, _ = run(tmp_path, replace(SCHEDULE, steps=13))
    assert [row["step"] for row in outcome.curves] == [10, 13]


def test_a_small_log_is_validated_more_often_with_the_same_patience(tmp_path):
    """Every 20 steps, as four of its epochs are 12; patience is 2 times 50 steps."""
    schedule = replace(SCHEDULE, steps=1000, validate_steps=50, patience=2)
    outcome, rates = run(tmp_path, schedule, scores=[1, 2, *([0] * 50)])
    assert [row["step"] for row in outcome.curves] == list(range(20, 141, 20))
    assert (len(rates), outcome.ending.best_step) == (140, 40)


def test_patience_counts_validations_and_keeps_the_best(tmp_path):
    outcome, rates = run(tmp_path, replace(SCHEDULE, patience=2), scores=[1, 5, 4, 5, 9])
    assert (len(rates), outcome.ending.best_step) == (40, 20)
    assert (outcome.ending.stopped, outcome.ending.rising) == ("patience", False)


def test_a_budget_fixes_the_plan_by_the_speed_of_the_first_steps(tmp_path, monkeypatch, capsys):
    """25 steps of 2 s are gone; a step costs 2 s, and a tenth of a validation of 5 s."""
    clock = Clock(monkeypatch)
    schedule = replace(SCHEDULE, steps=1000, max_minutes=5)
    outcome, rates = run(tmp_path, schedule, step_s=2.0, validation_s=5.0, clock=clock)
    spent = 25 * 2 + 2 * 5  # two validations at steps 10 and 20
    planned = 25 + int((300 - spent - 2 * 5) / 2.5)
    assert outcome.ending.planned == len(rates) == planned
    assert clock.now - 1000 <= 300
    # The rate falls over the steps that are run, not over those of params.yaml.
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert f"{planned} of 1,000 steps fit finetune.max_minutes: 5" in capsys.readouterr().out
    assert outcome.ending.stopped == "budget"


def test_a_resumed_run_keeps_the_plan_of_its_checkpoint(tmp_path, monkeypatch):
    """Also on a machine that is slower by then."""
    clock = Clock(monkeypatch)
    schedule = replace(SCHEDULE, steps=1000, max_minutes=2)
    whole, rates = run(tmp_path / "whole", schedule, step_s=1.0, clock=clock)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", schedule, step_s=1.0, clock=clock, at=[40])
    rest, rest_rates = run(
        tmp_path / "cut", schedule, step_s=9.0, clock=clock, scores=list(range(4, 10**4))
    )
    assert rates[40:] == rest_rates
    assert same(whole, rest) and whole.curves == rest.curves


def test_a_budget_that_does_not_bind_changes_nothing(tmp_path):
    free, rates = run(tmp_path / "free")
    bound, bound_rates = run(
        tmp_path / "bound", replace(SCHEDULE, max_minutes=1000), scores=[0, 1, -1, 2, 3, 4, 5]
    )  # the third one is timed and does not count
    assert rates == bound_rates and same(free, bound)
    assert bound.ending == free.ending and bound.ending.stopped == "plan"


def test_a_stop_on_the_step_of_a_validation_loses_neither(tmp_path):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", at=[20])
    rest, _ = run(tmp_path / "cut", scores=list(range(1, 100)))
    assert rest.curves == whole.curves and same(rest, whole)


@pytest.mark.parametrize("world", [2, 4, 5])
def test_every_process_gets_batches_even_where_an_epoch_has_fewer(world):
    first = []
    for rank in range(world):
        batches = loop._batches(Windows(), replace(CPU, rank=rank, world=world), 0, 0)
        first.append([next(batches)[:2] for _ in range(4)])
    assert all(part == first[0] for part in first)  # the same positions: all stay in step


def test_a_short_plan_warms_up_in_a_quarter_of_it():
    rates = [learning_rate_scale(s, warmup=100, total=40, decay=True) for s in range(40)]
    assert rates[9] == 1.0 and rates[0] == 0.1


def ending(scores, **changes):
    curves = [{"step": 10.0 * (i + 1), "epoch": 1.0} for i in range(len(scores))]
    given = {"wanted": 30, "planned": 30, "monitor": "validation_ndcg@10"} | changes
    return Ending.of(curves, int(np.argmax(scores)), **given)


def test_a_training_that_was_still_rising_says_so():
    message = ending([0.1, 0.2, 0.3]).sentences("finetune")[1]
    assert "still rising when training stopped" in message and "(finetune.steps)" in message
    cut = ending([0.1, 0.2, 0.3], wanted=90).sentences("finetune")[1]
    assert "(finetune.max_minutes)" in cut


@pytest.mark.parametrize(
    "quiet", [ending([0.1, 0.3, 0.2]), ending([1, 2, 3], monitor="step")], ids=["fell", "no score"]
)
def test_a_training_that_was_not_rising_is_silent(quiet):
    assert len(quiet.sentences("finetune")) == 1


def test_a_process_stops_with_another_that_was_asked(tmp_path, monkeypatch):
    """The sum over the processes says so in step 3; if it trained on, it would wait for them."""
    plain, steps = Device.means, []

    def means(self, scalars):
        steps.append(scalars)
        return plain(self, scalars) | ({loop.STOP: 0.5} if len(steps) == 3 else {})

    monkeypatch.setattr(Device, "means", means)
    with pytest.raises(Stopped):
        run(tmp_path)
    assert len(steps) == 3
    outcome, rates = run(tmp_path)
    assert len(rates) == 57 and outcome.ending.steps == 60
