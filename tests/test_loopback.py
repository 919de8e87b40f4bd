"""Hosts that the clients of Prefect, MLflow and S3 ask without a proxy."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest
import requests

from hpgr.loopback import spare_loopback

ROOT = Path(__file__).parents[1]
PROXY = "http://proxy.example:3128"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def proxied(monkeypatch):
    for name in (*PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.setenv(name, "")  # so that the one that the test sets goes with it
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", PROXY)


def asks_the_proxy(url):
    with httpx.Client() as client:
        by_httpx = client._transport_for_url(httpx.URL(url)) is not client._transport
    by_requests = bool(requests.utils.get_environ_proxies(url))
    by_urllib = not urllib.request.proxy_bypass(httpx.URL(url).host)
    assert by_httpx == by_requests == by_urllib
    return by_httpx


@pytest.mark.parametrize("url", ["http://127.0.0.1:4200/api", "http://localhost:5000"])
@pytest.mark.parametrize("said", [None, "", "internal.example", "internal.example, 10.0.0.1"])
def test_servers_of_this_machine_are_asked_directly(url, said, monkeypatch):
    if said is not None:
        monkeypatch.setenv("NO_PROXY", said)
    assert asks_the_proxy(url)
    spare_loopback()
    assert not asks_the_proxy(url)
    assert asks_the_proxy("http://elsewhere.example")


def test_what_was_spared_stays_spared(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "internal.example")
    spare_loopback()
    assert not asks_the_proxy("http://internal.example")


def test_no_proxy_at_all_stays_none(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    spare_loopback()
    assert not asks_the_proxy("http://elsewhere.example")


def test_once_is_as_good_as_twice(monkeypatch):
    spare_loopback()
    once = os.environ["no_proxy"]
    spare_loopback()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == once


UNUSABLE = ("socks5://proxy.example:1080", "socks5h://u:p@proxy.example:1080")
UNUSABLE += (
    "socks://proxy.example:1080/",
    "ftp://proxy.example",
    "http://proxy.example:port",
    "://x",
)


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "https_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("value", UNUSABLE)
def test_a_proxy_that_no_client_can_use_stops_none(name, value, monkeypatch):
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, ImportError, httpx.InvalidURL)):
        httpx.Client()
    spare_loopback()
    httpx.Client().close()
    assert set(urllib.request.getproxies()) == {"no"}


@pytest.mark.parametrize("value", [PROXY, "proxy.example:3128", "https://u:p@proxy.example"])
def test_a_proxy_beside_one_that_no_client_can_use_stays(value, monkeypatch):
    monkeypatch.setenv("http_proxy", value)
    monkeypatch.setenv("all_proxy", "socks://proxy.example:1080")
    spare_loopback()
    assert os.environ["http_proxy"] == value
    assert asks_the_proxy("http://elsewhere.example")


@pytest.mark.parametrize("entry", ["[::1]", "fe80::/10", "münchen.example", "host:port"])
def test_a_spared_host_that_a_client_cannot_read_stops_none(entry, monkeypatch):
    monkeypatch.setenv("no_proxy", f"internal.example,{entry}")
    with pytest.raises(httpx.InvalidURL):
        httpx.Client()
    spare_loopback()
    assert not asks_the_proxy("http://internal.example")
    assert asks_the_proxy("http://elsewhere.example")


@pytest.mark.parametrize("module", ["flows", "host", "hpgr.cli"])
def test_flows_and_commands_spare_this_machine(module):
    call = "try:\n hpgr.cli.main()\nexcept SystemExit: pass\n" if module == "hpgr.cli" else ""
    code = f"import os, {module}\n{call}print(os.environ['no_proxy'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "127.0.0.1,localhost"
