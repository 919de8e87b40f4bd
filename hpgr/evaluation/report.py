"""One self-contained HTML page about an evaluation: no script, no font, no image from elsewhere.

Takes the results of `metric_tables` and `examples`, and the training curves. Writes `report.html`
and, below `figures/`, the same figures as PNG files.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hpgr.evaluation import figures
from hpgr.evaluation.examples import Example
from hpgr.evaluation.headline import (
    label,
    metric_names,
    model_of,
    number,
    protocol_label,
    signed,
)
from hpgr.evaluation.mechanism import CANDIDATES, EXPLAINED, LEAST_EVENTS, NEWEST, Mechanism
from hpgr.evaluation.metric_tables import Tables
from hpgr.evaluation.model_protocols import REASONS
from hpgr.evaluation.rivals import Standing
from hpgr.metrics import best_value, metric_label
from hpgr.templates import rendered

PAGE = Path(__file__).parent / "report.html.j2"
PROTOCOLS = {
    "R1": "The last event of every user is hidden and the whole catalogue is ranked for it, given "
    "all earlier events (the validation event too). The field's public protocol; it is not "
    "leak-free over users, because training events of others may be later than the request.",
    "R2": "Every event of the last stretch of time is hidden in turn, except a user's very first, "
    "and the whole catalogue is ranked for it given all earlier events of its user. The models "
    "were trained on what came before.",
    "B1": "Every session that begins in the last stretch of time is hidden whole, and the whole "
    "catalogue is ranked for its items, given all that its user did before it. What the user had "
    "before competes. NDCG is divided by what the best list of as many places reaches.",
    "K1": "Every event of the last stretch of time is a candidate with its label. Its history "
    "holds the events strictly before its second; candidates of one user and second are scored "
    "together.",
    "I1": "Every list of items that was shown in the last stretch of time is put in order, given "
    "the events of its user strictly before its second: what was taken should stand above what was "
    "passed over. An item without an earlier event in the log is unknown, to every model the same.",
}
OTHER_WAY = {  # by what stands behind the protocol's name, see `metric_tables.Tables`
    "new_items": (
        "New items alone",
        "The same baskets, with what the user had before taken out of the answers and of what is "
        "hidden. Baskets without a new item are left out.",
    ),
    "seen_kept": (
        "Seen items kept",
        "The same queries, with what the user had before left among the answers, as "
        "evaluate.remove_history: false would serve them.",
    ),
    "seen_removed": (
        "Seen items removed",
        "The same queries, with what the user had before taken out of the answers, as "
        "evaluate.remove_history: true would serve them. A repeat is a miss.",
    ),
}
MEANINGS = {
    "hr": "share of queries whose hidden item is among the first k places",
    "recall": "share of the hidden items that are among the first k places",
    "ndcg": "the same, but a hit counts 1 / log2(place + 1): higher places are worth more",
    "mrr": "mean of 1 / place of the hidden item",
    "coverage": "share of the catalogue that was recommended to at least one query",
    "head_share": "share of the recommended places taken by the most popular items, "
    "those that together hold a third of the training events",
    "auc": "chance that a liked candidate scores above a disliked one; a coin reaches .5",
    "gauc": "AUC inside each user who has both kinds, averaged by their number of candidates",
    "log_loss": "surprise at the labels in nats; lower is better",
    "calibration_error": "mean distance of predicted and observed share of likes; lower is better",
}
# Of I1, where these names mean something else.
MEANINGS_IN_LISTS = MEANINGS | {
    "gauc": "AUC inside each list, averaged by the number of its items",
    "ndcg": "gain of the order inside a list: a taken item counts 1 / log2(place + 1), as a share "
    "of the best order's",
    "mrr": "mean of 1 / place of the first taken item of a list",
    "auc": "chance that a taken item scores above one passed over, of all lists together",
}
LOOKS = (  # name, figure of the anchors, the one beside it, decimals, what that one is of
    (
        "share of anchors that two of a user's best items have in common",
        "overlap_top", "overlap_chance", 3, "random events",
    ),
    (
        "the same of two random items",
        "overlap_random", "overlap_chance", 3, "random events",
    ),
    (
        "different anchors of a user's best items together",
        "distinct_top", "distinct_chance", 1, "random events",
    ),
    (
        "cosine of an anchor with its item",
        "similarity_anchors", "similarity_random", 3, "random events",
    ),
    (
        f"share of anchors among the newest {NEWEST} events",
        "newest_share", "newest_share_of_events", 3, "all visible events",
    ),
)  # fmt: skip
DESCRIPTIVE = ("coverage", "head_share")  # no winner: more is not better


def write(
    folder: Path,
    *,
    dataset: str,
    tables: Sequence[Tables],
    curves: dict[str, pd.DataFrame],
    endings: dict[str, list[str]],
    standing: Standing | None,
    mechanism: Mechanism | None,
    cards: Sequence[Example],
    notes: Sequence[str],
) -> None:
    """Write `figures/*.png` and `report.html` below `folder`.

    Args:
        folder: an existing folder.
        dataset: name of the log.
        tables: one a protocol.
        curves: training curves by stage.
        endings: how each stage's training ended, in sentences; all but the first are warnings.
        standing: the judged model among its rivals on validation.
        mechanism: what the anchors do; None leaves the section out.
        cards: users to show.
        notes: sentences about the run: choices, omissions.
    """
    (folder / "figures").mkdir()
    sections = [
        _section(folder, table) | {"others": _others(table, tables)}
        for table in tables
        if table.protocol in PROTOCOLS
    ]
    stages = []
    for stage, curve in curves.items():
        if (figure := figures.training_curves(curve)) is not None:
            image = _embed(folder, f"training_{stage}", figure)
            stages.append((stage, endings.get(stage, []), image))
    html = rendered(
        PAGE,
        {"label": label, "metric": metric_label, "number": number},
        dataset=dataset,
        main=tables[0].main,
        sections=sections,
        stages=stages,
        standing=standing,
        anchors=mechanism and _anchors(mechanism),
        cards=cards,
        notes=notes,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def _section(folder: Path, table: Tables) -> dict[str, Any]:
    results = _results(table)
    names = results["metrics"]
    palette = figures.colours(results["models"], table.main)
    meanings = MEANINGS_IN_LISTS if table.protocol == "I1" else MEANINGS
    at_k = [names[0], f"ndcg@{names[0].partition('@')[2]}"]
    headline = {"K1": ["auc", "gauc"], "I1": names[:2]}.get(table.protocol, at_k)
    headline = [m for m in headline if m in names]
    differences = table.plots["differences"]
    images: dict[str, str] = {}

    def draw(key: str, figure: Any) -> None:
        images[key] = _embed(folder, f"{table.protocol}_{key}", figure)

    if len(differences):
        draw("differences", figures.difference_bars(differences, headline))
    if "hr_at_k" in table.plots:
        draw("hr_at_k", figures.hit_rate_curve(table.plots["hr_at_k"], palette))
        draw("popularity", figures.popularity_bars(table.plots["popularity"]))
    if "calibration" in table.plots:
        draw("calibration", figures.calibration_curve(table.plots["calibration"], palette))
    return {
        "protocol": table.protocol,
        "name": protocol_label(table.protocol),
        "remark": table.remark,
        "explained": PROTOCOLS[table.protocol],
        "counts": {k.replace("_", " "): f"{v:,}" for k, v in table.counts.items()},
        **results,
        "meanings": {
            metric_label(m.split("@")[0]) + ("@k" if "@" in m else ""): meanings[m.split("@")[0]]
            for m in names
        },
        "headline": headline,
        "verdict": verdict(table, headline[0]),
        "differences": _difference_rows(differences, headline),
        "slices": _slice_rows(table, headline[0]),
        "sliced": "candidates" if table.protocol == "K1" else "queries",
        "images": images,
    }


def _others(table: Tables, tables: Sequence[Tables]) -> list[dict[str, Any]]:
    """The same queries by the other rule for items seen before, where they were judged so too."""
    return [
        {"title": title, "explained": explained, **_results(other)}
        for way, (title, explained) in OTHER_WAY.items()
        for other in tables
        if other.protocol == f"{table.protocol}_{way}"
    ]


def _results(table: Tables) -> dict[str, Any]:
    """Content of the table of models and metrics."""
    names = metric_names(table.metrics)
    return {
        "models": list(table.metrics),
        "main": table.main,
        "metrics": names,
        "values": table.metrics,
        "interval": {
            (row.model, row.metric): (row.low, row.high)
            for row in table.plots["intervals"].itertuples()
        },
        "best": {
            m: best_value(m, (row[m] for row in table.metrics.values() if m in row))
            for m in names
            if m.split("@")[0] not in DESCRIPTIVE
        },
    }


def verdict(table: Tables, metric: str) -> str:
    """The result in one sentence: the judged model against the best baseline."""
    simple = [m for m in table.metrics if model_of(m) != table.main]
    rival = max(simple, key=lambda m: table.metrics[m][metric])
    found = table.plots["differences"]
    row = found[(found["against"] == rival) & (found["metric"] == metric)].iloc[0]
    if row["low"] > 0:
        outcome = "beats"
    elif row["high"] < 0:
        outcome = "does not reach"
    else:
        outcome = "cannot be distinguished from"
    return (
        f"{label(table.main)} {outcome} the best baseline, {label(rival)}: "
        f"{metric_label(metric)} {table.metrics[table.main][metric]:.4f} against "
        f"{table.metrics[rival][metric]:.4f}, difference {signed(row['difference'])} "
        f"(95 % interval {signed(row['low'])} to {signed(row['high'])}, p {_p(row['p'])})."
    )


def _p(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _difference_rows(differences: pd.DataFrame, headline: list[str]) -> dict[str, dict[str, Any]]:
    """By the model compared with, then by metric: difference, low, high and p as text."""
    rows: dict[str, dict[str, Any]] = {}
    for row in differences[differences["metric"].isin(headline)].itertuples():
        rows.setdefault(str(row.against), {})[str(row.metric)] = {
            "difference": signed(row.difference),
            "interval": f"{signed(row.low)} to {signed(row.high)}",
            "p": _p(row.p),
        }
    return rows


def _anchors(found: Mechanism) -> dict[str, Any]:
    """Content of the section about the anchors."""
    interventions = {
        metric: (
            value,
            [
                (
                    found.values[mode][metric],
                    signed(row[metric].value),
                    f"{signed(row[metric].low)} to {signed(row[metric].high)}",
                )
                for mode, row in found.drops.items()
            ],
        )
        for metric, value in found.values["chosen"].items()
    }
    looks: list[tuple[str, ...]] = []  # name, of the anchors, of other events, which these are
    for name, own, other, digits, than in LOOKS if found.choice else ():
        values = (f"{found.choice[key]:.{digits}f}" for key in (own, other))
        looks.append((name, *values, than))
    if found.deletion:
        gone = (f"{found.deletion[key].value:.3f}" for key in ("anchors", "random"))
        looks.append((f"move of log odds without the {REASONS} heaviest", *gone, "random events"))
    return {
        "sentence": found.sentence,
        "deletion": found.deletion_sentence,
        "interventions": interventions,
        "looks": looks,
        "counts": {
            "queries": found.queries, "candidates": found.candidates, "users": found.users,
        },
        "compared": CANDIDATES,
        "explained": EXPLAINED,
        "least_events": LEAST_EVENTS,
    }  # fmt: skip


def _slice_rows(table: Tables, metric: str) -> list[dict[str, Any]]:
    """Rows of the slice table: name, queries, and per model its value with a shade 0..1.

    A value that is not defined, as AUC of one label, is None.
    """
    rows = []
    for name, part in table.plots["slices"].groupby("slice", sort=False):
        found = part[metric].astype(object).where(part[metric].notna(), None)
        values = dict(zip(part["model"], found, strict=True))
        top = max((v for v in values.values() if v is not None), default=0.0)
        rows.append(
            {
                "slice": name,
                "queries": int(part["queries"].iloc[0]),
                "values": values,
                "shade": {m: (v or 0.0) / (top or 1.0) for m, v in values.items()},
                "best": top,
            }
        )
    return rows


def _embed(folder: Path, name: str, figure: Any) -> str:
    target = folder / "figures" / f"{name}.png"
    figures.save(figure, target)
    return "data:image/png;base64," + base64.b64encode(target.read_bytes()).decode("ascii")
