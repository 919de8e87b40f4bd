"""A training's checkpoints in DVC's remote: what is sent, brought and dropped, in which order."""

import json
import logging
from pathlib import Path

import pytest
from dvc.fs import LocalFileSystem
from safetensors.numpy import save_file

from host import remote_checkpoints as checkpoints
from host.remote_checkpoints import BEST, FOLDER, NEWEST, Store, kept_in_remote
from hpgr.runtime import write_text


@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch):
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")


@pytest.fixture
def there(tmp_path):
    return tmp_path / "remote/checkpoints"


@pytest.fixture
def store(there):
    return Store("train", LocalFileSystem(), str(there))


def save(step, folder=FOLDER / "train-a", name=NEWEST, epoch=0):
    folder.mkdir(parents=True, exist_ok=True)
    coming = folder / "coming"
    save_file({}, coming, {"state": json.dumps({"step": step, "epoch": epoch})})
    coming.replace(folder / name)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_names_are_the_trainings_own():
    from hpgr.training import checkpoint

    assert (NEWEST, BEST) == (checkpoint.NEWEST, checkpoint.BEST)


def test_how_far_it_is_stands_where_the_training_writes_it(tmp_path):
    """The format is the training's own, with tensors."""
    import torch

    from hpgr.training.checkpoint import save_checkpoint

    state = {"step": 7, "epoch": 2, "best": -1}
    (tmp_path / "a").mkdir()
    save_checkpoint(tmp_path / "a", {"model.w": torch.zeros(3)}, state)
    assert checkpoints._progress(LocalFileSystem(), str(tmp_path / "a" / NEWEST)) == (7, 2)


def test_what_is_sent_comes_back_in_another_clone(store, there, tmp_path, monkeypatch):
    save(5), save(4, name=BEST)
    save(1, FOLDER / "other-a")
    store.send()
    before = contents(FOLDER / "train-a")
    assert contents(there) == {f"train-a/{name}": before[name] for name in (NEWEST, BEST)}
    monkeypatch.chdir(tmp_path)
    assert Store("train", LocalFileSystem(), str(there)).bring() == ["train-a"]
    assert contents(FOLDER) == contents(there)


@pytest.mark.parametrize(
    ("here", "far", "brought"),
    [
        ((5, 0), (6, 0), True),
        ((6, 0), (6, 1), True),
        ((6, 0), (6, 0), False),
        ((7, 0), (6, 0), False),
    ],
)
def test_only_a_further_checkpoint_is_brought(store, there, here, far, brought):
    save(here[0], epoch=here[1])
    save(far[0], there / "train-a", epoch=far[1])
    assert store.bring() == ["train-a"] * brought
    took = contents(FOLDER)["train-a/" + NEWEST] == contents(there)["train-a/" + NEWEST]
    assert took == (brought or here == far)


@pytest.mark.parametrize("text", [b"", b"\x02", b"\xff" * 100, b"\x02" + bytes(7) + b"{}"])
def test_a_damaged_checkpoint_there_is_left_there(store, there, text):
    save(1)
    (there / "train-a").mkdir(parents=True)
    (there / "train-a" / NEWEST).write_bytes(text)
    assert store.bring() == []


def test_nothing_there_is_nothing_to_bring(store):
    assert store.bring() == []


def test_what_was_brought_or_sent_is_not_sent_again(store, there):
    save(5, there / "train-a")
    store.bring()
    (there / "train-a" / NEWEST).unlink()
    store.send()
    assert contents(there) == {}
    save(6)
    store.send()
    assert contents(there) == contents(FOLDER)


def test_the_best_weights_go_before_the_checkpoint_that_speaks_of_them(store, there):
    """If sending breaks off, the weights may be ahead of the checkpoint, never behind it."""

    class BreaksOff(LocalFileSystem):
        def mv(self, source, target, **options):
            if target.endswith(NEWEST):
                raise OSError("gone")
            super().mv(source, target, **options)

    save(5), save(4, name=BEST)
    with pytest.raises(OSError, match="gone"):
        Store("train", BreaksOff(), str(there)).send()
    assert {"train-a/" + BEST} == {name for name in contents(there) if "/." not in name}


def test_what_replaces_the_checkpoint_while_it_is_sent_does_not_mix_with_it(store, there):
    class Slow(LocalFileSystem):
        def put_file(self, stream, target, **options):
            save(99)
            super().put_file(stream, target, **options)

    save(5), save(4, name=BEST)
    before = contents(FOLDER / "train-a")
    Store("train", Slow(), str(there)).send()
    assert contents(there / "train-a") == before


def test_a_finished_training_is_dropped_there_and_no_other(store, there):
    save(9, there / "train-old")  # a training that was given up
    save(5, there / "train-a")
    store.bring()
    save(6, there / "train-elsewhere")  # another machine's, begun meanwhile
    for path in (FOLDER / "train-a").iterdir():
        path.unlink()
    (FOLDER / "train-a").rmdir()
    store.drop()
    assert {path.name for path in there.iterdir()} == {"train-old", "train-elsewhere"}


@pytest.fixture
def repository(tmp_path):
    """DVC's default remote is tmp_path / "remote"."""
    write_text(
        Path(".dvc/config"),
        f"[core]\n  no_scm = true\n  remote = a\n['remote \"a\"']\n  url = {tmp_path}/remote\n",
    )


@pytest.fixture
def log(monkeypatch, caplog):
    monkeypatch.setattr(checkpoints, "get_run_logger", lambda: logging.getLogger("run"))
    monkeypatch.setattr(checkpoints, "POLL_S", 0.01)
    return caplog


def test_a_stage_that_fails_leaves_its_last_checkpoint_there(repository, log, there):
    with pytest.raises(RuntimeError), kept_in_remote("train"):
        save(5)
        raise RuntimeError
    assert contents(there) == contents(FOLDER)


def test_a_remote_that_cannot_be_written_is_a_warning(repository, log, there):
    there.parent.mkdir()
    with kept_in_remote("train"):
        there.touch()  # no folder can be made
        save(5)
    assert "are not up to date" in log.text
