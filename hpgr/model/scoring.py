"""A trained network behind numpy: scores for retrieval, pCTR for ranking, anchors for explaining.

The one code path for evaluation, batch scoring and serving. Reads a folder with `config.json` and
`model.safetensors` (no pickle); histories come in as dense ids.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from hpgr.data.log import FIRST_ITEM, Histories
from hpgr.model.catalogue import Catalogue
from hpgr.model.hpgr import HPGR
from hpgr.model.hstu import HSTU
from hpgr.model.packed import pack, place_candidates
from hpgr.model.preference import PreferenceMask
from hpgr.runtime import DamagedFile, read_json

TOKENS_AT_A_TIME = 16384


def build(encoder: str, settings: Any, catalogue: Catalogue, *, ranking: bool) -> HPGR | HSTU:
    """The network named `encoder` (hpgr or hstu), with fresh weights."""
    if encoder == "hpgr":
        return HPGR(settings, catalogue)
    return HSTU(settings, catalogue, actions=ranking)


class Scorer:
    """Scores jagged histories with a trained network, in batches of bounded size."""

    def __init__(self, model: nn.Module, device: torch.device, max_history: int) -> None:
        self.model, self.device, self.max_history = model.eval(), device, max_history

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Scorer:
        """Read what the finetune stage wrote.

        Raises:
            FileNotFoundError: no trained model there; run the finetune stage.
            DamagedFile: one of the files is not whole.
        """
        config = read_json(folder / "config.json")
        try:
            weights = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise DamagedFile(folder / "model.safetensors", error) from error
        settings = SimpleNamespace(**config["model"])
        sizes = dict(config["catalogue"])
        offsets = weights.get("trunk.items.category_offsets")
        if offsets is None:
            offsets = torch.zeros(sizes["num_items"] + 1, dtype=torch.int64)
        category = weights.get("trunk.items.category")
        catalogue = Catalogue(
            **sizes,
            category_offsets=offsets,
            category=category if category is not None else torch.zeros(0, dtype=torch.int64),
        )
        model = build(config["encoder"], settings, catalogue, ranking=config["ranking"])
        model.load_state_dict(weights)
        place = torch.device(device)
        return cls(model.to(place), place, settings.max_history)

    @torch.inference_mode()
    def retrieve(self, histories: Histories) -> np.ndarray:
        """Cosine of each query's state with every item, float32 [Q, V]; reserved ids are -inf.

        A query without history scores every item 0: it has no state to compare.
        """
        table: Tensor | None = None
        parts = []
        for chunk, _ in _chunks(histories):
            states, items, _, _ = self.model(pack(chunk, self.device), None, newest_only=True)
            if table is None:
                table = functional.normalize(items.float(), dim=-1)
            parts.append(functional.normalize(states.float(), dim=-1) @ table.T)
        full = np.diff(histories.offsets) > 0
        if table is None:
            raise ValueError("no query has a history: nothing to score")
        scores = np.zeros((len(histories), len(table)), dtype=np.float32)
        scores[full] = torch.cat(parts).cpu().numpy()
        scores[:, :FIRST_ITEM] = -np.inf
        return scores

    @torch.inference_mode()
    def rank(self, histories: Histories, offsets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """PCTR float32 [C] of jagged candidates; those of query b at offsets[b]:offsets[b + 1].

        Every candidate is asked for at its query's request time and sees the whole history.
        """
        parts = [np.zeros(0, dtype=np.float32)]
        for chunk, queries in _chunks(histories, keep_empty=True, extra=np.diff(offsets)):
            low, high = offsets[queries.start], offsets[queries.stop]
            count = np.diff(offsets[queries.start : queries.stop + 1])
            placed = place_candidates(
                chunk,
                np.asarray(offsets[queries.start : queries.stop + 1]) - low,
                candidates[low:high],
                np.repeat(np.diff(chunk.offsets), count),
                np.repeat(chunk.request_time, count),
                self.device,
            )
            _, _, logits, _ = self.model(pack(chunk, self.device), placed, newest_only=True)
            parts.append(torch.sigmoid(logits.float()).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def explain(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """Anchors of each query: position in its history, int64 [Q, A] (-1 none), and weight.

        A network without preference signals gives arrays with A = 0.
        """
        anchors, weights = [], []
        for chunk, _ in _chunks(histories, keep_empty=True):
            mask: PreferenceMask | None = self.model(
                pack(chunk, self.device), None, newest_only=True
            )[3]
            if mask is None:
                continue
            full = np.diff(chunk.offsets) > 0
            first = torch.from_numpy(chunk.offsets[:-1][full]).to(self.device)
            anchor = torch.where(mask.anchor >= 0, mask.anchor - first[:, None], -1)
            shape = (len(chunk), anchor.shape[1])
            position, weight = np.full(shape, -1, dtype=np.int64), np.zeros(shape, np.float32)
            position[full], weight[full] = anchor.cpu().numpy(), mask.peak.float().cpu().numpy()
            anchors.append(position)
            weights.append(weight)
        if not anchors:
            empty = np.zeros((len(histories), 0))
            return empty.astype(np.int64), empty.astype(np.float32)
        return np.concatenate(anchors), np.concatenate(weights)


def _chunks(histories: Histories, *, keep_empty: bool = False, extra: np.ndarray | None = None):
    """Slices of at most TOKENS_AT_A_TIME rows (at least one query), with their query range.

    Queries without history are left out unless `keep_empty`; `extra` [Q] counts further rows.
    """
    length = np.diff(histories.offsets)
    if not keep_empty and not length.all():
        histories = _without_empty(histories)
        length = np.diff(histories.offsets)
    cost = length if extra is None else length + extra
    start, total = 0, 0
    for query in range(len(histories)):
        total += cost[query]
        last = query + 1 == len(histories)
        if last or total + cost[query + 1] > TOKENS_AT_A_TIME:
            low, high = histories.offsets[start], histories.offsets[query + 1]
            yield (
                Histories(
                    offsets=histories.offsets[start : query + 2] - low,
                    item=histories.item[low:high],
                    action=histories.action[low:high],
                    timestamp=histories.timestamp[low:high],
                    session=histories.session[low:high],
                    request_time=histories.request_time[start : query + 1],
                ),
                range(start, query + 1),
            )
            start, total = query + 1, 0


def _without_empty(histories: Histories) -> Histories:
    full = np.diff(histories.offsets) > 0
    offsets = np.concatenate([[0], np.cumsum(np.diff(histories.offsets)[full])]).astype(np.int64)
    return Histories(
        offsets=offsets,
        item=histories.item,
        action=histories.action,
        timestamp=histories.timestamp,
        session=histories.session,
        request_time=histories.request_time[full],
    )
