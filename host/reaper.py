"""After a power cut or a killed worker: end what is left of its runs and free their slot.

A run whose worker died stays Running for Prefect and holds the pool's only slot. Its processes may
even live on. `reap` is called while no worker of the pool runs in this clone (host/worker.py holds
its lock), ends what is left, with time for a checkpoint, and sets the run's state. Reads and writes
Prefect's server.
"""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.states import Cancelled, Crashed

from host.processes import STOP_GRACE_S, end_with

WORKER = "prefect.worker.name"  # the label that a worker gives the run it takes
RUN_ID = "PREFECT__FLOW_RUN_ID"  # Prefect sets it for a flow run's process; its children inherit it
LOST = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
PAGE = 200


def reap(client: SyncPrefectClient, pool: str, worker: str) -> list[FlowRun]:
    """Mark the pool's runs that no worker looks after; return them as they were.

    Running and Pending become Crashed, Cancelling becomes Cancelled: that was asked for. Runs that
    wait for a slot stay; the worker that starts now takes them.

    Args:
        client: of Prefect's server.
        pool: whose runs.
        worker: the one that is about to start here; those of other clones keep their runs.
    """
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(LOST)))
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        limit=PAGE,
    )
    others = {
        other.name
        for other in client.read_workers_for_work_pool(pool)
        if other.status == WorkerStatus.ONLINE and other.name != worker
    }
    lost = [run for run in found if run.labels.get(WORKER) not in others]
    for run in lost:
        ended = end_with(RUN_ID, str(run.id), STOP_GRACE_S)
        message = (
            f"The worker of pool {pool} is gone (killed, or the power was cut)"
            + (f"; {ended} processes of the run were ended" if ended else "")
            + ". What was finished stays. Run it again: training goes on from its last checkpoint."
        )
        cancelled = run.state_type == StateType.CANCELLING
        state: State = Cancelled(message=message) if cancelled else Crashed(message=message)
        client.set_flow_run_state(run.id, state, force=True)
    return lost
