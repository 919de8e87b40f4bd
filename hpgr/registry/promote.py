"""Who serves: moves of the alias `champion`, each with who, when and why; and the way back.

    hpgr promote [VERSION] --why TEXT [--force]
    hpgr promote --roll-back --why TEXT

Every move is a run of its own in the experiment, tagged `move.*`, which nothing overwrites; it is
opened before the aliases move and closed after, so that an interrupted move shows. Reads and
writes the registry.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hpgr.config import Config
from hpgr.registry.gate import ACCEPTED
from hpgr.registry.judge import ROLLED_BACK_TAG, VERDICT_TAG
from hpgr.registry.tracking import connect, experiment_id
from hpgr.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, aliases, get_version
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Move:
    """The champion was `before` (None at first) and is `after`; `at` is ISO 8601, UTC."""

    kind: str
    before: int | None
    after: int
    by: str
    at: str
    why: str


def move(cfg: Config, version: int | None, *, why: str, back: bool, force: bool) -> Move:
    """`roll_back` where `back` is set, else `promote`.

    Raises:
        UserError: as they do, or a version is named although the way back is asked for.
    """
    if not back:
        return promote(cfg, version, why=why, force=force)
    if version is not None:
        raise UserError(
            f"a roll-back goes to the {PREVIOUS} champion; to go to version {version}, promote it"
        )
    return roll_back(cfg, why=why)


def told(move: Move) -> str:
    """One sentence about a move."""
    if move.kind == "none":
        return f"{move.why} already; nothing was changed"
    before = "none" if move.before is None else f"version {move.before}"
    return f"{move.kind}: champion is version {move.after}, before it {before}; {move.why}"


def promote(cfg: Config, version: int | None = None, *, why: str, force: bool = False) -> Move:
    """Make `version`, by default the challenger, the champion; the champion becomes `previous`.

    A version that is champion already stays it, and nothing is written.

    Args:
        cfg: names of model and experiment.
        version: registered version.
        why: the reason, kept with the move.
        force: promote a version that the gate refused, never judged, or that was rolled back.

    Raises:
        UserError: no such version, no reason, or the gate has not accepted it.
    """
    client, name = connect(), cfg.register_.model_name
    called = aliases(client, name)
    if version is None:
        version = called.get(CHALLENGER)
    if version is None:
        raise UserError(f"{name} has no {CHALLENGER}: train one, or name the version to promote")
    found, champion = get_version(client, name, version), called.get(CHAMPION)
    if champion == version:
        return Move("none", champion, version, _who(), _now(), f"version {version} is champion")
    _require(why)
    if not force and champion is not None:
        _check_accepted(found)
    with _recorded(client, cfg, "promote", champion, version, why) as made:
        _point(client, name, champion, version)
        if called.get(CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        if ROLLED_BACK_TAG in found.tags:
            client.delete_model_version_tag(name, str(version), ROLLED_BACK_TAG)
    return made


def roll_back(cfg: Config, *, why: str) -> Move:
    """Make `previous` the champion again; the gate will not promote what was rolled back.

    Raises:
        UserError: there is no previous champion, it was itself rolled back, or no reason is given.
    """
    client, name = connect(), cfg.register_.model_name
    called = aliases(client, name)
    champion, back = called.get(CHAMPION), called.get(PREVIOUS)
    if champion is None or back is None:
        raise UserError(f"{name} has no {PREVIOUS} champion to roll back to")
    _require(why)
    found = get_version(client, name, back)
    if ROLLED_BACK_TAG in found.tags:
        raise UserError(
            f"{PREVIOUS} is version {back}, which was rolled back: {found.tags[ROLLED_BACK_TAG]}. "
            "Name the version you want: `hpgr promote VERSION --why TEXT --force`"
        )
    with _recorded(client, cfg, "roll back", champion, back, why) as made:
        note = f"{made.at} by {made.by}: {why}"
        client.set_model_version_tag(name, str(champion), ROLLED_BACK_TAG, note)
        _point(client, name, champion, back)
    return made


def record_first(client: MlflowClient, cfg: Config, version: int) -> None:
    """Note that the first version became champion by being registered."""
    with _recorded(client, cfg, "register", None, version, "the first version registered"):
        client.set_registered_model_alias(cfg.register_.model_name, CHAMPION, str(version))


def _point(client: MlflowClient, name: str, champion: int | None, version: int) -> None:
    """`previous` first: at no moment is the way back lost or is there no champion."""
    if champion is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(champion))
    client.set_registered_model_alias(name, CHAMPION, str(version))


@contextmanager
def _recorded(
    client: MlflowClient, cfg: Config, kind: str, before: int | None, after: int, why: str
) -> Iterator[Move]:
    move = Move(kind, before, after, _who(), _now(), why)
    tags = {
        "move.kind": kind,
        "move.alias": CHAMPION,
        "move.from": "none" if before is None else str(before),
        "move.to": str(after),
        "move.by": move.by,
        "move.at": move.at,
        "move.why": why,
    }
    experiment = experiment_id(client, cfg.register_.experiment)
    run = client.create_run(experiment, run_name=f"{kind} version {after}", tags=tags)
    try:
        yield move
    except BaseException:
        client.set_terminated(run.info.run_id, status="FAILED")
        raise
    name = cfg.register_.model_name
    for tag in ("by", "at", "why"):
        client.set_model_version_tag(name, str(after), f"champion.{tag}", tags[f"move.{tag}"])
    client.set_terminated(run.info.run_id)


def _check_accepted(version: ModelVersion) -> None:
    verdict = version.tags.get(VERDICT_TAG)
    where = f"version {version.version}"
    if ROLLED_BACK_TAG in version.tags:
        raise UserError(
            f"{where} was rolled back: {version.tags[ROLLED_BACK_TAG]}. --force promotes it anyway"
        )
    if verdict is None:
        raise UserError(f"{where} was never judged: run `hpgr gate` first, or add --force")
    if verdict != ACCEPTED:
        raise UserError(
            f"the gate {verdict} {where}: {version.tags.get('gate.reasons', '')}. "
            "--force promotes it anyway"
        )


def _require(why: str) -> None:
    if not why.strip():
        raise UserError("say why: the reason is kept with the move (--why TEXT)")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _now() -> str:
    """To the millisecond: two moves may fall into one second, and their order is the history."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
