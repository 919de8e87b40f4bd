"""The bundle: one folder with everything that scoring needs.

    BUNDLE/model/       model.safetensors, config.json (of the finetune stage)
    BUNDLE/items.parquet, actions.parquet, categories.parquet
                        the vocabulary: external id, index and title
    BUNDLE/trained.npy  sketch of its training events (`hpgr.data.trained_events`)
    BUNDLE/serving.json `Serving` below

Written from `artifacts/finetune`, `artifacts/sessions` and `artifacts/evaluation/rules.json`; every
model version has one. Where a bundle is read it comes from the registry, where anybody may have
written. It is checked first: types, ranges, sizes, and agreement of its files. The sizes that it
claims (rows, items, blocks) are read from headers and footers and compared with the files, so that
a wrong bundle costs neither memory nor time.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.config import LARGEST_LIKE_WEIGHT, Config
from hpgr.data.log import FIRST_ITEM, Meta
from hpgr.data.repeats import removes_history
from hpgr.data.trained_events import SKETCH, read_sketch
from hpgr.evaluation.blend import Blend
from hpgr.runtime import DamagedFile, UserError, check_value, read_json, sha256_file, write_json
from hpgr.workspace import HERE, Workspace

MODEL_FILES = ("model.safetensors", "config.json")
TABLES = ("items.parquet", "actions.parquet", "categories.parquet")
LARGEST_JSON, LARGEST_TABLE, LONGEST_TEXT = 1 << 20, 1 << 30, 1 << 16  # bytes
NEEDED = ("serving.json", "items.parquet", "actions.parquet", "model")
SERVING: dict[str, tuple[Any, ...]] = {
    "gap_s": (int, 0, 1 << 40),
    "max_history": (int, 2, 1 << 24),
    "retrieve": (int, 1, 1 << 20),
    "remove_history": (bool,),
    "ranked": (bool,),
}
LIKE_WEIGHT = (float, 0, LARGEST_LIKE_WEIGHT)
NO_TEMPERATURE = "the model's config.json has no finetune.temperature"
TEMPERATURE = (float, 1e-6, 1 << 20)


@dataclass(frozen=True)
class Serving:
    """Settings for answering a request, as the model was trained and evaluated.

    `gap_s` is in seconds, `max_history` in events, `retrieve` in items. `like_weight` is as in
    `hpgr.evaluation.blend.Blend`: None, which serving.json does not say, in versions before it.
    `temperature` is that of training; None where the network's config.json does not say.
    """

    gap_s: int
    max_history: int
    retrieve: int
    remove_history: bool
    ranked: bool  # the ranking head was trained
    like_weight: float | None = None
    temperature: float | None = None

    @property
    def blend(self) -> Blend:
        """The order in which items are served; retrieval's own where nothing ranks."""
        return Blend(self.like_weight if self.ranked else 0.0, self.temperature)


def write_bundle(cfg: Config, target: Path, workspace: Workspace = HERE) -> Path:
    """Write the bundle of the workspace's artifacts into the empty or new folder `target`.

    Its settings are those of training and evaluation, even if params.yaml has changed since. Only
    a model that was never evaluated takes them from params.yaml and the log.

    Raises:
        UserError: a stage's output is missing, or the model was trained on another log.
    """
    (target / "model").mkdir(parents=True)
    files = {workspace.finetuned / name: Path("model") / name for name in MODEL_FILES}
    files |= {workspace.sessions / name: Path(name) for name in (*TABLES, SKETCH)}
    for source, goal in files.items():
        if not source.is_file():
            raise UserError(f"{source} not found: run `dvc repro` (or the stage that writes it)")
        shutil.copyfile(source, target / goal)
    trained = read_json(workspace.finetuned / "config.json")
    log = read_json(workspace.arrays / "meta.json")
    for name, size in trained["catalogue"].items():
        if log[name] != size:
            raise UserError(
                f"the model of {workspace.finetuned} was trained on another log than "
                f"{workspace.sessions} holds ({name} is {size}, now {log[name]}): run `dvc repro`"
            )
    seen = removes_history(Meta(**log).repeat_share, cfg.evaluate)
    judged: dict[str, Any] = {"retrieve": cfg.evaluate.retrieve, "remove_history": seen}
    judged["like_weight"] = 0.0  # nothing chose another
    if (rules := workspace.evaluation / "rules.json").is_file():
        judged = read_json(rules)
    settings = {
        "gap_s": log["gap_s"],
        "max_history": trained["model"]["max_history"],
        **judged,
        "ranked": trained["ranking"],
    }
    write_json(target / "serving.json", settings)
    return target


