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
from hpgr.data.baskets import Asking
from hpgr.data.histories import bounded
from hpgr.data.log import VALIDATION, EventLog
from hpgr.evaluation.baselines import all_baselines
from hpgr.evaluation.blend import Blend, likes, reorder
from hpgr.evaluation.model_protocols import Ranker, Retriever, WindowReader
from hpgr.evaluation.protocols import Queries, next_item, sampled
from hpgr.metrics import ndcg, ranks_of, removed_pairs, top_items

CELLS = 1 << 22  # scores of one block, 16 MiB in float32
MAX_BLOCK = 1024  # queries

Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Retrieved:
    """One model's `ranks` int64 [Q] of the hidden items and `top` int64 [Q, K] best items.

    `score` float32 [Q, K] is retrieval's of these items; of a place that is empty (-1), no number
    that means anything.
    """

    ranks: np.ndarray
    top: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, ranks: np.ndarray, top: np.ndarray, scores: np.ndarray) -> Retrieved:
        """With the items' own of the `scores` [Q, num_items]."""
        return cls(ranks, top, np.take_along_axis(scores, np.maximum(top, 0), axis=1))

    @classmethod
    def joined(cls, parts: Sequence[Retrieved]) -> Retrieved:
        """The answers to one block of queries after another."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


def blocks(log: EventLog, queries: Asking, max_history: int | None) -> Iterator[slice]:
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


def shared_scores(
    network: WindowReader, log: EventLog, queries: Asking, max_history: int
) -> np.ndarray:
    """Scores of the catalogue, float32 [Q, num_items]; a user's queries share windows."""
    windows = queries.windows(log, max_history)
    past = windows.histories(log)
    newest = np.repeat(past.offsets[:-1], np.diff(windows.bounds)) + windows.visible(queries.end)
    return network.retrieve_rows(past, newest - 1, queries.request_time)


def run(
    log: EventLog,
    queries: Queries,
    retrievers: Mapping[str, Retriever],
    settings: Evaluate,
    *,
    max_history: int,
    title: str,
    then_rank: tuple[Ranker, Mapping[bool, Blend]] | None = None,
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
            its `retrieve` best items are in the order of the rule's blend.
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
                if isinstance(retriever, WindowReader):
                    scores = shared_scores(retriever, log, asked, max_history)
                else:
                    scores = retriever.retrieve(histories)
                for rule, removed in seen.items():
                    ranks = ranks_of(
                        scores, asked.target, removed, catalogue_chunk=settings.catalogue_chunk
                    )
                    top = top_items(scores, removed, settings.cutoffs[0])
                    parts[rule][name].append(Retrieved.of(ranks, top, scores))
                    if then_rank is None or retriever is not then_rank[0]:
                        continue
                    network, blend = then_rank[0], then_rank[1][rule]
                    if not blend.retrieval_only:
                        top = top_items(scores, removed, settings.retrieve)
                        best = Retrieved.of(ranks, top, scores)
                        like = likes(network, histories, best.top)
                        ranks, top = reorder(blend, best.top, best.score, like, asked.target, ranks)
                        top = top[:, : settings.cutoffs[0]]
                    parts[rule][f"{name}_then_rank"].append(Retrieved.of(ranks, top, scores))
            bar.update(len(asked))
    return [{n: Retrieved.joined(part) for n, part in found.items()} for found in parts.values()]


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
