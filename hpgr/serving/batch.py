"""`hpgr recommend-all`: the champion's answers for every user of the log, as Parquet.

    artifacts/recommendations/MODEL-VERSION-KEY/part-00000.parquet   chunk_users users each
    artifacts/recommendations/MODEL-VERSION-KEY/manifest.json        what was asked, and the parts

Columns: `user_id`, `rank` (from 1), `item_id`, `title`, `score`, `similarity` (float32; null as in
`hpgr.serving.recommender.Recommended`), sorted by user of the log and rank. The folder's KEY stands
for everything that the answers depend on, so that a run which asks the same continues where the
last one was stopped, however it was stopped: a part counts as done once the manifest holds the hash
of its bytes. Reads `artifacts/sessions/` and the registry.

The champion may know another vocabulary than the log that lies here: external ids connect the two.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from hpgr.config import Config
from hpgr.data.histories import bounded, histories
from hpgr.data.id_map import IdMap, Ids
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.failure import explained
from hpgr.intake.raw_file import require_file
from hpgr.runtime import UserError, atomic_path, read_json, sha256_file, write_json
from hpgr.serving.champion import load_champion
from hpgr.serving.recommender import Best, Recommender
from hpgr.serving.typed_request import seconds
from hpgr.terminal import shown
from hpgr.workspace import HERE, Workspace

HASHED = (
    *(f"{name}.parquet" for name in ("events", "items", "users", "actions")),
    "arrays/meta.json",
)
MANIFEST, LOCK = "manifest.json", ".lock"
SHOWN_IDS = 5  # of a list's unknown ids

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Done:
    """Folder and manifest of the answers, and the number of users that this run scored."""

    folder: Path
    manifest: dict[str, Any]
    scored_users: int


@dataclass(frozen=True)
class Sessions:
    """The sessionized log as it lay there at one moment: arrays, tables, hashes of the files."""

    log: EventLog
    ids: Ids
    users: pa.Table
    hashes: dict[str, str]
    dropped_users: int  # by the k-core, so that they are not in the log

    @classmethod
    def read(cls, folder: Path) -> Sessions:
        """Map the arrays and read the tables below `folder`.

        Raises:
            UserError: there is none, or another one was put there meanwhile.
        """
        for path in (folder / "arrays", *(folder / name for name in HASHED)):
            if not path.exists():
                raise UserError(f"{path} not found: run `hpgr sessionize`, or `dvc repro` for all")
        before = _hashes(folder)
        log = EventLog.open(folder / "arrays")
        ids, users = Ids.read(folder), pq.read_table(folder / "users.parquet")
        dropped = read_json(folder / "stats.json")["dropped"]["users"]
        if _hashes(folder) != before:
            raise UserError(f"{folder}: the log changed while it was read: run again")
        return cls(log, ids, users, before, dropped)


def recommend_all(
    cfg: Config, progress: Progress = lambda done, users: None, *, workspace: Workspace = HERE
) -> Done:
    """Score every user of the log with the champion, as `cfg.recommend` asks.

    `progress` is called after every part with the users done so far and those of the whole log.

    Raises:
        UserError: no champion, no log, no event before the time asked, an allow list that names
            no known item, a damaged file, or another run that is writing the same answers.
    """
    with explained("recommend-all", workspace.recommendations, workspace):
        return _recommend_all(cfg, progress, workspace)


def _recommend_all(cfg: Config, progress: Progress, workspace: Workspace) -> Done:
    asked = cfg.recommend
    sessions = Sessions.read(workspace.sessions)
    served = load_champion(cfg, workspace)
    model = served.recommender
    at = _request_time(asked.at, sessions.log)
    allow = _read_list(asked.allow, model, some_known=True)
    deny = _read_list(asked.deny, model, some_known=False)
    drop_seen = model.serving.remove_history if asked.seen is None else asked.seen == "drop"
    question = {
        "model": {"name": served.name, "version": served.version, "run_id": served.run_id},
        "log": sessions.hashes,
        "at": at,
        "k": asked.k,
        "seen": "drop" if drop_seen else "keep",
        "allow": _list_hash(allow),
        "deny": _list_hash(deny),
        "chunk_users": asked.chunk_users,
    }
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:12]
    folder = workspace.recommendations / f"{served.name}-{served.version}-{key}"
    eligible = model.eligible(allow, deny or ())
    if eligible is not None and not eligible[list(model.names)].any():
        print("warning: recommend.allow and recommend.deny leave no item: every answer is empty")
    scorer = Scoring(model, sessions, at, asked.k, eligible, drop_seen)
    users, scored, began = sessions.log.meta.num_users, 0, time.monotonic()
    with _locked(folder), tqdm(total=users, desc="recommend", unit="user", mininterval=2.0) as bar:
        counts = {"users": users, "dropped_users": sessions.dropped_users}
        manifest = _begin(folder, question | counts)
        for number, start in enumerate(range(0, users, asked.chunk_users)):
            stop = min(start + asked.chunk_users, users)
            path = folder / f"part-{number:05d}.parquet"
            if not _intact(path, manifest):
                with atomic_path(path) as temporary:
                    pq.write_table(scorer.table(start, stop), temporary)
                manifest["parts"][path.name] = {"users": stop - start, "sha256": sha256_file(path)}
                write_json(folder / MANIFEST, manifest)
                scored += stop - start
            bar.update(stop - start)
            progress(stop, users)
    print(
        f"{served.name} version {served.version}: {users:,} users in {folder}; {scored:,} scored "
        f"now in {time.monotonic() - began:.1f} s, {users - scored:,} were there already"
    )
    return Done(folder, manifest, scored)


@dataclass
class Scoring:
    """One question to one model about the users of a log.

    `at` is the time of the request, seconds; the rest is as in `Recommender.best`.
    """

    model: Recommender
    sessions: Sessions
    at: int
    k: int
    eligible: np.ndarray | None
    drop_seen: bool

    def __post_init__(self) -> None:
        model = self.model
        self.user_ids = self.sessions.users.sort_by("user")["user_id"]
        self.ids = IdMap.between(self.sessions.ids, Ids(model.item, model.actions))
        # The model's catalogue by index, the reserved ones without a name.
        catalogue = [model.names.get(i, (None, None)) for i in range(len(model.popularity))]
        self.item_ids = pa.array([item_id for item_id, _ in catalogue], pa.string())
        self.titles = pa.array([title for _, title in catalogue], pa.string())

    def best(self, start: int, stop: int) -> Best:
        """Answers of users `start` to `stop` (exclusive), from what they did before `at`.

        Sessions are the log's own; an empty history is a newcomer's.
        """
        log = self.sessions.log
        bounds = np.asarray(log.user_offsets[start : stop + 1])
        earlier = np.asarray(log.timestamp[bounds[0] : bounds[-1]]) < self.at
        before = np.concatenate([[0], np.cumsum(earlier)])[bounds - bounds[0]]
        count = np.diff(before)
        # Histories of like length are read together: little of what is computed is padding.
        order = np.argsort(np.minimum(count, self.model.serving.max_history), kind="stable")
        user = start + order
        end = (bounds[:-1] + count)[order]  # events of a user are sorted by time
        parts = []
        for part in bounded(count[order], queries=len(user)):
            at = np.full(len(user[part]), self.at)
            asked = histories(log, user[part], end[part], at, log.meta.num_events)
            own = self.ids.histories(asked)
            best = self.model.best(own, k=self.k, eligible=self.eligible, drop_seen=self.drop_seen)
            parts.append(best)
        place = np.argsort(order)
        return Best(*(column[place] for column in Best.of(parts)))

    def table(self, start: int, stop: int) -> pa.Table:
        """The same as the rows of a part; see the module's docstring."""
        best = self.best(start, stop)
        filled = best.item >= FIRST_ITEM  # the filled places of a query come first
        user, place = np.nonzero(filled)
        item = pa.array(best.item[filled])
        return pa.table(
            {
                "user_id": self.user_ids.take(pa.array(start + user)),
                "rank": pa.array(place + 1, pa.int32()),
                "item_id": self.item_ids.take(item),
                "title": self.titles.take(item),
                "score": pa.array(best.score[filled], pa.float32(), from_pandas=True),
                "similarity": pa.array(best.similarity[filled], pa.float32(), from_pandas=True),
            }
        )


