"""`make up` and `make down`: Prefect, MLflow, recommender and worker, supervised, on loopback.

    python -m host.services up | down

supervisord (host/services.conf) starts them, restarts what dies and keeps their logs; this module
checks the ports before, waits for every service after, and ends what is left when all goes down.
Reads params.yaml (serve.port), HPGR_PREFECT_PORT, HPGR_MLFLOW_PORT, HPGR_ALLOWED_HOSTS and
MLFLOW_TRACKING_URI. Writes .services/, Prefect's authentication string (host/access.py) and,
through host/prefect_server.py, Prefect's server.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import httpx
import psutil

from host import access
from host.prefect_server import own_database
from host.processes import end, listeners, processes_with
from host.settings import (
    HOME,
    MARK,
    SERVICES,
    SUPERVISOR_CONF,
    SUPERVISOR_LOG,
    SUPERVISOR_PID,
    allowed_hosts,
    prefect_home,
)
from host.worker import tidy_up
from hpgr.config import ConfigError, load_config
from hpgr.folder import require_folder
from hpgr.masking import install as mask_output
from hpgr.registry.mlflow_faults import public
from hpgr.registry.tracking import (
    EXPERIMENTS,
    artifacts_uri,
    make_store,
    mlflow_address,
    named_addresses,
    own_uri,
    tracking_uri,
)
from hpgr.runtime import UserError
from hpgr.serving.guard import KNOWN

HOST = "127.0.0.1"
UP_DEADLINE_S = 240
DOWN_GRACE_S = 90  # the worker alone may take 60: its run writes a checkpoint
TAIL_LINES = 25


@dataclass(frozen=True)
class Service:
    """A server of `make up`.

    Attributes:
        name: its section in services.conf, and its log.
        port: on HOST.
        setting: what sets the port.
        health: path that answers once the server is there.
        page: path of the page to open.
    """

    name: str
    port: int
    setting: str
    health: str
    page: str = ""

    @property
    def url(self) -> str:
        """Address without a path."""
        return f"http://{HOST}:{self.port}"


def services() -> list[Service]:
    """The servers that belong up; not MLflow where MLFLOW_TRACKING_URI names another one.

    Raises:
        UserError: a port is no number, or MLflow's address is none.
        ConfigError: params.yaml is wrong.
    """
    own_mlflow = tracking_uri() == own_uri()
    named_addresses()
    found = [
        Service("prefect", _port("HPGR_PREFECT_PORT", 4200), "HPGR_PREFECT_PORT", "/api/health"),
        Service(
            "mlflow",
            _port("HPGR_MLFLOW_PORT", 5000),
            "HPGR_MLFLOW_PORT",
            "/health",
            f"/{EXPERIMENTS}",
        ),
        Service("recommender", load_config().serve.port, "serve.port in params.yaml", "/health"),
    ]
    return [service for service in found if own_mlflow or service.name != "mlflow"]


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise UserError(f"{variable} is {text!r}, expected a port from 1 to 65535")
    return int(text)


def up() -> None:
    """Start everything and wait until it answers; only wait if it is up already.

    Raises:
        UserError: a port is taken, or a service did not come up; the message ends in its log.
    """
    wanted = services()
    if supervisor() is not None:
        _wait(wanted)
        print("it is up already")
    else:
        if _left_behind():
            print("a killed supervisor left services behind", flush=True)
            down()
        _check_ports(wanted)
        SERVICES.mkdir(exist_ok=True)
        if "mlflow" in (service.name for service in wanted):
            make_store()  # before two services want it at the same time
        environment = _environment(wanted)
        print(f"starting; the logs are in {SERVICES}/", flush=True)
        done = _call(environment, "supervisor.supervisord", "-c", str(SUPERVISOR_CONF))
        if done.returncode != 0:
            raise UserError(f"supervisord did not start: {done.stdout}{done.stderr}".rstrip())
        try:
            _wait(wanted[:1])
            done = _call(environment, "host.prefect_server")
            if done.returncode != 0:
                raise UserError(done.stderr.strip().removeprefix("error: "))
            _wait(wanted)
        except BaseException:
            down()
            raise
    _print_addresses(wanted)


def _call(environment: dict[str, str], *module: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *module]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def down() -> None:
    """Stop everything and what it started, running flows with a checkpoint; nothing is left."""
    running = supervisor()
    if running is not None:
        running.terminate()  # it stops its programs in their order, then itself
        psutil.wait_procs([running], timeout=DOWN_GRACE_S)
    left = _left_behind()
    killed = end(left, DOWN_GRACE_S)
    SUPERVISOR_PID.unlink(missing_ok=True)
    tidy_up()
    if running is None and not left:
        print("nothing is up")
    else:
        print("everything is down" + (f"; {len(killed)} processes had to be killed" * bool(killed)))


def supervisor() -> psutil.Process | None:
    """The supervisor of this folder's services, if it runs."""
    try:
        process = psutil.Process(int(SUPERVISOR_PID.read_text()))
        if str(SUPERVISOR_CONF) in process.cmdline() and process.cwd() == str(Path.cwd()):
            return process
    except (OSError, ValueError, psutil.Error):
        pass
    return None


