"""From a version back to the exact rows: what it was made of, and how to have that again.

    hpgr lineage VERSION [--restore]

At registration the files that pin a result - `params.yaml`, `data.dvc`, `dvc.lock`,
`requirements.lock`, what warm training began from, and a patch where the working tree differed from
its commit - are kept with the run below `lineage/`. Reads the registry; `restore` writes those
files into the current folder.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hpgr.config import Config
from hpgr.data.base import BASE
from hpgr.registry.lineage import PINS
from hpgr.registry.tracking import connect
from hpgr.registry.versions import get_version
from hpgr.runtime import UserError, read_json, write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "lineage"
PATCH = "changes.patch"
KEPT = (*PINS, Path("requirements.lock"), BASE / "base.json")


def keep(client: MlflowClient, run_id: str) -> None:
    """Store what pins the current artifacts with the run; what is absent is left out."""
    for path in KEPT:
        if path.is_file():
            client.log_artifact(run_id, str(path), FOLDER)
    if patch := _git("diff", "--binary", "HEAD", "--", ".", *(f":!{path}" for path in PINS)):
        client.log_text(run_id, patch + "\n", f"{FOLDER}/{PATCH}")


def trace(cfg: Config, version: int) -> str:
    """The version's origin and the commands that bring it back, for a person to read.

    Raises:
        UserError: there is no such version.
    """
    client = connect()
    found = get_version(client, cfg.register_.model_name, version)
    run = client.get_run(str(found.run_id))
    kept = _kept(client, str(found.run_id))
    tags = run.data.tags
    lines = [f"{found.name} version {version}, run {found.run_id}", ""]
    for name in ("git.commit", "git.dirty", "dvc.data", "dvc.changed", "environment.lock"):
        lines.append(f"{name:<18}{tags.get(name, 'absent')}")
    if "base.json" in kept:
        base = read_json(kept["base.json"])
        lines.append(f"{'began from':<18}{base['name']} version {base['version']}")
    if "dvc.lock" in kept:
        lines += ["", "stage outputs (DVC hashes)"]
        lines += [f"  {path:<24}{digest}" for path, digest in _outputs(kept["dvc.lock"])]
    if "params.yaml" in kept:
        params = yaml.safe_load(kept["params.yaml"].read_text(encoding="utf-8"))
        overrides = params["profiles"].get(params["profile"]) or {}
        told = ", ".join(f"{k}={v}" for k, v in overrides.items()) or "as params.yaml says"
        lines += ["", f"profile {params['profile']}: {told}"]
    return "\n".join([*lines, "", "to have it again, in a clone:", *_commands(version, tags, kept)])


def restore(cfg: Config, version: int) -> None:
    """Write the version's params.yaml, data.dvc and dvc.lock, and apply its patch to the code.

    Raises:
        UserError: there is no such version, it kept nothing, this clone is at another commit, or
            its files differ from that commit so that the patch does not fit.
    """
    client = connect()
    found = get_version(client, cfg.register_.model_name, version)
    kept = _kept(client, str(found.run_id))
    if absent := [path.name for path in PINS if path.name not in kept]:
        raise UserError(
            f"version {version} was registered without {', '.join(absent)}: its rows cannot be "
            "pinned. Versions registered from a run of the pipeline keep them"
        )
    commit = client.get_run(str(found.run_id)).data.tags["git.commit"]
    here = _git("rev-parse", "HEAD")
    if here != commit:
        raise UserError(
            f"version {version} was made at commit {commit}, this clone is at {here or 'none'}: "
            f"git checkout {commit}"
        )
    if PATCH in kept and not _fits(kept[PATCH], "--reverse"):  # else it is applied already
        if not _fits(kept[PATCH]):
            raise UserError(
                f"the patch of version {version} does not fit this working tree: it differs from "
                f"commit {commit}. Restore in a fresh clone"
            )
        subprocess.run(("git", "apply", str(kept[PATCH])), check=True)
        print(f"applied what differed from commit {commit}")
    for path in PINS:
        write_text(path, kept[path.name].read_text(encoding="utf-8"))
    print(f"wrote {', '.join(map(str, PINS))} as they were for version {version}")


def _commands(version: int, tags: dict[str, str], kept: dict[str, Path]) -> list[str]:
    patched = " and what differed from the commit" if PATCH in kept else ""
    commands = [
        f"git checkout {tags.get('git.commit')}",
        f"hpgr lineage {version} --restore   # params.yaml, data.dvc, dvc.lock as then{patched}",
    ]
    if "base.json" in kept:
        commands.append(f"hpgr base {read_json(kept['base.json'])['version']}")
    commands += [
        "dvc pull      # the log and every stage's output, from the remote",
        "dvc status    # says that all is up to date",
    ]
    return [f"  {command}" for command in commands]


def _kept(client: MlflowClient, run_id: str) -> dict[str, Path]:
    """What `keep` stored, by file name, downloaded to MLflow's cache."""
    if not any(entry.path == FOLDER for entry in client.list_artifacts(run_id)):
        return {}
    folder = Path(client.download_artifacts(run_id, FOLDER))
    return {path.name: path for path in sorted(folder.iterdir())}


def _outputs(lock: Path) -> list[tuple[str, str]]:
    stages: dict[str, Any] = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    return [(out["path"], out["md5"]) for stage in stages.values() for out in stage["outs"]]


def _fits(patch: Path, *options: str) -> bool:
    command = ("git", "apply", "--check", *options, str(patch))
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _git(*arguments: str) -> str:
    done = subprocess.run(("git", *arguments), capture_output=True, text=True, check=False)
    return done.stdout.strip("\n") if done.returncode == 0 else ""
