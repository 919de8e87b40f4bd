"""Warm start: what the base knows stays, what is new is fresh, what does not fit is message."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_log import random_log, write_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from params_text import params_of
from safetensors.torch import load_file, save_file

from hpgr.config import resolve
from hpgr.data.histories import Histories
from hpgr.data.log import FIRST_ITEM
from hpgr.model.catalogue import Catalogue
from hpgr.model.hpgr import HPGR
from hpgr.model.interface import LISTS, build
from hpgr.model.scoring import Scorer
from hpgr.model.zoo import section_class
from hpgr.runtime import UserError, write_json
from hpgr.training import finetune as finetune_stage
from hpgr.training import pretrain as pretrain_stage
from hpgr.training.finetune import finetune
from hpgr.training.pretrain import pretrain
from hpgr.training.warm import Base

ROOT = Path(__file__).parents[1]
ORIGIN = {"name": "hpgr", "version": 7, "run_id": "r", "key": "k"}


def config(**changes):
    """Profile smoke with `section__key` entries on top."""
    small = {
        "pretrain__batch_tokens": 128, "finetune__batch_tokens": 128,
        "finetune__validation_queries": 20, "finetune__warm_steps": 3,
    }  # fmt: skip
    params = params_of("smoke")
    for name, value in {**small, **changes}.items():
        section, key = name.split("__")
        params[section][key] = value
    return resolve(params)


CFG = config()


def catalogue(num_items, num_actions, num_categories, seed=0):
    """Item v has v % 3 categories; those of an item do not depend on the catalogue's size."""
    per_item = [np.random.default_rng([seed, v]).integers(1, 3, v % 3) for v in range(num_items)]
    lengths = [len(part) for part in per_item]
    return Catalogue(
        num_items=num_items,
        num_actions=num_actions,
        num_categories=num_categories,
        category_offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        category=torch.from_numpy(np.concatenate(per_item).astype(np.int64)),
        gap_s=1800,
    )


def named(name):
    """The section `model` of a network, from HPGR's."""
    own = [field.name for field in fields(section_class(name))]
    values = CFG.model.model_dump() | {"name": name, "cross": "fold_in"}
    return SimpleNamespace(**{key: values[key] for key in own})


def network(name, sizes, seed, *, lists=False):
    """A network whose weights are all random, also those that start at zero."""
    torch.manual_seed(seed)
    model = build(named(name), sizes, ranking=True, lists=lists)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.rand_like(weight))  # counts and variances are not negative
    return model.eval()


def base_of(model, name, sizes):
    """Content of base/ for this network."""
    names = ("num_items", "num_actions", "num_categories", "gap_s")
    written = {
        "ranking": True, "model": vars(named(name)),
        "catalogue": {key: getattr(sizes, key) for key in names},
    }  # fmt: skip
    return Base({k: v.clone() for k, v in model.state_dict().items()}, written, ORIGIN)


def start(base, model, sizes):
    base.start(model, sizes, CFG.model.model_dump())


@st.composite
def sizes_before_and_after(draw):
    before = [draw(st.integers(low, high)) for low, high in ((6, 20), (2, 5), (3, 5))]
    after = [count + draw(st.integers(0, 6)) for count in before]
    return before, after


