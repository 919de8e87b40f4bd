"""The command line as a user meets it: real processes, one message for each mistake."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from params_text import params_of, params_text
from waiting import PATIENCE_S, until

from hpgr.added_commands import GROUP, as_command

ROOT = Path(__file__).parents[1]
HPGR = (sys.executable, "-m", "hpgr.cli")


def hpgr(*arguments, cwd, **environment):
    return subprocess.run(
        [*HPGR, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_text(params_text("quick"))
    return tmp_path


def test_params_prints_the_values_in_force(project):
    (project / "params.yaml").write_text(params_text("smoke"))
    printed = yaml.safe_load(hpgr("params", cwd=project).stdout)
    assert printed["model"]["dim"] == 16
    assert list(printed) == list(params_of("smoke"))


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["sessionize"], "artifacts/validated/events.parquet not found: run `hpgr validate` first"),
        (["pretrain"], "artifacts/sessions/arrays/meta.json not found: run the stages before"),
        (["evaluate"], "run `hpgr sessionize` first"),
        (["register"], "artifacts/evaluation/metrics.json not found"),
        (["result"], "artifacts/registered.json not found"),
        (["recommend"], "say who asks"),
        (["recommend", "--user", "1"], "the registry has no hpgr@champion"),
        (["recommend", "--user", "1", "--source", "artifacts"], "artifacts/finetune/"),
        (["recommend", "--user", "1", "--source", "moon"], "expected champion or artifacts"),
        (["fetch", "no-such-log"], "unknown data set 'no-such-log'"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(project, arguments, reported):
    done = hpgr(*arguments, cwd=project, MLFLOW_TRACKING_URI="")
    assert done.returncode == 2
    assert reported in done.stderr
    assert done.stderr.startswith("error: ") or "error: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_fetch_leaves_a_log_of_your_own_alone(project):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("path: data/ml-1m ", "path: data/mine "))
    done = hpgr("fetch", cwd=project)
    assert done.returncode == 0
    assert "nothing to fetch" in done.stdout
    assert not (project / "data").exists()


def test_outside_the_project_the_message_says_where_to_run(tmp_path):
    done = hpgr("validate", cwd=tmp_path)
    assert done.returncode == 2
    assert "params.yaml not found: run hpgr in the project's root folder" in done.stderr


def test_an_unknown_key_is_named(project):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("  gap_s: 1800", "  gap: 1800"))
    done = hpgr("params", cwd=project)
    assert done.returncode == 2
    assert "sessionize.gap: unknown key" in done.stderr


SLOW_STAGE = """
import os, sys, time
from pathlib import Path
import hpgr.cli
from hpgr.workspace import STAGES, Stage

class Slow:
    @staticmethod
    def validate(cfg, workspace):
        Path("started").write_text(str(os.getpid()))
        try:
            time.sleep(60)
        finally:
            Path("cleaned").touch()

sys.modules["slow"] = Slow
STAGES["validate"] = Stage("slow", "", (), "out", ())
hpgr.cli.run_stage("validate")
"""


def wait_for(path: Path) -> None:
    until(path.exists, f"{path} appears")


def test_sigterm_ends_a_stage_cleanly(project):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_STAGE], cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_for(project / "started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert (project / "cleaned").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_stage_of_dvc_dies_with_dvc(project):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])",
            SLOW_STAGE,
        ],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DVC_STAGE": "validate"},
    )
    wait_for(project / "started")
    parent.kill()
    parent.wait()
    wait_for(project / "cleaned")


# DVC starts the stage and is gone before the stage has loaded its modules.
EARLY = """
import os, subprocess, sys
WAITING = "import os, time\\nwhile os.getppid() == DVC: time.sleep(0.01)\\n"
code = WAITING.replace("DVC", str(os.getpid())) + sys.argv[1]
subprocess.Popen([sys.executable, "-c", code])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_stage_whose_dvc_was_killed_before_it_began_does_not_begin(project):
    dvc = subprocess.Popen(
        [sys.executable, "-c", EARLY, SLOW_STAGE],
        cwd=project,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DVC_STAGE": "validate"},
        process_group=0,
    )
    with dvc:
        assert dvc.communicate(timeout=PATIENCE_S) == (b"", None)  # the stage has ended as well
    assert not (project / "started").exists()


def test_a_stage_records_what_it_cost(project):
    code, began = SLOW_STAGE.replace("time.sleep(60)", "time.sleep(0.1)"), time.time()
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    header, *rows = (project / "out" / "resources.csv").read_text().splitlines()
    assert header == "time,cpu_percent,memory_mb,gpu_memory_mb"
    assert len(rows) == 1
    moment, _, memory, _ = map(float, rows[0].split(","))
    assert began - 1 <= moment <= time.time() + 1
    assert 10 < memory < 10_000


def test_the_module_and_the_installed_command_are_one(project):
    command = Path(sys.executable).parent / "hpgr"
    done = subprocess.run([command, "params"], cwd=project, capture_output=True, check=True)
    assert done.stdout.decode() == hpgr("params", cwd=project).stdout


def test_the_added_commands_are_functions_with_a_help():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["entry-points"][GROUP].items():
        command = as_command(EntryPoint(name, target, GROUP).load(), name)
        assert command.name == name
        assert command.help
