"""The bridge between Prefect and DVC, on a small DVC project of its own with real `dvc` runs."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml
from params_text import params_text
from prefect.exceptions import TerminationSignal
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import dvc_stages as stages
from flows.dvc_graph import dvc_output, stage_order
from flows.dvc_stages import (
    RAN,
    RESTORED,
    SKIPPED,
    StageFailed,
    bring_log,
    check_data,
    failure_message,
    run_stage,
)
from flows.launch import launch
from flows.refresh import refresh
from flows.stage import stage_flow
from flows.train import train
from host import dvc_process
from hpgr.config import ConfigError, load_config
from hpgr.runtime import TELEMETRY_OFF, UserError, sole_run
from hpgr.workspace import HERE

ROOT = Path(__file__).parents[1]
# Named so that neither the file's order nor the alphabet is the graph's order.
STAGES = {
    "stages": {
        "last": {
            "cmd": "cp middle.txt last.txt",
            "deps": ["middle.txt"],
            "outs": ["last.txt"],
        },
        "middle": {
            "cmd": f"{sys.executable} middle.py",
            "deps": ["first.txt", "middle.py"],
            "outs": ["middle.txt"],
        },
        "a-first": {
            "cmd": "echo hello; cp data/log.txt first.txt",
            "deps": ["data"],
            "outs": ["first.txt"],
        },
    }
}
MIDDLE = "from pathlib import Path\nPath('middle.txt').write_text('{}')\n"


def run(*command, cwd):
    environment = {**os.environ, **TELEMETRY_OFF}
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A DVC project whose data.dvc pins data/."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "data").mkdir()
    (folder / "data" / "log.txt").write_text("events")
    (folder / "middle.py").write_text(MIDDLE.format(1))
    (folder / "dvc.yaml").write_text(yaml.safe_dump(STAGES, sort_keys=False))
    run("git", "init", "-q", ".", cwd=folder)
    dvc = (sys.executable, "-m", "dvc")
    run(*dvc, "init", "-q", cwd=folder)
    run(*dvc, "add", "-q", "data", cwd=folder)
    return folder


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    copy = tmp_path / "project"
    run("cp", "-r", str(template), str(copy), cwd=tmp_path)
    monkeypatch.chdir(copy)
    with disable_run_logger():
        yield copy


def run_all():
    return {stage: run_stage.fn(stage) for stage in stage_order()}


def test_the_order_is_the_graphs(project):
    assert stage_order() == ["a-first", "middle", "last"]


def test_a_stage_runs_then_is_skipped_then_comes_from_the_cache(project):
    assert set(run_all().values()) == {RAN}
    assert set(run_all().values()) == {SKIPPED}
    (project / "middle.py").write_text(MIDDLE.format(2))
    assert run_all() == {"a-first": SKIPPED, "middle": RAN, "last": RAN}
    (project / "middle.py").write_text(MIDDLE.format(1))
    assert run_all() == {"a-first": SKIPPED, "middle": RESTORED, "last": RESTORED}
    assert (project / "last.txt").read_text() == "1"


def test_a_failed_stage_tells_its_own_message_and_stops_there(project):
    (project / "middle.py").write_text(
        "import sys\nprint('work')\nsys.exit('error: the log is empty\\nfetch one first')"
    )
    run_stage.fn("a-first")
    with pytest.raises(StageFailed) as failure:
        run_stage.fn("middle")
    assert str(failure.value) == "stage middle failed: the log is empty\nfetch one first"


def test_without_a_message_the_last_line_speaks():
    lines = ["Traceback (most recent call last):", "  File x", "ZeroDivisionError: by zero"]
    closing = "ERROR: failed to reproduce 'middle': failed to run: middle, exited with 1"
    assert failure_message([*lines, closing]) == "ZeroDivisionError: by zero"


def test_where_dvc_could_not_start_the_stage_its_reason_speaks(project):
    (project / "data").rename(project / "elsewhere")
    with pytest.raises(StageFailed, match=r"^stage a-first failed: .*data"):
        run_stage.fn("a-first")


def test_a_dvc_that_says_nothing_is_no_empty_message(project, monkeypatch):
    monkeypatch.setattr("host.dvc_process.DVC", (sys.executable, "-c", "import sys; sys.exit(7)"))
    with pytest.raises(StageFailed, match=r"^stage a-first failed: dvc ended with code 7$"):
        run_stage.fn("a-first")


linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
# What a process may know of its end: the signal at its parent's death, and the mark of its call.
ENDS = """
import ctypes, os
signal = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signal))  # PR_GET_PDEATHSIG
print(signal.value, len(os.environ["HPGR_DVC_RUN"]))
"""


@linux
def test_a_dvc_that_runs_no_stage_ends_with_the_flow_too(monkeypatch):
    monkeypatch.setattr(dvc_process, "DVC", (sys.executable, "-c", ENDS))
    assert dvc_output("push") == f"{signal.SIGTERM} 32"


@linux
@pytest.mark.parametrize(("parent", "code"), [(os.getpid, 0), (os.getppid, 143)])
def test_a_dvc_whose_flow_was_killed_before_it_began_does_not_begin(parent, code):
    begun_by = partial(dvc_process._die_with, parent())
    assert subprocess.run(["true"], preexec_fn=begun_by, check=False).returncode == code


def test_data_as_pinned_passes(project):
    check_data.fn()


def test_fetched_data_that_dvc_has_not_cached_pass_and_are_cached(project):
    run("rm", "-r", str(project / ".dvc" / "cache"), cwd=project)
    check_data.fn()
    cached = [path for path in (project / ".dvc" / "cache").rglob("*") if path.is_file()]
    assert len(cached) == 2  # the folder's list and its one file


@pytest.mark.parametrize("keep_cache", [True, False])
def test_changed_data_fail_and_data_dvc_stays(project, keep_cache):
    pin = (project / "data.dvc").read_text()
    if not keep_cache:
        run("rm", "-r", str(project / ".dvc" / "cache"), cwd=project)
    (project / "data" / "log.txt").write_text("other events")
    with pytest.raises(StageFailed, match=r"data/ is not what data\.dvc pins"):
        check_data.fn()
    assert (project / "data.dvc").read_text() == pin


def test_missing_data_fail(project):
    run("rm", "-r", str(project / "data"), cwd=project)
    with pytest.raises(StageFailed, match="deleted"):
        check_data.fn()


@pytest.fixture
def without_log(project):
    """No data/, and parameters that name a public log."""
    run("rm", "-r", str(project / "data"), cwd=project)
    (project / "params.yaml").write_text(params_text("quick"))
    assert load_config(project / "params.yaml").data.path == Path("data/ml-1m")
    return project


def test_a_missing_log_comes_back_from_the_cache(without_log, monkeypatch):
    monkeypatch.setattr(stages, "fetch", None)
    bring_log.fn()
    assert (without_log / "data/log.txt").read_text() == "events"


def test_a_public_log_is_fetched_where_no_cache_has_it(without_log, monkeypatch):
    run("rm", "-r", str(without_log / ".dvc" / "cache"), cwd=without_log)
    asked = []
    monkeypatch.setattr(stages, "fetch", lambda *arguments: asked.append(arguments))
    bring_log.fn()
    assert asked == [("ml-1m", Path("data"))]


def test_a_log_that_is_there_is_left_alone(without_log, monkeypatch):
    (without_log / "data/ml-1m").mkdir(parents=True)
    monkeypatch.setattr(stages, "fetch", None)
    bring_log.fn()
    assert not (without_log / "data/log.txt").exists()


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("hpgr.runtime.WRITER_WAIT_S", 0.0)
    (tmp_path / "params.yaml").write_text(params_text("quick"))
    return tmp_path


@pytest.mark.parametrize(
    "run",
    [
        lambda: train.fn(profile="smoke"),
        lambda: refresh.fn("batch", profile="smoke"),
        lambda: stage_flow.fn("validate", "abc", {"params.yaml": ""}),
    ],
    ids=["train", "refresh", "stage"],
)
def test_a_run_beside_another_in_one_folder_is_refused_before_it_writes_parameters(own_folder, run):
    before = (own_folder / "params.yaml").read_text()
    held = f"held for a whole run by process {os.getpid()}"
    with sole_run(HERE.run_lock), pytest.raises(UserError, match=held):
        run()
    assert (own_folder / "params.yaml").read_text() == before


def test_parameters_that_another_clone_brings_are_checked_before_they_are_kept(
    own_folder, monkeypatch
):
    monkeypatch.setattr("flows.stage.clean_commit", lambda: "abc")
    before = (own_folder / "params.yaml").read_text()
    wrong = before.replace("path: data/ml-1m", "path: /etc")
    assert wrong != before
    with pytest.raises(ConfigError, match=r"data\.path"):
        stage_flow.fn("validate", "abc", {"dvc.lock": "", "params.yaml": wrong})
    assert (own_folder / "params.yaml").read_text() == before
    assert not (own_folder / "dvc.lock").exists()


def test_a_killed_run_does_not_hold_its_folder(own_folder):
    code = "import sys; from hpgr.runtime import sole_run; from hpgr.workspace import HERE"
    code += "\nwith sole_run(HERE.run_lock): print(1); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT)},
    )
    with holder:
        assert holder.stdout.readline()
        with pytest.raises(UserError, match=f"by process {holder.pid}"), sole_run(HERE.run_lock):
            pass
        holder.kill()
    with sole_run(HERE.run_lock):
        pass


@pytest.mark.parametrize(
    ("ended_by", "code", "message"),
    [
        (None, 0, ""),
        (UserError("look there"), 2, "error: look there\n"),
        (KeyboardInterrupt(), 130, "error: stopped by Ctrl-C."),
        (TerminationSignal(signal.SIGTERM), 143, "error: stopped by SIGTERM."),
        (httpx.ConnectError("refused"), 1, "error: Prefect's server is gone, and the run with it"),
    ],
)
def test_a_command_ends_with_one_line_and_a_code_for_the_shell(
    ended_by, code, message, capsys, monkeypatch
):
    monkeypatch.setattr("flows.launch.wait_for_server", lambda deadline_s: None)

    def flow():
        if ended_by is not None:
            raise ended_by

    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
            pytest.raises(SystemExit) as ended,
        ):
            launch(flow)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == bool(message)
