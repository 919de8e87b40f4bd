"""Ranking inside an impression (I1): lists that were shown, in the order of every model.

Candidates are the items that a user really saw together, so that those passed over are real
negatives. A list sees the events of its user strictly before its own second. Models to beat are
boosted trees, the place at which an item was shown, how often it was taken where it was shown
before, and the baselines of retrieval. Network and trees are judged with and without the places.
Reads `artifacts/sessions/impressions.parquet` (`hpgr.data.impressions`) and the arrays of
`hpgr.data.log`. Writes `impressions.parquet` of the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import logit
from tqdm import tqdm

from hpgr.config import Evaluate
from hpgr.data.impressions import NO_SPLIT, NO_USER
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, VALIDATION, EventLog
from hpgr.evaluation.answer_tables import candidate_columns
from hpgr.evaluation.compare import bootstrap_means
from hpgr.evaluation.headline import NEXT_ITEM, WITH_POSITION, protocol_label
from hpgr.evaluation.list_metrics import list_metrics
from hpgr.evaluation.list_trees import tree_scores
from hpgr.evaluation.metric_tables import Tables, impression_tables
from hpgr.evaluation.model_protocols import ListRanker, Retriever
from hpgr.evaluation.protocols import sampled
from hpgr.evaluation.retrieval import blocks
from hpgr.evaluation.rivals import Standing, standing
from hpgr.evaluation.shown_queries import ShownLists
from hpgr.evaluation.slices import reported_slices

PROTOCOL = "I1"


@dataclass(frozen=True)
class JudgedLists:
    """Results of I1: the judged lists, the score of every shown item by model [C], and the tables.

    All but `notes` are empty where the log has no impressions or they cannot be judged.
    """

    lists: ShownLists | None = None
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    tables: list[Tables] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write `impressions.parquet`, one row a shown item, below `folder`.

        `impression` is the number of the list in `sessions/impressions.parquet`.
        """
        if self.lists is None:
            return
        columns = {"impression": self.lists.number, **candidate_columns(self.lists)}
        columns |= {f"score_{n}": s.astype(np.float32) for n, s in self.scores.items()}
        pd.DataFrame(columns).to_parquet(folder / "impressions.parquet", index=False)


def judge_lists(
    log: EventLog,
    shown: pa.Table,
    models: Mapping[str, Retriever],
    network: ListRanker,
    settings: Evaluate,
    *,
    candidates: str | None,
    places: bool,
    max_history: int,
) -> JudgedLists:
    """Judge the test lists by every model.

    Args:
        log: the sessionized log.
        shown: the table of shown items; without rows there is nothing to judge.
        models: for retrieval, by name; the first is the judged network.
        network: the judged network.
        settings: of the stage.
        candidates: events or impressions, what its pCTR was trained on; None: it ranks nothing.
        places: pCTR reads the place of an item in its list.
        max_history: newest events that a model reads.
    """
    if not len(shown):
        return JudgedLists()
    main, whole = next(iter(models)), f"{protocol_label(PROTOCOL)} is left out"
    if pc.all(pc.equal(shown["split"], NO_SPLIT)).as_py():
        why = f"{whole}: only sessionize.split: global-time says which lists are test."
        return JudgedLists(notes=[why])
    test = ShownLists.of(shown, TEST)
    lists = test.with_both_labels()
    if not len(lists):
        why = f"{whole}: none of {len(test):,} test lists holds both labels."
        return JudgedLists(notes=[why])
    found = retrieval_scores(log, lists, models, max_history=max_history)
    scores, remark = {main: found.pop(main)}, None
    if candidates is not None:
        chances = ranking_scores(log, lists, network, max_history=max_history)
        scores = {main: chances, f"{main}{NEXT_ITEM}": scores[main]}
        if places and lists.placed:
            scores[f"{main}{WITH_POSITION}"] = ranking_scores(
                log, lists, network, max_history=max_history, placed=True
            )
        if candidates == "events":
            remark = (
                f"pCTR of {main} was trained on the log's own labels, which may be another "
                "question (finetune.candidates)."
            )
    else:
        remark = f"{main} has no ranking head: its lists are in the order of the next item."
    parts = {part: ShownLists.of(shown, part) for part in (TRAIN, VALIDATION)}
    scores |= tree_scores(log, lists, parts, settings)
    scores |= simple_scores(lists, parts[TRAIN], settings) | found
    counts = {
        "lists_of_one_label": len(test) - len(lists),
        "lists_without_user": _lists_without_user(shown),
        "lists_without_history": int((lists.end == log.user_offsets[lists.user]).sum()),
        "unknown_items": int((lists.item < FIRST_ITEM).sum()),
        "unknown_positives": int(lists.label[lists.item < FIRST_ITEM].sum()),
    }
    tables = impression_tables(
        PROTOCOL,
        lists,
        scores,
        settings,
        main=main,
        counts=counts,
        remark=remark,
        slices=reported_slices(log, lists.user, lists.visible(log)),
    )
    return JudgedLists(lists, scores, [tables])


