"""The simple models of likes on all validation candidates, with the seconds that each takes.

    python benchmarks/ranking_baselines.py [FOLDER] [--out FILE]

Reads params.yaml here and artifacts/sessions/ below FOLDER, by default here. Prints a Markdown
table and the choices made. The test split plays no part.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.results_file import write_measured
from hpgr.config import load_config
from hpgr.data.log import VALIDATION
from hpgr.evaluation import protocols
from hpgr.evaluation.headline import markdown_table
from hpgr.evaluation.judged import open_log
from hpgr.evaluation.ranking import ranking_metrics
from hpgr.evaluation.simple_rankers import SimpleRankers
from hpgr.workspace import Workspace


def main() -> None:
    """Fit, ask and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    log = open_log(Workspace(asked.folder))
    settings = load_config(Path("params.yaml")).evaluate
    simple = SimpleRankers(log, settings)
    seconds = {}
    for name in ("fold_in", "trees"):
        start = time.process_time()
        getattr(simple, name)
        seconds[name] = time.process_time() - start
    candidates = protocols.labelled(log, VALIDATION)
    start = time.process_time()
    found = simple.probabilities(candidates)
    seconds["all predictions"] = time.process_time() - start
    figures = {n: ranking_metrics(candidates, p, settings) for n, p in found.items()}
    if asked.out:
        write_measured(
            asked.out, "ranking_baselines.py", figures, seconds=seconds, notes=simple.notes
        )
    print(
        markdown_table(figures),
        *simple.notes,
        "Processor seconds: " + ", ".join(f"{n} {s:.0f}" for n, s in seconds.items()),
        sep="\n",
    )


if __name__ == "__main__":
    main()
