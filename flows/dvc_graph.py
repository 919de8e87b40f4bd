"""Questions to DVC: its graph, and whether a record is what lies in the workspace; DVC's commands.

Reads dvc.yaml, dvc.lock and what they name, through DVC. Writes nothing itself.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flows.faults import TRANSIENT, StageFailed, TransientFault
from host.dvc_process import dvc_process
from hpgr.folder import require_repository

if TYPE_CHECKING:
    from dvc.repo import Repo


def stage_order() -> list[str]:
    """The stages of dvc.yaml, each after those it depends on.

    Raises:
        StageFailed: DVC cannot read its files.
    """
    from dvc.repo.reproduce import plan_repro

    with _repository() as repo:
        planned = plan_repro(repo.index.graph)
        return [stage.addressing for stage in planned if not stage.is_data_source]


def upstream(stage: str) -> list[str]:
    """Inputs of the stage that DVC keeps, as targets of `dvc pull`: stages, `data.dvc`."""
    with _repository() as repo:
        graph = repo.index.graph
        (node,) = (node for node in graph if node.addressing == stage)
        return sorted(earlier.addressing for earlier in graph.successors(node))


def changes(target: str) -> list[Any]:
    """Changes that `dvc status` reports for a stage or .dvc file; empty if its record is current.

    Raises:
        StageFailed: DVC cannot read its files.
        TransientFault: another DVC command holds its lock.
    """
    with _repository() as repo:
        return repo.status([target]).get(target, [])


@contextmanager
def _repository() -> Iterator[Repo]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise _fault(f"dvc: {error}") from error


def dvc_output(*arguments: str) -> str:
    """Run a `dvc` command that runs no stage; return its output.

    Raises:
        StageFailed: it failed; the message is DVC's.
        TransientFault: its lock or remote was busy or unreachable.
    """
    with dvc_process(*arguments, stderr=subprocess.PIPE) as process:
        printed, errors = process.communicate()
    if process.returncode != 0:
        raise _fault(f"dvc {' '.join(arguments)}: {errors.strip()}")
    return printed.strip()


def _fault(message: str) -> Exception:
    require_repository()
    return TransientFault(message) if TRANSIENT.search(message) else StageFailed(message)
