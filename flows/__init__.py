"""Run the stages with Prefect: when and where; no science, no graph of its own.

Importing this package imports `host` first, whose settings Prefect reads when it is imported.
"""

import host  # noqa: F401
