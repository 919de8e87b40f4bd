"""Drill: a stage or `dvc repro` is killed, at any moment; the next run goes on where it was.

Weights are compared bit for bit with those of a run that nobody disturbed. (The loop's own resume
is tested in test_training.py; here it is the command, its files and DVC around it.)
"""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path

import psutil
import pytest
from waiting import until
from workspace import (
    DVC,
    WEIGHTS,
    Command,
    contents,
    copy,
    driven,
    dvc,
    hpgr,
    leftovers,
    no_traceback,
    one_message,
    small_params,
)

# Another seed: DVC has no run of it to restore. Steps enough to be caught in the middle of them.
SLOW = {"pretrain": {"steps": 60, "seed": 1}}

# Ends the process just before the COUNT-th file or folder takes its final name.
KILL_AT_RENAME = """
replace, seen = os.replace, 0
def dying(source, target, **options):
    global seen
    seen += str(target).startswith(NAME)
    if seen == COUNT:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target, **options)
os.replace = dying
"""
# Ends the process when half of the COUNT-th checkpoint is written.
KILL_IN_CHECKPOINT = """
import hpgr.training.checkpoint as checkpoint
save_file, seen = checkpoint.save_file, 0
def dying(tensors, path, metadata=None):
    global seen
    seen += 1
    save_file(tensors, path, metadata)
    if seen == COUNT:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = dying
"""
# Sends a signal to the process itself after its COUNT-th step, while the next one is under way.
SIGNAL_IN_TRAINING = """
from hpgr.training.adamw import AdamW
step, seen = AdamW.step, 0
def noting(self, *arguments, **options):
    global seen
    seen += 1
    if seen == COUNT:
        os.kill(os.getpid(), signal.SIGNAL)
    return step(self, *arguments, **options)
AdamW.step = noting
"""


def weights(project: Path, stage: str) -> bytes:
    return (project / "artifacts" / stage / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("stage", "name", "folder"),
    [
        ("validate", "artifacts/validated", "validated"),
        ("sessionize", "artifacts/sessions", "sessions"),
        ("pretrain", "artifacts/pretrain", "pretrain"),
    ],
)
def test_killed_while_it_writes_its_outputs(project, stage, name, folder):
    """The old folder is aside, the new one has not its name yet: the worst moment."""
    whole = contents(project / "artifacts" / folder)
    patch = KILL_AT_RENAME.replace("NAME", repr(name)).replace("COUNT", "1")
    killed = driven(stage, patch, project)
    assert killed.returncode == -signal.SIGKILL
    assert leftovers(project)
    assert not (project / name).exists()
    done = hpgr(stage, cwd=project)
    assert done.returncode == 0, done.output
    assert contents(project / name) == whole
    assert leftovers(project) == []


@pytest.mark.parametrize(
    ("stage", "patch", "code", "step"),
    [
        ("finetune", SIGNAL_IN_TRAINING.replace("SIGNAL", "SIGKILL"), -signal.SIGKILL, 8),
        ("finetune", SIGNAL_IN_TRAINING.replace("SIGNAL", "SIGTERM"), 128 + signal.SIGTERM, 9),
        ("pretrain", KILL_IN_CHECKPOINT, -signal.SIGKILL, 6),
    ],
    ids=["kill", "term", "kill while a checkpoint is written"],
)
def test_killed_in_training(project, stage, patch, code, step):
    expected = weights(project, stage)
    killed = driven(stage, patch.replace("COUNT", "9"), project)
    assert killed.returncode == code
    assert no_traceback(killed.output)
    if code > 0:
        assert "stopped on request; the same command goes on" in killed.stdout
    assert weights(project, stage) == expected  # the old output is whole until the new one is
    done = hpgr(stage, cwd=project)
    assert done.returncode == 0, done.output
    assert f"{stage}: goes on at step {step} of 15" in done.stdout
    assert weights(project, stage) == expected
    assert leftovers(project) == [] and not list((project / "checkpoints").iterdir())


def stages_of(command: Command) -> list[psutil.Process]:
    """Processes that `command` started, by name of what they run."""
    try:
        children = psutil.Process(command.process.pid).children(recursive=True)
        return [child for child in children if "pretrain" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def has_ended(process: psutil.Process) -> bool:
    """Also where nobody takes in the exit code of an orphan, as in some containers."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def saved(project: Path) -> list[Path]:
    return list((project / "checkpoints").glob("pretrain-*/checkpoint.safetensors"))


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """Weights of the run that the next tests disturb."""
    project = copy(finished, tmp_path_factory.mktemp("undisturbed") / "project")
    small_params(project, **SLOW)
    done = hpgr("pretrain", cwd=project)
    assert done.returncode == 0, done.output
    return weights(project, "pretrain")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_dvc_is_killed_and_its_stage_ends_with_it(project, undisturbed, how):
    """The next `dvc repro` goes on from the checkpoint, with the same weights as without a kill."""
    small_params(project, **SLOW)
    repro = Command(*DVC, "repro", "pretrain", cwd=project)
    until(lambda: saved(project), "a checkpoint")
    (stage,) = stages_of(repro)
    stage.suspend()  # or it may have trained to its end before anybody kills anything
    repro.process.send_signal(how)
    assert repro.end().returncode != 0
    stage.resume()
    until(lambda: has_ended(stage), "the end of the stage")
    assert saved(project)
    done = dvc("repro", "pretrain", cwd=project)
    assert done.returncode == 0, done.output
    assert "pretrain: goes on at step" in done.output
    assert weights(project, "pretrain") == undisturbed
    assert leftovers(project) == [] and not saved(project)


def test_two_repros_at_once_do_no_harm(project):
    """The second one is refused by DVC's lock, says so, and the first one ends well."""
    small_params(project, **SLOW)
    first = Command(*DVC, "repro", "pretrain", cwd=project)
    until(lambda: saved(project), "a checkpoint")
    (stage,) = stages_of(first)
    stage.suspend()
    second = dvc("repro", "pretrain", cwd=project)
    stage.resume()
    assert second.returncode != 0
    assert "busy" in second.output or "Unable to acquire lock" in second.output
    assert no_traceback(second.output)
    done = first.end()
    assert done.returncode == 0, done.output
    again = dvc("status", "pretrain", cwd=project)
    assert "up to date" in again.output


def test_an_output_has_one_writer(project):
    """A second one waits, then says who it waits for; the lock goes with its owner."""
    lock = project / "artifacts/.sessions.lock"
    with lock.open("w") as held:
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        patch = "import hpgr.runtime; hpgr.runtime.WRITER_WAIT_S = 0.5"
        message = one_message(driven("sessionize", patch, project))
        assert "artifacts/sessions is being written by process 4711" in message
        assert "wait for its end, or stop it" in message
    done = hpgr("sessionize", cwd=project)
    assert done.returncode == 0, done.output
