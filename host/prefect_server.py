"""Set up what the flows need of a Prefect server: address, pools, deployments, automation.

    python -m host.prefect_server      against PREFECT_API_URL

Reads prefect.yaml. Writes Prefect's server.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from dotenv import dotenv_values
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.context import get_settings_context
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_HOME,
)

from host.own_server import end_orphans
from host.settings import HOME
from hpgr.folder import sqlite_uri
from hpgr.masking import install as mask_output
from hpgr.runtime import UserError

POOLS = ("local", "gpu")
# A worker starts the flow, in its own environment: a run can set neither command, nor folder, nor
# variables. Prefect's default template lets it set all of them.
TEMPLATE: dict[str, Any] = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
PER_POOL = 1  # a worker's runs share its clone, and DVC allows one run in a workspace
SILENT_S = 90  # three missed heartbeats (prefect.toml)
AUTOMATION = "Mark silent runs as crashed"
FINAL = ("Completed", "Failed", "Cancelled", "Crashed")


def wait_for_server(deadline_s: float) -> None:
    """Return once the server answers and takes our authentication string.

    Raises:
        UserError: PREFECT_API_URL is not set, nothing answers there in time, or the string is
            another one.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise UserError(
            "PREFECT_API_URL is not set: name the server, as in "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    until = time.monotonic() + deadline_s
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                _check_string(url)
                return
            said = "it answers, but not as Prefect's server does"
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise UserError(
                f"{url!r} is no address of a Prefect server ({error}): expected one as in "
                f"http://127.0.0.1:4200/api. {named_by()}"
            ) from error
        except httpx.HTTPError as error:
            said = str(error)
        if time.monotonic() > until:
            raise UserError(
                f"no Prefect server at {url} after {deadline_s:g} s: {said}. {named_by()}"
            )
        time.sleep(0.5)


def _check_string(url: str) -> None:
    """Raise a UserError if the server asks for another authentication string than ours."""
    string = PREFECT_API_AUTH_STRING.value() or ""
    encoded = base64.b64encode(string.encode()).decode()
    headers = {"Authorization": f"Basic {encoded}"} if string else {}
    asked = httpx.get(f"{url}/admin/version", headers=headers, timeout=5)
    if asked.status_code == httpx.codes.UNAUTHORIZED:
        fault = "is another one" if string else "is not set"
        raise UserError(
            f"the Prefect server at {url} asks for its authentication string, and "
            f"PREFECT_API_AUTH_STRING {fault}: export it as `make up` prints it there"
        )


def own_database(home: Path) -> dict[Any, str]:
    """The setting of Prefect's database in `home`; none where the user has named another one.

    Prefect's default is the path as it is, in which SQLAlchemy reads `?` and `%` as signs of a URL.
    """
    default = f"sqlite+aiosqlite:///{PREFECT_HOME.value()}/prefect.db"
    if PREFECT_API_DATABASE_CONNECTION_URL.value() != default:
        return {}
    uri = sqlite_uri(home / "prefect.db", "sqlite+aiosqlite")
    return {PREFECT_API_DATABASE_CONNECTION_URL: uri}


def named_by() -> str:
    """Say where PREFECT_API_URL comes from and what to do about it, in the order of Prefect."""
    name, here = PREFECT_API_URL.name, Path.cwd()
    if os.environ.get(name):
        place, fix = f"the environment variable {name}", f"`unset {name}`"
    elif dotenv_values(here / ".env").get(name):
        place, fix = f"{name} in {here / '.env'}", "remove it there"
    elif "url" in _toml(here / "prefect.toml", "api"):
        place, fix = f"[api] url in {here / 'prefect.toml'}", "remove it there"
    elif "url" in _toml(here / "pyproject.toml", "tool", "prefect", "api"):
        place, fix = f"[tool.prefect.api] url in {here / 'pyproject.toml'}", "remove it there"
    else:
        profile = get_settings_context().profile
        place = f"the profile {profile.name!r} in {profile.source}"
        fix = f"`prefect config unset {name}`"
    return f"The address comes from {place}: start that server, or run without one: {fix}"


def _toml(path: Path, *tables: str) -> dict[str, Any]:
    table = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key in tables:
        table = table.get(key, {})
    return table


def ensure_pool(client: SyncPrefectClient, pool: str) -> None:
    """Make a process pool that runs one flow at a time and lets a run set nothing."""
    wanted = WorkPoolCreate(
        name=pool, type="process", concurrency_limit=PER_POOL, base_job_template=TEMPLATE
    )
    with suppress(ObjectAlreadyExists):  # or a worker that starts beside us was faster
        client.create_work_pool(wanted)
    found = client.read_work_pool(pool)
    if (found.concurrency_limit, found.base_job_template) != (PER_POOL, TEMPLATE):
        change = WorkPoolUpdate(concurrency_limit=PER_POOL, base_job_template=TEMPLATE)
        client.update_work_pool(pool, change)


def ensure_automation(client: SyncPrefectClient, silent_s: float = SILENT_S) -> None:
    """Have the server mark a run Crashed that sent heartbeats and then fell silent."""
    wanted = AutomationCore(
        name=AUTOMATION,
        description="A run whose machine died stays Running otherwise, and holds its pool's slot.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{state}" for state in FINAL),
            },
            threshold=1,
            within=timedelta(seconds=silent_s),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=(
                    f"No heartbeat for {silent_s:g} s: the flow's process or its machine is gone, "
                    "or the server was away; then the run stops itself. What was finished stays. "
                    "Run it again: training goes on from its last checkpoint."
                ),
            )
        ],
    )
    found = client.read_automations_by_name(AUTOMATION)
    if not found:
        client.create_automation(wanted)
    elif found[0].trigger != wanted.trigger or found[0].actions != wanted.actions:
        client.update_automation(found[0].id, wanted)


def set_up() -> None:
    """Make pools, automation and the deployments of prefect.yaml; end orphaned servers.

    Raises:
        UserError: `prefect deploy` refuses a deployment; the message is its own.
    """
    end_orphans()
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            ensure_pool(client, pool)
        ensure_automation(client)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    # Unset, the placeholder survives into the deployment, and each worker fills in its own folder.
    environment = {name: value for name, value in os.environ.items() if name != HOME}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise UserError(f"`prefect deploy --all` failed:\n{done.stdout}{done.stderr}".rstrip())


def main() -> None:
    """Entry point of `python -m host.prefect_server`."""
    mask_output()
    try:
        wait_for_server(deadline_s=5)
        set_up()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
