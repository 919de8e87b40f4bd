"""A stage on another machine: two clones, two workers, one Prefect server, one DVC remote.

The other machine is another folder, which shares nothing with this one but git, the server's
address and DVC's remote.
"""

import shutil
import subprocess
import sys

import psutil
import pytest
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.states import Cancelling
from servers import Project, make_project
from slow import read_step
from waiting import until

from host.access import new_string

pytestmark = pytest.mark.pipeline
GPU = {"orchestrate__remote": {"slow": "gpu"}}


def start(project, *command):
    with (project.folder.parent / f"{project.folder.name}-{command[-1]}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=project.folder,
            env=project.environment | {"PREFECT_API_URL": project.api},
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def stop(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def commit_a_turn(project):
    """A new commit after which `slow` is outdated."""
    project.new_turn()
    project.call("git", "commit", "-qam", "turn")


def update(there, here):
    """Fetch on the other machine, as a person there does, and check out the same commit."""
    there.call("git", "checkout", "-q", "--", ".")
    there.call("git", "pull", "-q", "--ff-only", str(here.folder), "HEAD")


@pytest.fixture(scope="module")
def clones(tmp_path_factory, prefect_database):
    root = tmp_path_factory.mktemp("remote")
    (root / "here").mkdir()
    here = make_project(root / "here", prefect_database)
    here.call(sys.executable, "-m", "dvc", "remote", "add", "-d", "shared", str(root / "shared"))
    here.call("git", "commit", "-qam", "remote")
    here.call("git", "clone", "-q", str(here.folder), str(root / "there"))
    there = Project(root / "there", here.prefect_port, here.mlflow_port)
    (there.folder / "artifacts").mkdir()
    here.string = there.string = new_string()
    app = ("--factory", "host.prefect_app:create_app", "--log-level", "warning")
    server = start(here, "uvicorn", *app, "--port", str(here.prefect_port))
    workers = []
    try:
        until(here.answers, "the server answers")
        here.call(sys.executable, "-m", "host.prefect_server", PREFECT_API_URL=here.api)
        workers = [start(here, "host.worker", "local"), start(there, "host.worker", "gpu")]
        yield here, there
    finally:
        for process in (*workers, server):
            stop(process)
    assert not here.processes() + there.processes()


@pytest.fixture
def here(clones):
    return clones[0]


@pytest.fixture
def there(clones):
    return clones[1]


def gpu_runs(project):
    """Runs of the gpu pool, oldest first."""
    with project.client as client:
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=["gpu"]))
        return sorted(client.read_flow_runs(work_pool_filter=pool), key=lambda run: run.created)


def test_the_stage_runs_there_and_comes_back_as_it_was(here, there):
    run = here.start(**GPU)
    here.ends(run, "Completed")
    (elsewhere,) = gpu_runs(here)
    assert "slow: begins at step 0" in here.log(elsewhere)
    assert "slow: begins" not in here.log(run)
    assert "stage slow: restored" in here.log(run)
    result = "artifacts/slow.txt"
    turn = (here.folder / "turn.txt").read_text()
    assert (here.folder / result).read_text() == (there.folder / result).read_text() == turn
    assert here.registered()["version"] == 1
    assert not here.leftovers() + there.leftovers()


def test_a_second_run_runs_nothing_anywhere(here):
    before = len(gpu_runs(here))
    run = here.start(**GPU)
    here.ends(run, "Completed")
    assert here.log(run).count(": skipped") == 3
    assert len(gpu_runs(here)) == before


def test_another_commit_there_is_refused_with_the_fix(here, there):
    commit_a_turn(here)
    message = here.ends(here.start(**GPU), "Failed").message
    wanted = here.call("git", "rev-parse", "HEAD").stdout[:12]
    assert f"the run needs {wanted}" in message
    assert f"git fetch && git checkout {wanted}" in message
    update(there, here)


