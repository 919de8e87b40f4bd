"""Run the benchmark's cells that are not current, several at once.

    python -m flows.benchmark [--only PATTERN ...] [--limit N]
    python -m flows.benchmark --only 'ml-1m/leave-one-out/*' --limit 2

A cell is DATASET/SPLIT/MODEL/SEED of benchmarks/params.yaml; `*` in a pattern stands for anything.
DVC decides what is current. A stopped run goes on from its checkpoints; a cell that fails does not
stop the others. Reads benchmarks/params.yaml, params.yaml, profiles/ and data/. Writes
benchmarks/cells/, benchmarks/dvc.lock and benchmarks/results/.
"""

from __future__ import annotations

import json
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks import matrix, paired, results_file
from benchmarks.matrix import Cell
from flows.commands import run_as_module
from flows.dvc_graph import dvc_output
from flows.dvc_stages import HINTS, TAIL_LINES, failure_message
from flows.faults import TRANSIENT, StageFailed, TransientFault, retry_options
from host.cancellation import recallable
from host.dvc_lock import drop_stale_locks
from host.dvc_process import dvc_process
from hpgr.config import load_config
from hpgr.runtime import UserError, read_json

# Cells share one dvc.lock: a DVC command waits for another one's moment with it.
DVC = ("--cd", str(matrix.FOLDER), "--wait-for-lock")
RWLOCK = matrix.FOLDER / ".dvc/tmp/rwlock"
STAGES = {1: "validate", 2: "sessionize"}  # by what of a cell they need: data set, split
OWN = ("pretrain", "finetune", "evaluate")
RUNNING = "Running stage '"


@flow(name="benchmark", persist_result=False)
def benchmark(only: list[str] | None = None, limit: int = 1) -> list[str]:
    """Run the cells that are not current.

    Args:
        only: patterns of cells; None or none: every cell.
        limit: cells that run at once.

    Returns:
        The results files of the chosen cells.

    Raises:
        UserError: a pattern fits no cell, or the benchmark's parameters are wrong.
        StageFailed: a cell failed; the others have run. The message names each.
    """
    if limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1 cell at once")
    with recallable():
        drop_stale_locks(RWLOCK)
        cells = chosen(matrix.read_matrix().cells, only or [])
        matrix.write_settings()
        failed = prepare(cells)
        changed = stale(cells)
        left = [c for c in cells if c not in failed and not changed.isdisjoint(targets(c))]
        get_run_logger().info(
            "%d of %d cells are not current%s", len(left), len(cells), duration(left, limit)
        )
        failed |= run_cells(left, limit)
        return summary(cells, failed)


