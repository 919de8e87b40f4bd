"""The parts of `make up`: ports, logs, processes, the worker's lock; and that compose is the same.

What the whole set of servers does when something is killed stands in tests/drills/.
"""

import configparser
import fcntl
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from prefect.client.schemas.objects import StateType, WorkerStatus

from host import services
from host.prefect_server import POOLS
from host.processes import end, listeners, processes_with
from host.reaper import WORKER, reap
from host.settings import HOME, MARK
from host.worker import hold_lock, temporary_folder, tidy_up, worker_name
from hpgr.runtime import TELEMETRY_OFF, UserError

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
CONF = configparser.RawConfigParser()
CONF.read(ROOT / "host/services.conf")
PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
OURS = ("prefect", "mlflow", "recommender", "worker")


def command(service: str) -> list[str]:
    """The command of services.conf, without its Python."""
    words = shlex.split(CONF[f"program:{service}"]["command"])
    return words[words.index("-m") + 1 :]


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def child(tmp_path):
    """A process of tmp_path's services whose parent, this one, is none of them: an orphan."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
        env={**os.environ, MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()  # it has become the command, environment and all
    yield psutil.Process(process.pid)
    process.stdout.close()
    process.kill()
    process.wait()


def test_a_taken_port_is_named_with_its_holder_and_the_fix(listener, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HPGR_PREFECT_PORT", str(listener))
    wanted = services.services()[:1]
    with pytest.raises(UserError) as refused:
        services._check_ports(wanted)
    message = str(refused.value)
    assert f"port {listener} of prefect is taken by process {os.getpid()}" in message
    assert "HPGR_PREFECT_PORT=" in message


def test_free_ports_pass(monkeypatch, listener):
    monkeypatch.chdir(ROOT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    monkeypatch.setenv("HPGR_PREFECT_PORT", str(free))
    services._check_ports(services.services()[:1])


@pytest.mark.parametrize("text", ["", "http", "0", "65536", "-1", "4 200"])
def test_a_port_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HPGR_MLFLOW_PORT", text)
    with pytest.raises(UserError, match=r"HPGR_MLFLOW_PORT is .* expected a port"):
        services.services()


def test_another_mlflow_takes_the_place_of_our_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert [s.name for s in services.services()] == ["prefect", "mlflow", "recommender"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert [s.name for s in services.services()] == ["prefect", "recommender"]


def test_nothing_that_is_up_is_no_error(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "host.services", "down"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "nothing is up"


def test_only_this_starts_programs_that_gave_up_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert services.gave_up() == set()
    log = tmp_path / ".services/supervisord.log"
    log.parent.mkdir()
    log.write_text("INFO gave up: mlflow entered FATAL state, too many start retries too quickly\n")
    assert services.gave_up() == {"mlflow"}
    with log.open("a") as file:
        file.write(
            "INFO supervisord started with pid 7\nINFO gave up: worker entered FATAL state\n"
        )
    assert services.gave_up() == {"worker"}


def test_listeners_are_found(listener):
    assert [process.pid for process in listeners(listener)] == [os.getpid()]


def test_processes_are_found_by_what_they_inherit(child, tmp_path):
    assert processes_with(MARK, str(tmp_path)) == [child]
    assert processes_with(MARK, str(tmp_path / "another")) == []


def test_up_ends_first_what_a_killed_supervisor_left(child, tmp_path, monkeypatch):
    """Else it would find its own ports taken."""

    class PortsAreChecked(Exception):
        pass

    def check(_):
        assert not child.is_running()
        raise PortsAreChecked

    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(services, "_check_ports", check)
    monkeypatch.setattr(services, "DOWN_GRACE_S", 5)
    with pytest.raises(PortsAreChecked):
        services.up()


def test_a_process_that_will_not_end_is_killed():
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    )
    stubborn = subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert stubborn.stdout.readline()
    assert [process.pid for process in end([psutil.Process(stubborn.pid)], 0.2)] == [stubborn.pid]
    assert not psutil.pid_exists(stubborn.pid)
    stubborn.wait()
    stubborn.stdout.close()


def test_a_pool_has_one_worker_a_clone(tmp_path):
    handle = hold_lock("local", tmp_path)
    other = hold_lock("gpu", tmp_path)
    with pytest.raises(UserError, match=rf"runs in this folder already \(process {os.getpid()}\)"):
        hold_lock("local", tmp_path)
    os.close(handle)
    os.close(hold_lock("local", tmp_path))
    os.close(other)


def test_down_leaves_the_lock_of_a_worker_that_lives(tmp_path):
    handle, other = hold_lock("local", tmp_path), hold_lock("gpu", tmp_path)
    for pool in ("local", "gpu"):
        temporary_folder(pool, tmp_path)
    os.close(handle)
    tidy_up(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"worker-gpu.lock", "worker-gpu.tmp"}
    with pytest.raises(UserError, match="runs in this folder already"):
        hold_lock("gpu", tmp_path)
    os.close(other)


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_again(tmp_path, monkeypatch):
    path, flock = tmp_path / "worker-local.lock", fcntl.flock

    def after_a_down(handle, operation):
        monkeypatch.undo()
        path.unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", after_a_down)
    handle = hold_lock("local", tmp_path)
    assert os.path.samestat(os.fstat(handle), path.stat())
    os.close(handle)


def test_a_workers_temporary_folder_is_empty_at_its_start(tmp_path):
    (temporary_folder("local", tmp_path) / "left").touch()
    assert not list(temporary_folder("local", tmp_path).iterdir())


class Server:
    """A Prefect server with a pool, its workers and its lost runs, for the reaper."""

    def __init__(self, online, **runs):
        self.workers = [SimpleNamespace(name=n, status=WorkerStatus.ONLINE) for n in online]
        self.workers.append(SimpleNamespace(name="gone", status=WorkerStatus.OFFLINE))
        self.runs = [
            SimpleNamespace(id=name, labels={WORKER: worker}, state_type=StateType.RUNNING)
            for name, worker in runs.items()
        ]
        self.ended = {}

    def read_flow_runs(self, **_):
        return self.runs

    def read_workers_for_work_pool(self, _):
        return self.workers

    def set_flow_run_state(self, run, state, force):
        self.ended[run] = state.name


def test_the_runs_of_a_living_worker_in_another_clone_are_left_to_it():
    server = Server(["me", "other"], mine="me", theirs="other", lost="gone", early=None)
    reap(server, "local", "me")
    assert server.ended == dict.fromkeys(("mine", "lost", "early"), "Crashed")


def test_a_workers_name_tells_the_clone_and_is_one_that_prefect_takes(tmp_path, monkeypatch):
    from prefect.workers.process import ProcessWorker

    names = set()
    for clone in ("a", "b%"):
        (tmp_path / clone).mkdir()
        monkeypatch.chdir(tmp_path / clone)
        names.add(ProcessWorker("local", name=worker_name("local")).name)
    assert len(names) == 2


def test_a_worker_without_a_server_says_how_to_name_one(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
    environment |= {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "host.worker", "local"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: PREFECT_API_URL is not set")


def test_every_deployment_goes_to_a_pool_that_is_made_and_no_schedule_is_on():
    for deployment in PREFECT["deployments"]:
        assert deployment["work_pool"]["name"] in POOLS
        assert deployment["name"] == deployment["work_pool"]["name"]
        assert all(s["active"] is False for s in deployment.get("schedules", []))
    assert PREFECT["pull"][0].popitem()[1] == {"directory": f"{{{{ ${HOME} }}}}"}


def test_every_deployments_flow_is_there():
    for deployment in PREFECT["deployments"]:
        path, name = deployment["entrypoint"].split(":")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("service", OURS)
def test_every_program_is_restarted_logged_with_rotation_and_ended_with_its_children(service):
    program = CONF[f"program:{service}"]
    assert program["autorestart"] == program["redirect_stderr"] == program["killasgroup"] == "true"
    assert program["stdout_logfile"].endswith(f".services/{service}.log")
    assert int(program["stdout_logfile_backups"]) > 0


@pytest.mark.parametrize("service", OURS)
def test_compose_runs_what_make_up_runs(service):
    said, ours = COMPOSE[service]["command"], command(service)
    said = {"python": said[2:], "hpgr": ["hpgr.cli", *said[1:]]}.get(said[0], said)
    # Addresses, ports and stores are a team's own; everything else is the same.
    place = re.compile(r"%\(ENV|^\d+$|^\d+\.\d+\.|://|^--(no-serve|default-art|artifacts-dest)")
    assert [w for w in said if not place.search(w)] == [w for w in ours if not place.search(w)]


@pytest.mark.parametrize("service", COMPOSE)
def test_compose_publishes_on_loopback_alone_and_holds_no_secret(service):
    described = COMPOSE[service]
    assert all(str(port).startswith("127.0.0.1:") for port in described.get("ports", []))
    for name, value in described.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|KEY|AUTH", name):
            assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name
        assert not re.search(r"//\w+:[^$@]+@", str(value)), name


@pytest.mark.parametrize("service", [s for s in COMPOSE if COMPOSE[s].get("image") == "hpgr"])
def test_compose_keeps_telemetry_off(service):
    assert TELEMETRY_OFF.items() <= COMPOSE[service]["environment"].items()


def test_every_variable_that_compose_asks_for_is_in_the_example_without_a_value():
    asked = set(re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text()))
    lines = (ROOT / "environment/.env.example").read_text().splitlines()
    given = dict(line.split("=") for line in lines if line and not line.startswith("#"))
    assert set(given) == asked
    assert not any(given.values())
