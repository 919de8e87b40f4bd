"""A trained network behind numpy: scores for retrieval, pCTR for ranking, anchors for explaining.

The one code path for evaluation, batch scoring and serving. Reads a folder with `config.json` and
`model.safetensors` (no pickle); histories come in as dense ids.

Shape legend (suffixes of names): Q queries, V items, C candidates, N queries or candidates,
A anchors, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from hpgr.data.batches import CandidateRows
from hpgr.data.histories import Histories, bounded
from hpgr.data.log import FIRST_ITEM
from hpgr.model.attention.select import intervened
from hpgr.model.interface import Network, Reading, build
from hpgr.model.packed import Candidates, Packed, pack, place_candidates
from hpgr.model.placement import found_device
from hpgr.model.preference import PreferenceMask
from hpgr.model.repeat_counts import Pairs, Repeats, prefixes
from hpgr.model.shapes import Float
from hpgr.model.stored import WEIGHTS, catalogue_of, check_network, check_weights
from hpgr.model.stored_config import settings_of
from hpgr.model.stored_table import take_successors
from hpgr.model.successors import Additions

TOKENS_AT_A_TIME = 16384


class Calibration(NamedTuple):
    """pCTR is the sigmoid of slope * logit + shift; see `hpgr.training.calibration`."""

    slope: float = 1.0
    shift: float = 0.0

    def chances(self, logits_C: Tensor) -> np.ndarray:
        """Return pCTR of logits [C], float32 [C]."""
        chances_C: np.ndarray = (
            torch.sigmoid(self.slope * logits_C.float() + self.shift).cpu().numpy()
        )
        return chances_C


class Scorer:
    """Scores jagged histories with a trained network, in batches of bounded size."""

    def __init__(
        self,
        model: Network,
        device: torch.device,
        max_history: int,
        calibration: Calibration = Calibration(),  # noqa: B008 - immutable
        additions: Additions = Additions(),  # noqa: B008 - immutable
    ) -> None:
        self.model, self.device, self.max_history = model.eval(), device, max_history
        self.calibration, self.additions = calibration, additions
        self._unit: Tensor | None = None

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Scorer:
        """Read the output of the finetune stage; `device` is auto, cpu or cuda.

        Raises:
            UserError: CUDA is requested, but torch sees no CUDA device.
            FileNotFoundError: no trained model there; run the finetune stage.
            DamagedFile: one of the files is incomplete or holds impossible values.
        """
        config = check_network(folder)
        weights, sizes = load_file(folder / WEIGHTS), config["catalogue"]
        successors = take_successors(folder / WEIGHTS, weights, config)
        check_weights(folder / WEIGHTS, weights, sizes["num_categories"])
        settings, catalogue = settings_of(config), catalogue_of(config, weights)
        model = build(settings, catalogue, ranking=config["ranking"], lists=config["lists"])
        model.load_state_dict(weights)
        place = torch.device(found_device(device))
        calibration = Calibration(**config["calibration"])
        added = Additions(Repeats(**config["repeats"], gap_s=sizes["gap_s"]), successors)
        return cls(model.to(place), place, settings.max_history, calibration, added)

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """Options of the network's `read`: tables that stay as they are while a scorer lives."""
        tables = self.model.item_tables()
        return {} if tables is None else {"tables": tables}

    def read_rows(self, packed: Packed, rows: Tensor | None = None) -> Reading:
        """Read histories for `rows`; None: for the newest event of each."""
        rows = packed.newest if rows is None else rows
        return self.model.read(packed, rows=rows, **self._tables)

    def similarities(self, readings: Sequence[Reading], items: slice = slice(None)) -> np.ndarray:
        """Cosines of the readings' states with a part of the catalogue; see `similarities`."""
        if not readings:
            raise ValueError("no query has a history: nothing to score")
        unit_VD = self._unit_items(readings[0].items)
        return similarities(torch.cat([one.states for one in readings]), unit_VD, items)

    def _unit_items(self, item_VD: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        if self._unit is None:  # the same for all readings, as the tables are
            self._unit = functional.normalize(item_VD.float(), dim=-1)
        return self._unit

    @torch.inference_mode()
    def retrieve(self, histories: Histories) -> np.ndarray:
        """Score items by cosine with each query's state, float32 [Q, V]; reserved ids are -inf.

        Those of `additions` score higher. A query without history scores every item 0: it has no
        state to compare.
        """
        full = np.diff(histories.offsets) > 0
        return _spread(self.retrieve_rows(histories, histories.offsets[1:][full] - 1), full)

    @torch.inference_mode()
    def retrieve_rows(
        self, histories: Histories, rows: np.ndarray, request_time: np.ndarray | None = None
    ) -> np.ndarray:
        """Score items as a query would that sees each of `rows` and what came before it.

        Args:
            histories: of any number of users.
            rows: places in their flat arrays, int64 [Q], ascending.
            request_time: of each row, int64 [Q]; None: of its history.

        Returns:
            float32 [Q, V]; reserved ids are -inf.
        """
        readings = []
        for chunk, queries in _chunks(histories, keep_empty=True):
            low, high = histories.offsets[[queries.start, queries.stop]]
            asked = torch.from_numpy(rows[(low <= rows) & (rows < high)] - low)
            if len(asked):
                reading = self.read_rows(pack(chunk, self.device), asked.to(self.device))
                readings.append(reading._replace(mask=None, memory=None))
        scores = self.similarities(readings)
        if self.additions.idle:
            return scores
        return self.additions.add(scores, prefixes(histories, rows, request_time))

    def rank(
        self,
        histories: Histories,
        offsets: np.ndarray,
        candidates: np.ndarray,
        place: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict the CTR of candidates, float32 [C]; those of query b: offsets[b]:offsets[b + 1].

        Every candidate has its query's request time and sees the whole history. `place` [C] counts
        the items shown before each, -1 where that is not known; None: none is known.
        """
        rows = CandidateRows.at_request(histories, offsets, candidates, place)
        return self.rank_rows(histories, rows)

    @torch.inference_mode()
    def rank_rows(self, histories: Histories, rows: CandidateRows) -> np.ndarray:
        """Predict the CTR of candidates, float32 [C], each at its own time."""
        parts = [np.zeros(0, dtype=np.float32)]
        for chunk, queries in _chunks(histories, keep_empty=True, extra=np.diff(rows.offsets)):
            placed = self._placed(chunk, queries, rows)
            packed = pack(chunk, self.device)
            reading = self.read_rows(packed)
            logits_C = self.model.judge(packed, reading, placed).logits
            parts.append(self.calibration.chances(logits_C))
        return np.concatenate(parts)

    @torch.inference_mode()
    def read(self, histories: Histories) -> ReadHistories:
        """Read histories once, for several questions; what is kept grows with their events."""
        return ReadHistories(self, histories)

    @torch.inference_mode()
    def explain(
        self,
        histories: Histories,
        offsets: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return anchors: positions in the history, int64 [N, A] (-1 none), and weights [N, A].

        They are those of each query's state (N = Q) or, with candidates, those through which `rank`
        lets each candidate read the history (N = C). A network without preference signals gives
        arrays with A = 0. Every history must have an event.
        """
        position, weight, _ = self._masks(histories, offsets, candidates)
        return position, weight

    @torch.inference_mode()
    def anchors(
        self, histories: Histories, offsets: np.ndarray, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the anchors of candidates as `explain` does, with their cosines [C, A]."""
        position, _, cosine = self._masks(histories, offsets, candidates)
        return position, cosine

    @contextmanager
    def intervened(self, mode: str) -> Iterator[None]:
        """Exchange the anchors for the block (`hpgr.model.attention.select`), from one seed.

        The random state of the process is as before afterwards.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), intervened(self.model, mode):
            torch.manual_seed(0)
            yield

    def _masks(
        self, histories: Histories, offsets: np.ndarray | None, candidates: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions, heights and cosines of the anchors, each [N, A]; see `explain`."""
        rows = None
        if offsets is not None and candidates is not None:
            rows = CandidateRows.at_request(histories, offsets, candidates)
        extra = None if rows is None else np.diff(rows.offsets)
        positions, weights, cosines = [], [], []
        for chunk, queries in _chunks(histories, extra=extra):
            packed, query = pack(chunk, self.device), np.arange(len(chunk))
            reading = self.read_rows(packed)
            mask = reading.mask
            if rows is not None:
                placed = self._placed(chunk, queries, rows)
                mask = self.model.judge(packed, reading, placed).mask
                query = np.repeat(query, np.diff(rows.offsets[queries.start : queries.stop + 1]))
            anchor_NA, peak_NA, cosine_NA = _anchors(mask, len(query), chunk.offsets[query])
            positions.append(anchor_NA)
            weights.append(peak_NA)
            cosines.append(cosine_NA)
        return np.concatenate(positions), np.concatenate(weights), np.concatenate(cosines)

    def _placed(self, chunk: Histories, queries: slice, rows: CandidateRows) -> Candidates:
        """Candidates of a chunk of queries."""
        bounds = rows.offsets[queries.start : queries.stop + 1]
        part = slice(bounds[0], bounds[-1])
        return place_candidates(
            chunk,
            bounds - bounds[0],
            rows.item[part],
            rows.visible[part],
            rows.time[part],
            self.device,
            None if rows.place is None else rows.place[part],
        )


class ReadHistories:
    """Histories that the network has read; each question costs what is new in it.

    The queries are those of the histories, Q.
    """

    def __init__(self, scorer: Scorer, histories: Histories) -> None:
        self.scorer, self.histories = scorer, histories
        self.parts = [
            (chunk, queries, packed, scorer.read_rows(packed))
            for chunk, queries in _chunks(histories, keep_empty=True)
            for packed in [pack(chunk, scorer.device)]
        ]

    @torch.inference_mode()
    def retrieve(self, items: slice = slice(None)) -> np.ndarray:
        """Score a part of the catalogue as `Scorer.retrieve` does, float32 [Q, part]."""
        full = self.histories.length > 0
        known = [reading for *_, reading in self.parts if len(reading.states)]
        scores = _spread(self.scorer.similarities(known, items), full, items)
        return self.added.add(scores, items)

    @cached_property
    def added(self) -> Pairs:
        """See `hpgr.evaluation.model_protocols.Answering`."""
        return self.scorer.additions.pairs(self.histories)

    @torch.inference_mode()
    def states(self) -> np.ndarray | None:
        """States of length one, float32 [Q, D]; None where a query has no history."""
        known = [reading for *_, reading in self.parts if len(reading.states)]
        if not known or not (self.histories.length > 0).all():
            return None
        state_QD = functional.normalize(torch.cat([one.states for one in known]).float(), dim=-1)
        return np.asarray(state_QD.cpu())

    def items(self) -> np.ndarray:
        """Vectors of the catalogue of length one, float32 [V, D]; some query has a history."""
        readings = (reading for *_, reading in self.parts)
        first = next(reading for reading in readings if len(reading.states))
        return np.asarray(self.scorer._unit_items(first.items).cpu())

    def explain(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the anchors of the queries that have a history, as `Scorer.explain` does."""
        found = []
        for chunk, _, packed, reading in self.parts:
            first = chunk.offsets[:-1][chunk.length > 0]
            found.append(_anchors(reading.mask, len(packed.newest), first)[:2])
        position, weight = zip(*_wide(found), strict=True)
        return np.concatenate(position), np.concatenate(weight)

    @torch.inference_mode()
    def rank(
        self, offsets: np.ndarray, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict the CTR of candidates as `Scorer.rank` does, float32 [C], and their anchors.

        Anchors are those of `Scorer.explain`: positions [C, A], -1 for none, and weights [C, A].
        """
        rows = CandidateRows.at_request(self.histories, offsets, candidates)
        chances, found = [], []
        for chunk, queries, packed, reading in self.parts:
            placed = self.scorer._placed(chunk, queries, rows)
            logits_C, mask = self.scorer.model.judge(packed, reading, placed)
            chances.append(self.scorer.calibration.chances(logits_C))
            first = placed.first.cpu().numpy()
            found.append(_anchors(mask, len(first), first)[:2])
        position, weight = zip(*_wide(found), strict=True)
        return np.concatenate(chances), np.concatenate(position), np.concatenate(weight)


def similarities(
    states_QD: Float[Tensor, "Q D"], unit_VD: Float[Tensor, "V D"], items: slice = slice(None)
) -> np.ndarray:
    """Cosines of states with a part of the catalogue, float32 [Q, part]; reserved ids are -inf.

    Args:
        states_QD: of any length.
        unit_VD: the catalogue's vectors, of length one.
        items: the part.
    """
    unit_QD = functional.normalize(states_QD.float(), dim=-1)
    scores_QV: np.ndarray = (unit_QD @ unit_VD[items].T).cpu().numpy()
    return _without_reserved(scores_QV, items)


def _spread(scores: np.ndarray, full: np.ndarray, items: slice = slice(None)) -> np.ndarray:
    """Scores [Q, part] of all queries: those of the `full` ones [Q], 0 where there is no history.

    Reserved ids are -inf.
    """
    if full.all():
        return scores
    scores_QV = np.zeros((len(full), scores.shape[1]), dtype=np.float32)
    scores_QV[full] = scores
    return _without_reserved(scores_QV, items)


def _without_reserved(scores_QV: np.ndarray, items: slice) -> np.ndarray:
    scores_QV[:, : max(0, FIRST_ITEM - (items.start or 0))] = -np.inf
    return scores_QV


def _anchors(
    mask: PreferenceMask | None, count: int, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in the history, heights and cosines of anchors, each [N, A]; no mask: A is 0.

    `first` [N] is the row at which each history begins, N = `count`.
    """
    if mask is None:
        none = np.zeros((count, 0), np.float32)
        return none.astype(np.int64), none, none
    anchor_NA, peak_NA = mask.anchor.cpu().numpy(), mask.peak.float().cpu().numpy()
    cosine_NA = peak_NA if mask.cosine is None else mask.cosine.float().cpu().numpy()
    return np.where(anchor_NA >= 0, anchor_NA - first[:, None], -1), peak_NA, cosine_NA


def _wide(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Give all parts as many anchors: one whose histories are all empty has none."""
    widths = {position.shape[1] for position, _ in parts}
    if len(widths) == 1:
        return list(parts)
    most = max(widths)
    return [
        (
            np.pad(position, ((0, 0), (0, most - position.shape[1])), constant_values=-1),
            np.pad(weight, ((0, 0), (0, most - weight.shape[1]))),
        )
        for position, weight in parts
    ]


def _chunks(
    histories: Histories, *, keep_empty: bool = False, extra: np.ndarray | None = None
) -> Iterator[tuple[Histories, slice]]:
    """Histories of at most TOKENS_AT_A_TIME rows (at least one query), and which queries they are.

    Queries without history are left out unless `keep_empty`; `extra` [Q] counts further rows.
    """
    if not keep_empty:
        histories = histories.without_empty()
    cost = histories.length if extra is None else histories.length + extra
    for queries in bounded(cost, queries=max(1, len(histories)), most=TOKENS_AT_A_TIME):
        yield histories.take(queries), queries