def _hashes(folder: Path) -> dict[str, str]:
    return {Path(name).stem: sha256_file(folder / name) for name in HASHED}


def _request_time(asked: Any, log: EventLog) -> int:
    """`recommend.at`, or one second after the log's last event."""
    if not log.meta.num_events:
        raise UserError("the sessionized log holds no event: there is no user to recommend to")
    at = seconds(asked, where="recommend.at") if asked is not None else int(log.timestamp.max()) + 1
    first = int(log.timestamp.min())
    if at <= first:
        raise UserError(
            f"recommend.at is {at}, the log's first event happened at {first}: there is no "
            "history before it. Pass a later time, in seconds or as ISO 8601 (UTC)."
        )
    return at


def _read_list(path: Path | None, model: Recommender, *, some_known: bool) -> list[str] | None:
    """Item ids of a file, one a line; if `some_known`, the model must know at least one.

    Lines of a file without any known id are not shown: it may be no list of ids at all.
    """
    if path is None:
        return None
    require_file(path, "expected a text file of item ids, one a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a text file of item ids, one a line ({error})"
        ) from error
    ids = sorted({line.strip() for line in lines} - {""})
    unknown = [item_id for item_id in ids if item_id not in model.item]
    if some_known and ids and len(unknown) == len(ids):
        known = ", ".join(map(shown, list(model.item)[:SHOWN_IDS]))
        raise UserError(
            f"{path}: none of its {len(ids)} lines is the id of one of the model's "
            f"{len(model.item)} items ({known}, ...); expected one item id a line"
        )
    if unknown:
        some = ", ".join([*map(shown, unknown[:SHOWN_IDS]), *["..."] * (len(unknown) > SHOWN_IDS)])
        print(
            f"warning: {path}: the model does not know {len(unknown)} of its {len(ids)} item ids"
            + (f": {some}" if len(unknown) < len(ids) else "; is it a list of item ids?")
        )
    return ids


def _list_hash(ids: Sequence[str] | None) -> str | None:
    return None if ids is None else hashlib.sha256("\n".join(ids).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone; the system lets go of the lock when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing {folder}: wait for it, or stop it") from None
        for leftover in folder.glob(".*.*.*"):  # of a run that was killed while it wrote
            leftover.unlink()
        yield


def _begin(folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier run of the same question, or a new one."""
    try:
        manifest = read_json(folder / MANIFEST)
        if isinstance(manifest.get("parts"), dict):
            return {**question, "parts": manifest["parts"]}
    except (FileNotFoundError, ValueError, AttributeError):
        pass  # none, or a damaged one: every part is scored again
    return {**question, "parts": {}}


def _intact(path: Path, manifest: dict[str, Any]) -> bool:
    """Return True if the part holds, byte for byte, what the manifest says was written."""
    entry = manifest["parts"].get(path.name)
    return entry is not None and path.is_file() and sha256_file(path) == entry["sha256"]