@given(
    sizes=sizes_before_and_after(),
    name=st.sampled_from(["hpgr", "hstu", "sasrec", "mtgr"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_growing_keeps_old_rows_and_adds_fresh_ones(sizes, name, seed):
    before, after = (catalogue(*counts) for counts in sizes)
    old, new = network(name, before, seed), network(name, after, seed + 1)
    fresh = {k: v.clone() for k, v in new.state_dict().items()}
    start(base_of(old, name, before), new, after)
    got, was = new.state_dict(), old.state_dict()
    for key, value in got.items():
        if "items.category" in key and "table" not in key:
            assert torch.equal(value, fresh[key]), name  # the new catalogue's, not a weight
            continue
        if value.shape == was[key].shape:
            assert torch.equal(value, was[key]), key
            continue
        # Tables of the trunk but the categories' end in one row of their own (the mask token).
        known = len(was[key]) - key.endswith(("items.item.weight", "trunk.action.weight"))
        added = len(value) - len(was[key])
        assert torch.equal(value[:known], was[key][:known]), key
        assert torch.equal(value[known : known + added], fresh[key][known : known + added]), key
        assert torch.equal(value[known + added :], was[key][known:]), key


@pytest.mark.parametrize("ranked", [(False, True), (True, False), (True, True)])
def test_weights_of_shown_lists_come_and_go_with_what_pctr_is_of(ranked):
    sizes = catalogue(20, 3, 4)
    old, new = (network("hpgr", sizes, seed, lists=lists) for seed, lists in enumerate(ranked))
    fresh = {k: v.clone() for k, v in new.state_dict().items()}
    start(base_of(old, "hpgr", sizes), new, sizes)
    was, got = old.state_dict(), new.state_dict()
    for key, value in got.items():
        assert torch.equal(value, was.get(key, fresh[key])), key
    added = got.keys() - was.keys()
    assert all(key.startswith(LISTS) for key in added) and bool(added) == (ranked == (False, True))


@pytest.mark.parametrize("name", ["hpgr", "hstu", "mtgr"])
def test_right_after_growing_old_histories_score_old_items_as_before(name):
    before, after = catalogue(20, 3, 4), catalogue(29, 5, 6)
    old, new = network(name, before, 1), network(name, after, 2)
    start(base_of(old, name, before), new, after)
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 12, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    past = Histories(
        offsets=offsets,
        item=rng.integers(1, 20, offsets[-1]),
        action=rng.integers(0, 3, offsets[-1]),
        timestamp=np.concatenate([np.sort(rng.integers(0, 10**6, n)) for n in lengths]),
        session=np.concatenate([np.arange(n) // 3 for n in lengths]),
        request_time=np.full(30, 10**6),
    )
    one, two = (Scorer(model, torch.device("cpu"), 200) for model in (old, new))
    expected, got = one.retrieve(past), two.retrieve(past)
    assert got.shape == (30, 29)
    np.testing.assert_allclose(got[:, FIRST_ITEM:20], expected[:, FIRST_ITEM:], atol=1e-6)
    asked = rng.integers(FIRST_ITEM, 20, 60)
    rows = np.arange(0, 61, 2)
    np.testing.assert_allclose(two.rank(past, rows, asked), one.rank(past, rows, asked), atol=1e-6)


def test_old_item_vectors_are_kept_bit_for_bit():
    before, after = catalogue(20, 3, 4), catalogue(29, 3, 6)
    old, new = network("hpgr", before, 1), network("hpgr", after, 2)
    start(base_of(old, "hpgr", before), new, after)
    assert torch.equal(new.trunk.items.table()[:20], old.trunk.items.table()[:20])
    assert torch.equal(new.trunk.items.table()[29], old.trunk.items.table()[20])  # the mask token


def test_a_changed_width_is_reported_with_its_parameter():
    sizes = catalogue(20, 3, 4)
    base = base_of(network("hpgr", sizes, 1), "hpgr", sizes)
    wide = config(model__dim=32)
    model = HPGR(wide.model, sizes)
    with pytest.raises(UserError, match=r"model\.dim was 16, is 32.*hpgr base --clear"):
        base.start(model, sizes, wide.model.model_dump())


def test_fewer_items_than_the_base_are_reported():
    before, after = catalogue(20, 3, 4), catalogue(19, 3, 4)
    base = base_of(network("hpgr", before, 1), "hpgr", before)
    with pytest.raises(UserError, match=r"version 7 with 20 items .* has 19: .*only adds"):
        start(base, network("hpgr", after, 2), after)


def test_actions_that_the_base_never_had_are_reported():
    before, after = catalogue(20, 1, 4), catalogue(20, 3, 4)
    base = base_of(network("hpgr", before, 1), "hpgr", before)
    with pytest.raises(UserError, match=r"trunk\.action\.weight is new.*actions or categories"):
        start(base, network("hpgr", after, 2), after)


def test_what_the_log_s_labels_decide_is_not_put_on_params():
    sizes = catalogue(20, 3, 4)
    base = base_of(network("hpgr", sizes, 1), "hpgr", sizes)
    with pytest.raises(UserError, match=r"with a ranking; the log has too few training events"):
        base.check_kind("hpgr", ranking=False, enough_labels=False)
    base = replace(base, config={**base.config, "ranking": False})
    with pytest.raises(UserError, match=r"without a ranking.*both labels have events enough"):
        base.check_kind("hpgr", ranking=True)
    base.check_kind("hpgr", ranking=False, enough_labels=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"name": "hstu"}, r"model\.name: hpgr"), ({"ranking": False}, "ranking_weight")],
)
def test_another_network_or_set_of_heads_is_reported(changes, message):
    sizes = catalogue(20, 3, 4)
    base = base_of(network("hpgr", sizes, 1), "hpgr", sizes)
    with pytest.raises(UserError, match=message):
        base.check_kind(**({"name": "hpgr", "ranking": True} | changes))


# The stages, on a log of forty users; the base knows 25 of its 32 item ids.

OLD_ITEMS = 25


def write_vocabulary(folder, num_items):
    ids = range(FIRST_ITEM, num_items)
    items = {"item": pa.array(ids, pa.int32()), "item_id": [f"id{i}" for i in ids]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    for table, number in (("actions", "action"), ("categories", "category")):
        names = {number: pa.array([1, 2], pa.int16()), "name": ["a", "b"]}
        pq.write_table(pa.table(names), folder / f"{table}.parquet")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A sessionized log and a base/ that knows a part of its items."""
    log = random_log(0)
    write_arrays(log, tmp_path / "artifacts/sessions/arrays")
    write_vocabulary(tmp_path / "artifacts/sessions", log.meta.num_items)
    sizes = replace(
        Catalogue.of(log),
        num_items=OLD_ITEMS,
        category_offsets=torch.zeros(OLD_ITEMS + 1, dtype=torch.int64),
    )
    base = base_of(network("hpgr", sizes, 5), "hpgr", sizes)
    model = tmp_path / "base/model"
    model.mkdir(parents=True)
    save_file(base.weights, model / "model.safetensors")
    write_json(model / "config.json", base.config)
    write_vocabulary(tmp_path / "base", OLD_ITEMS)
    write_json(tmp_path / "base/base.json", {**ORIGIN, "files": {}})
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def weights(stage):
    return load_file(f"artifacts/{stage}/model.safetensors")


def written(stage):
    return json.loads(Path(f"artifacts/{stage}/config.json").read_text())


def test_pretraining_of_no_step_hands_the_old_trunk_on(workspace):
    pretrain(CFG)
    old, got = load_file("base/model/model.safetensors"), weights("pretrain")
    item = got["items.item.weight"]
    assert torch.equal(item[:OLD_ITEMS], old["trunk.items.item.weight"][:-1])
    assert torch.equal(item[-1], old["trunk.items.item.weight"][-1])
    # New items are fresh: the closed form has other directions than the base's table.
    assert (item[OLD_ITEMS:-1].norm(dim=1) < 0.5).all()
    assert torch.equal(got["sessions.gate.weight"], old["trunk.sessions.gate.weight"])
    assert written("pretrain")["base"] == ORIGIN


def test_finetuning_starts_with_the_heads_of_the_base(workspace, monkeypatch):
    pretrain(CFG)
    seen = {}

    def no_training(model, *_, schedule, **__):
        seen.update({k: v.clone() for k, v in model.state_dict().items()}, steps=schedule.steps)
        raise InterruptedError

    monkeypatch.setattr(finetune_stage, "train", no_training)
    with pytest.raises(InterruptedError):
        finetune(CFG)
    old = load_file("base/model/model.safetensors")
    assert torch.equal(seen["click.deep.0.weight"], old["click.deep.0.weight"])
    assert torch.equal(seen["blocks.0.uvqk"], old["blocks.0.uvqk"])
    assert torch.equal(seen["click.item_bias"][:OLD_ITEMS], old["click.item_bias"])
    # A new item starts at its training rate, as in a training from nothing.
    assert (seen["click.item_bias"][OLD_ITEMS:] != 0).all()
    assert seen["steps"] == CFG.finetune.warm_steps


def test_a_warm_started_model_trains_and_says_what_it_started_from(workspace):
    pretrain(CFG)
    finetune(CFG)
    assert written("finetune")["base"] == ORIGIN
    assert len(Path("artifacts/finetune/curves.csv").read_text().splitlines()) == 2
    scorer = Scorer.load(Path("artifacts/finetune"))
    assert len(scorer.model.trunk.items.item.weight) == asdict(random_log(0).meta)["num_items"] + 1


def test_pretraining_of_no_step_works_without_a_base_too(workspace):
    Path("base/base.json").unlink()
    pretrain(config(pretrain__steps=0))
    assert "base" not in written("pretrain")
    assert weights("pretrain")["items.item.weight"].abs().sum() > 0


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_checkpoint_belongs_to_its_base(workspace, monkeypatch, stage):
    modules = {"pretrain": pretrain_stage, "finetune": finetune_stage}
    pretrain(CFG)
    found = []

    def no_training(*_, scratch, **__):
        found.append(scratch)
        raise InterruptedError

    monkeypatch.setattr(modules[stage], "train", no_training)
    path = Path("base/model/model.safetensors")
    changed = load_file(path)
    changed["blocks.0.uvqk"] += 1
    for tensors in (None, changed):
        if tensors:
            save_file(tensors, path)
        with pytest.raises(InterruptedError):
            getattr(modules[stage], stage)(CFG)
    assert found[0] != found[1]


def test_moved_ids_are_reported_with_the_first_of_them(workspace):
    path = Path("artifacts/sessions/items.parquet")
    table = pq.read_table(path).to_pydict()
    table["item_id"][3] = "other"
    pq.write_table(pa.table(table), path)
    with pytest.raises(UserError, match=r"item 5 is 'other', expected 'id5'.*\(1 of 23 differ\)"):
        pretrain(CFG)
    assert not Path("artifacts/pretrain").exists()


def test_a_first_stage_from_elsewhere_is_reported(workspace):
    pretrain(CFG)
    Path("base/base.json").unlink()
    with pytest.raises(UserError, match=r"started from hpgr version 7, base/ holds nothing"):
        finetune(CFG)


def test_damaged_weights_are_reported(workspace):
    path = Path("base/model/model.safetensors")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"damaged.*hpgr base"):
        pretrain(CFG)
