"""Normal drift: figures of a log in time order beside those of a corrupted batch.

    hpgr validate && python benchmarks/drift.py NAME

At random places in the second half of the validated log the next events are taken as a batch and
compared with the newest before them, as `hpgr.intake.drift.compare` does: as they are, with item
ids exchanged at random, and with the actions' order turned round. The limits of `refresh` come from
here. Reads artifacts/validated/events.parquet; writes benchmarks/results/drift-NAME.json
and prints the rows of the table in docs/refresh.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from hpgr.config import load_config
from hpgr.intake.drift import drift
from hpgr.workspace import HERE

SIZES = (10_000, 1_000, 300)
PLACES = 40
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the log, for the results file")
    name = parser.parse_args().name
    events = pd.read_parquet(HERE.validated / "events.parquet").sort_values(
        ["timestamp", "row"], kind="stable"
    )
    item = pd.factorize(events["item_id"])[0]
    action = pd.factorize(events["action"], sort=True)[0]
    reference = load_config().refresh.reference_events
    random = np.random.default_rng(SEED)
    results = {str(size): figures(item, action, size, reference, random) for size in SIZES}
    record = {
        "command": f"python benchmarks/drift.py {name}",
        "events": len(events),
        "places": PLACES,
        "reference_events": reference,
        "seed": SEED,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "results": results,
    }
    target = Path(__file__).parent / "results" / f"drift-{name}.json"
    target.write_text(json.dumps(record, indent=2) + "\n")
    for size in SIZES:
        cells = [
            shown(results[str(size)][kind]) for kind in ("items", "shuffled", "actions", "inverted")
        ]
        print(f"| {name} | {size:,} | {' | '.join(cells)} |")


def figures(
    item: np.ndarray, action: np.ndarray, size: int, reference: int, random: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Median, least and largest drift over the places, by kind of batch."""
    found: dict[str, list[float]] = {k: [] for k in ("items", "shuffled", "actions", "inverted")}
    for place in random.integers(len(item) // 2, len(item) - size, PLACES):
        batch, newest = (
            slice(place, place + size),
            slice(max(0, place - max(size, reference)), place),
        )
        known = np.zeros(item.max() + 1, dtype=bool)
        known[item[:place]] = True
        names = np.flatnonzero(known)
        exchanged = np.arange(len(known))
        exchanged[names] = random.permutation(names)
        there = np.bincount(item[newest], minlength=len(known))
        mine = item[batch][known[item[batch]]]
        found["items"].append(both(mine, there))
        found["shuffled"].append(both(exchanged[mine], there))
        acted = np.bincount(action[newest], minlength=action.max() + 1)
        found["actions"].append(both(action[batch], acted))
        found["inverted"].append(both(action.max() - action[batch], acted))
    return {
        kind: {"median": float(np.median(v)), "least": min(v), "largest": max(v)}
        for kind, v in found.items()
    }


def both(batch: np.ndarray, there: np.ndarray) -> float:
    """Drift of a batch's events against counts of the newest, kinds in neither left out."""
    here = np.bincount(batch, minlength=len(there))
    seen = here + there > 0
    return drift(here[seen], there[seen])


def shown(figure: dict[str, float]) -> str:
    return f"{figure['median']:.3f} ({figure['least']:.3f} to {figure['largest']:.3f})"


if __name__ == "__main__":
    main()
