"""A bundle that claims what cannot be is one message, in bounded memory; no request meets it."""

import io
import json
import resource
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from serving_project import HISTORY, NOW, ONE, call, promote, register_another

from hpgr.config import load_config
from hpgr.registry.bundle import write_bundle
from hpgr.registry.judge import contestant
from hpgr.registry.tracking import connect
from hpgr.registry.versions import BUNDLE
from hpgr.runtime import UserError, read_json
from hpgr.serving.champion import Champion
from hpgr.serving.recommender import load_bundle
from hpgr.serving.request import Request
from hpgr.serving.server import create_app

WRONG = ("9", -1, 10**30, 1.5e300, float("nan"), float("inf"), None, [], {}, "x" * 1000)
NUMBERS = ("dim", "max_history", "num_blocks", "num_heads", "intra_blocks", "inter_blocks")
NUMBERS += ("num_anchors", "recent_window", "tile")
SIZES = ("num_items", "num_actions")
SPARE_GB = 2  # beyond what the process maps already


@pytest.fixture
def bundle(registered_project, tmp_path, monkeypatch):
    monkeypatch.chdir(registered_project)
    return write_bundle(load_config(), tmp_path / "bundle")


@pytest.fixture(autouse=True)
def little_memory():
    """Limit the memory below what a claim of billions would take."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (SPARE_GB << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def archive():
    """The bytes of an .npz file."""
    stream = io.BytesIO()
    np.savez(stream, x=[1])
    return stream.getvalue()


def refused(bundle):
    """The one message of a bundle that is not taken."""
    with pytest.raises(UserError) as reported:
        load_bundle(bundle, "the model", "register it again")
    message = str(reported.value)
    assert message.startswith("the model cannot be read by this installation (")
    assert "\n" not in message and len(message) < 400
    return message


def keys(document):
    for name, value in document.items():
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in keys(value))
        yield (name,)


@pytest.mark.parametrize("file", ["model/config.json", "serving.json"])
def test_every_value_of_another_kind_or_size_is_refused(bundle, file):
    good = read_json(bundle / file)
    for path in keys(good):
        if path[0] in ("base",):
            continue
        for wrong in (*WRONG, "gone"):
            if path == ("like_weight",) and wrong == "gone":
                continue  # as in versions before it
            document = json.loads(json.dumps(good))
            place = document
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = wrong
            if wrong == "gone":
                del place[path[-1]]
            (bundle / file).write_text(json.dumps(document))
            assert Path(file).name in refused(bundle), (path, wrong)


@pytest.mark.parametrize("name", [*NUMBERS, *SIZES])
def test_a_large_number_is_refused_before_anything_of_its_size_is_made(bundle, name):
    config = read_json(bundle / "model/config.json")
    section = "catalogue" if name in SIZES else "model"
    for large in (10**5, 10**7, 10**9):
        if name == "recent_window" and large < 1 << 24:
            continue  # a window wider than the history is the history
        config[section][name] = large
        (bundle / "model/config.json").write_text(json.dumps(config))
        refused(bundle)


def table(bundle, name, **columns):
    old = pq.read_table(bundle / name)
    for column, values in columns.items():
        place = old.column_names.index(column)
        old = old.set_column(place, column, pa.array(values, old.schema.field(column).type))
    pq.write_table(old, bundle / name)


def ids(bundle, name="items.parquet", column="item"):
    return pq.read_table(bundle / name)[column].to_pylist()


def many_rows(bundle):
    schema = pq.read_schema(bundle / "items.parquet").remove_metadata()
    zeros = pa.RecordBatch.from_arrays(
        [
            pa.array(np.zeros(1 << 20, np.int64)).cast(field.type)
            if pa.types.is_integer(field.type)
            else pa.array(["x"] * (1 << 20), field.type)
            for field in schema
        ],
        schema=schema,
    )
    with pq.ParquetWriter(bundle / "items.parquet", schema) as writer:
        for _ in range(96):  # a hundred million
            writer.write_batch(zeros)


def claimed_header(bundle):
    path = bundle / "model/model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


def claimed_sketch(bundle):
    with (bundle / "trained.npy").open("wb") as file:
        header = {"descr": "<u8", "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(file, header)


def weights(change):
    def harm(bundle):
        path = bundle / "model/model.safetensors"
        loaded = load_file(path)
        change(loaded)
        save_file(loaded, path)

    return harm


def not_a_number(loaded):
    name = next(name for name, value in loaded.items() if value.is_floating_point())
    loaded[name].view(-1)[0] = float("nan")


HARMS = {
    "ids out of range": lambda b: table(
        b, "items.parquet", item=[10**6, *ids(b)[1:]]
    ),
    "an id below the first": lambda b: table(b, "items.parquet", item=[0, *ids(b)[1:]]),
    "an id twice": lambda b: table(b, "items.parquet", item=[ids(b)[1], *ids(b)[1:]]),
    "a name twice": lambda b: table(
        b, "items.parquet", item_id=["id3", *ids(b, column="item_id")[1:]]
    ),
    "a name missing": lambda b: table(
        b, "items.parquet", item_id=[None, *ids(b, column="item_id")[1:]]
    ),
    "events below zero": lambda b: table(b, "items.parquet", train_events=[-1] * len(ids(b))),
    "an action out of range": lambda b: table(b, "actions.parquet", action=[1, 999]),
    "a row too few": lambda b: pq.write_table(
        pq.read_table(b / "items.parquet").slice(1), b / "items.parquet"
    ),
    "a column missing": lambda b: pq.write_table(
        pq.read_table(b / "items.parquet").drop_columns(["title"]), b / "items.parquet"
    ),
    "a column of another type": lambda b: pq.write_table(
        pa.table({"action": ["a", "b"], "name": ["1", "5"]}), b / "actions.parquet"
    ),
    "a text of megabytes": lambda b: table(
        b, "items.parquet", title=["x" * (1 << 20)] * len(ids(b))
    ),
    "a hundred million rows": many_rows,
    "weights of a trillion numbers": claimed_header,
    "a sketch of a trillion events": claimed_sketch,
    "a sketch that is an archive": lambda b: (b / "trained.npy").write_bytes(archive()),
    "a sketch out of order": lambda b: np.save(b / "trained.npy", np.array([2, 1], np.uint64)),
    "weights that are no numbers": weights(not_a_number),
    "a weight too many": weights(lambda loaded: loaded.update(more=torch.zeros(1))),
    "a weight too few": weights(lambda loaded: loaded.popitem()),
    "an empty table": lambda b: (b / "items.parquet").write_bytes(b""),
    "empty weights": lambda b: (b / "model/model.safetensors").write_bytes(b""),
    "a file in place of a folder": lambda b: (shutil.rmtree(b / "model"), (b / "model").touch()),
    "a folder in place of a file": lambda b: (
        (b / "serving.json").unlink(),
        (b / "serving.json").mkdir(),
    ),
    "JSON without an end": lambda b: (b / "serving.json").write_text("[" * 10**5),
    "JSON of megabytes": lambda b: (b / "model/config.json").write_text(" " * (2 << 20) + "{}"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_claims_what_cannot_be_is_refused(bundle, harm):
    HARMS[harm](bundle)
    refused(bundle)


def test_a_bundle_of_before_the_sketch_is_served(bundle):
    (bundle / "trained.npy").unlink()
    (bundle / "categories.parquet").unlink()
    load_bundle(bundle, "the model", "")


def test_a_model_that_answers_with_no_numbers_is_refused(bundle):
    """Every weight is a number, and yet what comes of them is none."""
    weights(lambda loaded: [v.fill_(3e38) for v in loaded.values() if v.is_floating_point()])(
        bundle
    )
    assert "no numbers" in refused(bundle)


def test_the_gate_refuses_it_too(bundle, small_log):
    HARMS["ids out of range"](bundle)
    with pytest.raises(UserError, match=r"items\.parquet is damaged"):
        contestant(bundle, "cpu")


def test_the_old_champion_goes_on_answering_and_ready_says_why(own_registry):
    champion = Champion("hpgr", connect)
    app = create_app(champion, load_config().serve)
    champion.look()
    before = call(app, "POST", "/recommend", json=ONE)
    promote(register_another(8))
    version = connect().get_model_version_by_alias("hpgr", "champion")
    model = connect().get_logged_model(version.source.removeprefix("models:/"))
    stored = Path(model.artifact_location.removeprefix("file://")) / BUNDLE
    config = read_json(stored / "model/config.json")
    config["model"]["max_history"] = "9"
    (stored / "model/config.json").write_text(json.dumps(config))
    champion.look()
    assert call(app, "POST", "/recommend", json=ONE) == before
    status, ready = call(app, "GET", "/ready")
    assert status == 200 and "max_history is '9', expected a whole number" in ready["problem"]
    fresh = Champion("hpgr", connect)
    fresh.look()
    status, reported = call(create_app(fresh, load_config().serve), "POST", "/recommend", json=ONE)
    assert status == 503 and "max_history is '9'" in reported["detail"]


def test_a_weight_needs_the_temperature_of_its_network(bundle):
    config = read_json(bundle / "model/config.json")
    del config["finetune"]
    (bundle / "model/config.json").write_text(json.dumps(config))
    assert "like_weight is 2.0, the model's config.json has no finetune.temp" in refused(bundle)


def test_a_version_without_a_weight_is_served_and_judged_by_probability_alone(bundle):
    serving = read_json(bundle / "serving.json")
    del serving["like_weight"]
    (bundle / "serving.json").write_text(json.dumps(serving))
    asked = Request(NOW, **HISTORY)
    (answer,) = load_bundle(bundle, "the model", "fix").recommend([asked], k=30)
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    near = [item.similarity for item in answer.items]
    assert near != sorted(near, reverse=True)
    assert contestant(bundle, "cpu").blend.like_weight is None