def content_hashes(bundle: Path) -> dict[str, str]:
    """Return the sha256 of every file by its path inside the bundle, sorted."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {path.relative_to(bundle).as_posix(): sha256_file(path) for path in files}


def check_bundle(bundle: Path) -> Serving:
    """Check all files of the bundle and return its settings for serving.

    Categories and the sketch may be missing: older versions have none and can still be served.

    Raises:
        UserError: a file is missing, damaged or holds an impossible value; the message names it.
    """
    from hpgr.model.stored import check_network  # late, as it imports torch

    for name in NEEDED:
        if not (bundle / name).exists():
            raise UserError(f"{bundle / name} not found, expected a model bundle")
    config = check_network(bundle / "model")
    serving = _serving(bundle / "serving.json", config)
    sizes, path = config["catalogue"], bundle / "items.parquet"
    items = _table(path, "item", "item_id", range(FIRST_ITEM, sizes["num_items"]), whole=True)
    events = items["train_events"]
    if events.null_count or (pc.min(events).as_py() or 0) < 0:
        raise DamagedFile(path, "train_events below 0, or missing in a row")
    _table(bundle / "actions.parquet", "action", "name", range(1, sizes["num_actions"]), whole=True)
    if (bundle / "categories.parquet").exists():
        ids = range(1, sizes["num_categories"])
        _table(bundle / "categories.parquet", "category", "name", ids, whole=False)
    if (bundle / SKETCH).exists():
        read_sketch(bundle)
    return serving


def _serving(path: Path, config: dict[str, Any]) -> Serving:
    if path.stat().st_size > LARGEST_JSON:
        raise DamagedFile(path, f"larger than {LARGEST_JSON >> 20} MiB")
    values = read_json(path)
    try:
        serving = Serving(**values, temperature=_temperature(path.parent, config))
    except TypeError as error:  # other keys, or no object at all
        raise DamagedFile(path, error) from error
    for name, rule in SERVING.items():
        check_value(path, name, values[name], rule)
    if "like_weight" in values:
        check_value(path, "like_weight", serving.like_weight, LIKE_WEIGHT)
    if serving.like_weight and serving.temperature is None:
        raise DamagedFile(path, f"like_weight is {serving.like_weight}, {NO_TEMPERATURE}")
    for name, trained in (
        ("max_history", config["model"]["max_history"]),
        ("ranked", config["ranking"]),
        ("gap_s", config["catalogue"]["gap_s"]),
    ):
        if values[name] != trained:
            raise DamagedFile(path, f"{name} is {values[name]}, the model has {trained}")
    return serving


def _temperature(bundle: Path, config: dict[str, Any]) -> float | None:
    settings = config.get("finetune")
    if not isinstance(settings, dict) or "temperature" not in settings:
        return None
    name, value = "finetune.temperature", settings["temperature"]
    check_value(bundle / "model/config.json", name, value, TEMPERATURE)
    return float(value)


def _table(path: Path, key: str, name: str, ids: range, *, whole: bool) -> pa.Table:
    """Read a vocabulary table: unique names for unique `ids`, for all of them if `whole`.

    The footer gives the number of rows before any is read. Texts stay dictionary-encoded until
    their lengths are checked.
    """
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise DamagedFile(path, f"larger than {LARGEST_TABLE >> 30} GiB")
        rows, schema = pq.read_metadata(path).num_rows, pq.read_schema(path)
        if rows > len(ids) or (whole and rows != len(ids)):
            raise DamagedFile(path, f"{rows:,} rows, expected {len(ids):,} as the model has them")
        wanted = [key, name, *(["title", "train_events"] if key == "item" else [])]
        for column in wanted:
            numbers = column in (key, "train_events")
            _check_type(path, schema, column, numbers)
        texts = [column for column in wanted if column in (name, "title")]
        table = pq.read_table(path, columns=wanted, read_dictionary=texts)
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DamagedFile(path, error) from error
    for text in texts:
        _check_lengths(path, table[text])
    if table[key].null_count or table[name].null_count:
        raise DamagedFile(path, f"{key} or {name} is missing in a row")
    if rows and not ids[0] <= pc.min(table[key]).as_py() <= pc.max(table[key]).as_py() <= ids[-1]:
        raise DamagedFile(path, f"{key} beyond {ids[0]} to {ids[-1]}")
    for column in (key, name):
        if pc.count_distinct(table[column].cast(schema.field(column).type)).as_py() != rows:
            raise DamagedFile(path, f"a value of {column} is in several rows")
    return table


def _check_type(path: Path, schema: pa.Schema, column: str, numbers: bool) -> None:
    if column not in schema.names:
        raise DamagedFile(path, f"no column {column}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (pa.types.is_integer(kind) if numbers else text):
        raise DamagedFile(path, f"{column} is of type {kind}")


def _check_lengths(path: Path, column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if (pc.max(pc.binary_length(values)).as_py() or 0) > LONGEST_TEXT:
            raise DamagedFile(path, f"a text longer than {LONGEST_TEXT >> 10} KiB")
