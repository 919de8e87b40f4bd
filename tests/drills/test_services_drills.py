"""Effects of kills, cancels and time-outs on runs that a worker started, under the real supervisor.

And what a page of another site gets from these servers: nothing.

One set of servers for the whole file. Every drill ends in the same checks: nothing of the run
lives, no lock is left, nothing half-written, and the next run goes on from the last checkpoint.
That next run is what the drill after it disturbs; a drill that finds none starts one.
"""

import json
import subprocess
import sys
import time
from datetime import timedelta

import httpx
import psutil
import pytest
from foreign import attack, websocket
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling, Crashed
from prefect.workers.process import ProcessWorker
from servers import ASK_S, free_port, make_project
from waiting import until

from host.prefect_server import AUTOMATION, TEMPLATE, ensure_automation, ensure_pool
from hpgr.config import load_config

pytestmark = pytest.mark.pipeline
OUTAGE_S = 40  # above the half minute in which Prefect's worker looks three times
PLANTED = "hunter2-planted-in-the-address"
SILENT_S = 40  # above the 30 s of a heartbeat, which is Prefect's least


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect_database):
    made = make_project(tmp_path_factory.mktemp("project"), prefect_database)
    made.services("up")
    yield made
    made.release()
    made.services("down")
    assert not made.processes()


def kill(*processes):
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


@pytest.fixture
def run(project):
    """A run whose stage works and will not end by itself: the one before's successor, or a new."""
    (project.folder / "hold").touch()
    if project.current is None or not project.is_working(project.current):
        project.new_turn()
        project.current = project.start()
    project.works()
    return project.current


def gone_and_succeeded(project, step):
    """Nothing is left of the ended run; the next one goes on at its last checkpoint."""
    until(lambda: not project.run_processes(), "the run's processes end", every_s=ASK_S)
    project.current = project.start()
    assert project.begun(project.current) >= step > 0
    assert not project.leftovers()
    assert "stage first: skipped" in project.log(project.current)


def completes(project, run):
    project.release()
    project.ends(run, "Completed")
    project.current = None
    assert not project.leftovers()


def test_a_page_of_another_site_gets_nothing_from_any_service(project):
    page = project.folder / "pwned"
    command = json.dumps({"job_variables": {"command": f"touch {page}"}})
    with project.client as client:
        deployment = client.read_deployment_by_name("train/local")
        before = len(client.read_flow_runs())
    run = f"{project.api}/deployments/{deployment.id}/create_flow_run"
    mlflow = f"http://127.0.0.1:{project.mlflow_port}"
    recommender = f"http://127.0.0.1:{load_config(project.folder / 'params.yaml').serve.port}"
    came_through = [
        *attack("GET", f"{project.api}/deployments/name/train/local"),
        *attack("GET", f"{project.api}/health"),
        *attack("GET", project.api.removesuffix("/api") + "/ui-settings"),
        *attack("POST", f"{project.api}/deployments/filter", "{}"),
        *attack("POST", run, command),
        *attack("DELETE", f"{project.api}/deployments/{deployment.id}"),
        *attack("GET", f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=9"),
        *attack("POST", f"{mlflow}/api/2.0/mlflow/experiments/create", '{"name": "pwned"}'),
        *attack("POST", f"{mlflow}/ajax-api/2.0/mlflow/experiments/create", '{"name": "pwned"}'),
        *attack("POST", f"{mlflow}/ajax-api/3.0/mlflow/assistant/message", "{}"),
        *attack("POST", f"{mlflow}/graphql", '{"query": "{ __typename }"}'),
        *attack("GET", f"{mlflow}/get-artifact?path=a&run_uuid=b"),
        *attack("GET", f"{mlflow}/health"),
        *attack("POST", f"{recommender}/recommend", '{"requests": [{"request_time": 1}]}'),
        *attack("GET", f"{recommender}/items?q=a"),
        *attack("GET", f"{recommender}/recommend/"),
        *attack("GET", f"{recommender}/"),
    ]
    assert not came_through
    for path in ("events/in", "events/out", "logs/out", "work_pools/local/workers/connect"):
        url = f"ws://127.0.0.1:{project.prefect_port}/api/{path}"
        assert websocket(url, project.prefect_port, origin="http://evil.example") == 403
        rebound = url.replace("127.0.0.1", "evil.example")
        assert websocket(rebound, project.prefect_port) == 403
    with project.client as client:
        assert len(client.read_flow_runs()) == before
        assert client.read_deployment_by_name("train/local").id == deployment.id
    experiments = httpx.get(
        f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=99", trust_env=False
    )
    assert "pwned" not in experiments.raise_for_status().text
    assert not page.exists()


def test_prefect_answers_those_who_know_its_string_alone(project):
    for path in ("deployments/filter", "flow_runs/filter", "work_pools/filter", "admin/settings"):
        verb = "GET" if path.startswith("admin") else "POST"
        for header in (None, "Basic aHBncjp3cm9uZw==", "Bearer x"):
            headers = {"Authorization": header} if header else {}
            reply = httpx.request(
                verb, f"{project.api}/{path}", json={}, headers=headers, trust_env=False
            )
            assert reply.status_code == 401
    string = project.folder / ".prefect/api-auth-string"
    assert string.stat().st_mode & 0o077 == 0
    assert not [p for p in psutil.process_iter() if string.read_text() in " ".join(_words(p))]
    kept = [*(project.folder / ".services").iterdir(), *(project.folder / ".prefect").iterdir()]
    holders = [p for p in kept if p.is_file() and string.read_bytes() in p.read_bytes()]
    assert holders == [string]
    refused = project.call(
        sys.executable, "-m", "host.worker", "gpu", check=False, PREFECT_API_URL=project.api
    )
    assert refused.returncode == 2
    assert "PREFECT_API_AUTH_STRING is not set: export it as `make up` prints it" in refused.stderr


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch pwned"},
        {"env": {"PATH": "/tmp"}},
        {"env.PATH": "/tmp"},
        {"working_dir": "/tmp"},
        {"labels": {}},
    ],
)
def test_who_knows_the_string_can_still_set_nothing_of_a_runs_process(project, variables):
    with project.client as client:
        deployment = client.read_deployment_by_name("train/local")
        before = len(client.read_flow_runs())
        with pytest.raises(PrefectHTTPStatusError, match="Additional properties are not allowed"):
            client.create_flow_run_from_deployment(deployment.id, job_variables=variables)
        assert len(client.read_flow_runs()) == before


