"""Next basket (B1): every model ranks the whole catalogue for the items of users' next sessions.

For logs whose sessions are baskets or invoices: their items share a timestamp, so the order inside
says nothing, and all are asked for at once. What a user had before competes, whatever the rule for
items seen before; a second table ranks new items alone, those that the user never had. Baselines
read all that happened before, a network the newest `max_history` events. Baskets go in blocks
through every model, so that memory holds the scores of one block only. Writes `baskets.parquet`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from hpgr.basket_metrics import basket_metrics
from hpgr.config import Evaluate
from hpgr.data.baskets import Baskets, next_basket
from hpgr.data.log import TEST, VALIDATION, EventLog
from hpgr.evaluation.baselines import Ease, PersonalFrequency, Transitions, train_counts
from hpgr.evaluation.headline import label, protocol_label
from hpgr.evaluation.metric_tables import Replicates, Tables, basket_tables
from hpgr.evaluation.model_protocols import Retriever, WindowReader
from hpgr.evaluation.protocols import sampled
from hpgr.evaluation.retrieval import blocks, shared_scores
from hpgr.evaluation.slices import reported_slices
from hpgr.metrics import metric_label, removed_pairs

PROTOCOL = "B1"
NEW = "new_items"  # behind the protocol's name, of the table in which these are alone


@dataclass(frozen=True)
class BasketResults:
    """Results of B1: `tables` and `notes` for the report, `rows` with one row a basket.

    All are empty where B1 is not judged.
    """

    tables: list[Tables] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: pd.DataFrame | None = None

    def write(self, folder: Path) -> None:
        """Write `baskets.parquet` below `folder`, if there are rows."""
        if self.rows is not None:
            self.rows.to_parquet(folder / "baskets.parquet", index=False)


@dataclass(frozen=True)
class BasketAnswers:
    """Metrics of every basket by model, float64 [Q]: of all its items, and of the new ones.

    `new_size` int64 [Q] counts the new items; where there are none, their metrics are NaN.
    """

    every: Replicates
    new: Replicates
    new_size: np.ndarray


def judge_baskets(
    log: EventLog,
    models: Mapping[str, Retriever],
    settings: Evaluate,
    *,
    main: str,
    max_history: int,
) -> BasketResults:
    """Judge `models` on the baskets of test, where settings ask for it.

    Args:
        log: the sessionized log.
        models: by name; those of `tuned_on_baskets` among them.
        settings: `baskets`, cutoffs and decays.
        main: the model that the others are compared with.
        max_history: newest events that a network reads.
    """
    if not settings.baskets:
        return BasketResults()
    left_out = f"{protocol_label(PROTOCOL)} is left out: "
    if log.meta.split != "global-time":
        return BasketResults(notes=[f"{left_out}it needs sessionize.split: global-time."])
    queries = next_basket(log, TEST)
    if not len(queries):
        return BasketResults(notes=[f"{left_out}no test session has an earlier one of its user."])
    found = answers(
        log, queries, models, settings, max_history=max_history, title=f"{PROTOCOL} on test"
    )
    holds_new = found.new_size > 0
    new_targets, without_new = int(found.new_size.sum()), int((~holds_new).sum())
    counts = {
        "queries": len(queries),
        "users": len(np.unique(queries.user)),
        "targets": len(queries.item),
        "cold_targets": int((train_counts(log)[queries.item] == 0).sum()),
        "new_targets": new_targets,
        "queries_without_new": without_new,
    }
    slices = reported_slices(log, queries.user, queries.visible(log))
    tables = [
        basket_tables(
            PROTOCOL, queries.user, found.every, counts, settings, main=main, slices=slices
        )
    ]
    if holds_new.any():
        user = queries.user[holds_new]
        counts = {
            "queries": len(user),
            "users": len(np.unique(user)),
            "targets": new_targets,
            "queries_left_out": without_new,
        }
        new = {n: {m: v[holds_new] for m, v in row.items()} for n, row in found.new.items()}
        slices = {name: mask[holds_new] for name, mask in slices.items()}
        protocol = f"{PROTOCOL}_{NEW}"
        tables.append(
            basket_tables(protocol, user, new, counts, settings, main=main, slices=slices)
        )
    note = (
        f"{protocol_label(PROTOCOL)}: what a user had before competes; ties count by expectation. "
        f"Baselines read all earlier events, a network the newest {max_history:,}. New items "
        f"alone: {without_new:,} of {len(queries):,} baskets hold none and are left out there."
    )
    return BasketResults(tables, [note], basket_rows(queries, found))


def answers(
    log: EventLog,
    queries: Baskets,
    models: Mapping[str, Retriever],
    settings: Evaluate,
    *,
    max_history: int,
    title: str,
) -> BasketAnswers:
    """Metrics of every basket by every model; a basket is scored once a model.

    Args:
        log: the sessionized log.
        queries: who asks, and the items that are hidden.
        models: by name.
        settings: cutoffs.
        max_history: newest events that a network reads; other models read all.
        title: of the progress bar.
    """
    every: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
    alone: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
    new_size = []
    with tqdm(total=len(queries), desc=title, unit="basket", mininterval=2.0) as bar:
        for block in blocks(log, queries, None):
            asked = queries.take(block)
            past = asked.histories(log, log.meta.num_events)
            seen = removed_pairs(past.offsets, past.item)
            pairs = ((asked.of_item(), asked.item), seen)
            keys = (query * log.meta.num_items + item for query, item in pairs)
            new = asked.only(~np.isin(*keys))
            new_size.append(new.size)
            for name, model in models.items():
                if isinstance(model, WindowReader):
                    scores = shared_scores(model, log, asked, max_history)
                else:
                    scores = model.retrieve(past)
                scores = np.array(scores)  # of our own, to write into
                every[name].append(
                    basket_metrics(scores, asked.offsets, asked.item, settings.basket_cutoffs)
                )
                scores[seen] = -np.inf
                alone[name].append(
                    basket_metrics(scores, new.offsets, new.item, settings.basket_cutoffs)
                )
            bar.update(len(asked))
    return BasketAnswers(_joined(every), _joined(alone), np.concatenate(new_size))


def tuned_on_baskets(
    log: EventLog, models: Mapping[str, Retriever], settings: Evaluate
) -> tuple[dict[str, Retriever], list[str]]:
    """Personal frequency, and the baselines that weigh a history, with a decay for baskets.

    The next item of a file that lists one basket after another calls for a short memory, the next
    basket does not. The best of `basket_decays` is chosen on a sample of validation baskets.

    Args:
        log: the sessionized log.
        models: by name; the weights of EASE are taken from here, if it is among them.
        settings: decays and cutoffs.

    Returns:
        The models by name, and a sentence for each choice, if validation has baskets. Nothing
        where baskets are not judged.
    """
    if not settings.baskets or log.meta.split != "global-time":
        return {}, []
    decays = settings.basket_decays
    variants: dict[str, list[Retriever]] = {
        "transitions": [
            Transitions(log, decay=d, events=settings.transition_events) for d in decays
        ]
    }
    if isinstance(ease := models.get("ease"), Ease):
        variants["ease"] = [Ease(ease.weights, decay=d) for d in decays]
    variants["personal_frequency"] = [PersonalFrequency(log, decay=d) for d in decays]
    queries = sampled(next_basket(log, VALIDATION), settings)
    metric = f"ndcg@{settings.basket_cutoffs[0]}"
    chosen, notes = {}, []
    for name, choices in variants.items():
        chosen[name] = choices[0]
        if not len(queries):
            continue
        by_place = {str(place): model for place, model in enumerate(choices)}
        title = f"{label(name)} on validation baskets"
        found = answers(log, queries, by_place, settings, max_history=0, title=title).every
        gains = [found[place][metric].mean() for place in by_place]
        best = int(np.argmax(gains))
        chosen[name] = choices[best]
        notes.append(
            f"{label(name)} (B1): decay {decays[best]:g} of {', '.join(f'{d:g}' for d in decays)} "
            f"was best on {len(queries):,} validation baskets ({metric_label(metric)} "
            f"{gains[best]:.4f})."
        )
    return chosen, notes


def basket_rows(queries: Baskets, found: BasketAnswers) -> pd.DataFrame:
    """One row a basket: user, time, sizes, and METRIC_MODEL; of new items new_METRIC_MODEL."""
    columns = {
        "user": queries.user.astype(np.int32),
        "request_time": queries.request_time,
        "items": queries.size.astype(np.int32),
        "new_items": found.new_size.astype(np.int32),
    }
    for prefix, by_model in (("", found.every), ("new_", found.new)):
        for model, row in by_model.items():
            columns |= {f"{prefix}{metric}_{model}": value for metric, value in row.items()}
    return pd.DataFrame(columns)


def _joined(parts: Mapping[str, list[dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """By model and metric, the values of one block of baskets after another."""
    return {
        model: {metric: np.concatenate([part[metric] for part in found]) for metric in found[0]}
        for model, found in parts.items()
    }
