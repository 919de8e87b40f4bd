"""A move of the champion that is cut off at any of its writes, and the next, which mends it."""

import re

import mlflow
import pytest
from bare_registry import make_versions
from params_text import params_text

from hpgr.config import load_config
from hpgr.registry import moves, tracking
from hpgr.registry.versions import aliases
from hpgr.runtime import UserError

WRITES = (
    "create_run",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_terminated",
)
PROMOTE, ROLL_BACK = 9, 8  # writes of a move
CHAMPION_MOVED = 2  # the first write after it


class Faulty:
    """MLflow's client; one of its writes fails once, before it was done or after."""

    def __init__(self, client, fatal, *, done=False):
        self.client, self.fatal, self.done, self.writes = client, fatal, done, 0

    def __getattr__(self, name):
        method = getattr(self.client, name)
        if name not in WRITES:
            return method

        def write(*args, **kwargs):
            self.writes += 1
            if self.writes - 1 != self.fatal:
                return method(*args, **kwargs)
            if self.done:
                method(*args, **kwargs)
            raise ConnectionError("the store is away")

        return write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all; each test has a model of its own in it."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "params.yaml").write_text(params_text("smoke"))
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def client():
    return tracking.connect()


@pytest.fixture
def cfg(client, request):
    """Version 1 was champion before, 2 is; the challenger, 3, was once rolled back."""
    cfg = load_config()
    name = re.sub(r"\W+", "-", request.node.name)
    section = cfg.register_.model_copy(update={"model_name": name})
    cfg = cfg.model_copy(update={"register_": section})
    make_versions(client, cfg)
    client.set_model_version_tag(name, "3", "rolled_back", "before")
    return cfg


def promote(cfg, why="better"):
    return moves.move(cfg, why=why, force=True)


def roll_back(cfg, why="clicks fell"):
    return moves.move(cfg, why=why, back=True)


def cut_off(monkeypatch, client, move, fatal, *, done=False):
    """Carry `move` out with a write that fails."""
    with monkeypatch.context() as patch:
        patch.setattr(moves, "connect", lambda *_: Faulty(client, fatal, done=done))
        with pytest.raises(ConnectionError):
            move()


def finished(client, cfg):
    """Targets of the finished moves of the model, oldest first."""
    experiment = client.get_experiment_by_name(cfg.register_.experiment).experiment_id
    runs = client.search_runs([experiment], f"tags.`move.model` = '{cfg.register_.model_name}'")
    done = [run.data.tags for run in runs if run.info.status == "FINISHED"]
    return [int(tags["move.to"]) for tags in sorted(done, key=lambda tags: tags["move.at"])]


def tags_of(client, cfg, version):
    return client.get_model_version(cfg.register_.model_name, str(version)).tags


def test_the_drills_reach_every_write(client, cfg, monkeypatch):
    faulty = Faulty(client, None)
    monkeypatch.setattr(moves, "connect", lambda *_: faulty)
    promote(cfg)
    assert faulty.writes == PROMOTE
    roll_back(cfg)
    assert faulty.writes == PROMOTE + ROLL_BACK


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done, no reply"])
@pytest.mark.parametrize("fatal", range(PROMOTE))
def test_a_promotion_cut_off_anywhere_succeeds_when_repeated(client, cfg, monkeypatch, fatal, done):
    cut_off(monkeypatch, client, lambda: promote(cfg), fatal, done=done)
    assert promote(cfg).after == 3
    assert aliases(client, cfg.register_.model_name) == {"champion": 3, "previous": 2}
    assert "rolled_back" not in tags_of(client, cfg, 3)
    assert tags_of(client, cfg, 3)["champion.why"] == "better"
    assert finished(client, cfg) == [3]


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done, no reply"])
@pytest.mark.parametrize("fatal", range(ROLL_BACK))
def test_a_roll_back_cut_off_anywhere_succeeds_when_repeated(client, cfg, monkeypatch, fatal, done):
    cut_off(monkeypatch, client, lambda: roll_back(cfg), fatal, done=done)
    assert roll_back(cfg).after == 1
    called = aliases(client, cfg.register_.model_name)
    assert called == {"champion": 1, "previous": 2, "challenger": 3}
    assert "clicks fell" in tags_of(client, cfg, 2)["rolled_back"]
    assert "rolled_back" not in tags_of(client, cfg, 1)
    assert tags_of(client, cfg, 1)["champion.why"] == "clicks fell"
    assert finished(client, cfg) == [1]


def test_after_a_promotion_cut_off_the_way_back_is_to_the_champion_then(client, cfg, monkeypatch):
    cut_off(monkeypatch, client, lambda: promote(cfg), CHAMPION_MOVED)
    assert roll_back(cfg).after == 2
    assert aliases(client, cfg.register_.model_name) == {"champion": 2, "previous": 3}
    assert "clicks fell" in tags_of(client, cfg, 3)["rolled_back"]
    assert finished(client, cfg) == [3, 2]


def test_after_a_roll_back_cut_off_another_promotion_leaves_its_mark(client, cfg, monkeypatch):
    cut_off(monkeypatch, client, lambda: roll_back(cfg, "slow"), CHAMPION_MOVED)
    assert promote(cfg).before == 1
    assert aliases(client, cfg.register_.model_name) == {"champion": 3, "previous": 1}
    assert "slow" in tags_of(client, cfg, 2)["rolled_back"]
    assert finished(client, cfg) == [1, 3]


def test_a_move_cut_off_before_the_champion_changed_is_not_finished(client, cfg, monkeypatch):
    cut_off(monkeypatch, client, lambda: promote(cfg), CHAMPION_MOVED - 1)
    assert moves.finish_interrupted(client, cfg) is None
    assert roll_back(cfg).after == 1
    assert finished(client, cfg) == [1]


def test_a_finished_move_is_not_done_again(client, cfg):
    promote(cfg)
    assert moves.finish_interrupted(client, cfg) is None


def test_a_previous_that_is_the_champion_is_no_way_back(client, cfg):
    client.set_registered_model_alias(cfg.register_.model_name, "previous", "2")
    with pytest.raises(UserError, match="no previous champion"):
        roll_back(cfg)
    assert "rolled_back" not in tags_of(client, cfg, 2)
