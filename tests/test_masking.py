"""Secrets in text: masked in every spelling, and nothing else is."""

import base64
import logging
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from hpgr.masking import masked
from hpgr.runtime import UserError

ROOT = Path(__file__).parents[1]
PLANTED = "pl@nted/pw#1:x"
SPELLINGS = {
    "user and password": "http://me:planted-1@host:5000",
    "a token": "http://planted-1@host",
    "a token as the user": "https://planted-1:@host/x",
    "a token in GitHub's way": "https://planted-1:x-oauth-basic@host/x",
    "signs of a URI": "postgresql://me:planted-1/p@x@host/db",
    "a query": "http://host/?password=planted-1",
    "a token in a query": "http://host/mlflow?a=1&token=planted-1&b=2",
    "a short name in a query": "http://host/?key=planted-1",
    "a signed address": "https://bucket/x?X-Amz-Credential=planted-1&X-Amz-Signature=planted-1",
    "an encoded address": quote("http://me:planted-1@host", safe=""),
    "a connection's words": "host=h dbname=d password=planted-1 connect_timeout=10",
    "a prefixed word": "sslpassword=planted-1",
    "an object": "{'password': 'planted-1', \"token\": \"planted-1\"}",
    "a header": "Authorization: Bearer planted-1",
}
HARMLESS = (
    "http://127.0.0.1:5000/#/models/hpgr/versions/1",
    "the registry has no hpgr@champion (models:/hpgr@champion)",
    "sqlite:////home/me@corp/mlflow.db",
    "finetune.batch_tokens=16384 num_heads=4 key=value",
    "k is 3, expected the number of items to return",
    "write to me@example.org",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_in_a_text_is_masked_by_how_it_stands_there(spelling):
    text = f"cannot reach {SPELLINGS[spelling]}: refused"
    assert "planted-1" not in masked(text)
    assert masked(masked(text)) == masked(text)
    assert masked(text).startswith("cannot reach ")
    assert masked(text).endswith(": refused")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    assert masked(text) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", f"http://me:{PLANTED}@host"),
        ("MLFLOW_TRACKING_URI", f"http://me:{quote(PLANTED, safe='')}@host"),
        ("MLFLOW_TRACKING_PASSWORD", PLANTED),
        ("MLFLOW_TRACKING_TOKEN", PLANTED),
        ("PREFECT_API_AUTH_STRING", f"me:{PLANTED}"),
        ("AWS_SECRET_ACCESS_KEY", PLANTED),
        ("https_proxy", f"http://me:{PLANTED}@proxy:3128"),
        ("PREFECT_API_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://me:{PLANTED}@db/prefect"),
    ],
)
def test_a_secret_of_the_environment_is_masked_wherever_it_stands(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    forms = {PLANTED, quote(PLANTED, safe=""), quote(PLANTED), repr(PLANTED)[1:-1]}
    for form in forms:
        assert masked(f"a message with {form} in it") == "a message with *** in it"


def test_the_header_that_a_client_makes_of_a_password_is_masked(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2-x@host")
    header = base64.b64encode(b"me:hunter2-x").decode()
    assert header not in masked(f"sent {header}")


def test_a_part_that_a_parser_takes_for_the_host_is_masked(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:first-part/second-part@host")
    assert (
        masked("cannot resolve 'first-part', then second-part") == "cannot resolve '***', then ***"
    )


def test_secrets_of_dvcs_configuration_are_known(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config.local").write_text(
        "['remote \"there\"']\n    url = ssh://me:ssh-planted@host/x\n    password = hunter2-dvc\n"
    )
    assert masked("rejected hunter2-dvc and ssh-planted") == "rejected *** and ***"


def test_a_short_secret_is_masked_as_a_word_only(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hpgr")
    assert masked("hpgr hpgrs") == "*** hpgrs"


def test_values_that_stand_for_nothing_are_no_secrets(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("ANOTHER_TOKEN", "4096")
    assert masked("true 4096") == "true 4096"


def test_an_error_of_a_users_holds_no_secret():
    assert str(UserError("no answer at http://me:planted-1@host")) == (
        "no answer at http://***@host"
    )


PROCESS = """
import logging, sys
from hpgr.masking import install
install()
logging.basicConfig(stream=sys.stdout)
address = "http://me:planted-1@host"
print("printed", address)
logging.warning("logged %s", address)
try:
    raise OSError(address)
except OSError:
    logging.exception("caught")
raise ValueError(f"uncaught {address}")
"""


def test_what_a_process_prints_logs_and_dies_of_is_masked():
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "planted-1" not in done.stdout + done.stderr.replace('ValueError(f"uncaught', "")
    for line in ("printed http://***@host", "logged http://***@host", "OSError: http://***@host"):
        assert line in done.stdout
    assert "ValueError: uncaught http://***@host" in done.stderr


def test_records_of_a_flows_process_are_masked(caplog):
    import flows  # noqa: F401 - masks the records of its process

    logging.getLogger("any").warning("at %s", "http://me:planted-1@host")
    assert caplog.messages == ["at http://***@host"]
