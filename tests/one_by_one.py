"""Windows that queries share, by their definition: each query with a history of its own."""

import numpy as np

from hpgr.data.histories import Histories, runs


def prefixes(histories, query, visible, time):
    """The oldest `visible` events of each history `query`, asked at `time`."""
    offsets, rows = runs(histories.offsets[query], visible)
    return Histories.gather(histories, offsets, rows, time)


class OneByOne:
    """Gives a model with `retrieve` and `rank` the answers to windows that queries share."""

    def retrieve_rows(self, histories, rows, request_time=None):
        query = np.searchsorted(histories.offsets, rows, "right") - 1
        last = rows + 1 == histories.offsets[query + 1]
        after = histories.timestamp[np.minimum(rows + 1, len(histories.timestamp) - 1)]
        time = np.where(last, histories.request_time[query], after)
        time = time if request_time is None else request_time
        return self.retrieve(prefixes(histories, query, rows + 1 - histories.offsets[query], time))

    def rank_rows(self, histories, rows):
        query = np.repeat(np.arange(len(histories)), np.diff(rows.offsets))
        seen = prefixes(histories, query, rows.visible, rows.time)
        return self.rank(seen, np.arange(len(query) + 1), rows.item)


class Reread:
    """Gives a model with `retrieve`, `rank` and `explain` the form in which it reads once."""

    def read(self, histories):
        return _Asked(self, histories)


class _Asked:
    def __init__(self, model, histories):
        self.model, self.histories = model, histories

    def retrieve(self, items=slice(None)):
        return self.model.retrieve(self.histories)[:, items]

    def explain(self):
        return self.model.explain(self.histories.without_empty())

    def rank(self, offsets, candidates):
        full, count = self.histories.length > 0, np.diff(offsets)
        of_full = np.repeat(full, count)
        bounds = np.concatenate([[0], np.cumsum(count[full])])
        known = self.histories.without_empty()
        explained = (np.zeros((0, 0), dtype=np.int64),) * 2
        if len(known):
            explained = self.model.explain(known, bounds, candidates[of_full])
        position = np.full((len(candidates), explained[0].shape[1]), -1)
        weight = np.zeros(position.shape, dtype=np.float32)
        position[of_full], weight[of_full] = explained
        return self.model.rank(self.histories, offsets, candidates), position, weight
