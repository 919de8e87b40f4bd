"""A flow started as a command (flows/commands.py), with or without a Prefect server.

Reads and writes nothing of its own.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.context import _temporary_global_settings_context, get_settings_context
from prefect.exceptions import Abort, TerminationSignal
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    PREFECT_UI_URL,
    temporary_settings,
)

from flows.faults import StageFailed, TransientFault
from host.access import for_server, new_string
from host.own_server import end_orphans, start_own_server
from host.prefect_server import ensure_automation, own_database, wait_for_server
from hpgr.config import ConfigError
from hpgr.folder import require_folder, require_repository
from hpgr.masking import install as mask_output
from hpgr.registry.tracking import named_addresses
from hpgr.runtime import UserError

SERVER_DEADLINE_S = 15  # it is there, or the address is wrong; slow on a busy machine
GOES_ON = "What was finished stays, a training's last checkpoint too: the same command goes on."


def launch(flow: Flow[..., Any], **parameters: Any) -> NoReturn:
    """Run `flow` and leave the process; a mistake of the user ends with its message and code 2.

    Stopped by Ctrl-C or SIGTERM it says so and ends with 128 plus the signal, as a shell does.
    Killed, it leaves a run that is Running and its temporary server: the automation marks the run,
    on whatever server looks at the same database next, and the next launch ends the server.
    """
    mask_output()
    # A SIGTERM to all of a group ends the temporary server too: what the run then still wants to
    # tell it is lost, and should not be tried again for minutes.
    settings: dict[Any, Any] = {}
    if not PREFECT_API_URL.value():
        settings = {
            PREFECT_CLIENT_MAX_RETRIES: 1,
            **own_database(PREFECT_HOME.value()),
            **for_server(new_string(), origin=""),
            PREFECT_UI_URL: "",  # it has no pages to point to
        }
    # Prefect hands a SIGTERM on to this one after the run's end; the default would end the process
    # before it could stop its temporary server.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _require_place()
        with _settings(settings):
            if PREFECT_API_URL.value():
                wait_for_server(SERVER_DEADLINE_S)
                flow(**parameters)
            else:
                end_orphans()
                with _kept_from_ctrl_c():
                    url = start_own_server()
                with _settings({PREFECT_API_URL: url}):
                    with get_client(sync_client=True) as client:
                        ensure_automation(client)
                    flow(**parameters)
    except (ConfigError, UserError, StageFailed, TransientFault, Abort) as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave(f"stopped by Ctrl-C. {GOES_ON}", 128 + signal.SIGINT)
    except TerminationSignal:
        _leave(f"stopped by SIGTERM. {GOES_ON}", 128 + signal.SIGTERM)
    except httpx.TransportError as error:
        _leave(f"Prefect's server is gone, and the run with it ({error}). {GOES_ON}", 1)
    sys.exit(0)


@contextmanager
def _settings(changes: dict[Any, Any]) -> Iterator[None]:
    """Prefect's settings in the block, also for its threads, which begin without a context."""
    with temporary_settings(changes), _temporary_global_settings_context(get_settings_context()):
        yield


def _require_place() -> None:
    """Refuse where no run could end well, before anything is written.

    Raises:
        UserError: of the folder, the git repository or MLflow's address.
    """
    require_folder()
    if Path("dvc.yaml").is_file():
        require_repository()
    named_addresses()


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise TerminationSignal(signal=number)


def _leave(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def _kept_from_ctrl_c() -> Iterator[None]:
    """Processes started in here never see SIGINT, which a terminal sends to all of a command's.

    Without it the temporary server would be gone before the run can tell it how it ended.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