def test_a_pool_of_an_earlier_make_up_is_closed_too(project):
    with project.client as client:
        client.create_work_pool(WorkPoolCreate(name="open", type="process"), overwrite=True)
        worker = ProcessWorker.get_default_base_job_template()
        client.update_work_pool("open", WorkPoolUpdate(base_job_template=worker))
        ensure_pool(client, "open")
        assert client.read_work_pool("open").base_job_template == TEMPLATE
        client.delete_work_pool("open")


def test_a_second_run_waits_for_the_first(project, run):
    second = project.start()
    until(lambda: project.state(second).name in ("Late", "AwaitingConcurrencySlot"), "it waits")
    assert project.state(run).is_running()
    completes(project, run)
    completes(project, second)
    assert "stage slow: ran" in project.log(run)
    assert "stage slow: skipped" in project.log(second)
    assert (project.registered()["version"], project.registered()["new"]) == (1, False)


def test_cancel_ends_the_stage_with_a_checkpoint(project, run):
    step = project.step()
    with project.client as client:
        client.set_flow_run_state(run.id, Cancelling())
    project.ends(run, "Cancelled")
    gone_and_succeeded(project, step)


def test_a_killed_flow_is_crashed_and_its_stage_stops(project, run):
    step = project.step()
    kill(project.process("prefect.engine"))
    assert "-9" in project.ends(run, "Crashed").message
    gone_and_succeeded(project, step)


def test_a_killed_worker_comes_back_and_ends_what_its_predecessor_began(project, run):
    step = project.step()
    kill(project.process("worker start"))
    project.ends(run, "Crashed")  # by the flow itself, asked to stop; then the reaper says why
    until(lambda: "The worker of pool local is gone" in project.state(run).message, "it says why")
    assert "Run it again" in project.state(run).message
    gone_and_succeeded(project, step)


def test_a_killed_mlflow_server_comes_back_on_its_port(project):
    page = f"http://127.0.0.1:{project.mlflow_port}/health"
    server = project.process("mlflow.server")
    assert not server.children()  # that would go on holding the port
    kill(server)
    until(lambda: project.process("mlflow.server"), "another starts")
    until(lambda: project.answers(page), "it answers")


def test_up_again_says_that_it_is_up(project, run):
    assert "it is up already" in project.services("up").stdout
    assert project.state(run).is_running()


class Elsewhere:
    """Another MLflow server over the project's store; its address holds a password."""

    def __init__(self, project):
        self.project, self.port = project, free_port()
        self.uri = f"http://me:{PLANTED}@127.0.0.1:{self.port}"
        self.start()

    def start(self):
        store = f"sqlite:///{self.project.folder / 'mlflow/store/mlflow.db'}"
        command = ["mlflow", "server", "--workers", "1", "--port", str(self.port)]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--backend-store-uri", store],
            cwd=self.project.folder.parent,  # no process of the project's
            env=self.project.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        page = f"http://127.0.0.1:{self.port}/health"
        until(lambda: self.project.answers(page), "MLflow answers")
        self.process = psutil.Process(process.pid)

    def kill(self):
        kill(*self.process.children(recursive=True), self.process)


@pytest.fixture(scope="module")
def elsewhere(project):
    """A run's environment is its worker's: `make up` must be called with this address."""
    server = Elsewhere(project)
    yield server
    server.kill()


