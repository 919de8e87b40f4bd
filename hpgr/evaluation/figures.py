"""The report's figures, drawn with matplotlib's Agg from the long tables of `metric_tables`.

Every function returns a figure; `save` writes it as PNG. The judged model is drawn in one strong
colour, baselines in quiet ones.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hpgr.evaluation.headline import THEN_RANK, label, model_of
from hpgr.metrics import metric_label

MAIN, SECOND = "#c8553d", "#e0a458"
QUIET = ("#7b8794", "#a487b0", "#1f5f8b", "#5a9e7c")
INK, GRID = "#26303a", "#e4e7ea"
CLASS_COLOURS = {"head": "#23597b", "mid": "#6ba3b8", "tail": "#bcd7de", "cold": "#d9d9d9"}


def colours(models: list[str], main: str) -> dict[str, str]:
    """A colour a model; the judged one's further rows share its colour."""
    palette: dict[str, str] = {}
    quiet = 0
    for model in models:
        if model_of(model) == main:
            palette[model] = MAIN
        else:
            palette[model] = QUIET[quiet % len(QUIET)]
            quiet += 1
    return palette


def save(figure: Figure, target: Path) -> None:
    """Write `figure` as PNG without time or version stamps: same numbers, same bytes."""
    figure.savefig(target, dpi=150, metadata={"Software": None})


def canvas(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure in inches with `panels` axes side by side, off any global state."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for ax in axes:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color("#9aa4ad")
        ax.tick_params(colors=INK, labelsize=9, length=3)
        ax.grid(True, color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def hit_rate_curve(table: pd.DataFrame, palette: dict[str, str]) -> Figure:
    """HR@k against k on a logarithmic axis: the distribution of the hidden items' ranks."""
    figure, (ax,) = canvas(5.6, 3.9)
    for model, part in table.groupby("model", sort=False):
        strong = palette[model] == MAIN
        ax.plot(
            part["k"],
            part["hr"],
            color=palette[model],
            linewidth=2.4 if strong else 1.6,
            linestyle="--" if str(model).endswith(THEN_RANK) else "-",
            label=label(str(model)),
            zorder=3 if strong else 2,
        )
    ax.set_xscale("log")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= table["k"].max()]
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.minorticks_off()
    ax.set_xlim(1, table["k"].max())
    ax.set_ylim(0)
    ax.set_xlabel("k, places looked at", color=INK)
    ax.set_ylabel("HR@k", color=INK)
    ax.legend(frameon=False, fontsize=9)
    return figure


def popularity_bars(table: pd.DataFrame) -> Figure:
    """Division of the recommended places among popular and rare items, one bar a model."""
    wide = table.pivot(index="model", columns="popularity", values="share")
    wide = wide.loc[list(dict.fromkeys(table["model"]))][::-1]
    figure, (ax,) = canvas(5.4, 0.8 + 0.36 * len(wide))
    left = pd.Series(0.0, index=wide.index)
    for name in [c for c in CLASS_COLOURS if c in wide.columns]:
        share = wide[name]
        ax.barh(
            [label(m) for m in wide.index],
            share,
            left=left,
            color=CLASS_COLOURS[name],
            label=name,
            height=0.66,
        )
        for i, (value, start) in enumerate(zip(share, left, strict=True)):
            if value >= 0.06:
                ax.text(
                    start + value / 2,
                    i,
                    f"{value:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if name == "head" else INK,
                )
        left = left + share
    ax.set_xlim(0, 1)
    ax.set_xticks([])
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)
    ax.legend(frameon=False, fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    return figure


def difference_bars(table: pd.DataFrame, metrics: list[str]) -> Figure:
    """Judged model minus each other with its 95 % interval; right of zero is better for it."""
    figure, axes = canvas(9.0, 1.1 + 0.36 * table["against"].nunique(), panels=len(metrics))
    for ax, metric in zip(axes, metrics, strict=True):
        part = table[table["metric"] == metric][::-1]
        for i, row in enumerate(part.itertuples()):
            clear = row.low > 0 or row.high < 0
            colour = (MAIN if row.difference > 0 else QUIET[2]) if clear else QUIET[0]
            ax.plot([row.low, row.high], [i, i], color=colour, linewidth=2.2)
            ax.plot(row.difference, i, "o", color=colour, markersize=5.5)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(part)), [label(m) for m in part["against"]])
        ax.set_ylim(-0.6, len(part) - 0.4)
        ax.locator_params(axis="x", nbins=5)  # more labels than these run into each other
        ax.set_title(f"{metric_label(metric)}, difference", fontsize=10, color=INK)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    return figure


def calibration_curve(table: pd.DataFrame, palette: dict[str, str]) -> Figure:
    """Observed against predicted positive rate; the size of a point is its share of candidates."""
    figure, (ax,) = canvas(5.4, 4.6)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
    for model, part in table.groupby("model", sort=False):
        size = 12 + 260 * part["candidates"] / part["candidates"].sum()
        x, y, colour = part["predicted"], part["observed"], palette[model]
        ax.plot(x, y, color=colour, linewidth=1.4, zorder=2, label=label(str(model)))
        ax.scatter(x, y, s=size, color=colour, zorder=3)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("predicted", color=INK)
    ax.set_ylabel("observed", color=INK)
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def training_curves(curves: pd.DataFrame) -> Figure | None:
    """Losses left, everything else right, against steps; None where nothing can be drawn."""
    axis = "step" if "step" in curves else curves.columns[0]
    numeric = [
        c
        for c in curves.select_dtypes("number").columns
        if c not in ("step", "epoch", axis) and not _is_bookkeeping(c) and curves[c].notna().any()
    ]
    panels = [
        p
        for p in ([c for c in numeric if "loss" in c], [c for c in numeric if "loss" not in c])
        if p
    ]
    if not panels:
        return None
    figure, axes = canvas(9.0, 3.2, panels=len(panels))
    for ax, columns in zip(axes, panels, strict=True):
        for column, colour in zip(columns, (MAIN, *QUIET, SECOND) * len(columns), strict=False):
            part = curves[[axis, column]].dropna()
            ax.plot(
                part[axis],
                part[column],
                color=colour,
                linewidth=1.8,
                marker="o" if len(part) < 40 else None,
                markersize=3.5,
                label=label(column),
            )
        ax.set_xlabel(axis, color=INK)
        ax.legend(frameon=False, fontsize=9)
    return figure


def _is_bookkeeping(column: str) -> bool:
    return any(
        word in column for word in ("lr", "learning_rate", "second", "time", "per_s", "grad")
    )
