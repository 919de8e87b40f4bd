"""The folder base/ filled from a registry of its own, and emptied."""

import shutil
from pathlib import Path

import mlflow
import pytest
from evaluation_log import random_log
from registry_project import ROOT, make_project, write_network
from typer.testing import CliRunner

from hpgr.cli import app
from hpgr.config import load_config
from hpgr.data.base_folder import is_filled
from hpgr.registry import fill_base as base
from hpgr.registry.fill_base import clear_base, fill_base
from hpgr.registry.register import register
from hpgr.registry.tracking import connect
from hpgr.runtime import UserError, read_json, write_json
from hpgr.workspace import HERE

FILES = {
    "model/model.safetensors", "model/config.json",
    "items.parquet", "actions.parquet", "categories.parquet", "trained.npy",
}  # fmt: skip


def files():
    return {
        p.relative_to("base").as_posix(): p.stat().st_mtime_ns
        for p in Path("base").rglob("*")
        if p.is_file()
    }


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A project with two registered versions; the first is the champion."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    (folder / "base").mkdir()
    shutil.copy(ROOT / "base" / ".gitignore", folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(load_config())
        write_network(Path("artifacts/finetune"), random_log(0), load_config(), seed=1)
        register(load_config())
    yield folder
    mlflow.set_tracking_uri(None)


@pytest.fixture(autouse=True)
def cfg(store, monkeypatch):
    monkeypatch.chdir(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield load_config()
    clear_base()


def test_the_champion_is_the_default_and_comes_whole(cfg, store, tmp_path):
    filled = fill_base(cfg)
    assert (filled["name"], filled["version"]) == ("hpgr", 1)
    tags = connect().get_model_version("hpgr", "1").tags
    assert filled["key"] == tags["content_key"]
    fetched = Path(mlflow.artifacts.download_artifacts("models:/hpgr/1", dst_path=str(tmp_path)))
    assert contents(Path("base")) == contents(fetched / "artifacts/bundle")
    assert set(files()) == FILES | {"base.json", ".gitignore"}
    assert read_json(Path("base/base.json")) == filled


def test_another_version_replaces_the_first(cfg):
    fill_base(cfg)
    before = contents(Path("base"))
    assert fill_base(cfg, 2)["version"] == 2
    assert contents(Path("base")) != before
    assert set(files()) == FILES | {"base.json", ".gitignore"}


def test_the_same_version_again_touches_no_file(cfg):
    fill_base(cfg)
    before = files()
    fill_base(cfg, 1)
    assert files() == before


@pytest.mark.parametrize("name", ["model/model.safetensors", ".leftover/x", "items.parquet"])
def test_what_is_damaged_or_left_over_is_mended(cfg, name):
    filled = fill_base(cfg)
    path = Path("base") / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"broken")
    assert fill_base(cfg) == filled
    assert set(files()) == FILES | {"base.json", ".gitignore"}
    assert path.is_file() == (name in FILES)
    assert not path.is_file() or path.read_bytes() != b"broken"


def test_two_fills_of_one_version_are_equal_in_every_byte(cfg):
    fill_base(cfg)
    first = Path("base/base.json").read_bytes()
    clear_base()
    fill_base(cfg)
    assert Path("base/base.json").read_bytes() == first


def test_an_interrupted_fill_counts_as_empty(cfg, monkeypatch):
    fill_base(cfg)

    def power_cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "write_json", power_cut)
    with pytest.raises(KeyboardInterrupt):
        fill_base(cfg, 2)
    assert not is_filled(HERE.base)


def test_clearing_leaves_what_git_tracks(cfg):
    fill_base(cfg)
    clear_base()
    assert set(files()) == {".gitignore"}
    clear_base()


def test_no_champion_is_reported(cfg):
    other = cfg.model_copy(
        update={"register_": cfg.register_.model_copy(update={"model_name": "other"})}
    )
    with pytest.raises(UserError, match=r"no other@champion.*flow `train`"):
        fill_base(other)
    assert not is_filled(HERE.base)


def test_an_unknown_version_leaves_the_base_as_it_was(cfg):
    fill_base(cfg)
    before = files()
    with pytest.raises(UserError, match="no version 9 of hpgr"):
        fill_base(cfg, 9)
    assert files() == before


def test_a_version_without_its_categories_is_reported(cfg, monkeypatch):
    monkeypatch.setattr(base, "CONTENTS", (*base.CONTENTS, "later.parquet"))
    with pytest.raises(UserError, match=r"has no later\.parquet.*Register a new version"):
        fill_base(cfg)
    assert set(files()) == {".gitignore"}


def test_the_command_fills_and_clears(cfg):
    runner = CliRunner()
    assert "hpgr version 2" in runner.invoke(app, ["base", "2"]).output
    assert runner.invoke(app, ["base", "--clear"]).exit_code == 0
    assert not is_filled(HERE.base)
    both = runner.invoke(app, ["base", "2", "--clear"])
    assert isinstance(both.exception, UserError)


def test_a_registration_says_which_version_training_started_from(cfg):
    path = Path("artifacts/finetune/config.json")
    written = read_json(path)
    write_json(path, {**written, "base": {"name": "hpgr", "version": 2}})
    try:
        registered = register(cfg)
    finally:
        write_json(path, written)
    tags = connect().get_run(registered["run_id"]).data.tags
    assert tags["base.version"] == "2"
    run_id = connect().get_model_version("hpgr", "1").run_id
    assert connect().get_run(run_id).data.tags["base.version"] == "absent"