def test_everything_killed_at_once(project, run, elsewhere):
    """And what comes up afterwards registers elsewhere."""
    step = project.step()
    kill(*project.processes())
    up = project.services("up", MLFLOW_TRACKING_URI=elsewhere.uri)
    assert PLANTED not in up.stdout + up.stderr
    assert "The worker of pool local is gone" in project.ends(run, "Crashed").message
    gone_and_succeeded(project, step)


def test_after_an_outage_a_run_can_still_be_cancelled(project, run):
    """An outage so long that Prefect's worker gives up listening for cancels."""
    step, log = project.step(), project.folder / ".services/worker.log"
    before = log.stat().st_size
    supervisor = project.process("supervisord")
    supervisor.suspend()
    try:
        kill(project.process("host.prefect_app"))
        time.sleep(OUTAGE_S)
    finally:
        supervisor.resume()  # which also writes the logs
    until(lambda: "Cancellation polling task failed" in log.read_text()[before:], "it gave up")
    until(project.answers, "the server is back")
    with project.client as client:
        client.set_flow_run_state(run.id, Cancelling())
    project.ends(run, "Cancelled")
    gone_and_succeeded(project, step)


def test_a_run_that_its_server_gave_up_stops_itself(project, run):
    """As the automation does after an outage as long as its patience."""
    step = project.step()
    with project.client as client:
        client.set_flow_run_state(run.id, Crashed(message="silent"), force=True)
    until(lambda: not project.run_processes(), "the run's processes end", every_s=ASK_S)
    assert project.step() >= step > 0
    assert not project.leftovers()
    assert project.state(run).message == "silent"
    project.current = None


def test_a_killed_prefect_server_comes_back_and_the_run_goes_on(project, run):
    kill(project.process("host.prefect_app"))
    until(project.answers, "the server is back")
    completes(project, run)


def test_a_time_out_ends_the_stage_and_says_what_to_do(project):
    if project.current is not None:
        completes(project, project.current)
    (project.folder / "hold").touch()
    project.new_turn()
    run = project.start(orchestrate__stage_timeout_s=5)
    step = project.works()
    state = project.ends(run, "Failed")
    assert "took longer than orchestrate.stage_timeout_s (5 s)" in state.message
    assert "the flow again" in state.message
    params = project.folder / "params.yaml"
    params.write_text(params.read_text().replace("timeout_s: 5", "timeout_s: null"))
    gone_and_succeeded(project, step)


def test_after_a_power_cut_the_server_marks_the_silent_run(project, run):
    """No worker comes back: the automation alone frees the slot. It counts from a heartbeat on."""
    completes(project, run)
    with project.client as client:
        ensure_automation(client, silent_s=SILENT_S)
        (project.folder / "hold").touch()
        project.new_turn()
        run = project.start()
        step = project.works()
        supervisor = project.process("supervisord")
        supervisor.suspend()
        try:
            kill(project.process("worker start"), *project.run_processes())
            assert f"No heartbeat for {SILENT_S} s" in project.ends(run, "Crashed").message
        finally:
            supervisor.resume()
            ensure_automation(client)
        (kept,) = client.read_automations_by_name(AUTOMATION)
        assert kept.trigger.within == timedelta(seconds=90)
    gone_and_succeeded(project, step)


def test_mlflow_gone_in_mid_run_costs_the_registration_alone(project, run, elsewhere):
    completes(project, run)
    (project.folder / "hold").touch()
    project.new_turn()
    settings = {"orchestrate__retries": 1, "orchestrate__retry_delay_s": 1}
    run = project.start(**settings)
    project.works()
    elsewhere.kill()
    project.release()
    message = project.ends(run, "Failed").message
    assert f"MLflow at http://***@127.0.0.1:{elsewhere.port} does not answer" in message
    assert "run the flow again" in message
    until(lambda: "Retry 1/1" in project.log(run), "the last lines of its log arrive")
    log = project.log(run)
    assert "stage last: ran" in log or "stage last: restored" in log
    elsewhere.start()
    again = project.start(**settings)
    project.ends(again, "Completed")
    assert "stage slow: skipped" in project.log(again)
    assert project.registered()["version"] == 1


def test_down_stops_a_running_flow_with_its_checkpoint(project, run):
    step = project.step()
    assert "everything is down" in project.services("down").stdout
    assert not project.processes()
    assert project.step() >= step > 0
    assert {path.suffix for path in (project.folder / ".services").iterdir()} == {".log"}


def test_no_secret_is_left_behind(project):
    """After all of the runs above: databases, logs, registry, artifacts and DVC's caches.

    A run's environment lies in its worker's temporary folder, 0600, until its process has ended.
    """
    assert not project.processes()
    home = project.folder / ".prefect"
    string = (home / "api-auth-string").read_text().strip()
    found = {}
    for path in project.folder.rglob("*"):
        if path.is_file() and path != home / "api-auth-string":
            content = path.read_bytes()
            found[path] = [s for s in (PLANTED, string) if s.encode() in content]
    assert home / "prefect.db" in found
    assert not [str(path) for path, secrets in found.items() if secrets]
