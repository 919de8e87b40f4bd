"""Monitor the champion: volume and drift of the data, age and metrics.

    hpgr monitor

Reads the registry, `artifacts/accepted/batches.json` (the batches that came in) and
`artifacts/validated/summary.json` (the log as validated last); both may be absent. Writes
`artifacts/monitoring/report.html`, and the same page to the champion's run. A breached threshold of
the section `monitor` is reported with its fix; it is not a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpgr.config import Config
from hpgr.monitoring.champions import History, history
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.tracking import connect
from hpgr.runtime import read_json, write_text
from hpgr.templates import rendered
from hpgr.workspace import HERE, Workspace

PAGE = Path(__file__).parent / "monitor.html.j2"
SHOWN_BATCHES = 30  # newest, in figures and tables
DAY_S = 86400


@dataclass(frozen=True)
class Threshold:
    """A limit of the section `monitor`, the measured value (None if not measured) and the fix."""

    name: str
    meaning: str
    value: float | None
    limit: float
    fix: str

    @property
    def breached(self) -> bool:
        """True if the value is known and above the limit."""
        return self.value is not None and self.value > self.limit

    @property
    def state(self) -> str:
        """`breached`, `ok` or `not measured`."""
        return "not measured" if self.value is None else ("breached" if self.breached else "ok")

    def shown(self, value: float | None) -> str:
        """Format a value of this threshold: days, or a number with three decimals."""
        if value is None:
            return "–"
        return f"{value:.1f} days" if self.name.endswith("_days") else f"{value:.3f}"


@dataclass(frozen=True)
class Monitoring:
    """Result of monitoring, and its page: path, and the champion's run that holds a copy."""

    model: str
    champion: int | None
    run: str | None
    thresholds: tuple[Threshold, ...]
    report: Path

    @property
    def breaches(self) -> tuple[Threshold, ...]:
        """The thresholds that are breached."""
        return tuple(threshold for threshold in self.thresholds if threshold.breached)


@answered()
def monitor(cfg: Config, now: datetime | None = None, workspace: Workspace = HERE) -> Monitoring:
    """Judge every threshold at the time `now` (UTC, by default the present) and write the page."""
    now = now or datetime.now(UTC)
    batches = _read(workspace.accepted / "batches.json") or []
    log = _read(workspace.validated / "summary.json")
    past = history(cfg, workspace)
    thresholds = judge(cfg, batches, log, past, now, workspace)
    report = workspace.monitoring / "report.html"
    run = past.current.run_id if past.current else None
    found = Monitoring(cfg.register_.model_name, past.champion, run, thresholds, report)
    write_text(report, _page(cfg, found, batches, log, past, now))
    if run:
        connect(workspace).log_artifact(run, str(report), "monitoring")
    return found


