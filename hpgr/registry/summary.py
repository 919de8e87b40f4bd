"""What the last evaluation says, for pages and programs: tables and the headline figures.

Reads `artifacts/evaluation/metrics.json`: protocol -> model -> metric -> value, the judged model
first, and `counts` beside the models; and `verdict.json`, where the model stands on validation.
Writes nothing.
"""

from __future__ import annotations

from rich.table import Table

from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE, Workspace

Rows = dict[str, dict[str, float]]


def protocols(workspace: Workspace = HERE) -> dict[str, Rows]:
    """Protocol -> model -> metric -> value of the last evaluation.

    Raises:
        UserError: there was none.
    """
    metrics = workspace.evaluation / "metrics.json"
    if not metrics.is_file():
        raise UserError(f"{metrics} not found: run `dvc repro` (or `hpgr evaluate`) first")
    found = read_json(metrics)
    return {
        name: {model: row for model, row in rows.items() if model != "counts"}
        for name, rows in found.items()
    }


def headline(workspace: Workspace = HERE) -> dict[str, dict[str, float]]:
    """Protocol -> metric -> value of the judged model."""
    return {name: next(iter(rows.values())) for name, rows in protocols(workspace).items()}


def verdict(workspace: Workspace = HERE) -> tuple[str | None, str]:
    """The model to serve in place of the judged one, if any, and the result in one sentence.

    Where validation asked nothing, or the evaluation is of a time before verdicts, None and "".
    """
    verdict = workspace.evaluation / "verdict.json"
    if not verdict.is_file():
        return None, ""
    found = read_json(verdict)
    return found["serve_instead"], found["sentence"]


def markdown_tables(workspace: Workspace = HERE) -> str:
    """Every protocol's table in Markdown."""
    parts = []
    for name, rows in protocols(workspace).items():
        columns = _columns(rows)
        lines = [
            f"### {name.replace('_', ' ')}",
            "",
            "| model | " + " | ".join(columns) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for model, row in rows.items():
            lines.append(f"| {model} | " + " | ".join(_cells(row, columns)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def terminal_tables(workspace: Workspace = HERE) -> list[Table]:
    """Every protocol's table for the terminal, the judged model in bold."""
    tables = []
    for name, rows in protocols(workspace).items():
        table = Table(title=name.replace("_", " "))
        table.add_column("model", no_wrap=True)
        columns = _headline_columns(rows)
        for column in columns:
            table.add_column(column, justify="right")
        for number, (model, row) in enumerate(rows.items()):
            table.add_row(model, *_cells(row, columns), style="bold" if number == 0 else None)
        tables.append(table)
    return tables


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(metric for row in rows.values() for metric in row))


def _headline_columns(rows: Rows) -> list[str]:
    """Those that fit 80 columns: not the deeper NDCG, not what is only context."""
    columns = _columns(rows)
    gains = [column for column in columns if column.startswith("ndcg")]
    left_out = {*gains[1:], *(c for c in columns if c.startswith(("coverage", "head_share")))}
    return [column for column in columns if column not in left_out]


def _cells(row: dict[str, float], columns: list[str]) -> list[str]:
    return [f"{row[column]:.4f}" if column in row else "–" for column in columns]
