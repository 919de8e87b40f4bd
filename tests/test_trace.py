"""From a version back to its rows: what it says, and what is brought back."""

import json
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import yaml
from params_text import params_text

from hpgr.config import load_config
from hpgr.registry import tracking, worktree
from hpgr.registry.mlflow_faults import public
from hpgr.registry.trace import keep, restore, trace
from hpgr.registry.tracking import own_uri, tracking_uri
from hpgr.runtime import UserError

AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@localhost")


def git(*arguments, cwd=None):
    done = subprocess.run(["git", *AUTHOR, *arguments], cwd=cwd, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@host:443/mlflow", "https://***@host:443/mlflow"),
        ("postgresql://me:se/cr@et@host/db", "postgresql://***@host/db"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
    ],
)
def test_a_store_is_named_without_its_password(monkeypatch, uri, message):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert public(tracking_uri()) == message


def test_a_relative_store_is_named_as_other_folders_find_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert public(tracking_uri()) == f"sqlite:///{tmp_path}/mlflow.db"


LOCK = {"schema": "2.0", "stages": {"validate": {"outs": [{"path": "artifacts/x", "md5": "d1"}]}}}
CLEAN = {"git.dirty": "false", "dvc.changed": "none", "base.version": "absent"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A committed project with a registry; dvc.lock is there and not committed, as ever."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text(params_text("quick"))
    (folder / "data.dvc").write_bytes(b"outs:\r\n- md5: abc.dir\r\n  path: data\r\n")
    (folder / "requirements.lock").write_text("numpy==2\n")
    (folder / ".gitignore").write_text("mlflow/store/\n*.before\nbase/\n")
    git("init", "-q", cwd=folder)
    git("add", "-A", cwd=folder)
    git("commit", "-qm", "start", cwd=folder)
    (folder / "dvc.lock").write_text(json.dumps(LOCK))
    return folder


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield project
    git("checkout", "-q", "--", ".")
    mlflow.set_tracking_uri(None)


@pytest.fixture
def version(here):
    """Register a version without a model, a run with tags and what pins it; returns its number."""

    def make(**tags):
        client = tracking.connect()
        experiment = tracking.experiment_id(client, "hpgr")
        known = {"git.commit": git("rev-parse", "HEAD"), **CLEAN}
        tags = {name.replace("__", "."): value for name, value in tags.items()}
        run_id = client.create_run(experiment, tags={**known, **tags}).info.run_id
        keep(client, run_id)
        if not client.search_registered_models("name='hpgr'"):
            client.create_registered_model("hpgr")
        return int(client.create_model_version("hpgr", "file:///none", run_id).version)

    return make


@contextmanager
def other_params(folder, text):
    """The folder's params.yaml with another text during the block."""
    before = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text)
    yield
    (folder / "params.yaml").write_text(before)


def recipe(message):
    """The commands that `hpgr lineage` prints."""
    return [line.strip() for line in message.split("in a clone:\n")[1].splitlines()]


def test_the_parameters_in_force_are_reported_and_marked_where_the_commit_has_others(here, version):
    params = yaml.safe_load((here / "params.yaml").read_text())
    own = params["model"]["num_blocks"], params["finetune"]["steps"]
    params["model"]["num_blocks"], params["finetune"]["steps"] = 1, 20
    params["orchestrate"]["remote"] = {"pretrain": "gpu"}
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    message = trace(load_config(), version()).splitlines()
    assert f"  model.num_blocks: 1    # commit: {own[0]}" in message
    assert f"  finetune.steps: 20    # commit: {own[1]}" in message
    assert '  orchestrate.remote.pretrain: "gpu"    # commit: not set' in message
    assert f"  sessionize.gap_s: {params['sessionize']['gap_s']}" in message


def test_a_version_of_before_profiles_were_files_shows_what_its_profile_set(here, version):
    old = {
        "profile": "quick",
        "model": {"width": 64, "layers": 2},
        "profiles": {"quick": {"model.layers": 1}, "full": {"model.layers": 4}},
    }
    with other_params(here, yaml.safe_dump(old)):
        number = version()
    message = trace(load_config(), number).splitlines()
    assert "  model.layers: 1    # commit: not set" in message
    assert "  model.width: 64    # commit: not set" in message
    assert not [line for line in message if "profiles" in line]


def test_where_the_commit_is_not_at_hand_the_parameters_are_reported_unmarked(version):
    message = trace(load_config(), version(git__commit="0" * 40))
    assert "the commit is not at hand to compare with" in message
    assert "  sessionize.gap_s: 1800\n" in message
    assert "# commit" not in message


def test_the_recipe_of_a_training_from_nothing(here, version):
    number = version()
    commands = [line.split("  #")[0].rstrip() for line in recipe(trace(load_config(), number))]
    assert commands == [
        f"export MLFLOW_TRACKING_URI=sqlite:///{here}/mlflow/store/mlflow.db",
        f"git checkout {git('rev-parse', 'HEAD')}",
        f"hpgr lineage {number} --restore",
        "hpgr base --clear",
        "dvc pull",
        "dvc status",
    ]


def test_a_warm_start_is_reported_as_it_was_whatever_lies_in_base_by_then(here, version):
    (here / "base").mkdir(exist_ok=True)
    (here / "base/base.json").write_text('{"name": "hpgr", "version": 7}')
    message = trace(load_config(), version(base__version="2"))
    assert "began from        version 2\n" in message
    assert "hpgr base 2" in recipe(message)


def test_a_clean_version_has_no_warning(version):
    assert "warning" not in trace(load_config(), version())


