"""An approximate search of large catalogues: faiss' inverted file over the items' unit vectors.

K-means puts the items into as many cells as the root of their number, and a state looks only into
the cells nearest to it. How many is chosen when a model is loaded: the fewest with
which made-up histories find the wanted share (`serve.index_recall`) of what an exact search finds.
Source: Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", TPAMI 33(1),
2011, without their compression. Needs the extra `index`. Reads and writes nothing.

Shape legend (suffixes of names): Q queries, V items, D width, n items found.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

from hpgr.data.log import FIRST_ITEM
from hpgr.runtime import UserError

ROUNDS = 10  # of k-means
LEARNED_FROM = 64  # items of a cell, at most, that k-means sees


class ItemIndex:
    """Finds the items nearest to states, most of them, in a part of the catalogue."""

    def __init__(self, unit_VD: np.ndarray) -> None:
        """Build it over the vectors of items, of length one, float32; reserved ids stay out.

        Raises:
            UserError: faiss is not installed.
        """
        try:
            import faiss
        except ImportError as error:
            raise UserError(
                "serve.index_items is set, but faiss is not installed: pip install 'hpgr[index]', "
                "or set serve.index_items to null, which searches exactly"
            ) from error
        item_VD = np.ascontiguousarray(unit_VD[FIRST_ITEM:])
        self.cells, width = max(1, round(len(item_VD) ** 0.5)), item_VD.shape[1]
        self._index: Any = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, self.cells, faiss.METRIC_INNER_PRODUCT
        )
        learn = self._index.cp
        learn.niter, learn.seed, learn.max_points_per_centroid = ROUNDS, 0, LEARNED_FROM
        learn.min_points_per_centroid = 1
        self._index.train(item_VD)
        self._index.add_with_ids(item_VD, np.arange(FIRST_ITEM, len(unit_VD)))

    @property
    def probes(self) -> int:
        """Cells that a state looks into."""
        return int(self._index.nprobe)

    @probes.setter
    def probes(self, count: int) -> None:
        self._index.nprobe = count

    def search(self, state_QD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest `count` items of the looked-into cells, -1 where fewer, and how near.

        Args:
            state_QD: of length one, float32.
            count: items a query.

        Returns:
            item int64 [Q, n] and cosine float32 [Q, n], nearest first.
        """
        near_Qn, item_Qn = self._index.search(state_QD, count)
        return item_Qn, np.where(item_Qn < 0, np.float32(-np.inf), near_Qn)

    def tune(self, state_QD: np.ndarray, count: int, recall: float) -> float:
        """Choose the cells to look into; return the recall@`count` that these states then have."""
        self.probes = self.cells
        exact_Qn, _ = self.search(state_QD, count)

        def found(probes: int) -> float:
            self.probes = probes
            pairs = zip(self.search(state_QD, count)[0], exact_Qn, strict=True)
            return float(np.mean([np.isin(exact, item).mean() for item, exact in pairs]))

        # More cells never find less.
        fewest = bisect.bisect_left(range(1, self.cells), recall, key=found) + 1
        return found(fewest)