def test_cancel_here_stops_there_and_the_next_run_goes_on_there(here, there):
    (there.folder / "hold").touch()
    run = here.start(**GPU)
    step = until(there.step, "the stage works there")
    with here.client as client:
        client.set_flow_run_state(run.id, Cancelling())
    here.ends(run, "Cancelled")
    cancelled = gpu_runs(here)[-1]
    here.ends(cancelled, "Cancelled")
    until(lambda: not there.run_processes(), "the stage ends there")
    here.current = here.start(**GPU)  # the drill after this disturbs it
    until(lambda: gpu_runs(here)[-1].id != cancelled.id, "the stage is sent")
    assert here.begun(gpu_runs(here)[-1]) >= step > 0


@pytest.fixture(scope="module")
def lost(clones):
    """A machine is lost in the middle of a stage; another goes on, with an empty folder.

    The log of that one has moved on. Returns the step in the remote when the first was lost.
    """
    here, there = clones
    if here.current is None:
        commit_a_turn(here)
        update(there, here)
        (there.folder / "hold").touch()
        here.current = here.start(**GPU)
    turn = (here.folder / "turn.txt").read_text()
    sent = here.folder.parent / f"shared/checkpoints/slow-{turn}/checkpoint.safetensors"
    step = until(lambda: read_step(sent), "a checkpoint is in the remote")
    killed = there.run_processes()
    for process in killed:
        process.kill()
    psutil.wait_procs(killed, timeout=10)
    here.ends(here.current, "Failed")
    here.ends(gpu_runs(here)[-1], "Crashed")
    shutil.rmtree(there.folder / "checkpoints")
    (there.folder / "data").mkdir(exist_ok=True)
    (there.folder / "data/log.txt").write_text("more events")
    there.call(sys.executable, "-m", "dvc", "add", "-q", "data")
    there.release()
    here.ends(here.start(**GPU), "Completed")
    return step


def test_a_machine_that_does_not_come_back_is_replaced_at_its_last_checkpoint(here, lost):
    """The checkpoint was in the remote, and is there no longer."""
    assert here.begun(gpu_runs(here)[-1]) >= lost > 0
    turn = (here.folder / "turn.txt").read_text()
    assert (here.folder / "artifacts/slow.txt").read_text() == turn
    assert not list((here.folder.parent / "shared/checkpoints").iterdir())


@pytest.mark.usefixtures("lost")
def test_a_log_that_moved_on_there_stays_what_its_data_dvc_pins(there):
    """A stage that does not read the log leaves data.dvc alone."""
    status = there.call(sys.executable, "-m", "dvc", "status", "data.dvc").stdout
    assert "up to date" in status
    assert (there.folder / "data/log.txt").read_text() == "more events"


@pytest.fixture
def clone(here, tmp_path, monkeypatch):
    """A fresh clone as the working directory; nothing is computed in it yet."""
    folder = tmp_path / "clone"
    here.call("git", "clone", "-q", str(here.folder), str(folder))
    monkeypatch.chdir(folder)
    return folder


def refused(reason):
    """Ask for the stage in the working directory; it is refused for the reason."""
    from prefect.logging import disable_run_logger

    from flows.faults import StageFailed
    from flows.remote import run_elsewhere

    with disable_run_logger(), pytest.raises(StageFailed, match=reason):
        run_elsewhere("slow", "gpu")


@pytest.mark.usefixtures("clone")
def test_a_remote_that_is_not_set_is_reported():
    subprocess.run([sys.executable, "-m", "dvc", "remote", "remove", "shared"], check=True)
    refused("dvc remote add --local -d NAME URL")


def test_uncommitted_code_is_refused_before_anything_is_sent(here, clone):
    runs, shared = len(gpu_runs(here)), here.folder.parent / "shared"
    sent = sorted(shared.rglob("*"))
    code = clone / "slow.py"
    code.write_text(code.read_text() + "\n# changed\n")
    refused(r"(?s)uncommitted changes.*slow\.py")
    assert len(gpu_runs(here)) == runs
    assert sorted(shared.rglob("*")) == sent
