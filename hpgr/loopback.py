"""Reach servers on this machine directly, even if the environment names a proxy.

A proxy (`http_proxy`, usual in companies) cannot reach this machine's 127.0.0.1, yet the clients of
Prefect, MLflow and S3 would ask it. And a client prepares every proxy that is named. One that it
cannot use (SOCKS, such as GNOME's `socks://`) stops it before its first request. Reads and writes
the environment's *_proxy and NO_PROXY.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from ipaddress import ip_address
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost")
PLAIN_HOST = re.compile(r"[\w.*/-]+(:\d+)?", re.ASCII)


def spare_loopback() -> None:
    """Add this machine to the hosts without a proxy; drop proxies that no client can use."""
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""  # the order of clients
    hosts = [host for entry in said.split(",") if (host := _host(entry.strip()))]
    if hosts != ["*"]:
        hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ.update(dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts)))
    for name, value in list(os.environ.items()):
        if name.lower().endswith("_proxy") and name.lower() != "no_proxy" and not _usable(value):
            del os.environ[name]


def _host(entry: str) -> str | None:
    """Return the entry as all clients read it; None if it would stop one of them."""
    if PLAIN_HOST.fullmatch(entry):
        return entry
    try:
        return str(ip_address(entry.strip("[]")))
    except ValueError:
        return None


def _usable(proxy: str) -> bool:
    """Return True if the clients speak to such a proxy; SOCKS takes httpx's extra `socks`."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # not a port
        return False
    return known or (parts.scheme in ("socks5", "socks5h") and find_spec("socksio") is not None)
