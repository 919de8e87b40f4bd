"""Move the alias `champion` to another version or roll it back; record who, when and why.

    hpgr promote [VERSION] --why TEXT [--force]
    hpgr promote --roll-back --why TEXT

Every move is a run of its own in the experiment, tagged `move.*`, and nothing overwrites it. The
run is opened before the aliases move and closed after, so that an interrupted move is visible. If
the champion had already changed, the next move or registration finishes it. Reads and writes the
registry.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hpgr.config import Config
from hpgr.masking import masked
from hpgr.registry.gate import ACCEPTED
from hpgr.registry.judge import CHAMPION_TAG, REASONS_TAG, ROLLED_BACK_TAG, VERDICT_TAG
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.tracking import connect, experiment_id, failing_run
from hpgr.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, aliases, get_version
from hpgr.runtime import UserError
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROMOTE, ROLL_BACK, REGISTER = "promote", "roll back", "register"
NOBODY = "none"  # the champion before the first one
ANOTHER = "Name the version you want: `hpgr promote VERSION --why TEXT --force`"


class OldVerdict(UserError):
    """The gate accepted the version against another champion than today's."""


@dataclass(frozen=True)
class Move:
    """A change of champion from `before` (None at first) to `after`; `at` is ISO 8601, UTC."""

    kind: str
    before: int | None
    after: int
    by: str
    at: str
    why: str


@answered()
def move(
    cfg: Config,
    version: int | None = None,
    *,
    why: str,
    back: bool = False,
    force: bool = False,
    who: str | None = None,
    via: str | None = None,
    workspace: Workspace = HERE,
) -> Move:
    """Make `version` the champion, or the previous champion again; the champion is then `previous`.

    If the version is the champion already, nothing is written.

    Args:
        cfg: gives the names of model and experiment.
        version: registered version; by default the challenger.
        why: the reason, kept with the move.
        back: roll back to `previous`; the gate will not promote what was rolled back.
        force: promote a version that the gate refused, never judged, or that was rolled back.
        who: the person; None is the account of the process.
        via: what started the move, such as a flow's run; kept with it.
        workspace: its store is the registry if the environment names none.

    Raises:
        OldVerdict: the gate accepted it against another champion.
        UserError: no such version, no reason, the gate has not accepted it, or a roll-back names a
            version, or goes to one that was itself rolled back.
    """
    if back and version is not None:
        raise UserError(
            f"a roll-back goes to the {PREVIOUS} champion; to go to version {version}, promote it"
        )
    why = masked(why)  # everybody can read tags
    client, name = connect(workspace), cfg.register_.model_name
    if version is None and not back:
        version = aliases(client, name).get(CHALLENGER)
    kind = ROLL_BACK if back else PROMOTE
    finished = finish_interrupted(client, cfg)
    if finished and finished.kind == kind and version in (None, finished.after):
        return finished
    called, at = aliases(client, name), _now()
    champion = called.get(CHAMPION)
    after = called.get(PREVIOUS) if back else version
    if back and (champion is None or after in (None, champion)):
        raise UserError(f"{name} has no {PREVIOUS} champion to roll back to. {ANOTHER}")
    if after is None:
        raise UserError(f"{name} has no {CHALLENGER}: train one, or name the version to promote")
    found = get_version(client, name, after)
    if champion == after:
        return Move("none", champion, after, _account(), at, f"version {after} is champion")
    if not why.strip():
        raise UserError("say why: the reason is kept with the move (--why TEXT)")
    if back and ROLLED_BACK_TAG in found.tags:
        raise UserError(
            f"{PREVIOUS} is version {after}, which was rolled back: {found.tags[ROLLED_BACK_TAG]}. "
            f"{ANOTHER}"
        )
    if not back and not force and champion is not None:
        _check_accepted(found, champion)
    return _make(client, cfg, Move(kind, champion, after, who or _account(), at, why), via)


def describe(move: Move) -> str:
    """Return one sentence about a move."""
    if move.kind == "none":
        return f"{move.why} already; nothing was changed"
    before = "none" if move.before is None else f"version {move.before}"
    return f"{move.kind}: champion is version {move.after}, before it {before}; {move.why}"