def list_standing(
    log: EventLog,
    shown: pa.Table,
    models: Mapping[str, Retriever],
    network: ListRanker,
    settings: Evaluate,
    *,
    max_history: int,
) -> Standing | None:
    """By GAUC of a sample of validation lists; arguments as `judge_lists`.

    Rivals are those that could serve in the network's place: the baselines of retrieval and the
    share of lists in which an item was taken. The place in a list is no model of what to show. None
    where no validation list holds both labels.
    """
    lists = sampled(ShownLists.of(shown, VALIDATION).with_both_labels(), settings)
    if not len(lists):
        return None
    main, *baselines = models
    rivals = {name: models[name] for name in baselines}
    scores = {main: ranking_scores(log, lists, network, max_history=max_history)}
    scores |= retrieval_scores(log, lists, rivals, max_history=max_history)
    simple = simple_scores(lists, ShownLists.of(shown, TRAIN), settings)
    scores |= {name: score for name, score in simple.items() if name == "item_mean"}
    size = np.diff(lists.offsets).astype(float)
    inside = {
        name: list_metrics(lists.offsets, lists.label, score, settings.list_cutoffs)["auc"]
        for name, score in scores.items()
    }
    values = {n: {"gauc": float(np.average(area, weights=size))} for n, area in inside.items()}
    means = bootstrap_means(lists.user, np.stack([*inside.values()], axis=1), settings, weight=size)
    return standing("gauc", len(lists), values, dict(zip(inside, means.T, strict=True)))


def retrieval_scores(
    log: EventLog, lists: ShownLists, models: Mapping[str, Retriever], *, max_history: int
) -> dict[str, np.ndarray]:
    """Score of every shown item by each model of retrieval, float32 [C]; -inf: unknown.

    Without a history all known items score the same to a network.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for asked in _asked(log, lists, max_history):
        histories = asked.histories(log, max_history)
        query = np.repeat(np.arange(len(asked)), np.diff(asked.offsets))
        known = asked.item >= FIRST_ITEM
        for name, model in models.items():
            found = np.zeros(len(asked.item), dtype=np.float32)
            if len(histories.item):  # a network does not answer where nobody has a history
                found = model.retrieve(histories)[query, asked.item].astype(np.float32)
            parts[name].append(np.where(known, found, np.float32(-np.inf)))
    return {name: np.concatenate(part) for name, part in parts.items()}


def ranking_scores(
    log: EventLog,
    lists: ShownLists,
    network: ListRanker,
    *,
    max_history: int,
    placed: bool = False,
) -> np.ndarray:
    """PCTR of every shown item, float32 [C]; if `placed`, with its place in the list."""
    found = []
    for asked in _asked(log, lists, max_history):
        known = {"place": asked.place} if placed else {}
        past = asked.histories(log, max_history)
        found.append(network.rank(past, asked.offsets, asked.item, **known))
    return np.concatenate(found)


def _asked(log: EventLog, lists: ShownLists, max_history: int) -> Iterator[ShownLists]:
    """The lists in blocks whose histories and scores fit memory.

    Each list reads a history of its own. Queries that share a window take the time of the next
    event for that of the request, as it is in the other protocols; after a list the next event is
    still to come.
    """
    with tqdm(total=len(lists), desc="shown lists", unit="list", mininterval=2.0) as bar:
        for block in blocks(log, lists, max_history):
            yield lists.take(block)
            bar.update(block.stop - block.start)


def simple_scores(
    lists: ShownLists, train: ShownLists, settings: Evaluate
) -> dict[str, np.ndarray]:
    """Scores of shown items that only count, float64 [C] a model.

    `position` is the order as shown. `item_mean` is the share of the training lists with the item
    in which it was taken, drawn to the common share with the weight of `prior_events` rows;
    `item_plus_position` adds the log odds of the same share of the position. Items that the log
    does not know are distinct here: they were shown.
    """
    found = {"position": -lists.position} if lists.placed else {}
    if not 0 < train.label.sum() < len(train.label):
        return found
    item = _share_taken(train.external, train.label, lists.external, settings.prior_events)
    if lists.placed:
        place = _share_taken(train.place, train.label, lists.place, settings.prior_events)
        found["item_plus_position"] = logit(item) + logit(place)
    return {**found, "item_mean": item}


def _share_taken(key: np.ndarray, label: np.ndarray, asked: np.ndarray, prior: float) -> np.ndarray:
    """Smoothed share of label 1 among the rows with each `asked` key [C], float64 [C]."""
    common = float(label.mean())
    names, index = np.unique(key, return_inverse=True)
    # One more entry than there are keys: what was never seen.
    count = np.append(np.bincount(index), 0)
    liked = np.append(np.bincount(index, weights=label), 0.0)
    share = (liked + prior * common) / (count + prior)
    place = np.searchsorted(names, asked)
    seen = names[np.minimum(place, len(names) - 1)] == asked
    return share[np.where(seen, place, len(names))]


def _lists_without_user(shown: pa.Table) -> int:
    """Test lists that are left out as the log has no event of their user."""
    mask = pc.and_(pc.equal(shown["user"], NO_USER), pc.equal(shown["split"], TEST))
    return len(pc.unique(shown.filter(mask)["impression"]))
