"""A network of one's own goes through every stage, the registry, serving and a warm start.

It stands in this file with its section, and one line puts it into the zoo: nothing else knows it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mlflow
import own_run
import pytest
import torch
from safetensors.torch import load_file
from serving_project import ROOT, call
from torch import nn

from hpgr.config import ConfigError, load_config, resolve
from hpgr.model.interface import Growth, Judgement, Network, Reading
from hpgr.model.sections import ModelSection, limited
from hpgr.model.stored_config import read_config
from hpgr.model.stored_table import PREFIX
from hpgr.model.zoo import ZOO, Entry
from hpgr.registry.fill_base import fill_base
from hpgr.registry.register import register
from hpgr.registry.tracking import connect
from hpgr.runtime import DamagedFile
from hpgr.serving.champion import Champion
from hpgr.serving.server import create_app


@dataclass(frozen=True)
class ToySection(ModelSection):
    """A width, and a value that its limit is not reached by."""

    dim: int = limited(ge=2, le=64)
    step: float = limited(gt=0, lt=1)

    def problems(self):
        if self.dim % 2:
            yield f"dim: {self.dim} is odd"


class Toy(Network):
    """Next comes what is near to the last item; liked is what was liked."""

    grows: ClassVar = {"item.weight": Growth("num_items"), "rate": Growth("num_items")}

    def __init__(self, settings, catalogue, *, ranking=True):
        super().__init__(settings, catalogue, ranking=ranking)
        self.item = nn.Embedding(catalogue.num_items, settings.dim)
        self.rate = nn.Parameter(torch.zeros(catalogue.num_items))

    def read(self, packed, *, rows=None):
        states = self.item(packed.item)[slice(None) if rows is None else rows]
        return Reading(states, self.item.weight, None, None)

    def judge(self, packed, reading, candidates):
        return Judgement(self.rate[candidates.item], None)


TOY = {"name": "toy", "max_history": 20, "dim": 8, "step": 0.5}


@pytest.fixture(scope="module", autouse=True)
def toy():
    """The line in the zoo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ZOO, "toy", Entry("test_zoo:ToySection", "test_zoo:Toy"))
        yield


def raw(model=TOY, **changes):
    """Parameters of a short training of `model`, with `section__key=value` changes."""
    return own_run.config(**changes).model_dump(by_alias=True) | {"model": model}


