"""Next item (R1, R2): every model ranks the whole catalogue for the same queries.

Queries go in blocks through every model, so that memory holds the scores and histories of one block
only. Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from hpgr.config import Evaluate
from hpgr.data.histories import Histories, bounded, offsets_of
from hpgr.data.log import FIRST_ITEM, VALIDATION, EventLog
from hpgr.evaluation.baselines import all_baselines
from hpgr.evaluation.model_protocols import Ranker, Retriever
from hpgr.evaluation.protocols import Queries, next_item, sampled
from hpgr.metrics import ndcg, ranks_of, removed_pairs, tied_rank, top_items

CELLS = 1 << 22  # scores of one block, 16 MiB in float32
MAX_BLOCK = 1024  # queries

Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Retrieved:
    """One model's `ranks` int64 [Q] of the hidden items and `top` int64 [Q, K] best items."""

    ranks: np.ndarray
    top: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Retrieved]) -> Retrieved:
        """The answers to one block of queries after another."""
        return cls(np.concatenate([p.ranks for p in parts]), np.concatenate([p.top for p in parts]))


def blocks(log: EventLog, queries: Queries, max_history: int | None) -> Iterator[slice]:
    """Slices of queries whose scores and histories fit the memory set aside.

    `max_history` is how many events of each history are copied; None: all of them.
    """
    past = queries.end - log.user_offsets[queries.user]
    read = past if max_history is None else np.minimum(past, max_history)
    return bounded(read, queries=max(1, min(MAX_BLOCK, CELLS // max(1, log.meta.num_items))))


def seen_pairs(log: EventLog, queries: Queries, *, remove: bool) -> Pairs | None:
    """Query and item of everything the user met before; None where nothing is to be removed.

    All earlier events count, also those beyond what the model reads.
    """
    if not remove:
        return None
    seen = queries.histories(log, log.meta.num_events)
    return removed_pairs(seen.offsets, seen.item)


def run(
    log: EventLog,
    queries: Queries,
    retrievers: Mapping[str, Retriever],
    settings: Evaluate,
    *,
    max_history: int,
    title: str,
    then_rank: Ranker | None = None,
    rules: Sequence[bool] = (),
) -> list[dict[str, Retrieved]]:
    """Ranks and best items of every model on `queries`, once for each of `rules`.

    A query is scored once, however many rules there are.

    Args:
        log: the sessionized log.
        queries: who asks and what is hidden.
        retrievers: models by name.
        settings: cutoffs and chunk.
        max_history: newest events a model reads.
        title: of the progress bar.
        then_rank: the network among `retrievers` that also gets a row "NAME_then_rank", in which
            its `retrieve` best items are ordered by pCTR.
        rules: True where items that the user met before are removed, False where they stay; by
            default the log's own rule.
    """
    rules = rules or [log.meta.remove_history]
    parts: dict[bool, dict[str, list[Retrieved]]] = {rule: defaultdict(list) for rule in rules}
    with tqdm(total=len(queries), desc=title, unit="query", mininterval=2.0) as bar:
        for block in blocks(log, queries, None if settings.remove_history else max_history):
            asked = queries.take(block)
            histories = asked.histories(log, max_history)
            seen = {rule: seen_pairs(log, asked, remove=rule) for rule in rules}
            for name, retriever in retrievers.items():
                scores = retriever.retrieve(histories)
                for rule, removed in seen.items():
                    ranks = ranks_of(
                        scores, asked.target, removed, catalogue_chunk=settings.catalogue_chunk
                    )
                    top = top_items(scores, removed, settings.cutoffs[0])
                    parts[rule][name].append(Retrieved(ranks, top))
                    if retriever is then_rank:
                        best = top_items(scores, removed, settings.retrieve)
                        ranks, best = reorder(then_rank, histories, best, asked.target, ranks)
                        best = best[:, : settings.cutoffs[0]]
                        parts[rule][f"{name}_then_rank"].append(Retrieved(ranks, best))
            bar.update(len(asked))
    return [{n: Retrieved.joined(part) for n, part in found.items()} for found in parts.values()]


def reorder(
    network: Ranker,
    histories: Histories,
    retrieved: np.ndarray,
    target: np.ndarray,
    ranks: np.ndarray,
) -> Pairs:
    """Order the `retrieved` items by pCTR; a target that was not retrieved keeps its place below.

    Args:
        network: scores the candidates.
        histories: of the queries.
        retrieved: items, best first, -1 where fewer are left, [Q, N].
        target: hidden items, [Q].
        ranks: of the targets in retrieval, [Q].

    Returns:
        New ranks [Q] (`tied_rank`) and the reordered items [Q, N].

    Raises:
        ValueError: a probability is NaN, which would put its query's target first.
    """
    filled = retrieved >= 0
    count = filled.sum(axis=1)
    probability = np.full(retrieved.shape, -np.inf, dtype=np.float32)
    probability[filled] = network.rank(histories, offsets_of(count), retrieved[filled])
    if np.isnan(probability).any():
        raise ValueError("pCTR holds NaN: the model diverged or was saved broken")
    order = np.argsort(-probability, axis=1, kind="stable")
    is_target = (retrieved == target[:, None]) & (target[:, None] >= FIRST_ITEM)
    reference = np.where(is_target, probability, -np.inf).max(axis=1, keepdims=True)
    better = (probability > reference).sum(axis=1)
    tied = (probability == reference).sum(axis=1) - 1
    below = np.maximum(ranks, count + 1)
    new_ranks = np.where(is_target.any(axis=1), tied_rank(better, tied), below)
    return new_ranks, np.take_along_axis(retrieved, order, axis=1)


def validation_queries(log: EventLog, settings: Evaluate) -> Queries:
    """The validation queries by which choices are made."""
    return sampled(next_item(log, VALIDATION), settings)


def tuned_baselines(
    log: EventLog, settings: Evaluate, *, max_history: int
) -> tuple[dict[str, Retriever], list[str]]:
    """The baselines, their free parameter chosen on a sample of validation queries.

    Returns:
        The models by name, and what was chosen or left out, one sentence each.
    """
    variants, notes = all_baselines(log, settings)
    queries = validation_queries(log, settings)
    k, decays = settings.cutoffs[0], [f"{decay:g}" for decay in settings.history_decays]
    chosen: dict[str, Retriever] = {}
    for name, models in variants.items():
        chosen[name] = models[0]
        if len(models) == 1 or not len(queries):
            continue
        (outcomes,) = run(
            log,
            queries,
            {str(number): model for number, model in enumerate(models)},
            settings,
            max_history=max_history,
            title=f"{name} on validation",
        )
        gains = [ndcg(outcome.ranks, k).mean() for outcome in outcomes.values()]
        best = int(np.argmax(gains))
        chosen[name] = models[best]
        notes.append(
            f"{name}: decay {decays[best]} of {', '.join(decays)} was best on "
            f"{len(queries):,} validation queries (NDCG@{k} {gains[best]:.4f})."
        )
    return chosen, notes
