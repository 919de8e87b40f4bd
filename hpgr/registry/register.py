"""Register the pipeline's runs and a model version in MLflow, each model only once.

This is not a DVC stage: it changes things outside the workspace, and DVC's run cache would skip it.
Reads all artifacts. Writes the MLflow store and `artifacts/registered.json`: `name`, `version`,
`alias` (null if it has none), `run_id`, `key`, `new` (False if this model was registered before).

If a baseline beats the version on validation, the version carries the baseline's name in its tag
`beaten_by` and the evaluation's sentence in its description.

If there is no `champion`, the version becomes it. Every later new version is the `challenger`,
which the gate judges (`hpgr.registry.judge`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from hpgr.config import Config
from hpgr.failure import explained
from hpgr.registry.bundle import content_hashes, write_bundle
from hpgr.registry.held_back import in_file
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.moves import finish_interrupted, record_registered
from hpgr.registry.pipeline_runs import ENVIRONMENT, log_pipeline
from hpgr.registry.summary import headline, markdown_tables, verdict
from hpgr.registry.trace import check_pins, keep
from hpgr.registry.tracking import connect, experiment_id, failing_run
from hpgr.registry.versions import CHALLENGER, CHAMPION, alias_of, aliases
from hpgr.runtime import UserError, read_json, sha256_file, sole_writer, write_json
from hpgr.templates import rendered
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG, BEATEN_TAG = "content_key", "beaten_by"
CARD = Path("mlflow/model_card.md.j2")
PACKAGE = Path(__file__).parents[1]
SERVED_WITH = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")


@answered()
def register(cfg: Config, workspace: Workspace = HERE) -> dict[str, Any]:
    """Register the model of the workspace's artifacts and return what registered.json holds.

    Raises:
        UserError: a stage's output is missing, another process registers here, or MLflow fails;
            runs that were opened then end as failed.
    """
    with explained("register", workspace.registered, workspace):
        headline(workspace)  # fails early: a model is registered only with its evaluation
        check_pins(workspace)
        client, name = connect(workspace), cfg.register_.model_name
        with sole_writer(workspace.registered), tempfile.TemporaryDirectory() as scratch:
            bundle = write_bundle(cfg, Path(scratch) / "bundle", workspace)
            key = content_key(bundle, workspace)
            version, run_id, new = _version_of(client, cfg, bundle, key, workspace)
            beaten_by, sentence = verdict(workspace)
            _mark(client, name, version, beaten_by)
            registered = {
                "name": name,
                "version": version,
                "alias": _alias(client, cfg, version, new=new),
                "run_id": run_id,
                "key": key,
                "new": new,
            }
            write_json(workspace.registered, registered)
    word = "registered" if new else "already there:"
    print(f"{word} {name} version {version}, alias {registered['alias']}")
    if beaten_by:
        print(f"{BEATEN_TAG} {beaten_by}: {sentence}")
    return registered


def content_key(bundle: Path, workspace: Workspace = HERE) -> str:
    """Return the sha256 over the bundle's files and the sessionized log."""
    log = sha256_file(workspace.sessions / "events.parquet")
    hashes = content_hashes(bundle) | {"log": log}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _version_of(
    client: MlflowClient, cfg: Config, bundle: Path, key: str, workspace: Workspace
) -> tuple[int, str, bool]:
    """Return version and run of the bundle, and True if they are new.

    Two versions with one key can arise: another clone registers the same model, or MLflow's client
    repeats a request whose reply was lost. The oldest stays.
    """
    name = cfg.register_.model_name
    if found := _version_with(client, name, key):
        return *found, False
    made = _new_version(client, cfg, bundle, key, workspace)
    oldest = _version_with(client, name, key) or made
    if oldest != made:
        client.delete_model_version(name, str(made[0]))
    return *oldest, oldest[1] == made[1]


def _version_with(client: MlflowClient, name: str, key: str) -> tuple[int, str] | None:
    """Return version and run of the oldest version with `key`; None if there is none."""
    found = client.search_model_versions(f"name='{name}' and tags.{KEY_TAG}='{key}'")
    return min(((int(v.version), str(v.run_id)) for v in found), default=None)


