"""Files and variables of this machine's servers and workers; a run's files: `hpgr.workspace`.

The files lie in the project's folder, the current one. MLflow's own store is `HERE.store`. Reads
PREFECT_HOME and HPGR_ALLOWED_HOSTS.
"""

from __future__ import annotations

import os
from pathlib import Path

SERVICES = Path(".services")  # logs, and worker-POOL.{lock,tmp}; services.conf names it too
SUPERVISOR_LOG = SERVICES / "supervisord.log"
SUPERVISOR_PID = SERVICES / "supervisord.pid"
SUPERVISOR_CONF = Path(__file__).with_name("services.conf")
DVC_RWLOCK = Path(".dvc/tmp/rwlock")

HOME = "HPGR_HOME"  # prefect.yaml: the folder in which a worker's runs happen
MARK = "HPGR_SERVICES"  # carried by all that `make up` starts: the folder whose services these are
HOSTS = "HPGR_ALLOWED_HOSTS"  # further hosts, such as a proxy's, without port, separated by commas


def prefect_home() -> Path:
    """Prefect's folder: its database and `api-auth-string`."""
    return Path(os.environ.get("PREFECT_HOME") or ".prefect").resolve()


def allowed_hosts() -> list[str]:
    """The hosts of HPGR_ALLOWED_HOSTS."""
    return [host.strip() for host in os.environ.get(HOSTS, "").split(",") if host.strip()]
