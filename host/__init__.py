"""Keep servers and workers running on this machine; no flow.

Importing this package switches telemetry off, and proxies for servers on this machine, because
Prefect reads the settings when *it* is imported. Log records are masked from here on, since
Prefect's worker starts a flow without any code of ours before it.
"""

import os

from hpgr.loopback import spare_loopback
from hpgr.masking import mask_logs
from hpgr.runtime import TELEMETRY_OFF

os.environ.update(TELEMETRY_OFF)
spare_loopback()
mask_logs()