def _left_behind() -> set[psutil.Process]:
    """All that carries the mark, which children inherit, also from a killed supervisor or worker.

    Not this process and those that wait for it, which may run in an environment of ours.
    """
    return set(processes_with(MARK, str(Path.cwd()))) - set(psutil.Process().parents())


def _environment(wanted: list[Service]) -> dict[str, str]:
    """The variables that services.conf expands and that every service and flow inherits."""
    folder, home = str(Path.cwd()), prefect_home()
    ports = {service.name: str(service.port) for service in wanted}
    origin = f"http://{HOST}:{ports['prefect']}"
    prefect = {**own_database(home), **access.for_server(access.read_string(home), origin)}
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PREFECT_HOME": str(home),
        **{setting.name: value for setting, value in prefect.items()},
        "PREFECT_API_URL": f"{origin}/api",
        "PREFECT_UI_API_URL": "/api",  # of the address that the page was opened at
        HOME: folder,
        MARK: folder,
        "HPGR_PREFECT_PORT": ports["prefect"],
        "HPGR_MLFLOW_PORT": ports.get("mlflow", "0"),
        "HPGR_OWN_MLFLOW": str("mlflow" in ports).lower(),
        "HPGR_MLFLOW_STORE": own_uri(),
        "HPGR_MLFLOW_ARTIFACTS": artifacts_uri(),
        "HPGR_MLFLOW_HOSTS": ",".join(_with_any_port([*KNOWN, *allowed_hosts()])),
    }


def _with_any_port(hosts: list[str]) -> list[str]:
    """As patterns of MLflow's own check, which knows no names without port."""
    patterns = [host.replace("[", "[[]", 1) for host in hosts]
    return [*hosts, *(f"{pattern}:*" for pattern in patterns)]


def _check_ports(wanted: list[Service]) -> None:
    taken = []
    for service in wanted:
        who = listeners(service.port)
        if who or _answers(service.url):
            by = ", ".join(f"process {p.pid} ({' '.join(p.cmdline())[:80]})" for p in who)
            taken.append(
                f"port {service.port} of {service.name} is taken by {by or 'somebody else'}; stop "
                f"that, or choose another port: {service.setting}"
            )
    if taken:
        raise UserError("\n".join([*taken, "as in `HPGR_PREFECT_PORT=4201 make up`"]))


def _answers(url: str) -> bool:
    try:
        # Asked many times: without `verify=False` each one reads all of the machine's certificates.
        httpx.get(url, timeout=5, trust_env=False, verify=False)
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:
        pass
    return True


def _wait(wanted: list[Service]) -> None:
    """Return once every service answers, whatever it says: a recommender may lack a champion."""
    until = time.monotonic() + UP_DEADLINE_S
    for service in wanted:
        while not _answers(service.url + service.health):
            if service.name in gave_up():
                raise UserError(_failed(service.name, "stops again and again"))
            if time.monotonic() > until:
                raise UserError(_failed(service.name, f"no answer in {UP_DEADLINE_S} s"))
            time.sleep(0.5)
    if "worker" in gave_up():
        raise UserError(_failed("worker", "stops again and again"))


def gave_up() -> set[str]:
    """Programs that the supervisor stopped restarting since it was started last."""
    text = SUPERVISOR_LOG.read_text(errors="replace") if SUPERVISOR_LOG.is_file() else ""
    *_, latest = text.split("supervisord started with pid")
    return set(re.findall(r"gave up: (\w+) entered FATAL state", latest))


def _failed(program: str, why: str) -> str:
    log = SERVICES / f"{program}.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else ["(no log)"]
    tail = "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
    return f"{program} did not come up ({why}). {log} ends in:\n{tail}"


def _print_addresses(wanted: list[Service]) -> None:
    urls = {service.name: service.url + service.page for service in wanted}
    if "mlflow" not in urls:
        web = tracking_uri().startswith("http")
        urls["mlflow"] = f"{mlflow_address()}/{EXPERIMENTS}" if web else public(tracking_uri())
    home = prefect_home()
    string = access.string_file(home)
    print(
        f"""
Prefect      {urls["prefect"]}
MLflow       {urls["mlflow"]}
recommender  {urls["recommender"]}

Prefect's page asks once for a password, the text of a file that only you may read:
  cat {quote(str(string))}

Next: open Prefect, then Deployments, train, Run; or
  export PREFECT_HOME={quote(str(home))} PREFECT_API_URL={wanted[0].url}/api
  export PREFECT_API_AUTH_STRING="$(cat {quote(str(string))})"
  {quote(str(Path(sys.executable).parent / "prefect"))} deployment run train/local
The recommender answers once a model is champion. `make down` stops everything."""
    )


def main() -> None:
    """Entry point of `python -m host.services`."""
    mask_output()
    commands = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit("usage: python -m host.services up | down")
    try:
        require_folder()
        commands[sys.argv[1]]()
    except (ConfigError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
