"""The headline table of a protocol: models down, metrics across, for terminal and Markdown.

Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from hpgr.metrics import metric_label

Rows = Mapping[str, Mapping[str, float]]  # model -> metric -> value


PROTOCOLS = {
    "R1": "Next item, leave-one-out",
    "R2": "Next item, temporal",
    "B1": "Next basket, temporal",
    "K1": "CTR, temporal",
    "I1": "Ranking inside an impression",
}
LABELS = {
    "fold_in": "linear-Gaussian fold-in",
    "boosted_trees": "gradient-boosted trees",
    "position": "position as shown",
}
# Behind the name of a model, of its further rows: in the order that is served, by the score of
# retrieval where it also ranks, and with the places of shown items.
THEN_RANK, NEXT_ITEM, WITH_POSITION = "_then_rank", "_next_item", "_with_position"


def label(model: str) -> str:
    """A model's name as a person reads it."""
    stem = model.removesuffix(WITH_POSITION)
    return LABELS.get(stem, stem.replace("_", " ")) + model[len(stem) :].replace("_", " ")


def model_of(row: str) -> str:
    """The name of the model that a row of a table is about."""
    return row.removesuffix(THEN_RANK).removesuffix(NEXT_ITEM).removesuffix(WITH_POSITION)


def protocol_label(protocol: str) -> str:
    """A protocol's name spelled out, its short name behind: Next item, temporal (R2), seen kept."""
    short, _, rule = protocol.partition("_")
    return f"{PROTOCOLS.get(short, short)} ({short})" + (f", {label(rule)}" if rule else "")


def number(value: float | None) -> str:
    """A metric's value as every table shows it."""
    return "–" if value is None else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference of two values."""
    return f"{value:+.4f}".replace("-", "−")


def metric_names(rows: Rows) -> list[str]:
    """Every metric that a model has, in their order."""
    return list(dict.fromkeys(metric for row in rows.values() for metric in row))


def terminal_table(title: str, rows: Rows) -> Table:
    """For the terminal, the first model in bold; metrics that 80 columns do not hold are left out.

    Those are the deeper NDCG, and coverage and head share, which are only context.
    """
    names = metric_names(rows)
    gains = [name for name in names if name.startswith("ndcg")]
    wide = {*gains[1:], *(name for name in names if name.startswith(("coverage", "head_share")))}
    names = [name for name in names if name not in wide]
    table = Table(title=title)
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(metric_label(name), justify="right")
    for place, (model, row) in enumerate(rows.items()):
        style = None if place else "bold"
        table.add_row(label(model), *_cells(row, names), style=style)
    return table


def markdown_table(rows: Rows) -> str:
    """For a card or page, with every metric."""
    names = metric_names(rows)
    lines = [
        f"| model | {' | '.join(map(metric_label, names))} |",
        "|---|" + "---:|" * len(names),
        *(f"| {label(model)} | {' | '.join(_cells(row, names))} |" for model, row in rows.items()),
    ]
    return "\n".join(lines)


def _cells(row: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [number(row.get(name)) for name in names]
