"""Orchestration with Prefect: when and where the stages run; no science, no graph of its own.

Importing this package switches telemetry off, and proxies for servers on this machine, because
Prefect reads the settings when *it* is imported, and every module here imports it. Log records are
masked from here on, since Prefect's worker starts a flow without any code of ours before it.
"""

import os

from hpgr.loopback import spare_loopback
from hpgr.masking import mask_logs
from hpgr.runtime import TELEMETRY_OFF

os.environ.update(TELEMETRY_OFF)
spare_loopback()
mask_logs()
