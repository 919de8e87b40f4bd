"""The benchmark's cells: data set x split x model x seed, each with a workspace of its own.

    python -m benchmarks.matrix settings                             every workspace's params.yaml
    python -m benchmarks.matrix validate ml-1m                       the stages that cells share
    python -m benchmarks.matrix sessionize ml-1m leave-one-out
    python -m benchmarks.matrix finetune ml-1m leave-one-out hpgr 0  a stage of one cell
    python -m benchmarks.matrix cell trivago leave-one-out hstu 0    all stages of any cell
    python -m benchmarks.matrix publish              what committed results lack beside the means

benchmarks/dvc.yaml runs all but the last two, in the project's folder: `cell` is for one that the
lists leave out, `publish` gives the results of the judged cells at hand their curve and slices.
Reads benchmarks/params.yaml, params.yaml and profiles/. Writes below benchmarks/cells/, and the
results of a judged cell to benchmarks/results/PROTOCOL-DATASET-MODEL-SEED.json.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.results_file import complete, publish, write_results
from benchmarks.stage_code import code_digests
from hpgr.cli import run, run_stage
from hpgr.config import ConfigError
from hpgr.metrics import BASKET_MONITOR
from hpgr.params_file import read_params
from hpgr.profiles import with_params
from hpgr.runtime import UserError, write_text
from hpgr.workspace import STAGES, Workspace

FOLDER = Path("benchmarks")
PARAMS = FOLDER / "params.yaml"
CELLS = FOLDER / "cells"
CODE = CELLS / "code.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PARTS = ("dataset", "split", "model", "seed")
DEPTHS = {"validate": 1, "sessionize": 2}  # parts of a cell that name such a stage; all for others


class Cell(NamedTuple):
    """One combination; without model and seed the part that cells of one split share."""

    dataset: str
    split: str = ""
    model: str = ""
    seed: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, self))

    @property
    def workspace(self) -> Workspace:
        """Its files; the validated log and the sessions are those of its data set and split."""
        of_dataset = Workspace(CELLS / self.dataset)
        of_split = Workspace(CELLS / self.dataset / self.split, of_dataset.validated)
        root = CELLS.joinpath(*filter(None, self))
        if self.model:
            return Workspace(root, of_dataset.validated, of_split.sessions)
        return of_split if self.split else of_dataset

    @property
    def results(self) -> Path:
        """Folder of its results, one file a protocol."""
        return self.workspace.artifacts / "results"

    def target(self, stage: str) -> str:
        """DVC's name of one of its stages."""
        return f"{stage}@{'-'.join(filter(None, self))}"


class Matrix(NamedTuple):
    """The content of benchmarks/params.yaml."""

    cells: list[Cell]
    datasets: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]]


def read_matrix(path: Path = PARAMS) -> Matrix:
    """The cells, in the order of DVC's matrix.

    Raises:
        ConfigError: a list is missing or empty, or names what is not described below it.
    """
    raw = read_params(path)
    lists = raw.get("cells")
    if not isinstance(lists, dict) or sorted(lists) != sorted(PARTS):
        raise ConfigError(f"{path}: cells is {lists!r}, expected lists {', '.join(PARTS)}")
    for part in PARTS:
        values = lists[part]
        if not isinstance(values, list) or not values or len({*map(str, values)}) < len(values):
            raise ConfigError(
                f"{path}: cells.{part} is {values!r}, expected a list without repeats"
            )
        for value in map(str, values):
            if not NAME.fullmatch(value):
                raise ConfigError(
                    f"{path}: cells.{part} has {value!r}, which names folders: expected letters, "
                    "digits and . _ -"
                )
    datasets, models = raw.get("datasets") or {}, raw.get("models") or {}
    for part, known in (("dataset", datasets), ("model", models)):
        if missing := [value for value in lists[part] if value not in known]:
            raise ConfigError(
                f"{path}: cells.{part} has {', '.join(missing)}, but {part}s describes only "
                f"{', '.join(known) or 'none'}: add an entry there"
            )
    for model, split in product(lists["model"], lists["split"]):
        if not isinstance(models[model], dict) or split not in models[model]:
            raise ConfigError(
                f"{path}: models.{model} is {models[model]!r}, expected a profile for {split}"
            )
    cells = [Cell(*map(str, values)) for values in product(*(lists[part] for part in PARTS))]
    return Matrix(cells, datasets, models)


def write_settings() -> None:
    """Write `params.yaml` of every workspace and the digests of the stages' code, if they differ.

    Raises:
        ConfigError: a cell's parameters are not possible, or a model's profile changes what all
            models of a data set share.
    """
    matrix = read_matrix()
    shared = {Cell(*cell[:depth]) for cell in matrix.cells for depth in (1, 2)}
    written = {cell: settings(cell, matrix) for cell in [*sorted(shared), *matrix.cells]}
    for cell in matrix.cells:
        for stage, depth in DEPTHS.items():
            own, common = written[cell], written[Cell(*cell[:depth])]
            for name in STAGES[stage].params:
                if _value(own, name) != _value(common, name):
                    profile = matrix.models[cell.model][cell.split]
                    raise ConfigError(
                        f"{cell}: profile {profile} changes {name}, which every model of "
                        f"{Cell(*cell[:depth])} shares: set it below datasets.{cell.dataset} in "
                        f"{PARAMS}"
                    )
    for cell, values in written.items():
        _write_if_new(cell.workspace.params, values)
    _write_if_new(CODE, code_digests())


