"""Tuning: every model gets its trials, a stopped run goes on, and nothing opens the test split."""

import json

import pytest
import yaml
from benchmark_project import make_project
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from benchmarks import tuning
from hpgr.config import ConfigError
from hpgr.runtime import UserError

SPACE = {"a": FloatDistribution(-4.0, 4.0), "b": CategoricalDistribution([0, 1])}
PLAN = tuning.Plan(9, SPACE, {})


def bowl(place, values):
    """Best, 0, at a = 2, b = 1; the model's own settings are far off."""
    a, b = (values.get("a", -4.0), values.get("b", 0))
    return {"score": -((a - 2) ** 2) - 3 * (1 - b)}


def test_the_first_trial_is_the_model_as_it_is_and_the_others_find_better(tmp_path):
    trials = tuning.search(PLAN, tmp_path, bowl, "code")
    assert len(trials) == 9 and trials[0]["values"] == {}
    assert all(set(t["values"]) == {"a", "b"} and abs(t["values"]["a"]) <= 4 for t in trials[1:])
    assert max(t["score"] for t in trials) > -4 > trials[0]["score"]


def test_a_stopped_search_goes_on_as_if_it_had_not_stopped(tmp_path):
    expected = tuning.search(PLAN, tmp_path / "whole", bowl, "code")
    asked = []

    def killed_once(place, values):
        asked.append(place.name)
        if asked == ["00", "01", "02"]:
            raise KeyboardInterrupt
        return bowl(place, values)

    with pytest.raises(KeyboardInterrupt):
        tuning.search(PLAN, tmp_path / "stopped", killed_once, "code")
    assert tuning.search(PLAN, tmp_path / "stopped", killed_once, "code") == expected
    assert asked == ["00", "01", "02", *(f"{n:02d}" for n in range(2, 9))]


def test_trials_of_other_code_are_not_compared(tmp_path):
    tuning.search(PLAN._replace(trials=1), tmp_path, bowl, "code")
    with pytest.raises(UserError, match="other code"):
        tuning.search(PLAN, tmp_path, bowl, "newer code")


def test_the_space_is_read_and_a_mistake_in_it_named(tmp_path):
    path = tmp_path / "params.yaml"
    space = {
        "x": {"low": 1, "high": 8, "log": True},
        "y": {"low": 0.1, "high": 1.0},
        "z": {"choices": [1, 2]},
    }
    path.write_text(yaml.safe_dump({"tuning": {"trials": 3, "space": space}}))
    plan = tuning.read_plan(path)
    kinds = (IntDistribution, FloatDistribution, CategoricalDistribution)
    assert plan.trials == 3 and tuple(map(type, plan.space.values())) == kinds
    space["y"] = {"low": 2.0, "high": 1.0}
    path.write_text(yaml.safe_dump({"tuning": {"trials": 3, "space": space}}))
    with pytest.raises(ConfigError, match=r"tuning\.space\.y"):
        tuning.read_plan(path)


def test_a_model_is_tuned_in_workspaces_of_its_own(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    params = tmp_path / "benchmarks/params.yaml"
    matrix = yaml.safe_load(params.read_text())
    space = {"finetune.learning_rate": {"choices": [0.01]}}
    matrix["tuning"] = {"trials": 2, "every": {"finetune.steps": 4}, "space": space}
    params.write_text(yaml.safe_dump(matrix))
    tuning.main(["tiny", "leave-one-out", "hpgr"])
    (path,) = (tmp_path / "benchmarks/results").glob("*.json")
    found = json.loads(path.read_text())
    assert path.name == "tuning-tiny-leave-one-out-hpgr.json"
    assert [trial["values"] for trial in found["trials"]] == [{}, {"finetune.learning_rate": 0.01}]
    assert found["figures"]["best"] == max(trial["score"] for trial in found["trials"])
    for number, rate in (("00", 0.002), ("01", 0.01)):
        trial = tmp_path / "benchmarks/cells/tiny/leave-one-out/hpgr/tuning" / number
        used = yaml.safe_load((trial / "params.yaml").read_text())["finetune"]
        assert (used["learning_rate"], used["steps"]) == (rate, 4)
        assert (trial / "artifacts/finetune/model.safetensors").is_file()
        assert not (trial / "artifacts/evaluation").exists()
