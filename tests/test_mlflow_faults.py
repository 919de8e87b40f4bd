"""MLflow's store fails: one line, no secret in it, and no run that seems to go on."""

import errno
import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from bare_registry import make_versions
from params_text import params_text
from serving_project import call, vary_weights

from hpgr.config import load_config
from hpgr.registry.mlflow_faults import public
from hpgr.registry.moves import move
from hpgr.registry.register import register
from hpgr.registry.tracking import connect, database, tracking_uri
from hpgr.runtime import UserError
from hpgr.serving.champion import Champion
from hpgr.serving.server import create_app

ROOT = Path(__file__).parents[1]
PLANTED = "hunter2-planted"


@pytest.fixture
def server():
    """An HTTP server that gives every request the same answer; yields a function that starts it."""
    running = []

    def start(code, body):
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length") or 0))
                self.send_response(code)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://me:{PLANTED}@127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(params_text("smoke"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield
    mlflow.set_tracking_uri(None)


def refused(uri, monkeypatch):
    """The message of a store that cannot be used."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as reported:
        connect()
    message = str(reported.value)
    assert "\n" not in message and PLANTED not in message
    return message


@pytest.mark.parametrize(
    ("uri", "reported"),
    [
        (f"http://me:{PLANTED}@127.0.0.1:1", "does not answer"),
        (f"http://{PLANTED}@127.0.0.1:1", "does not answer"),
        (f"http://127.0.0.1:1/?password={PLANTED}", "does not answer"),
        (f"http://127.0.0.1:1/?a=1&token={PLANTED}", "does not answer"),
        (f"http://me:{PLANTED}/x@y@127.0.0.1:1", "MLFLOW_TRACKING_URI is not an address"),
        (f"http://me:{PLANTED}%40@127.0.0.1:1", "does not answer"),
        (f"postgresql+psycopg2://me:{PLANTED}@127.0.0.1:1/db", "does not answer"),
        (f"mysql://me:{PLANTED}@127.0.0.1:1/db", "does not answer"),
        (f"oracle+{PLANTED[:3]}://me:{PLANTED}@h/db", "expected http://HOST:PORT"),
        (f"ftp://me:{PLANTED}@127.0.0.1/x", "expected http://HOST:PORT"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(uri, reported, monkeypatch):
    assert reported in refused(uri, monkeypatch)


def test_a_database_without_its_driver_names_the_package(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as database:
        uri = f"mysql://me:{PLANTED}@127.0.0.1:{database.getsockname()[1]}/db"
        assert "needs the Python package mysqlclient" in refused(uri, monkeypatch)


@pytest.mark.parametrize(
    ("code", "body", "reported"),
    [
        (401, b"no", "does not accept the credentials"),
        (403, b"no", "does not allow this"),
        (404, b"no", "is not an MLflow server"),
        (500, b"no", "has an internal error"),
        (503, b"no", "has an internal error"),
        (200, b"<html>a page</html>", "is not an MLflow server"),
        (401, b'{"error_code": "X", "message": "hunter2-planted"}', "failed: X: no ***"),
    ],
)
def test_a_server_that_refuses_is_one_line(code, body, reported, server, monkeypatch):
    body = body.replace(b'"hunter2', b'"no hunter2')
    assert reported in refused(server(code, body), monkeypatch)


def test_a_file_that_is_no_database_is_named(monkeypatch):
    Path("other.db").write_text("no database" * 100)
    assert "is not an SQLite database" in refused("sqlite:///other.db", monkeypatch)


def test_tables_of_another_mlflow_are_named(monkeypatch):
    connect()
    with closing(sqlite3.connect(database())) as store, store:
        store.execute("update alembic_version set version_num = 'another'")
    assert "another version of MLflow" in refused(f"sqlite:///{database()}", monkeypatch)


def test_a_registry_elsewhere_is_tried_and_named_too(monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://{PLANTED}@127.0.0.1:1")
    message = refused(f"sqlite:///{Path('mlflow.db').resolve()}", monkeypatch)
    assert "MLflow at http://***@127.0.0.1:1 does not answer" in message
    assert "MLFLOW_REGISTRY_URI" in message
    mlflow.set_registry_uri(None)


@pytest.fixture
def impatient(monkeypatch):
    """MLflow waits twenty seconds for a lock; here a tenth of one."""
    import mlflow.store.db.utils as db

    text = db.sql.text

    class Quick:
        @staticmethod
        def text(words):
            return text(words.replace("busy_timeout = 20000", "busy_timeout = 100"))

    monkeypatch.setattr(db, "sql", Quick)


def test_a_promotion_while_the_database_is_locked_is_one_line_and_changes_nothing(impatient):
    client, cfg = connect(), load_config()
    make_versions(client, cfg)
    with closing(sqlite3.connect(database(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            UserError, match="the database is locked by another process"
        ) as reported:
            move(cfg, 3, why="x", force=True)
        other.execute("ROLLBACK")
    assert "\n" not in str(reported.value)
    assert client.get_model_version_by_alias("hpgr", "champion").version == 2
    move(cfg, 3, why="x", force=True)


def test_a_reason_with_a_secret_is_kept_without_it():
    client, cfg = connect(), load_config()
    make_versions(client, cfg)
    move(cfg, 3, why=f"see http://me:{PLANTED}@host", force=True)
    assert PLANTED not in database().read_bytes().decode("latin-1")


def test_a_registration_without_room_ends_its_runs_as_failed(own_registry, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    vary_weights(Path("artifacts/finetune"), 5)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(*_, **__):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "log_artifacts", no_room)
        patch.setattr(LocalArtifactRepository, "log_artifact", no_room)
        with pytest.raises(UserError, match="no room left to write") as reported:
            register(load_config())
    assert "\n" not in str(reported.value)
    client = connect()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    assert {run.info.status for run in client.search_runs(ids)} == {"FINISHED", "FAILED"}
    assert register(load_config())["new"]


def test_ready_and_every_503_of_a_dead_registry_hold_no_secret(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PLANTED}@127.0.0.1:1/?token={PLANTED}")
    champion = Champion("hpgr", connect)
    champion.look()
    app = create_app(champion, load_config().serve)
    for path in ("/ready", "/items?q=x"):
        status, reported = call(app, "GET", path)
        assert status == 503
        assert "does not answer" in reported["detail"] and PLANTED not in reported["detail"]


@pytest.mark.parametrize("command", [["promote", "--why", "x"], ["lineage", "1"], ["monitor"]])
def test_a_command_is_one_line_on_stderr_and_code_2(command):
    done = subprocess.run(
        [sys.executable, "-m", "hpgr.cli", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"http://{PLANTED}@[x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "error: MLFLOW_TRACKING_URI is no" in done.stderr
    assert PLANTED not in done.stdout + done.stderr


def test_the_address_is_shown_whole_but_for_its_secret(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{PLANTED}@host:443/mlflow?token=abcd1")
    assert public(tracking_uri()) == "https://***@host:443/mlflow?token=***"
