"""Registration: the pipeline's runs and a model version in MLflow; the same model only once.

Not a DVC stage: it changes the world outside the workspace, which DVC's run cache would skip.
Reads all artifacts. Writes the MLflow store and `artifacts/registered.json`: `name`, `version`,
`alias`, `run_id`, `key`, `new` (False if this very model was there already).

The first version of a name becomes `champion`; every later one is the `challenger`, which the gate
judges (`hpgr.registry.judge`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hpgr.config import Config
from hpgr.registry.bundle import content_hashes, write_bundle
from hpgr.registry.judge import SPLIT_TAG
from hpgr.registry.promote import finish_interrupted, record_registered
from hpgr.registry.stages import ARTIFACTS, STAGES
from hpgr.registry.summary import headline, markdown_tables
from hpgr.registry.trace import keep
from hpgr.registry.tracking import connect, experiment_id, log_pipeline
from hpgr.registry.versions import CHALLENGER, CHAMPION, aliases
from hpgr.runtime import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "content_key"
CARD = Path("mlflow/model_card.md.j2")
LOCK = Path("requirements.lock")
PACKAGE = Path(__file__).parents[1]
SERVED_WITH = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")


def register(cfg: Config) -> dict[str, Any]:
    """Register the model of the current artifacts and return what registered.json holds.

    Raises:
        UserError: a stage's output is missing.
    """
    headline()  # a model is registered with its evaluation or not at all
    client, name = connect(), cfg.register_.model_name
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_bundle(cfg, Path(scratch) / "bundle")
        key = content_key(bundle)
        found = _version_with(client, name, key)
        version, run_id = found or _new_version(client, cfg, bundle, key)
    registered = {
        "name": name,
        "version": version,
        "alias": _alias(client, cfg, version),
        "run_id": run_id,
        "key": key,
        "new": found is None,
    }
    write_json(ARTIFACTS / "registered.json", registered)
    word = "registered" if registered["new"] else "already there:"
    print(f"{word} {name} version {version}, alias {registered['alias']}")
    return registered


def content_key(bundle: Path) -> str:
    """sha256 over the bundle's files and the sessionized log: equal model and data, equal key."""
    log = STAGES["sessionize"].output / "events.parquet"
    hashes = content_hashes(bundle) | {"log": sha256_file(log)}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _version_with(client: MlflowClient, name: str, key: str) -> tuple[int, str] | None:
    """Version and run of the model that carries `key`, the oldest if there were several."""
    found = client.search_model_versions(f"name='{name}' and tags.{KEY_TAG}='{key}'")
    return min(((int(v.version), str(v.run_id)) for v in found), default=None)


def _new_version(client: MlflowClient, cfg: Config, bundle: Path, key: str) -> tuple[int, str]:
    """Log the runs and the model, then make the version that points to it, in this order."""
    import mlflow
    from mlflow.exceptions import MlflowException

    name = cfg.register_.model_name
    run_id = log_pipeline(client, cfg, experiment_id(client, cfg.register_.experiment))
    with mlflow.start_run(run_id=run_id):  # ends the run, as failed if the block raises
        model = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "serving" / "pyfunc.py"),
            artifacts={"bundle": str(bundle)},
            code_paths=[str(PACKAGE)],
            signature=_signature(),
            input_example=_example(),
            pip_requirements=_requirements(),
        )
        card = _card(cfg, client.get_run(run_id).data.tags, key)
        client.log_text(run_id, card, "model_card.md")
        keep(client, run_id)
        try:
            client.create_registered_model(name, description="Session-aware recommender (HPGR)")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The key is part of the creation: no moment at which a version exists without it.
        version = client.create_model_version(
            name,
            source=model.model_uri,
            run_id=run_id,
            tags={KEY_TAG: key, SPLIT_TAG: _meta()["split"]},
            description=card,
            model_id=model.model_id,
        )
    return int(version.version), run_id


def _alias(client: MlflowClient, cfg: Config, version: int) -> str:
    """Give the version its alias: the champion stays, the newest registered is challenger."""
    name = cfg.register_.model_name
    finish_interrupted(client, cfg)
    called = aliases(client, name)
    if CHAMPION not in called:
        record_registered(client, cfg, version, "the first version registered")
    elif called[CHAMPION] != version:
        if called.get(CHALLENGER) != version:
            client.set_registered_model_alias(name, CHALLENGER, str(version))
        return CHALLENGER
    return CHAMPION


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    text, number, real = DataType.string, DataType.long, DataType.double
    return ModelSignature(
        inputs=Schema(
            [
                # Checked by the model (hpgr/serving/schema.py): MLflow would cut 1.5 to 1, make
                # a missing action the text "None", and refuse without our reasons.
                ColSpec(AnyType(), name, required=False)
                for name in ("request_time", "item_ids", "timestamps", "actions", "session_ids")
            ]
        ),
        outputs=Schema(
            [
                ColSpec(number, "request"),
                ColSpec(number, "rank"),
                ColSpec(text, "item_id"),
                ColSpec(text, "title"),
                ColSpec(real, "score"),
                ColSpec(real, "similarity"),
                ColSpec(text, "source"),
                ColSpec(Array(text), "because"),
            ]
        ),
        params=ParamSchema([ParamSpec("k", number, 10)]),
    )


def _example() -> Any:
    """A request made of the first events of the catalogue: real ids, one minute apart."""
    import pandas as pd

    items = pq.read_table(STAGES["sessionize"].output / "items.parquet", columns=["item_id"])
    ids = items["item_id"].slice(0, 3).to_pylist()
    now = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    times = [now - 60 * (len(ids) - i) for i in range(len(ids))]
    return pd.DataFrame({"request_time": [now], "item_ids": [ids], "timestamps": [times]})


def _requirements() -> list[str]:
    """The lock's pins of the packages that serving imports."""
    pins = LOCK.read_text(encoding="utf-8").splitlines()
    return [pin for pin in pins if pin.split("==")[0].lower() in SERVED_WITH]


def _card(cfg: Config, tags: dict[str, str], key: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(CARD.parent), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(CARD.name).render(
        cfg=cfg,
        tags=tags,
        key=key,
        tables=markdown_tables(),
        stats=_meta(),
    )


def _meta() -> dict[str, Any]:
    """Counts and settings of the sessionized log."""
    return read_json(STAGES["sessionize"].output / "arrays" / "meta.json")
