"""Fill base/, the folder of the model that training starts from, or empty it.

    hpgr base [VERSION]     put a version there, by default the champion
    hpgr base --clear       train from nothing

`hpgr.data.base_folder` describes its layout. `base.json` is removed first and written last, so that
a folder left by an interruption counts as empty. The same version gives the same `base.json` on
every machine. Reads MLflow. Writes base/ except for its .gitignore.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hpgr.config import Config
from hpgr.data.base_folder import is_filled
from hpgr.data.trained_events import SKETCH
from hpgr.registry.bundle import check_bundle, content_hashes
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.register import KEY_TAG
from hpgr.registry.tracking import connect
from hpgr.registry.versions import fetch_bundle, find_champion, get_version
from hpgr.runtime import UserError, read_json, write_json
from hpgr.workspace import HERE, Workspace

CONTENTS = ("model", "items.parquet", "actions.parquet", "categories.parquet", SKETCH)
STAYS = ".gitignore"  # tracked by git, so that every clone has the folder DVC depends on


@answered()
def fill_base(
    cfg: Config, version: int | None = None, workspace: Workspace = HERE
) -> dict[str, Any]:
    """Put a version, by default the champion, into base/ and return what base.json holds.

    If that version is there already, no file is touched, so that DVC hashes nothing again.

    Raises:
        UserError: there is no such version, it cannot be fetched, or it is too old to start from.
    """
    base, client, name = workspace.base, connect(workspace), cfg.register_.model_name
    found = find_champion(client, name) if version is None else get_version(client, name, version)
    title = f"{name} version {found.version}"
    wanted = {
        "name": name,
        "version": int(found.version),
        "run_id": str(found.run_id),
        "key": found.tags.get(KEY_TAG, ""),
    }
    if is_filled(base):
        filled = read_json(base / "base.json")
        there = content_hashes(base)
        own = {path: there[path] for path in there.keys() - {"base.json", STAYS}}
        if filled == {**wanted, "files": own}:
            print(f"{base}/ holds {title} already")
            return filled
    base.mkdir(exist_ok=True)
    # Inside base/, which git ignores, so that only renames follow the download.
    with tempfile.TemporaryDirectory(prefix=".", dir=base) as scratch:
        bundle = fetch_bundle(name, int(found.version), Path(scratch))
        _check(bundle, title)
        hashes = content_hashes(bundle)
        taken = {path: hashes[path] for path in hashes if path.split("/")[0] in CONTENTS}
        filled = {**wanted, "files": taken}
        _remove(base, keep=Path(scratch))
        for name in CONTENTS:
            (bundle / name).rename(base / name)
        write_json(base / "base.json", filled)
    print(f"{base}/ holds {title}: training starts from it")
    return filled


def clear_base(workspace: Workspace = HERE) -> None:
    """Empty base/: training starts from nothing."""
    _remove(workspace.base)


def _check(bundle: Path, title: str) -> None:
    """Refuse a version that training cannot start from."""
    missing = [name for name in CONTENTS if not (bundle / name).exists()]
    if missing:
        raise UserError(
            f"{title} has no {', '.join(missing)}: it was registered before versions "
            "carried their whole vocabulary and what they trained on. Register a new version "
            "with the flow `train`, then start from that."
        )
    try:
        check_bundle(bundle)
    except UserError as error:
        wrong = str(error).replace(f"{bundle}/", "")
        raise UserError(f"{title} cannot be started from: {wrong}") from error


def _remove(base: Path, keep: Path | None = None) -> None:
    """Remove everything except `keep` and .gitignore, base.json first."""
    (base / "base.json").unlink(missing_ok=True)
    for path in base.iterdir() if base.is_dir() else ():
        if path.name == STAYS or path == keep:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