def weights():
    """The network's, without the table beside them."""
    found = load_file("artifacts/finetune/model.safetensors")
    return {name: weight for name, weight in found.items() if not name.startswith(PREFIX)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose registry holds the toy network, trained on forty items."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("params.yaml", "requirements.lock", "mlflow/model_card.md.j2", "base/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        cfg = resolve(raw())
        own_run.write_log(own_run.walks(repeats=False))
        own_run.train(cfg)
        assert register(cfg)["version"] == 1
        yield cfg
    mlflow.set_tracking_uri(None)


def test_stage_one_leaves_empty_outputs_that_say_so(project):
    assert load_file("artifacts/pretrain/model.safetensors") == {}
    assert Path("artifacts/pretrain/curves.csv").read_text().splitlines() == ["step,loss"]
    config = json.loads(Path("artifacts/pretrain/config.json").read_text())
    assert config == {"model": TOY, "skipped": "toy has no network of stage 1: nothing to train"}


def test_it_is_trained_and_judged_under_its_own_name(project):
    assert weights().keys() == {"item.weight", "rate"}
    assert read_config(Path("artifacts/finetune/config.json"))["model"] == TOY
    judged = json.loads(Path("artifacts/evaluation/metrics.json").read_text())["R1"]
    assert 0 <= judged["toy"]["hr@10"] <= 1


def test_it_answers_over_http_without_anchors(project):
    champion = Champion(project.register_.model_name, connect)
    champion.look()
    history = {"item_ids": ["i3", "i4"], "timestamps": [own_run.START, own_run.START + 600]}
    asked = {"requests": [{"request_time": own_run.START + 1200, **history}], "k": 5}
    status, answer = call(create_app(champion, project.serve), "POST", "/recommend", json=asked)
    assert status == 200 and len(answer["answers"][0]["items"]) == 5


def test_a_warm_start_keeps_its_rows_and_adds_new_ones(project):
    old = weights()
    fill_base(project, 1)
    walks = own_run.walks(repeats=False)
    walks |= {f"new{u}": [(f"j{n}", "5") for n in range(9)] for u in range(3)}
    own_run.write_log(walks)
    changes = {"finetune__warm_steps": 1, "finetune__learning_rate": 1e-12}
    own_run.train(resolve(raw(**changes)))
    new = weights()
    for name, known in old.items():
        assert len(new[name]) == len(known) + 9
        torch.testing.assert_close(new[name][: len(known)], known, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TOY | {"name": "tyo"}, "model.name: found 'tyo', expected 'hpgr', 'hstu', 'sasrec', "
         "'esasrec', 'mtgr' or 'toy'; did you mean 'toy'?"),
        ({k: v for k, v in TOY.items() if k != "name"}, "model.name: is missing; add it"),
        (TOY | {"name": ["toy"]}, "model.name: found ['toy'], expected"),
        (5, "model: found 5, expected names with values"),
        (TOY | {"dmi": 8}, "model.dmi: unknown key; did you mean 'dim'?"),
        (TOY | {"num_heads": 2}, "model.num_heads: unknown key"),
        ({k: v for k, v in TOY.items() if k != "dim"}, "model.dim: is missing; add it"),
        (TOY | {"dim": 65}, "model.dim: found 65, expected at most 64"),
        (TOY | {"step": 1}, "model.step: found 1, expected less than 1"),
        (TOY | {"max_history": 1}, "model.max_history: found 1, expected at least 2"),
        (TOY | {"dim": 9}, "model.dim: 9 is odd"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_refused_with_its_key(model, message):
    with pytest.raises(ConfigError) as refused:
        resolve(raw(model))
    assert f"wrong in 1 place:\n  {message}" in str(refused.value)


# A stored config.json: the same limits, and the form of before.

SIZES = {"num_items": 9, "num_actions": 3, "num_categories": 1, "gap_s": 1800}


def stored(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({"ranking": True, "model": TOY, "catalogue": SIZES} | changes))
    return path


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            TOY | {"name": "tyo"},
            "model.name is 'tyo', expected hpgr or hstu or sasrec or esasrec or mtgr or toy",
        ),
        (TOY | {"dim": 65}, "model.dim is 65, expected a whole number from 2 to 64"),
        (TOY | {"step": 1}, "model.step is 1, which is the limit itself"),
        (TOY | {"dim": 9}, "model.dim: 9 is odd"),
        (TOY | {"tile": 9}, "model lacks or has beyond what is known: tile"),
        (None, "model.name is None"),
    ],
)
def test_a_stored_section_has_the_same_limits(model, message, tmp_path):
    path = stored(tmp_path, model=model)
    with pytest.raises(DamagedFile) as refused:
        read_config(path)
    assert message in str(refused.value)


def test_a_network_stored_before_the_zoo_reads_as_today(tmp_path):
    """`encoder` beside one flat section with the keys of all networks."""
    today = load_config(ROOT / "params.yaml").model.model_dump()
    assert today.pop("name") == "hpgr"
    for name, dropped in (("hpgr", set()), ("hstu", {"sessions", "sigma", "preference"})):
        config = read_config(stored(tmp_path, model=today, encoder=name))
        assert "encoder" not in config and config["model"]["name"] == name
        assert config["model"].items() <= {"name": name, **today}.items()
        assert (config["model"].keys() == {"name", *today}) == (name == "hpgr")
        assert not dropped & config["model"].keys()
        assert config["catalogue"] == SIZES | {"own_sessions": False}