def test_stages_that_differed_from_dvc_lock_are_warned_of(version):
    message = trace(load_config(), version(dvc__changed="evaluate, finetune"))
    assert "warning: registered while evaluate, finetune differed from dvc.lock" in message


def test_without_a_commit_there_is_a_warning_and_no_checkout(here, version, capsys):
    number = version(git__commit="absent")
    message = trace(load_config(), number)
    assert "warning: registered outside git" in message
    assert "git checkout" not in message
    restore(load_config(), number)
    assert "warning: registered outside git" in capsys.readouterr().out


def test_new_files_are_named_at_registration_and_those_too_large_later_too(
    here, version, capsys, monkeypatch
):
    monkeypatch.setattr(worktree, "NEW_FILES", 100)
    (here / "small.py").write_text("x = 1\n")
    (here / "large.bin").write_bytes(bytes(101))
    try:
        number = version(git__dirty="true")
    finally:
        (here / "small.py").unlink()
        (here / "large.bin").unlink()
    message = capsys.readouterr().out
    assert "kept with the version though not in git: small.py\n" in message
    assert "too large to keep with the version: large.bin\n" in message
    assert "warning: not in git and too large to keep: large.bin\n" in trace(load_config(), number)


def test_without_its_pins_a_version_has_no_recipe(here, version):
    (here / "dvc.lock").rename(here / "away")
    try:
        number = version()
    finally:
        (here / "away").rename(here / "dvc.lock")
    assert trace(load_config(), number).endswith(
        "it cannot be restored: dvc.lock was not kept with it"
    )


@pytest.fixture
def clone(here, version, tmp_path, monkeypatch):
    """A fresh clone that asks the project's registry, and the version to restore there."""
    (here / "params.yaml").write_text(params_text("smoke"))
    number = version()
    git("clone", "-q", str(here), str(tmp_path / "clone"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own_uri())
    monkeypatch.chdir(tmp_path / "clone")
    return number


PINS = ("params.yaml", "data.dvc", "dvc.lock")


def aside():
    return {path.name.split(".")[0]: path.read_text() for path in Path().glob("*.before")}


def test_in_a_fresh_clone_the_pins_come_back_byte_by_byte_and_nothing_is_put_aside(here, clone):
    restore(load_config(), clone)
    restore(load_config(), clone)
    for name in PINS:
        assert Path(name).read_bytes() == (here / name).read_bytes()
    assert aside() == {}


def test_what_was_not_committed_is_put_aside_and_named(here, clone, capsys):
    Path("params.yaml").write_text(params_text("full"))
    Path("dvc.lock").write_text("of a run here\n")
    restore(load_config(), clone)
    Path("params.yaml").write_text(params_text("ranking"))
    restore(load_config(), clone)
    assert {path.read_text() for path in Path().glob("params.yaml.*.before")} == {
        params_text("full"),
        params_text("ranking"),
    }
    assert aside()["dvc"] == "of a run here\n"
    message = capsys.readouterr().out
    for path in Path().glob("*.before"):
        assert f"is now {path}\n" in message
    assert Path("params.yaml").read_bytes() == (here / "params.yaml").read_bytes()


def test_in_a_clone_without_the_address_the_store_is_named_and_none_is_made(clone, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=r"/clone/mlflow/store/mlflow\.db: .*MLFLOW_TRACKING_URI"):
        trace(load_config(), clone)
    assert not Path("mlflow").exists()


def test_a_version_that_the_store_lacks_is_reported_with_the_store(here, version):
    version()
    with pytest.raises(UserError, match=r"no version 99 .*\(sqlite:////.*/mlflow\.db\)"):
        trace(load_config(), 99)


def test_a_server_that_is_down_is_one_message_without_its_password(here, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(
        UserError, match=rf"MLflow at http://\*\*\*@127.0.0.1:{port} does not answer"
    ):
        trace(load_config(), 1)


PLANTED = "hunter2-planted"


def test_no_planted_secret_is_left_behind_and_what_was_held_back_is_named(
    here, version, capsys, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PLANTED)
    files = {
        ".dvc/config": f"['remote \"x\"']\n    url = s3://b/x\n    password = {PLANTED}\n",
        ".dvc/config.local": f"password = {PLANTED}\n",
        ".env": f"ANY={PLANTED}\n",
        "notes.txt": f"see http://me:{PLANTED}@host\n",
        "new.py": "x = 1\n",
    }
    lock = (here / "requirements.lock").read_bytes()
    try:
        for name, text in files.items():
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_text(text)
        (here / "requirements.lock").write_text(f"x @ git+https://{PLANTED}@host/x\n")
        number = version(git__dirty="true")
    finally:
        for name in files:
            (here / name).unlink()
        (here / "requirements.lock").write_bytes(lock)
    held = [*(name for name in files if name != "new.py"), "requirements.lock"]
    printed, message = capsys.readouterr().out, trace(load_config(), number)
    assert "kept with the version though not in git: new.py\n" in printed
    for name in held:
        assert f"{name}: " in printed
        assert f"warning: not kept, and not restored: {name}: " in message
    restore(load_config(), number)
    said = printed + message + capsys.readouterr().out
    assert (here / "new.py").read_text() == "x = 1\n"
    (here / "new.py").unlink()
    assert f"not restored: {held[0]}" in said and PLANTED not in said
    for path in (here / "mlflow").rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path


def test_parameters_with_a_secret_are_refused(here, version):
    text = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(f"{text}# http://me:{PLANTED}@host\n")
    with pytest.raises(UserError, match=r"params\.yaml looks like it holds a secret: line \d+, a"):
        version()
