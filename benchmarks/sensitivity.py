"""Models that differ from the whole in one number, for `model_figures`.

Reads benchmarks/params.yaml, params.yaml, profiles/ and benchmarks/results/*.json, writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import ablations
from benchmarks.matrix import Cell, Matrix, flat, read_matrix, settings
from benchmarks.results_file import split_of

Points = dict[float, ablations.Runs]  # value of the setting -> results by seed


def varied() -> Iterator[tuple[str, str, str, float, Points]]:
    """Protocol, data set, setting, its value in the whole, and the results by value, ascending.

    The whole's own results are among them; a model counts where nothing else differs.
    """
    matrix, known = read_matrix(), {}
    for protocol, dataset, name_of_whole, whole, runs in ablations.comparisons():
        if dataset not in matrix.datasets:
            continue
        of_whole = Cell(dataset, split_of(protocol), name_of_whole, "0")
        found: dict[tuple[str, float], Points] = {}
        for model, own in runs.items():
            cell = of_whole._replace(model=model)
            if cell not in known:  # as under another protocol of the same split
                known[cell] = single(of_whole, cell, matrix)
            if changed := known[cell]:
                name, before, after = changed
                found.setdefault((name, before), {before: whole})[after] = own
        for (name, before), points in found.items():
            yield protocol, dataset, name, before, dict(sorted(points.items()))


def single(whole: Cell, other: Cell, matrix: Matrix) -> tuple[str, float, float] | None:
    """Setting and both values where two models differ in one number and nothing else."""
    entries = [matrix.models[cell.model] for cell in (whole, other)]
    if entries[0].get(whole.split) != entries[1].get(whole.split):
        return None
    before, after = (dict(flat(entry.get("set", {}))) for entry in entries)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if len(names) != 1 or type(after.get(names[0], 0)) not in (int, float):
        return None
    values = [dict(flat(settings(cell, matrix)))[names[0]] for cell in (whole, other)]
    if not all(type(value) in (int, float) for value in values):
        return None
    return names[0], float(values[0]), float(values[1])
