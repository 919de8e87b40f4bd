"""A run stops itself when its server says so: it was cancelled there, or given up for dead.

Prefect's worker passes a cancel on to the run, but gives up listening half a minute after the
server went away; and a run that was silent for the length of an outage is Crashed when the server
is back, while it works on. Reads and writes the run's state on Prefect's server.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled

from host.own_server import is_own

LOOK_EVERY_S = 10.0
STOPPED = "Stopped on request; training left a checkpoint."


@contextmanager
def recallable(every_s: float = LOOK_EVERY_S) -> Iterator[None]:
    """End the body of a flow as on SIGTERM once its run is Cancelling or final.

    A run on its own temporary server is not watched: nobody else speaks to that one, and after a
    laptop's sleep it takes its only run for dead.

    Raises:
        Abort: the body was ended; Prefect then leaves the run's state as it is.
    """
    url = PREFECT_API_URL.value()
    if not url or is_own(url):
        yield
        return
    recall = _Recall(UUID(flow_run.id))
    try:
        threading.Thread(target=recall.watch, args=(every_s,), daemon=True).start()
        try:
            yield
        finally:
            recall.end()
    except TerminationSignal:
        if recall.state is None:
            raise
        recall.settle(recall.state)


class _Recall:
    """The watch over one run's state on the server."""

    def __init__(self, run: UUID) -> None:
        self.run = run
        self.state: State | None = None  # for which this process was stopped
        self._over = threading.Event()
        self._lock = threading.Lock()

    def watch(self, every_s: float) -> None:
        """Look until the body is over; ask again if the server is away."""
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True) as client,
        ):
            while not self._over.wait(every_s):
                with suppress(Exception):
                    state = client.read_flow_run(self.run).state
                    if state is not None and (state.is_cancelling() or state.is_final()):
                        self._stop(state)

    def _stop(self, state: State) -> None:
        with self._lock:  # never after the body: what comes then must not be cut off
            if not self._over.is_set():
                self.state = state
                # To the thread that handles it, which may hold it back (host/dvc_process.py).
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                self._over.set()

    def end(self) -> None:
        """Send no signal any more: the body is over."""
        with self._lock:
            self._over.set()

    def settle(self, state: State) -> NoReturn:
        """Finish a cancel; a final state stays."""
        if state.is_cancelling():
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(self.run, Cancelled(message=STOPPED), force=True)
        raise Abort(f"the run is {state.name} on the server: {state.message or STOPPED}")
