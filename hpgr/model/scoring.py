"""A trained network behind numpy: scores for retrieval, pCTR for ranking, anchors for explaining.

The one code path for evaluation, batch scoring and serving. Reads a folder with `config.json` and
`model.safetensors` (no pickle); histories come in as dense ids.

Shape legend (suffixes of names): Q queries, V items, C candidates, N queries or candidates,
A anchors, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from hpgr.data.batches import CandidateRows
from hpgr.data.histories import Histories, bounded
from hpgr.data.log import FIRST_ITEM
from hpgr.model.attention.select import intervened
from hpgr.model.interface import Network, build
from hpgr.model.packed import Candidates, pack, place_candidates
from hpgr.model.placement import found_device
from hpgr.model.stored import WEIGHTS, catalogue_of, check_network, check_weights
from hpgr.model.stored_config import settings_of

TOKENS_AT_A_TIME = 16384


class Scorer:
    """Scores jagged histories with a trained network, in batches of bounded size."""

    def __init__(self, model: Network, device: torch.device, max_history: int) -> None:
        self.model, self.device, self.max_history = model.eval(), device, max_history

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Scorer:
        """Read the output of the finetune stage; `device` is auto, cpu or cuda.

        Raises:
            UserError: CUDA is requested, but torch sees no CUDA device.
            FileNotFoundError: no trained model there; run the finetune stage.
            DamagedFile: one of the files is incomplete or holds impossible values.
        """
        config = check_network(folder)
        weights = load_file(folder / WEIGHTS)
        check_weights(folder / WEIGHTS, weights, config["catalogue"]["num_categories"])
        settings, catalogue = settings_of(config), catalogue_of(config, weights)
        model = build(settings, catalogue, ranking=config["ranking"])
        model.load_state_dict(weights)
        place = torch.device(found_device(device))
        return cls(model.to(place), place, settings.max_history)

    @torch.inference_mode()
    def retrieve(self, histories: Histories) -> np.ndarray:
        """Score items by cosine with each query's state, float32 [Q, V]; reserved ids are -inf.

        A query without history scores every item 0: it has no state to compare.
        """
        full = np.diff(histories.offsets) > 0
        found_QV = self.retrieve_rows(histories, histories.offsets[1:][full] - 1)
        scores_QV = np.zeros((len(histories), found_QV.shape[1]), dtype=np.float32)
        scores_QV[full] = found_QV
        scores_QV[:, :FIRST_ITEM] = -np.inf
        return scores_QV

    @torch.inference_mode()
    def retrieve_rows(self, histories: Histories, rows: np.ndarray) -> np.ndarray:
        """Score items as a query would that sees each of `rows` and what came before it.

        Args:
            histories: of any number of users.
            rows: places in their flat arrays, int64 [Q], ascending.

        Returns:
            float32 [Q, V]; reserved ids are -inf.
        """
        table_VD: Tensor | None = None
        parts = []
        for chunk, queries in _chunks(histories, keep_empty=True):
            low, high = histories.offsets[[queries.start, queries.stop]]
            asked = torch.from_numpy(rows[(low <= rows) & (rows < high)] - low)
            if not len(asked):
                continue
            asked = asked.to(self.device)
            states_QD, items_VD, _ = self.model(pack(chunk, self.device), None, rows=asked)
            if table_VD is None:
                table_VD = functional.normalize(items_VD.float(), dim=-1)
            parts.append(functional.normalize(states_QD.float(), dim=-1) @ table_VD.T)
        if not parts:
            raise ValueError("no query has a history: nothing to score")
        scores_QV: np.ndarray = torch.cat(parts).cpu().numpy()
        scores_QV[:, :FIRST_ITEM] = -np.inf
        return scores_QV

    def rank(self, histories: Histories, offsets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Predict the CTR of candidates, float32 [C]; those of query b: offsets[b]:offsets[b + 1].

        Every candidate has its query's request time and sees the whole history.
        """
        return self.rank_rows(histories, _at_request(histories, offsets, candidates))

    @torch.inference_mode()
    def rank_rows(self, histories: Histories, rows: CandidateRows) -> np.ndarray:
        """Predict the CTR of candidates, float32 [C], each at its own time."""
        parts = [np.zeros(0, dtype=np.float32)]
        for chunk, queries in _chunks(histories, keep_empty=True, extra=np.diff(rows.offsets)):
            placed = self._placed(chunk, queries, rows)
            packed = pack(chunk, self.device)
            _, _, logits_C = self.model(packed, placed, rows=packed.newest)
            assert logits_C is not None
            parts.append(torch.sigmoid(logits_C.float()).cpu().numpy())
        return np.concatenate(parts)

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
            rows = _at_request(histories, offsets, candidates)
        extra = None if rows is None else np.diff(rows.offsets)
        positions, weights, cosines = [], [], []
        for chunk, queries in _chunks(histories, extra=extra):
            placed, query = None, np.arange(len(chunk))
            if rows is not None:
                placed = self._placed(chunk, queries, rows)
                query = np.repeat(query, np.diff(rows.offsets[queries.start : queries.stop + 1]))
            mask = self.model.explain(pack(chunk, self.device), placed)
            anchor_NA = np.zeros((len(query), 0), np.int64)
            peak_NA = cosine_NA = np.zeros((len(query), 0), np.float32)
            if mask is not None:
                anchor_NA, peak_NA = mask.anchor.cpu().numpy(), mask.peak.float().cpu().numpy()
                cosine_NA = peak_NA if mask.cosine is None else mask.cosine.float().cpu().numpy()
            positions.append(np.where(anchor_NA >= 0, anchor_NA - chunk.offsets[query, None], -1))
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
        )


def _at_request(histories: Histories, offsets: np.ndarray, candidates: np.ndarray) -> CandidateRows:
    """Candidates of each query at its request time, which see its whole history."""
    count = np.diff(offsets)
    return CandidateRows(
        offsets=np.asarray(offsets),
        item=candidates,
        visible=np.repeat(histories.length, count),
        time=np.repeat(histories.request_time, count),
        label=np.zeros(len(candidates), np.int8),
    )


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
