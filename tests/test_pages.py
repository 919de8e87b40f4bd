"""Addresses on a run's page lead to MLflow's pages and carry no secret."""

import pytest

from flows.pages import mlflow_address


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
