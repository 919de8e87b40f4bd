"""Addresses on a run's page lead to MLflow's pages for models and carry no secret."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import pages
from flows.pages import artifact_address, mlflow_address

ROOT = Path(__file__).parents[1]
PAGE = re.compile(r"#/(?:models|experiments|compare|metric)\b[^\s`)]*")


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        (None, "http://127.0.0.1:5000"),
        ("sqlite:////somewhere/mlflow.db", "http://127.0.0.1:5000"),
        ("http://127.0.0.1:5999/", "http://127.0.0.1:5999"),
        ("https://me:secret@mlflow.example.com/team", "https://mlflow.example.com/team"),
    ],
)
def test_the_address_of_mlflows_pages(uri, address, monkeypatch):
    monkeypatch.delenv("HPGR_MLFLOW_PORT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow_address() == address


def test_an_artifacts_page_is_that_of_the_classic_view(monkeypatch):
    """MLflow reads the part after `#`, up to its own question mark."""
    run = SimpleNamespace(info=SimpleNamespace(experiment_id="7"))
    monkeypatch.setattr(pages, "connect", lambda: SimpleNamespace(get_run=lambda _: run))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.com")
    assert artifact_address("abc", "gate/verdict.html") == (
        "http://mlflow.example.com/#/experiments/7/runs/abc/artifacts/gate/verdict.html"
        "?workflowType=machine_learning"
    )


def test_every_page_of_mlflow_that_is_named_anywhere_is_of_the_classic_view():
    command = [
        "git",
        "grep",
        "-lE",
        "#/(models|experiments)",
        "--",
        "hpgr",
        "flows",
        "docs",
        "*.md",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"flows/pages.py", "mlflow/README.md"} <= set(listed.split())
    for file in listed.split():
        for page in PAGE.findall((ROOT / file).read_text()):
            assert re.search(r"(\?workflowType=machine_learning|\{CLASSIC\})", page), (file, page)