def run_cell(cell: Cell, stages: Iterable[str] = tuple(STAGES)) -> None:
    """Run those of a cell's first `stages` that are not current; `cells` need not list it.

    A file in the workspace records which code, parameters and stages before it made a stage's
    output; the raw log is taken as it is. A killed training goes on.

    Raises:
        ConfigError: the data set, the model or the model's split is not described.
    """
    wanted = made_by(cell, read_matrix())
    for stage in stages:
        part = Cell(*cell[: DEPTHS.get(stage, len(PARTS))])
        if not is_current(part, stage, wanted[stage]):
            _run_stage(stage, part)
            write_text(made_file(part, stage), wanted[stage])
    if "evaluate" in stages:
        publish(cell)


def made_by(cell: Cell, matrix: Matrix) -> dict[str, str]:
    """Stage to a hash of what makes its output: code, parameters, and the stages before it.

    Writes `params.yaml` of the cell's workspaces, if it differs.

    Raises:
        ConfigError: the data set, the model or the model's split is not described.
    """
    if cell.dataset not in matrix.datasets or cell.split not in matrix.models.get(cell.model, {}):
        raise ConfigError(
            f"{PARAMS} does not describe {cell}: it has the data sets "
            f"{', '.join(matrix.datasets)} and the models {', '.join(matrix.models)}"
        )
    parts = {depth: Cell(*cell[:depth]) for depth in (*DEPTHS.values(), len(PARTS))}
    of_part = {depth: settings(part, matrix) for depth, part in parts.items()}
    for depth, part in parts.items():
        _write_if_new(part.workspace.params, of_part[depth])
    code, upstream, found = code_digests(), "", {}
    for stage in STAGES:
        values = of_part[DEPTHS.get(stage, len(PARTS))]
        own = {name: _value(values, name) for name in STAGES[stage].params}
        made = {"upstream": upstream, "code": code[stage], "params": own}
        upstream = found[stage] = hashlib.sha256(yaml.safe_dump(made).encode()).hexdigest()
    return found


def is_current(part: Cell, stage: str, made: str) -> bool:
    """Return True if the stage's output is there and was made by what `made_by` says."""
    record = made_file(part, stage)
    return part.workspace.output(stage).is_dir() and record.is_file() and record.read_text() == made


def made_file(part: Cell, stage: str) -> Path:
    """File that records what made the stage's output."""
    return part.workspace.root / f"{stage}.made"


def judged_cells() -> list[Cell]:
    """Every cell at hand with results, listed or not."""
    return sorted(
        {
            Cell(*path.relative_to(CELLS).parts[: len(PARTS)])
            for path in CELLS.glob("*/*/*/*/artifacts/results/*.json")
        }
    )


def publish_all() -> None:
    """Complete the committed results of every judged cell.

    Raises:
        UserError: there is none, or some have other metrics than what is committed; these stay.
    """
    refused, cells = [], judged_cells()
    for cell in cells:
        try:
            complete(cell)
        except UserError as error:
            refused.append(str(error))
    if not cells:
        refused.append(f"no judged cell below {CELLS}: run `hpgr benchmark` first")
    if refused:
        raise UserError("\n".join(refused))


def settings(
    cell: Cell, matrix: Matrix, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The params.yaml of a workspace: profile, what the model's entry
    sets, what its log needs, split, seed and `changes` on top of the project's.

    No limit in minutes: it would make a result depend on what else the machine does.

    Raises:
        ConfigError: the values are not possible.
    """
    profile = matrix.models[cell.model][cell.split] if cell.model else "quick"
    values = dict(flat(matrix.models[cell.model].get("set", {}))) if cell.model else {}
    values |= dict(flat(matrix.datasets[cell.dataset])) | {"data.path": f"data/{cell.dataset}"}
    if cell.split:
        values["sessionize.split"] = cell.split
    for stage in ("pretrain", "finetune"):
        values[f"{stage}.max_minutes"] = None
        if cell.seed:
            values[f"{stage}.seed"] = int(cell.seed)
    if cell.split != "global-time" and values.get("finetune.monitor") == BASKET_MONITOR:
        values["finetune.monitor"] = "validation_ndcg@10"  # the split holds out single events
    values |= changes or {}
    try:
        return with_params(values, profile).model_dump(mode="json", by_alias=True)
    except ConfigError as error:
        raise ConfigError(f"{cell} in {PARAMS}: {error}") from error


def flat(sections: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """`section.key` and value of every entry; a section may have sections."""
    for key, value in sections.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _value(values: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return values[section][key] if key else values[section]


def _write_if_new(path: Path, values: dict[str, Any]) -> None:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _run_stage(stage: str, cell: Cell) -> None:
    """Run one stage of a cell whose settings are written; `evaluate` also writes its results."""
    start = time.monotonic()
    run_stage(stage, cell.workspace)
    if stage == "evaluate":
        write_results(cell, time.monotonic() - start)
        publish(cell)


def main(arguments: list[str]) -> None:
    """Run what the command line names.

    Raises:
        UserError: it names no command, or no cell.
    """
    command, *place = arguments or [""]
    if command == "settings" and not place:
        write_settings()
        return
    if command == "publish" and not place:
        publish_all()
        return
    depth = DEPTHS.get(command, len(PARTS))
    if command not in (*STAGES, "cell") or len(place) != depth:
        raise UserError(f"found {' '.join(arguments)!r}, expected a command of:\n{__doc__}")
    if command == "cell":
        run_cell(Cell(*place))
    else:
        _run_stage(command, Cell(*place))


if __name__ == "__main__":
    run(partial(main, sys.argv[1:]))
