"""Cells of the benchmark to a GPU and back: packed here, trained there, judged here.

    python -m benchmarks.gpu_cells prepare FILE [DATASET/SPLIT/MODEL/SEED ...]
    OUT=FOLDER sh benchmarks/gpu.sh FILE                        there; see docs/gpu.md
    python -m benchmarks.gpu_cells collect FOLDER               what came back
    python -m benchmarks.matrix cell DATASET SPLIT MODEL SEED   goes on with it

`prepare` takes the cells in the order given, else those of `gpu` in benchmarks/params.yaml, makes
their sessions where they are not current and leaves out what is trained already. Equal arrays are
stored once. A trained stage 1 and checkpoints go along, so that a second call goes on where the
first was stopped. `collect` accepts only what the present parameters and code would make; a stage
counts as current then, as if `benchmarks.matrix` had run it, and a stopped training goes on from
its checkpoint, on any device.

Reads and writes benchmarks/cells/, FILE and FOLDER.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.matrix import PARAMS, Cell, is_current, made_by, made_file, read_matrix, run_cell
from benchmarks.stage_code import code_digests
from benchmarks.train_light import (
    MANIFEST,
    NEWEST,
    SUMMARY,
    TRAINED,
    TRAINING,
    counters,
    kept,
    newest,
)
from hpgr.cli import run
from hpgr.params_file import read_params
from hpgr.runtime import (
    UserError,
    atomic_folder,
    atomic_path,
    read_json,
    sha256_file,
    sole_writer,
    write_json,
    write_text,
)
from hpgr.workspace import Workspace


def default_cells() -> list[Cell]:
    """The cells of `gpu` in benchmarks/params.yaml: every cell with the first seed, then the next.

    Raises:
        UserError: there are none.
    """
    wanted = read_params(PARAMS).get("gpu")
    if not wanted:
        raise UserError(f"{PARAMS} has no section gpu: name the cells, or add its lists cell, seed")
    return [cell_of(f"{name}/{seed}") for seed, name in product(wanted["seed"], wanted["cell"])]


def cell_of(name: str) -> Cell:
    """The cell that DATASET/SPLIT/MODEL/SEED names.

    Raises:
        UserError: it has another number of parts.
    """
    parts = name.split("/")
    if len(parts) != len(Cell._fields):
        raise UserError(f"found cell {name!r}, expected DATASET/SPLIT/MODEL/SEED")
    return Cell(*parts)


def prepare(target: Path, cells: list[Cell]) -> None:
    """Write the archive of the cells that are not trained yet, the most wanted first.

    Raises:
        UserError: all of them are trained.
    """
    matrix, entries = read_matrix(), []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for cell in cells:
            made = made_by(cell, matrix)
            if is_current(cell, "finetune", made["finetune"]):
                print(f"{cell}: trained already, left out")
                continue
            if not is_current(Cell(*cell[:2]), "sessionize", made["sessionize"]):
                run_cell(cell, ("validate", "sessionize"))
            folder = root / "-".join(cell)
            pack_cell(cell, made["pretrain"], Workspace(folder))
            entries.append({"cell": str(cell), "folder": folder.name,
                            "made": {stage: made[stage] for stage in TRAINING}})  # fmt: skip
        if not entries:
            raise UserError("every cell is trained already: nothing to prepare")
        share_equal_files(root)
        write_json(root / MANIFEST, {"code": code_digests(), "cells": entries})
        with (
            atomic_path(target) as temporary,
            tarfile.open(temporary, "w:gz", compresslevel=6) as archive,
        ):
            for path in sorted(root.rglob("*")):  # hard links are stored once
                archive.add(path, str(path.relative_to(root)), recursive=False)
    print(f"{target}: {len(entries)} cells, {target.stat().st_size / 2**20:.1f} MiB")


def pack_cell(cell: Cell, made_pretrain: str, there: Workspace) -> None:
    """Copy what training reads: parameters, arrays, and what is trained so far."""
    here = cell.workspace
    for folder, copy in ((here.arrays, there.arrays), (here.lists, there.lists)):
        if folder.is_dir():
            shutil.copytree(folder, copy)
    shutil.copyfile(here.params, there.params)
    if is_current(cell, "pretrain", made_pretrain):
        shutil.copytree(here.pretrained, there.pretrained)
    for stage in TRAINING:
        if scratch := newest(here, stage):
            copy_checkpoint(scratch, there)


def copy_checkpoint(scratch: Path, there: Workspace) -> None:
    """Copy what a training goes on from; the times of files say which is newest."""
    with atomic_folder(there.checkpoints / scratch.name) as target:
        for path in kept(scratch):
            if path.is_file():
                shutil.copy2(path, target)


def share_equal_files(root: Path) -> None:
    """Replace files of equal bytes by hard links to one of them."""
    first: dict[str, Path] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        same = first.setdefault(sha256_file(path), path)
        if same != path:
            path.unlink()
            os.link(same, path)


def collect(folder: Path) -> None:
    """Put what came back into the cells' workspaces.

    Raises:
        UserError: a file is missing; or what came back of some cells was made by other parameters
            or code: the others' is in place then.
    """
    summary = folder / SUMMARY
    if not summary.is_file():
        raise UserError(f"{summary} not found: expected the folder that benchmarks/gpu.sh filled")
    content, matrix, refused = read_json(summary), read_matrix(), []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        unpack(folder, content["sha256"], root)
        for entry in content["cells"]:
            cell = cell_of(entry["cell"])
            if not entry["brought"]:
                print(f"{cell}: {entry['state']}, nothing came back")
                continue
            wanted = made_by(cell, matrix)
            if changed := [s for s in TRAINING if entry["made"][s] != wanted[s]]:
                refused.append(f"{cell} ({', '.join(changed)})")
                continue
            with sole_writer(cell.workspace.finetuned):
                took = [place(cell, s, wanted[s], root / entry["folder"]) for s in TRAINING]
            print(f"{cell}: {entry['state']}; {', '.join(filter(None, took)) or 'nothing new'}")
            if "error" in entry:
                print(f"{cell}: {entry['error']}")
    if refused:
        raise UserError(
            f"made by other parameters or code than the present ones: {'; '.join(refused)}. Go "
            "back to the commit and benchmarks/params.yaml that they were prepared with, or "
            "prepare and train them again"
        )


def unpack(folder: Path, sha256: str, root: Path) -> None:
    """Join the parts of the archive and unpack them.

    Raises:
        UserError: they are not the archive of this sha256.
    """
    parts = sorted(folder.glob(f"{TRAINED}.*"), key=lambda path: int(path.suffix[1:]))
    with tempfile.NamedTemporaryFile() as whole:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole)
        whole.flush()
        if sha256_file(Path(whole.name)) != sha256:
            raise UserError(
                f"{folder}: {', '.join(path.name for path in parts) or 'no part'} found, which is "
                f"not the archive of {SUMMARY}: copy it and every file {TRAINED}.0, .1, ... that "
                "one run of benchmarks/gpu.sh wrote"
            )
        with tarfile.open(whole.name) as archive:
            archive.extractall(root, filter="data")


def place(cell: Cell, stage: str, made: str, came: Path) -> str:
    """Put a stage's output, or else its checkpoint, into the workspace; say which."""
    if is_current(cell, stage, made):
        return ""
    here, there = cell.workspace, Workspace(came)
    if there.output(stage).is_dir():
        with atomic_folder(here.output(stage)) as output:
            shutil.copytree(there.output(stage), output, dirs_exist_ok=True)
        write_text(made_file(cell, stage), made)
        return f"{stage} done"
    scratch = newest(there, stage)
    if scratch is None:
        return ""
    own, came_to = here.checkpoints / scratch.name, counters(scratch)["step"]
    if (own / NEWEST).is_file() and counters(own)["step"] >= came_to:
        return ""
    copy_checkpoint(scratch, here)
    return f"{stage} goes on at step {came_to:,}"


def main(arguments: list[str]) -> None:
    """Run what the command line names.

    Raises:
        UserError: it names no command.
    """
    match arguments:
        case ["prepare", target, *names]:
            prepare(Path(target), [cell_of(name) for name in names] or default_cells())
        case ["collect", folder]:
            collect(Path(folder))
        case _:
            raise UserError(f"found {' '.join(arguments)!r}, expected a command of:\n{__doc__}")


if __name__ == "__main__":
    run(partial(main, sys.argv[1:]))