def _new_version(
    client: MlflowClient, cfg: Config, bundle: Path, key: str, workspace: Workspace
) -> tuple[int, str]:
    """Log the runs and the model, then make the version that points to it, in this order."""
    import mlflow
    from mlflow.exceptions import MlflowException

    name = cfg.register_.model_name
    experiment = experiment_id(client, cfg.register_.experiment, workspace)
    run_id = log_pipeline(client, cfg, experiment, workspace)
    with failing_run(client, run_id), mlflow.start_run(run_id=run_id):  # which also ends it
        model = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "serving" / "pyfunc.py"),
            artifacts={"bundle": str(bundle)},
            code_paths=[str(_code(bundle.with_name(PACKAGE.name)))],
            signature=_signature(),
            input_example=_example(workspace),
            pip_requirements=_requirements(),
        )
        stats = read_json(workspace.arrays / "meta.json")
        card = rendered(
            CARD,
            {},
            cfg=cfg,
            tags=client.get_run(run_id).data.tags,
            key=key,
            tables=markdown_tables(workspace),
            verdict=verdict(workspace)[1],
            stats=stats,
        )
        client.log_text(run_id, card, "model_card.md")
        keep(client, run_id, workspace)
        try:
            client.create_registered_model(name, description="Session-aware recommender (HPGR)")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The key is part of the creation, so that no version ever exists without it.
        version = client.create_model_version(
            name,
            source=model.model_uri,
            run_id=run_id,
            tags={KEY_TAG: key, "split": stats["split"]},
            description=card,
            model_id=model.model_id,
        )
    return int(version.version), run_id


def _mark(client: MlflowClient, name: str, version: int, beaten_by: str | None) -> None:
    """Set or delete the tag `beaten_by`; an old version may have been evaluated again."""
    before = client.get_model_version(name, str(version)).tags.get(BEATEN_TAG)
    if beaten_by and beaten_by != before:
        client.set_model_version_tag(name, str(version), BEATEN_TAG, beaten_by)
    elif before and not beaten_by:
        client.delete_model_version_tag(name, str(version), BEATEN_TAG)


def _alias(client: MlflowClient, cfg: Config, version: int, *, new: bool) -> str | None:
    """Set the version's alias and return it: champion if there is none, else challenger if new.

    An old version becomes challenger only if there is none: another may wait for its promotion.
    """
    name = cfg.register_.model_name
    finish_interrupted(client, cfg)
    called = aliases(client, name)
    if CHAMPION not in called:
        alone = len(client.search_model_versions(f"name='{name}'")) == 1
        why = "the first version registered" if alone else "registered when there was no champion"
        record_registered(client, cfg, version, why)
    elif called[CHAMPION] != version and (new or CHALLENGER not in called):
        client.set_registered_model_alias(name, CHALLENGER, str(version))
    return alias_of(client, name, version)


def _code(target: Path) -> Path:
    """Copy the package's code, and nothing else of its folder, to `target`.

    Raises:
        UserError: a file of it holds a secret.
    """
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2")):
        if why := in_file(path):
            raise UserError(f"{path} {why}. The code goes with every version: remove the secret")
        goal = target / path.relative_to(PACKAGE)
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, goal)
    return target


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    text, number, real = DataType.string, DataType.long, DataType.double
    anchor = {"item_id": text, "title": text, "weight": real}
    return ModelSignature(
        inputs=Schema(
            [
                # Checked by the model (hpgr/serving/schema.py): MLflow would cut 1.5 to 1, turn a
                # missing action into the text "None", and refuse without our reasons.
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
                ColSpec(Array(Object([Property(*part) for part in anchor.items()])), "anchors"),
            ]
        ),
        params=ParamSchema([ParamSpec("k", number, 10), ParamSpec("like_weight", real, None)]),
    )


def _example(workspace: Workspace) -> Any:
    """Return a request with the first items of the catalogue, one minute apart."""
    import pandas as pd

    items = pq.read_table(workspace.sessions / "items.parquet", columns=["item_id"])
    ids = items["item_id"].slice(0, 3).to_pylist()
    now = 1_767_225_600  # 2026-01-01
    times = [now - 60 * (len(ids) - i) for i in range(len(ids))]
    return pd.DataFrame({"request_time": [now], "item_ids": [ids], "timestamps": [times]})


def _requirements() -> list[str]:
    """Return the pinned versions of the packages that serving imports."""
    pins = ENVIRONMENT.read_text(encoding="utf-8").splitlines()
    return [pin for pin in pins if pin.split("==")[0].lower() in SERVED_WITH]
