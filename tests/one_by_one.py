"""Windows that queries share, by their definition: each query with a history of its own."""

import numpy as np

from hpgr.data.histories import Histories, runs


def prefixes(histories, query, visible, time):
    """The oldest `visible` events of each history `query`, asked at `time`."""
    offsets, rows = runs(histories.offsets[query], visible)
    return Histories.gather(histories, offsets, rows, time)


class OneByOne:
    """Gives a model with `retrieve` and `rank` the answers to windows that queries share."""

    def retrieve_rows(self, histories, rows):
        query = np.searchsorted(histories.offsets, rows, "right") - 1
        last = rows + 1 == histories.offsets[query + 1]
        after = histories.timestamp[np.minimum(rows + 1, len(histories.timestamp) - 1)]
        time = np.where(last, histories.request_time[query], after)
        return self.retrieve(prefixes(histories, query, rows + 1 - histories.offsets[query], time))

    def rank_rows(self, histories, rows):
        query = np.repeat(np.arange(len(histories)), np.diff(rows.offsets))
        seen = prefixes(histories, query, rows.visible, rows.time)
        return self.rank(seen, np.arange(len(query) + 1), rows.item)
