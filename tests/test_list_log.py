"""Places in shown lists, against each list by itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpgr.data.histories import offsets_of
from hpgr.data.list_log import NO_PLACE, places

POSITIONS = st.lists(st.one_of(st.integers(0, 30), st.none()), max_size=8)


@given(st.lists(POSITIONS, max_size=6))
def test_a_place_counts_the_items_shown_before_it(lists):
    lists = [sorted(one, key=lambda p: (p is None, p)) for one in lists]
    expected = [
        NO_PLACE if None in one else sum(other < position for other in one)
        for one in lists
        for position in one
    ]
    position = np.array([np.nan if p is None else p for one in lists for p in one], dtype=float)
    found = places(offsets_of([len(one) for one in lists]), position)
    assert found.tolist() == expected