def chosen(cells: list[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells that fit a pattern; all where there is none.

    Raises:
        UserError: a pattern fits no cell.
    """
    for pattern in patterns:
        if not any(fnmatchcase(str(cell), pattern) for cell in cells):
            raise UserError(
                f"no cell of {matrix.PARAMS} fits {pattern!r}; it has " + ", ".join(map(str, cells))
            )
    return [c for c in cells if not patterns or any(fnmatchcase(str(c), p) for p in patterns)]


def targets(cell: Cell) -> list[str]:
    """DVC's names of all stages of a cell."""
    return [
        *(Cell(*cell[:depth]).target(stage) for depth, stage in STAGES.items()),
        *map(cell.target, OWN),
    ]


def stale(cells: Sequence[Cell]) -> set[str]:
    """Those stages of the cells whose inputs, parameters, code or outputs are not as recorded."""
    names = sorted({name for cell in cells for name in targets(cell)})
    return set(json.loads(dvc_output(*DVC, "status", "--json", *names) or "{}")) if names else set()


def prepare(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Validate each data set and cut each split that is not current.

    Returns:
        The cells that cannot run, with the reason.
    """
    options = retry_options(load_config().orchestrate)
    failed: dict[Cell, str] = {}
    for depth, stage in STAGES.items():
        for shared in dict.fromkeys(Cell(*cell[:depth]) for cell in cells):
            of_it = [c for c in cells if c[:depth] == shared[:depth] and c not in failed]
            if not of_it or shared.target(stage) not in stale(of_it[:1]):
                continue
            log = load_config(shared.workspace.params).data.path
            if not log.exists():
                reason = f"{log} not found: put the log there, a public one with `hpgr fetch NAME`"
                failed |= dict.fromkeys(of_it, reason)
                continue
            named = repro.with_options(name=stage, task_run_name=f"{stage} {shared}", **options)
            try:
                named(str(shared), [shared.target(stage)])
            except (StageFailed, TransientFault) as error:
                failed |= dict.fromkeys(of_it, str(error))
    return failed


def run_cells(cells: Sequence[Cell], limit: int) -> dict[Cell, str]:
    """Run the cells, `limit` at once; returns those that failed, with the reason."""
    options = retry_options(load_config().orchestrate)
    failed: dict[Cell, str] = {}
    futures: dict[PrefectFuture[list[str]], Cell] = {}
    runner: ThreadPoolTaskRunner[list[str]] = ThreadPoolTaskRunner(max_workers=limit)
    with runner, _ended_with_the_flow():
        for cell in cells:
            named = repro.with_options(name="cell", task_run_name=str(cell), **options)
            names = [cell.target(stage) for stage in OWN]
            futures[runner.submit(named, {"place": str(cell), "stages": names})] = cell
        left = list(cells)
        for future in as_completed([*futures]):
            left.remove(cell := futures[future])
            try:
                future.result()
            except Exception as error:
                failed[cell] = str(error)
                get_run_logger().error("%s failed: %s", cell, error)
            if left:
                get_run_logger().info("%d left%s", len(left), duration(left, limit))
    return failed


def duration(cells: Sequence[Cell], limit: int) -> str:
    """Describe how long the cells will take, from the time of others like them."""
    known = [s for cell in cells if (s := results_file.seconds(*cell[:3])) is not None]
    if not cells or not known:
        return "; how long that takes is known after the first of its data set" if cells else ""
    minutes = sum(known) / 60 / min(limit, len(cells))
    unknown = len(cells) - len(known)
    rest = f", without {unknown} of a data set that has no finished cell" if unknown else ""
    return f": about {minutes:,.0f} min{rest}" if minutes >= 1 else f": less than 1 min{rest}"


def summary(cells: Sequence[Cell], failed: dict[Cell, str]) -> list[str]:
    """Publish the results and report them, with the differences between models.

    Raises:
        StageFailed: a cell failed.
    """
    logger = get_run_logger()
    done = [cell for cell in cells if cell not in failed]
    files = [path for cell in done for path in results_file.publish(cell)]
    for path in files:
        first = list(read_json(path)["metrics"].items())[:5]
        logger.info("%s: %s", path, ", ".join(f"{name} {value:.4f}" for name, value in first))
    for pair in paired.pairs(done):
        for line in paired.lines(*pair):
            logger.info(line)
    if failed:
        reasons = "\n".join(f"{cell}: {reason}" for cell, reason in failed.items())
        raise StageFailed(f"{len(failed)} of {len(cells)} cells failed:\n{reasons}")
    return [str(path) for path in files]


@task(cache_policy=NO_CACHE)
def repro(place: str, stages: list[str]) -> list[str]:
    """Reproduce stages of the benchmark in their order; returns those that ran.

    Args:
        place: what they belong to, for the log.
        stages: DVC's names of them; what they read is current.

    Raises:
        StageFailed: one failed; the message is what it printed.
        TransientFault: DVC could not start, since another process holds a file.
    """
    logger, tail, ran = get_run_logger(), deque[str](maxlen=TAIL_LINES), list[str]()
    arguments = (*DVC, "repro", "--single-item", *stages)
    with dvc_process(*arguments, stderr=subprocess.STDOUT) as process, _stoppable(process):
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if line and not line.startswith(HINTS):
                logger.info(line)
                tail.append(line)
                if line.startswith(RUNNING):
                    ran.append(line.removeprefix(RUNNING).rstrip("':"))
    if process.returncode != 0:
        if TRANSIENT.search(text := "\n".join(tail)) and not ran:
            raise TransientFault(f"{place} could not start: {text}")
        raise StageFailed(failure_message([*tail]) or f"dvc ended with code {process.returncode}")
    return ran


_processes: set[subprocess.Popen[str]] = set()  # of the cells that run
_stopping = False


@contextmanager
def _stoppable(process: subprocess.Popen[str]) -> Iterator[None]:
    """Let `_ended_with_the_flow` end the process, also where it has just begun."""
    _processes.add(process)
    try:
        if _stopping:
            process.terminate()
        yield
    finally:
        _processes.discard(process)


@contextmanager
def _ended_with_the_flow() -> Iterator[None]:
    """End the cells' processes where the block ends early: threads cannot be ended themselves.

    A training writes its checkpoint first; it gets SIGTERM when its DVC is gone.
    """
    global _stopping
    _stopping = False
    try:
        yield
    except BaseException:
        _stopping = True
        for process in [*_processes]:
            process.terminate()
        raise


if __name__ == "__main__":
    run_as_module("benchmark")
