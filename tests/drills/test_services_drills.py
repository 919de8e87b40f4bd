"""What kills, cancels and time-outs do to runs that a worker started, under the real supervisor.

One set of servers for the whole file. Every drill ends in the same checks: nothing of the run
lives, no lock is left, nothing half-written, and the next run goes on from the last checkpoint.
"""

import subprocess
import sys
from datetime import timedelta

import psutil
import pytest
from prefect.states import Cancelling
from servers import free_port, make_project, until

from flows.server import AUTOMATION, ensure_automation

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = make_project(tmp_path_factory.mktemp("project"))
    made.services("up")
    yield made
    made.release()
    down = made.services("down")
    assert "everything is down" in down.stdout
    assert not made.processes()


@pytest.fixture(autouse=True)
def nothing_runs(project):
    yield
    project.release()


def kill(*processes):
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


def begin(project, **overrides):
    """A run whose stage works and will not end by itself; returns it and the stage's step."""
    project.new_turn(hold=True)
    run = project.start(**overrides)
    return run, project.works()


def nothing_is_left(project):
    until(lambda: not project.run_processes(), "the run's processes end", 30)
    assert not project.leftovers()


def next_run_goes_on(project, step):
    """The next run continues at `step` or later, and completes."""
    project.release()
    run = project.start()
    project.ends(run, "Completed")
    assert project.begun(run) >= step > 0
    assert "stage first: skipped" in project.log(run)
    nothing_is_left(project)


def test_a_run_passes_and_registers_once(project):
    project.new_turn(hold=False)
    first, second = project.start(), project.start()
    project.ends(first, "Completed")
    project.ends(second, "Completed")
    assert "stage slow: ran" in project.log(first)
    assert "stage slow: skipped" in project.log(second)
    registered = project.registered()
    assert (registered["version"], registered["new"]) == (1, False)


def test_a_second_run_waits_for_the_first(project):
    run, _ = begin(project)
    second = project.start()
    until(lambda: project.state(second).name in ("Late", "AwaitingConcurrencySlot"), "it waits", 60)
    assert project.state(run).is_running()
    project.release()
    project.ends(run, "Completed")
    project.ends(second, "Completed")
    assert "stage slow: skipped" in project.log(second)


def test_cancel_ends_the_stage_with_a_checkpoint(project):
    run, step = begin(project)
    with project.client as client:
        client.set_flow_run_state(run.id, Cancelling())
    project.ends(run, "Cancelled")
    nothing_is_left(project)
    next_run_goes_on(project, step)


def test_a_time_out_ends_the_stage_and_says_what_to_do(project):
    run, step = begin(project, orchestrate__stage_timeout_s=8)
    state = project.ends(run, "Failed")
    assert "took longer than orchestrate.stage_timeout_s (8 s)" in state.message
    assert "run the flow again" in state.message
    nothing_is_left(project)
    project.release()
    again = project.start(orchestrate__stage_timeout_s=None)
    project.ends(again, "Completed")
    assert project.begun(again) >= step


def test_a_killed_flow_is_crashed_and_its_stage_stops(project):
    run, step = begin(project)
    kill(project.process("prefect.engine"))
    assert "-9" in project.ends(run, "Crashed").message
    nothing_is_left(project)
    next_run_goes_on(project, step)


def test_a_killed_worker_comes_back_and_ends_what_its_predecessor_began(project):
    run, step = begin(project)
    kill(project.process("worker start"))
    message = project.ends(run, "Crashed").message
    assert "The worker of pool local is gone" in message
    assert "Run it again" in message
    nothing_is_left(project)
    next_run_goes_on(project, step)


def test_a_killed_prefect_server_comes_back_and_the_run_goes_on(project):
    run, _ = begin(project)
    kill(project.process("prefect server start"))
    until(lambda: project.answers(), "the server is back")
    project.release()
    project.ends(run, "Completed")
    nothing_is_left(project)


def test_after_a_power_cut_the_server_marks_the_silent_run(project):
    """No worker comes back: the automation alone frees the slot; the shortest silence allowed."""
    with project.client as client:
        ensure_automation(client, silent_s=10)
        run, step = begin(project)
        supervisor = project.process("supervisord")
        supervisor.suspend()
        try:
            kill(project.process("worker start"), *project.run_processes())
            assert "No heartbeat for 10 s" in project.ends(run, "Crashed").message
        finally:
            supervisor.resume()
            ensure_automation(client)
        (kept,) = client.read_automations_by_name(AUTOMATION)
        assert kept.trigger.within == timedelta(seconds=90)
    nothing_is_left(project)
    next_run_goes_on(project, step)


def test_everything_killed_at_once(project):
    run, step = begin(project)
    kill(*project.processes())
    project.services("up")
    message = project.ends(run, "Crashed").message
    assert "The worker of pool local is gone" in message
    nothing_is_left(project)
    next_run_goes_on(project, step)


def mlflow_server(project, port):
    store = f"sqlite:///{project.folder / 'mlflow/store/mlflow.db'}"
    command = ["mlflow", "server", "--workers", "1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--backend-store-uri", store],
        cwd=project.folder,
        env=project.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: project.answers(f"http://127.0.0.1:{port}/health"), "MLflow answers")
    return psutil.Process(process.pid)


def test_mlflow_gone_in_mid_run_costs_the_registration_alone(project):
    port = free_port()
    named = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    server = mlflow_server(project, port)
    project.new_turn(hold=True)
    settings = {"orchestrate__retries": 1, "orchestrate__retry_delay_s": 1}
    run = project.start(environment=named, **settings)
    project.works()
    kill(*server.children(recursive=True), server)
    project.release()
    message = project.ends(run, "Failed").message
    assert f"MLflow at http://127.0.0.1:{port} does not answer" in message
    assert "run the flow again" in message
    log = project.log(run)
    assert "stage last: ran" in log or "stage last: restored" in log
    assert "Retry 1/1" in log
    server = mlflow_server(project, port)
    try:
        again = project.start(environment=named, **settings)
        project.ends(again, "Completed")
        assert "stage slow: skipped" in project.log(again)
        assert project.registered()["version"] == 1
    finally:
        kill(*server.children(recursive=True), server)


def test_down_stops_a_running_flow_with_its_checkpoint(project):
    run, step = begin(project)
    project.services("down")
    assert not project.processes()
    assert not project.leftovers()
    project.services("up")
    assert project.state(run).name == "Crashed"
    next_run_goes_on(project, step)