def record_registered(client: MlflowClient, cfg: Config, version: int, why: str) -> None:
    """Make a new version the champion if there is none, and record the move."""
    _make(client, cfg, Move(REGISTER, None, version, _account(), _now(), why), None)


def finish_interrupted(client: MlflowClient, cfg: Config) -> Move | None:
    """Finish the last move if it was interrupted after the champion had changed, and return it.

    A move that was interrupted earlier has changed nothing.
    """
    runs = client.search_runs(
        [experiment_id(client, cfg.register_.experiment)],
        f"tags.`move.model` = '{cfg.register_.model_name}'",
        order_by=["attributes.start_time DESC"],
    )
    # A repeated request may have made two runs of one move; the finished one counts.
    run = max(
        runs,
        key=lambda run: (run.data.tags["move.at"], run.info.status == "FINISHED"),
        default=None,
    )
    if run is None or run.info.status == "FINISHED":
        return None
    tags = run.data.tags
    before, after = tags["move.from"], int(tags["move.to"])
    if aliases(client, cfg.register_.model_name).get(CHAMPION) != after:
        return None
    found = Move(
        tags["move.kind"],
        None if before == NOBODY else int(before),
        after,
        *(tags[f"move.{key}"] for key in ("by", "at", "why")),
    )
    _carry_out(client, cfg.register_.model_name, found, run.info.run_id)
    return found


def _make(client: MlflowClient, cfg: Config, move: Move, via: str | None) -> Move:
    tags = {
        "move.kind": move.kind,
        "move.model": cfg.register_.model_name,
        "move.alias": CHAMPION,
        "move.from": NOBODY if move.before is None else str(move.before),
        "move.to": str(move.after),
        "move.by": move.by,
        "move.at": move.at,
        "move.why": move.why,
    }
    if via is not None:
        tags["move.via"] = via
    experiment = experiment_id(client, cfg.register_.experiment)
    run = client.create_run(experiment, run_name=f"{move.kind} version {move.after}", tags=tags)
    with failing_run(client, run.info.run_id):
        _carry_out(client, cfg.register_.model_name, move, run.info.run_id)
    return move


def _carry_out(client: MlflowClient, name: str, move: Move, run_id: str) -> None:
    """Write everything that belongs to a move; doing it again changes nothing."""
    _point(client, name, move.before, move.after)
    if move.kind == ROLL_BACK:
        note = f"{move.at} by {move.by}: {move.why}"
        client.set_model_version_tag(name, str(move.before), ROLLED_BACK_TAG, note)
    else:
        if aliases(client, name).get(CHALLENGER) == move.after:
            client.delete_registered_model_alias(name, CHALLENGER)
        if ROLLED_BACK_TAG in get_version(client, name, move.after).tags:
            client.delete_model_version_tag(name, str(move.after), ROLLED_BACK_TAG)
    for tag, value in (("by", move.by), ("at", move.at), ("why", move.why)):
        client.set_model_version_tag(name, str(move.after), f"champion.{tag}", value)
    client.set_terminated(run_id)


def _point(client: MlflowClient, name: str, champion: int | None, version: int) -> None:
    """Set `champion`, then `previous`: after `champion` has moved, the rest can be finished."""
    client.set_registered_model_alias(name, CHAMPION, str(version))
    if champion is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(champion))


def _check_accepted(version: ModelVersion, champion: int) -> None:
    verdict, against = version.tags.get(VERDICT_TAG), version.tags.get(CHAMPION_TAG)
    where = f"version {version.version}"
    if ROLLED_BACK_TAG in version.tags:
        raise UserError(
            f"{where} was rolled back: {version.tags[ROLLED_BACK_TAG]}. --force promotes it anyway"
        )
    if verdict is None:
        raise UserError(f"{where} was never judged: run `hpgr gate` first, or add --force")
    if verdict != ACCEPTED:
        raise UserError(
            f"the gate {verdict} {where}: {version.tags.get(REASONS_TAG, '')}. "
            "--force promotes it anyway"
        )
    if against != str(champion):
        raise OldVerdict(
            f"{where} was judged against version {against}, the champion is {champion}: "
            f"run `hpgr gate {version.version}`, or add --force"
        )


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _now() -> str:
    """Return the time to the millisecond, as the order of two moves within a second counts."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
