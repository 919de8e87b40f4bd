"""Orchestration with Prefect: when and where the stages run; no science, no graph of its own.

Importing this package switches telemetry off, because Prefect reads the setting when *it* is
imported, and every module here imports it.
"""

import os

from hpgr.runtime import TELEMETRY_OFF

os.environ.update(TELEMETRY_OFF)
