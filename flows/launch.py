"""A flow started as a command: `python -m flows.NAME`, with or without a Prefect server.

Reads and writes nothing of its own.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from ruamel.yaml import YAML

from flows.faults import StageFailed, TransientFault
from flows.server import end_orphans, ensure_automation
from hpgr.config import ConfigError
from hpgr.runtime import UserError


def launch(flow: Flow[..., Any], **parameters: Any) -> NoReturn:
    """Run `flow` and leave the process; a mistake of the user ends with its message and code 2.

    Killed, it leaves a run that is Running and its temporary server: the automation marks the run,
    on whatever server looks at the same database next, and the next launch ends the server.
    """
    # Ctrl-C reaches the temporary server too: what the run then still wants to tell it is lost,
    # and should not be tried again for minutes.
    patience = {} if PREFECT_API_URL.value() else {PREFECT_CLIENT_MAX_RETRIES: 1}
    try:
        with temporary_settings(patience):
            if not PREFECT_API_URL.value():
                end_orphans()
                with get_client(sync_client=True) as client:  # of the temporary server
                    ensure_automation(client)
            flow(**parameters)
    except (ConfigError, UserError, StageFailed, TransientFault, Abort) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Give the command `--set SECTION.KEY=VALUE`, any number of times; see `read_overrides`."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE"
    )


def read_overrides(parser: argparse.ArgumentParser, entries: list[str]) -> dict[str, Any]:
    """`section.key` to value, each value read as YAML."""
    found = {}
    for entry in entries:
        dotted, separator, value = entry.partition("=")
        if not separator:
            parser.error(f"--set {entry!r}: expected SECTION.KEY=VALUE")
        found[dotted] = YAML(typ="safe").load(value)
    return found
