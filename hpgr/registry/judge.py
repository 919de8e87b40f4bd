"""Judge a registered challenger against the champion and record the verdict.

    hpgr gate

Both are loaded from the registry and scored on the test queries of `artifacts/sessions`, the log
that the challenger was trained on. Writes `artifacts/gate/verdict.json` and `verdict.html`, the
same two to the version's run, and the version's tags `gate.*` and description. A verdict carries a
key of versions, rules and log; while the key stays the same, the stored verdict is returned.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpgr.config import Config
from hpgr.data.id_map import IdMap, Ids
from hpgr.data.log import TEST
from hpgr.data.trained_events import overlap, read_sketch
from hpgr.metrics import protocols_of
from hpgr.registry.bundle import check_bundle
from hpgr.registry.gate import Past, Verdict, decide
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.tracking import connect
from hpgr.registry.versions import CHALLENGER, CHAMPION, aliases, bundle_of, get_version
from hpgr.runtime import UserError, atomic_folder, sha256_file, write_text
from hpgr.templates import rendered
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from hpgr.evaluation.contest import Change, Contest, Contestant

PAGE = Path(__file__).parent / "verdict.html.j2"
IS_CHAMPION, UNJUDGED = "champion", "unjudged"  # nothing to compare with
VERDICT_TAG, CHAMPION_TAG, REASONS_TAG = "gate.verdict", "gate.champion", "gate.reasons"
KEY_TAG, ROLLED_BACK_TAG = "gate.key", "rolled_back"
HEADING, CARD = "## Gate\n\n", "\n\n# "  # the verdict precedes the model card


@answered()
def judge(cfg: Config, version: int | None = None, workspace: Workspace = HERE) -> dict[str, Any]:
    """Judge `version`, by default the challenger, and return what verdict.json holds.

    Keys: name, version, champion, verdict (accepted | refused, or champion | unjudged if there is
    no other champion to compare with), reasons, checks, metrics, slices, judged_at, key, and the
    protocol and metric that decided.

    Raises:
        UserError: nothing is registered, the version is unknown, or a rule names no metric.
    """
    import mlflow

    client, name = connect(workspace), cfg.register_.model_name
    called = aliases(client, name)
    if version is None:
        version = called.get(CHALLENGER, called.get(CHAMPION))
    if version is None:
        raise UserError(f"the registry has no version of {name}: run `make run` first")
    found, champion = get_version(client, name, version), called.get(CHAMPION)
    facts = {"name": name, "version": version, "champion": champion}
    if champion in (None, version):
        word = IS_CHAMPION
        reason = f"version {version} is the champion: there is nothing to compare it with"
        if champion is None:
            word = UNJUDGED
            reason = (
                f"there is no champion to compare version {version} with; "
                f"`hpgr promote {version} --why TEXT` makes it the champion"
            )
        verdict = {**facts, "verdict": word, "reasons": [reason], "checks": [], "metrics": {}}
        verdict |= {"slices": {}, "judged_at": _now(), "key": None}
        _write(workspace.gate, _files(verdict))
        return verdict
    key = _key(cfg, champion, found, workspace)
    if found.tags.get(KEY_TAG) == key:
        text = mlflow.artifacts.load_text(f"runs:/{found.run_id}/gate/verdict.json")
        if (stored := json.loads(text)).get("key") == key:
            _write(workspace.gate, _files(stored))
            return stored
    figures, decided = _decide(cfg, champion, found, workspace)
    verdict = {
        **facts,
        "verdict": decided.word,
        "reasons": decided.reasons,
        "checks": [asdict(check) for check in decided.checks],
        "metrics": {n: _plain(c) for n, c in figures.metrics.items()},
        "slices": {n: _plain(c) for n, c in figures.slices.items()},
        "protocol": next(p for p in figures.protocols if p in protocols_of(cfg.gate.metric)),
        "metric": cfg.gate.metric,
        "judged_at": _now(),
        "key": key,
    }
    files = _files(verdict)
    _write(workspace.gate, files)
    _publish(client, found, verdict, files)
    return verdict


def as_markdown(verdict: dict[str, Any]) -> str:
    """Format the verdict as a heading and a table of its checks."""
    lines = [f"**version {verdict['version']}: {verdict['verdict']}**", ""]
    if verdict["champion"] not in (None, verdict["version"]):
        lines[0] += f" against version {verdict['champion']}, the champion at that time"
    if not verdict["checks"]:
        return "\n".join([*lines, *verdict["reasons"]])
    lines += ["| rule | found | expected | |", "|---|---|---|---|"]
    for check in verdict["checks"]:
        passed = "passed" if check["passed"] else "**failed**"
        lines.append(f"| {check['rule']} | {check['found']} | {check['expected']} | {passed} |")
    return "\n".join(lines)


def _decide(
    cfg: Config, champion: int, challenger: ModelVersion, workspace: Workspace
) -> tuple[Contest, Verdict]:
    from hpgr.evaluation.contest import contest  # late, as it imports SciPy
    from hpgr.evaluation.judged import open_log  # and pandas

    log, name, version = open_log(workspace), challenger.name, int(challenger.version)
    with bundle_of(name, champion) as old, bundle_of(name, version) as new:
        before, after = (contestant(at, cfg.finetune.device, workspace) for at in (old, new))
        figures = contest(log, before, after, cfg.evaluate, deciding=cfg.gate.metric)
        bundles = {champion: old, version: new}
        trained = {v: overlap(read_sketch(b), workspace.sessions, TEST) for v, b in bundles.items()}
    past = Past(trained, challenger.tags.get(ROLLED_BACK_TAG))
    return figures, decide(figures, cfg.gate, past)


def contestant(bundle: Path, device: str, workspace: Workspace = HERE) -> Contestant:
    """Load the bundle's network with the map from the indices of the workspace's log to its own.

    Raises:
        UserError: a file of the bundle is missing or wrong.
    """
    from hpgr.evaluation.contest import Contestant
    from hpgr.evaluation.judged import load_network

    serving = check_bundle(bundle)
    return Contestant(
        network=load_network(bundle / "model", device),
        ids=IdMap.between(Ids.read(workspace.sessions), Ids.read(bundle)),
        max_history=serving.max_history,
        candidates=serving.retrieve,
        ranks=serving.ranked,
        blend=serving.blend,
    )


def _key(cfg: Config, champion: int, challenger: ModelVersion, workspace: Workspace) -> str:
    """Hash everything that the verdict depends on."""
    rules = [cfg.gate.model_dump(mode="json"), cfg.evaluate.model_dump(mode="json")]
    mark = challenger.tags.get(ROLLED_BACK_TAG)
    log = sha256_file(workspace.sessions / "events.parquet")
    parts = [champion, int(challenger.version), mark, rules, log]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plain(change: Change) -> dict[str, float | int | None]:
    """Return the change for JSON: NaN and infinity become null."""
    fields = asdict(change) | {"relative": change.relative}
    return {k: v if np.isfinite(v) else None for k, v in fields.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _files(verdict: dict[str, Any]) -> dict[str, str]:
    """Return name and text of the verdict's two files."""
    return {
        "verdict.json": json.dumps(verdict, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "verdict.html": rendered(PAGE, {}, **verdict),
    }


def _write(folder: Path, files: dict[str, str]) -> None:
    """Replace `folder` by one with `files`."""
    with atomic_folder(folder) as fresh:
        for name, text in files.items():
            write_text(fresh / name, text)


def _publish(
    client: MlflowClient, version: ModelVersion, verdict: dict[str, Any], files: dict[str, str]
) -> None:
    """Store the files with the version's run, the verdict in description and tags, the key last."""
    for name, text in files.items():
        client.log_text(str(version.run_id), text, f"gate/{name}")
    card = version.description or ""
    if card.startswith(HEADING):  # remove an earlier verdict
        card = CARD.lstrip() + card.partition(CARD)[2]
    client.update_model_version(
        version.name, version.version, f"{HEADING}{as_markdown(verdict)}\n\n{card}"
    )
    tags = {  # the verdict before its champion: no old "accepted" beside a new champion
        VERDICT_TAG: verdict["verdict"],
        CHAMPION_TAG: verdict["champion"],
        REASONS_TAG: "; ".join(verdict["reasons"]),
        "gate.metric": verdict["metric"],  # this and the next two: the champion's score today
        "gate.protocol": verdict["protocol"],
        "gate.champion_metric": verdict["metrics"][verdict["metric"]]["champion"],
        "gate.judged_at": verdict["judged_at"],
        KEY_TAG: verdict["key"],
    }
    for tag, value in tags.items():
        client.set_model_version_tag(version.name, version.version, tag, str(value))
