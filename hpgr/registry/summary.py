"""Tables and headline figures of the last evaluation, for pages and programs.

Reads `artifacts/evaluation/metrics.json`: protocol -> model -> metric -> value, the judged model
first, and `counts` beside the models; and `verdict.json`, the comparison with baselines on
validation. Writes nothing.
"""

from __future__ import annotations

from rich.table import Table

from hpgr.evaluation.headline import Rows, markdown_table, protocol_label, terminal_table
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE, Workspace


def protocols(workspace: Workspace = HERE) -> dict[str, Rows]:
    """Read the last evaluation: protocol -> model -> metric -> value.

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


def headline(workspace: Workspace = HERE) -> Rows:
    """Return protocol -> metric -> value of the judged model."""
    return {name: next(iter(rows.values())) for name, rows in protocols(workspace).items()}


def verdict(workspace: Workspace = HERE) -> tuple[str | None, str]:
    """Return the baseline to serve instead of the model, or None, and the result in one sentence.

    None and "" if validation has no queries, or the evaluation is older than verdicts.
    """
    file = workspace.evaluation / "verdict.json"
    if not file.is_file():
        return None, ""
    found = read_json(file)
    return found["serve_instead"], found["sentence"]


def markdown_tables(workspace: Workspace = HERE) -> str:
    """Return every protocol's table in Markdown."""
    return "\n\n".join(
        f"### {protocol_label(name)}\n\n{markdown_table(rows)}"
        for name, rows in protocols(workspace).items()
    )


def terminal_tables(workspace: Workspace = HERE) -> list[Table]:
    """Return every protocol's table for the terminal, the judged model in bold."""
    return [
        terminal_table(protocol_label(name), rows) for name, rows in protocols(workspace).items()
    ]
