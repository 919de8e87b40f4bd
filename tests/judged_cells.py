"""Judged cells of the benchmark on a small log, with random answers, below the current folder."""

import json

import numpy as np
import pandas as pd
from evaluation_log import random_log, write_arrays

from benchmarks.matrix import Cell
from hpgr import metrics
from hpgr.data.log import TEST
from hpgr.evaluation import metric_tables, protocols
from hpgr.evaluation.answer_tables import candidate_table, query_table
from hpgr.evaluation.retrieval import Retrieved
from hpgr.metrics import retrieval_metrics
from hpgr.runtime import write_json

LOG = random_log(1, split="global-time")
CURVE = "step,loss,validation_ndcg@10,validation_auc\n50.0,2.5,0.1,0.612345678\n100.0,2.4,0.2,\n"


def queries():
    return protocols.next_item(LOG, TEST)


def candidates():
    return protocols.labelled(LOG, TEST)


def judged_cell(name, seed, *, network="net", baselines=("ease",)):
    """A cell whose network and baselines answer at random; returns it with its slices."""
    cell = Cell("tiny", "global-time", name, str(seed))
    rng = np.random.default_rng([seed, *name.encode()])
    files, asked, ranked = cell.workspace, queries(), candidates()
    if not files.arrays.is_dir():
        write_arrays(LOG, files.arrays)
    for folder in (files.evaluation, files.finetuned, cell.results):
        folder.mkdir(parents=True)
    files.params.write_text("evaluate: {cutoffs: [10, 50, 200]}\n")
    write_json(files.finetuned / "config.json", {"model": {"name": network}})
    (files.finetuned / "curves.csv").write_text(CURVE)
    fixed = np.random.default_rng(7)  # baselines answer the same in every cell
    models = {network: rng, **dict.fromkeys(baselines, fixed)}
    top = np.empty((len(asked), 0), dtype=np.int64)
    ranks = {m: Retrieved(r.integers(1, 31, len(asked)), top, top) for m, r in models.items()}
    chances = {m: r.random(len(ranked.label)).astype(np.float32) for m, r in models.items()}
    query_table(asked, ranks).to_parquet(files.evaluation / "queries.parquet")
    candidate_table(ranked, chances).to_parquet(files.evaluation / "candidates.parquet")
    per_query = {m: retrieval_metrics(o.ranks, [10, 50, 200]) for m, o in ranks.items()}
    found = {
        "R2": {n: {m: round(v.mean(), 6) for m, v in q.items()} for n, q in per_query.items()},
        "K1": {
            model: {
                "auc": round(metrics.auc(ranked.label, p), 6),
                "gauc": round(metrics.gauc(ranked.candidate_user(), ranked.label, p), 6),
            }
            for model, p in chances.items()
        },
    }
    write_json(files.evaluation / "metrics.json", found)
    for protocol, rows in found.items():
        others = {model: row for model, row in rows.items() if model != network}
        record = {
            "protocol": protocol, "dataset": "tiny", "split": "global-time", "model": name,
            "seed": seed, "metrics": rows[network], "same_queries": others, "machine": "M",
            "date": "D", "commit": "C", "best_step": 50, "steps": 100, "num_params": 1000,
            "train_seconds": 1.0, "events_per_second": 2.0,
        }  # fmt: skip
        path = cell.results / f"{protocol}-tiny-{name}-{seed}.json"
        path.write_text(json.dumps(record))
    by_slice = {
        "R2": metric_tables.query_slices(LOG, asked, per_query, 10),
        "K1": metric_tables.candidate_slices(LOG, ranked, chances),
    }
    return cell, pd.concat(by_slice, names=["protocol"]).reset_index("protocol")
