"""Show the origin of a version, down to the exact rows, and restore it.

    hpgr lineage VERSION [--restore]

Registration stores the files that pin a result with the run, below `lineage/`: `params.yaml`,
`data.dvc`, `dvc.lock`, `requirements.lock`, and a patch if the working tree differed from its
commit. Reads the registry; `restore` writes those files into the current folder.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from hpgr.config import Config
from hpgr.registry.held_back import in_file
from hpgr.registry.mlflow_faults import answered, public
from hpgr.registry.pipeline_runs import ABSENT, ENVIRONMENT, flatten, pins
from hpgr.registry.tracking import connect_for_reading, registry_uri, tracking_uri
from hpgr.registry.versions import get_version
from hpgr.registry.worktree import apply, changes, committed, head
from hpgr.runtime import UserError, atomic_path, sha256_file
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "lineage"
PATCH = "changes.patch"
LEFT_OUT = "left_out.txt"  # new files too large for the patch, one a line
HELD_BACK = "held_back.txt"  # new and changed files with a secret, one a line, with the reason
TAGS = ("git.commit", "git.dirty", "dvc.data", "dvc.changed", "environment.lock")
LISTED = 20  # names in one line
NOT_SET = object()


class Origin(NamedTuple):
    """Origin of a version: tags of its run, and the kept files by name, downloaded."""

    title: str
    tags: dict[str, str]
    kept: dict[str, Path]

    @property
    def commit(self) -> str:
        """The commit that was checked out, or ABSENT."""
        return self.tags.get("git.commit", ABSENT)

    @property
    def base(self) -> str:
        """The version that training started from, or ABSENT."""
        return self.tags.get("base.version", ABSENT)


def keep(client: MlflowClient, run_id: str, workspace: Workspace = HERE) -> None:
    """Store the files that pin the current artifacts with the run; missing ones are skipped.

    Prints the names of new files, since everybody can read them in the registry, and of files held
    back because of a secret.

    Raises:
        UserError: a file that every version needs holds a secret.
    """
    check_pins(workspace)
    pinned = pins(workspace)
    found = changes(without=[path.name for path in pinned], root=workspace.root)
    if ENVIRONMENT.is_file() and (why := in_file(ENVIRONMENT)):
        found.held_back[str(ENVIRONMENT)] = why
    for path in (*pinned, ENVIRONMENT):
        if path.is_file() and str(path) not in found.held_back:
            client.log_artifact(run_id, str(path), FOLDER)
    if found.new:
        print(f"kept with the version though not in git: {_listed(found.new)}")
    if found.left_out:
        print(f"not in git and too large to keep with the version: {_listed(found.left_out)}")
    held_back = [f"{name}: {why}" for name, why in sorted(found.held_back.items())]
    if held_back:
        print("warning: not kept with the version:", "; ".join(held_back))
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in (
            (PATCH, found.patch),
            (LEFT_OUT, "".join(f"{name}\n" for name in found.left_out).encode()),
            (HELD_BACK, "".join(f"{line}\n" for line in held_back).encode()),
        ):
            if content:
                (Path(scratch) / name).write_bytes(content)
                client.log_artifact(run_id, str(Path(scratch) / name), FOLDER)


def check_pins(workspace: Workspace = HERE) -> None:
    """Refuse a secret in the parameters or hashes, which every version needs.

    Raises:
        UserError: the message names file and line.
    """
    for path in pins(workspace):
        if path.is_file() and (why := in_file(path)):
            raise UserError(
                f"{path} {why}. It is kept with every version, where everybody can read it: move "
                "the secret to an environment variable"
            )


@answered()
def trace(cfg: Config, version: int, workspace: Workspace = HERE) -> str:
    """Return the version's origin and the commands that restore it, as text.

    Raises:
        UserError: there is no such version, or no registry to ask.
    """
    origin = _origin(cfg, version, workspace)
    lines = [origin.title, ""]
    lines += [f"{name:<18}{origin.tags.get(name, ABSENT)}" for name in TAGS]
    began = "nothing" if origin.base == ABSENT else f"version {origin.base}"
    lines += [f"{'began from':<18}{began}"]
    lines += [f"warning: {warning}" for warning in _warnings(origin)]
    if "dvc.lock" in origin.kept:
        stages = yaml.safe_load(origin.kept["dvc.lock"].read_text(encoding="utf-8"))["stages"]
        outs = [out for stage in stages.values() for out in stage["outs"]]
        lines += ["", "stage outputs (DVC hashes)"]
        lines += [f"  {out['path']:<24}{out['md5']}" for out in outs]
    if workspace.params.name in origin.kept:
        lines += ["", *_parameters(origin, workspace.params)]
    return "\n".join([*lines, "", *_commands(version, origin, workspace)])


@answered()
def restore(cfg: Config, version: int, workspace: Workspace = HERE) -> None:
    """Write the version's params.yaml, data.dvc and dvc.lock, and apply its patch to the code.

    Raises:
        UserError: there is no such version or no registry to ask, it kept nothing, this clone is at
            another commit, or its files differ from that commit so that the patch does not fit.
    """
    origin = _origin(cfg, version, workspace)
    if missing := _missing(origin):
        raise UserError(
            f"version {version} was registered without {', '.join(missing)}: its rows cannot be "
            "pinned. Versions registered from a run of the pipeline keep them"
        )
    here = head(workspace.root)
    if origin.commit not in (ABSENT, here):
        raise UserError(
            f"version {version} was made at commit {origin.commit}, this clone is at "
            f"{here or 'none'}: git checkout {origin.commit}"
        )
    if PATCH in origin.kept and apply(origin.kept[PATCH], workspace.root):
        print(f"applied the changes since commit {origin.commit}")
    for path in pins(workspace):
        _write_pin(path, origin.kept[path.name].read_bytes())
    print(f"wrote {', '.join(map(str, pins(workspace)))} as they were for version {version}")
    for warning in _warnings(origin):
        print(f"warning: {warning}")


def _origin(cfg: Config, version: int, workspace: Workspace) -> Origin:
    client = connect_for_reading(workspace)
    found = get_version(client, cfg.register_.model_name, version)
    run_id = str(found.run_id)
    kept: dict[str, Path] = {}
    if any(entry.path == FOLDER for entry in client.list_artifacts(run_id)):
        folder = Path(client.download_artifacts(run_id, FOLDER))
        kept = {path.name: path for path in sorted(folder.iterdir())}
    title = f"{found.name} version {found.version}, run {run_id}"
    return Origin(title, client.get_run(run_id).data.tags, kept)


def _missing(origin: Origin) -> list[str]:
    return [path.name for path in pins() if path.name not in origin.kept]


def _warnings(origin: Origin) -> list[str]:
    """List what keeps the version from being restored exactly."""
    found = []
    if origin.commit == ABSENT:
        found.append("registered outside git: the code that made it was not kept")
    if LEFT_OUT in origin.kept:
        names = origin.kept[LEFT_OUT].read_text(encoding="utf-8").splitlines()
        found.append(f"not in git and too large to keep: {_listed(names)}")
    if HELD_BACK in origin.kept:
        lines = origin.kept[HELD_BACK].read_text(encoding="utf-8").splitlines()
        found += [f"not kept, and not restored: {line}" for line in lines]
    named = origin.kept.keys() & {LEFT_OUT, HELD_BACK, PATCH}
    if origin.tags.get("git.dirty") == "true" and not named:
        found.append("the working tree differed from the commit, and the difference was not kept")
    changed = origin.tags.get("dvc.changed", ABSENT)
    if changed == ABSENT:
        found.append("registered outside DVC: dvc.lock may not belong to the version")
    elif changed != "none":
        found.append(
            f"registered while {changed} differed from dvc.lock: DVC restores what dvc.lock "
            "records, not what was registered"
        )
    return found


def _commands(version: int, origin: Origin, workspace: Workspace) -> list[str]:
    if missing := _missing(origin):
        return [f"it cannot be restored: {', '.join(missing)} was not kept with it"]
    patched = " and the changes since the commit" if PATCH in origin.kept else ""
    tracking, registry = public(tracking_uri(workspace)), public(registry_uri(workspace))
    commands = [f"export MLFLOW_TRACKING_URI={shlex.quote(tracking)}"]
    if registry != tracking:
        commands.append(f"export MLFLOW_REGISTRY_URI={shlex.quote(registry)}")
    if origin.commit != ABSENT:
        commands.append(f"git checkout {origin.commit}")
    commands += [
        f"hpgr lineage {version} --restore   # params.yaml, data.dvc, dvc.lock{patched}",
        f"hpgr base {'--clear' if origin.base == ABSENT else origin.base}",
        "dvc pull      # the log and every stage's output, from the remote",
        "dvc status    # reports that everything is up to date",
    ]
    return ["to restore it, in a clone:", *(f"  {command}" for command in commands)]


def _parameters(origin: Origin, path: Path) -> list[str]:
    """List every parameter in force then, marked where the commit's params.yaml differs."""
    kept, before = origin.kept[path.name].read_bytes(), committed(path, origin.commit)
    now = _in_force(kept)
    if before is None:
        then, title = now, "parameters (the commit is not at hand to compare with)"
    else:
        then, title = _in_force(before), "parameters (marked where the commit has another value)"
    lines = [title]
    for key in {**now, **then}:
        mine, its = now.get(key, NOT_SET), then.get(key, NOT_SET)
        mark = "" if mine == its else f"    # commit: {_shown(its)}"
        lines.append(f"  {key}: {_shown(mine)}{mark}")
    return lines


def _in_force(text: bytes) -> dict[str, Any]:
    """Return section.key -> value of `text`, a params.yaml, whose keys may be of another time.

    An older file holds all profiles and names one of them; the values of that profile count.
    """
    params = yaml.safe_load(text)
    profiles = params.pop("profiles", {})
    for dotted, value in (profiles.get(params.get("profile")) or {}).items():
        section, _, key = dotted.partition(".")
        params[section][key] = value
    return flatten(params)


def _shown(value: Any) -> str:
    return "not set" if value is NOT_SET else json.dumps(value, ensure_ascii=False, default=str)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _write_pin(path: Path, content: bytes) -> None:
    """Write a pin; a present file that neither git nor the version has is copied first.

    It is not refused, since dvc.lock is never committed and every run of the pipeline writes it.
    """
    if path.is_file() and path.read_bytes() not in (content, committed(path)):
        aside = path.with_name(f"{path.name}.{sha256_file(path)[:8]}.before")
        shutil.copyfile(path, aside)
        print(f"{path} was not committed: its content is now {aside}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
