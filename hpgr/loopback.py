"""Servers on this machine are reached directly, whatever proxy the environment names.

A proxy (`http_proxy`, usual in companies) cannot reach this machine's 127.0.0.1, yet the clients of
Prefect, MLflow and S3 would ask it. Reads and writes NO_PROXY and no_proxy.
"""

from __future__ import annotations

import os

LOOPBACK = ("127.0.0.1", "localhost")


def spare_loopback() -> None:
    """Add this machine to the hosts that are asked without a proxy."""
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""  # the order of clients
    hosts = [host.strip() for host in said.split(",") if host.strip()]
    if hosts != ["*"]:
        said = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
    os.environ.update(NO_PROXY=said, no_proxy=said)
