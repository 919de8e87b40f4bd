"""Tune a model on validation, with the same number of trials and the same space for every model.

    python benchmarks/tuning.py ml-1m global-time hstu-plain

`tuning` in benchmarks/params.yaml has the number of trials, the space, and what every trial sets.
The first trial has the model's own settings for the rest; the sampler of Optuna proposes the
others, each from the scores before it. The score is the metric that early stopping watches, at the
best step. No stage that opens the test split runs. A stopped run goes on where it was, in the midst
of a trial too.

Reads benchmarks/params.yaml, params.yaml and profiles/. Writes a workspace a trial below
benchmarks/cells/DATASET/SPLIT/MODEL/tuning/ and
benchmarks/results/tuning-DATASET-SPLIT-MODEL.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.matrix import PARAMS, Cell, read_matrix, run_cell, settings
from benchmarks.results_file import RESULTS, write_measured
from benchmarks.stage_code import code_digests
from hpgr.cli import run, run_stage
from hpgr.config import ConfigError
from hpgr.params_file import read_params
from hpgr.runtime import UserError, read_json, write_json, write_text
from hpgr.workspace import Workspace

SHARED = ("validate", "sessionize")
RECORD = "trial.json"


class Plan(NamedTuple):
    """The number of trials, the values they may take, and what each of them sets."""

    trials: int
    space: dict[str, BaseDistribution]
    every: dict[str, Any]


def read_plan(path: Path = PARAMS) -> Plan:
    """The section `tuning`.

    Raises:
        ConfigError: it is missing, or a range is not one.
    """
    raw = read_params(path).get("tuning")
    if not isinstance(raw, dict) or not raw.get("space") or not raw.get("trials"):
        raise ConfigError(f"{path}: tuning is {raw!r}, expected `trials` and a `space`")
    space: dict[str, BaseDistribution] = {}
    for name, limits in raw["space"].items():
        try:
            if "choices" in limits:
                space[name] = CategoricalDistribution(limits["choices"])
            elif isinstance(limits["low"], int) and isinstance(limits["high"], int):
                space[name] = IntDistribution(**limits)
            else:
                space[name] = FloatDistribution(**limits)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}: tuning.space.{name} is {limits!r} ({error}), expected `choices`, or "
                "`low`, `high` and perhaps `log: true`"
            ) from error
    return Plan(int(raw["trials"]), space, raw.get("every") or {})


def search(
    plan: Plan, folder: Path, score: Callable[[Path, dict[str, Any]], dict[str, Any]], code: str
) -> list[dict[str, Any]]:
    """All trials, oldest first; each is `values` and what `score` returned, its `score` among it.

    Args:
        plan: how many, of what.
        folder: of the trials; those that ended are read, one that did not is scored again with
            its values.
        score: scores a trial in its folder. A higher `score` is better.
        code: digest of what scores; trials of other code cannot be compared.

    Raises:
        UserError: the folder has trials of other code.
    """
    trials: list[dict[str, Any]] = []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for number in range(plan.trials):
        place = folder / f"{number:02d}"
        record = place / RECORD
        trial = read_json(record) if record.is_file() else None
        if trial and trial["code"] != code:
            raise UserError(
                f"{record}: found a trial of other code than today's, expected the same: remove "
                f"{folder} to begin anew"
            )
        if trial is None:
            values = _proposal(plan, trials) if number else {}
            trial = {"values": values, "code": code}
            write_json(record, trial)
        if "score" not in trial:
            trial |= score(place, trial["values"])
            write_json(record, trial)
        trials.append(trial)
        print(f"trial {number}: {trial['score']:.4f} {trial['values'] or 'own settings'}")
    return trials


def _proposal(plan: Plan, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Values for the next trial; the same trials before it give the same values."""
    sampler = optuna.samplers.TPESampler(seed=len(trials), n_startup_trials=plan.trials // 3)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        if trial["values"]:  # the model's own settings may lie outside the space
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial["values"], distributions=plan.space, value=trial["score"]
                )
            )
    return dict(study.ask(plan.space).params)


def train(
    cell: Cell, every: Mapping[str, Any], place: Path, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Both training stages of a cell with `every` and `values`, in a workspace at `place`."""
    shared = cell.workspace
    workspace = Workspace(place, shared.validated, shared.sessions)
    wanted = settings(cell, read_matrix(), {**every, **values})
    write_text(workspace.params, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    for stage in ("pretrain", "finetune"):
        if not workspace.output(stage).is_dir():
            run_stage(stage, workspace)
    found = read_json(workspace.finetuned / "metrics.json")
    monitor = wanted["finetune"]["monitor"]
    return {
        "score": found[monitor],
        **{key: found[key] for key in ("best_step", "steps", "train_seconds")},
        "validation": {k: v for k, v in found.items() if k.startswith("validation_")},
    }


def main(arguments: list[str]) -> None:
    """Tune the model that the command line names.

    Raises:
        UserError: it names none.
    """
    if len(arguments) != 3:
        raise UserError(f"found {' '.join(arguments)!r}, expected a command of:\n{__doc__}")
    cell, plan, code = Cell(*arguments, "0"), read_plan(), code_digests()
    run_cell(cell, SHARED)
    folder = cell.workspace.root.with_name("tuning")
    trials = search(
        plan, folder, partial(train, cell, plan.every), code["pretrain"] + code["finetune"]
    )
    best = max(trials, key=lambda trial: trial["score"])
    write_measured(
        RESULTS / f"tuning-{'-'.join(arguments)}.json",
        "tuning.py",
        {"best": best["score"], "own settings": trials[0]["score"], "values": best["values"]},
        trials=[{k: v for k, v in trial.items() if k != "code"} for trial in trials],
        tuning=read_params(PARAMS)["tuning"],
    )
    print(f"best: {best['score']:.4f} {best['values'] or 'own settings'}")


if __name__ == "__main__":
    run(partial(main, sys.argv[1:]))