def _read(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def judge(
    cfg: Config,
    batches: Sequence[dict[str, Any]],
    log: dict[str, Any] | None,
    past: History,
    now: datetime,
    workspace: Workspace = HERE,
) -> tuple[Threshold, ...]:
    """Return every threshold with its value at the time `now`, UTC.

    Of `batches`, oldest first, the newest counts, accepted or not. While there is none, the
    quarantine of `log` counts, the validate stage's summary. Fixes name the workspace's reports.
    """
    newest = batches[-1] if batches else {}
    refused = "" if newest.get("accepted", True) else "the batch was refused: "
    again = "bring new events with the flow refresh, or train again"
    judged = [
        (
            "max_age_days",
            "age of the champion since it was registered",
            _age_days(past, now),
            again,
        ),
        (
            "max_metric_fall",
            f"fall of the champion's {cfg.gate.metric}, as scored last, against its own before and "
            "the champions' before it",
            metric_fall(past),
            f"{again}; if an older version is better on the same queries (hpgr gate VERSION), go "
            "back to it (hpgr promote --roll-back)",
        ),
        (
            "max_volume_change",
            "factor between the newest batch's volume and that before it (events a day, rows)",
            volume_change(batches),
            f"{refused}look for a lost or doubled part of the source",
        ),
        (
            "max_item_drift",
            "drift of the items in the newest batch",
            newest.get("item_drift"),
            f"{refused}look for ids of another catalogue; if tastes moved, refresh more often",
        ),
        (
            "max_action_drift",
            "drift of the actions in the newest batch",
            newest.get("action_drift"),
            f"{refused}look for another scale or other words in the source",
        ),
        (
            "max_unknown_items",
            "share of events with items that the log did not have",
            newest.get("unknown_items"),
            f"{refused}refresh so that the vocabulary grows; check the ids of the source",
        ),
        (
            "max_quarantined",
            "share of quarantined rows " + ("in the newest batch" if batches else "in the log"),
            (newest or log or {}).get("quarantined_share"),
            f"read {workspace.validated / 'report.html'} and correct the source",
        ),
    ]
    return tuple(
        Threshold(name, meaning, value, getattr(cfg.monitor, name), fix)
        for name, meaning, value, fix in judged
    )


def volume_change(batches: Sequence[dict[str, Any]]) -> float | None:
    """Return the larger of two factors of change, up or down; None if neither is known.

    One compares events a day with the newest of the log, one rows with the batch accepted last.
    """
    if not batches:
        return None
    newest, before = batches[-1], [batch for batch in batches[:-1] if batch["accepted"]]
    pairs = [(newest.get("events_per_day"), newest.get("events_per_day_before"))]
    pairs += [(newest.get("rows"), batch.get("rows")) for batch in before[-1:]]
    return max((max(a / b, b / a) for a, b in pairs if a and b), default=None)


def metric_fall(past: History) -> float | None:
    """Return the relative fall of the champion's metric, as scored last, against the best before.

    The best before is the highest of its own figure when it was made and those of earlier champions
    that were not rolled back. Only figures of one protocol are compared, each on the test queries
    of its day; the gate's page compares two versions on the same queries. None if there is nothing
    to compare with.
    """
    now = past.current
    if now is None or now.metric is None:
        return None
    since = max(reign.since for reign in past.reigns if reign.version == now.number)
    before = [
        version.metric
        for number in {reign.version for reign in past.reigns if reign.since < since}
        if (version := past.versions.get(number)) and version.metric is not None
        if version.protocol == now.protocol and not version.rolled_back and number != now.number
    ]
    last = now.metric
    for score in past.scores:
        if score.version == now.number and score.protocol == now.protocol and score.at > now.made:
            before, last = [*before, now.metric], score.metric
    if not before or max(before) <= 0:
        return None
    return max(0.0, 1 - last / max(before))


def as_rows(found: Monitoring) -> list[dict[str, str]]:
    """Return the thresholds as a table for the terminal and Prefect's page."""
    return [
        {
            "state": threshold.state,
            "threshold": f"monitor.{threshold.name}",
            "what": threshold.meaning,
            "found": threshold.shown(threshold.value),
            "limit": threshold.shown(threshold.limit),
            "fix": threshold.fix if threshold.breached else "",
        }
        for threshold in found.thresholds
    ]


def as_text(found: Monitoring) -> str:
    """Return the result in lines, breaches with their fix."""
    lines = [
        f"monitor.{t.name} is breached: {t.meaning} is {t.shown(t.value)}, limit "
        f"{t.shown(t.limit)}; {t.fix}"
        for t in found.breaches
    ]
    count = sum(t.value is not None for t in found.thresholds)
    closing = f"{count - len(lines)} of {count} measured thresholds kept; see {found.report}"
    return "\n".join([*lines, closing])


def _age_days(past: History, now: datetime) -> float | None:
    return (now - past.current.made).total_seconds() / DAY_S if past.current else None


def _page(
    cfg: Config,
    found: Monitoring,
    batches: Sequence[dict[str, Any]],
    log: dict[str, Any] | None,
    past: History,
    now: datetime,
) -> str:
    from hpgr.monitoring import monitor_figures as figures

    shown = batches[-SHOWN_BATCHES:]
    images = {
        "volume": figures.embed(figures.volume(shown)) if shown else None,
        "drift": figures.embed(figures.drift(shown, cfg.monitor)) if shown else None,
        "metrics": figures.embed(figures.metrics(past, cfg.gate.metric, now))
        if any(version.metric is not None for version in past.versions.values())
        else None,
    }
    return rendered(
        PAGE,
        {
            "day": lambda value: f"{_time(value):%Y-%m-%d}",
            "minute": lambda value: f"{_time(value):%Y-%m-%d %H:%M}",
            "share": lambda value: "–" if value is None else f"{value:.2%}",
            "number": lambda value: "–" if value is None else f"{value:.3f}",
            "count": lambda value: "–" if value is None else f"{value:,.0f}",
        },
        found=found,
        champion=past.current,
        age_days=_age_days(past, now),
        metric=cfg.gate.metric,
        batches=shown[::-1],
        hidden=len(batches) - len(shown),
        log=log,
        reigns=past.reigns[::-1],
        versions=past.versions,
        images=images,
        now=now,
    )


def _time(value: Any) -> datetime:
    """Convert seconds since 1970, ISO text or a datetime into a datetime."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    return datetime.fromisoformat(value) if isinstance(value, str) else value
