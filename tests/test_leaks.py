"""Nothing computed for a position may depend on what happened after it.

Every test changes the future and demands that the past does not move, for the whole network with
all its parts on (session tokens, preference signals, session features of candidates).
"""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpgr.data.batches import TrainingWindows, events_before
from hpgr.data.histories import Histories
from hpgr.data.log import TEST, TRAIN, VALIDATION, EventLog, Meta
from hpgr.model.catalogue import Catalogue
from hpgr.model.hpgr import HPGR
from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates
from hpgr.model.session_encoder import SessionEncoder
from hpgr.model.trunk import MaskedItemModel

NUM_ITEMS = 50
ROUNDING = 3e-5  # where sessions interleave, later events move earlier rows to other tiles
CPU = torch.device("cpu")
SPARSE = 300  # max_history from which masks are computed sparsely


def settings(**changes):
    base = {
        "name": "hpgr", "dim": 16, "max_history": 40, "num_blocks": 2, "num_heads": 2,
        "dropout": 0.1, "position_bias": True, "time_bias": True, "side_features": True,
        "sessions": True,
        "intra_blocks": 1, "inter_blocks": 1, "preference": True, "history_rows": "causal",
        "num_anchors": 3, "sigma": 1.0, "recent_window": 4, "candidate_window": 4, "signal_dim": 6,
        "tile": 8, "readout": True, "factors": 5, "cross": "fold_in",
    }  # fmt: skip
    return SimpleNamespace(**{**base, **changes})


def catalogue(*, own_sessions=False):
    generator = torch.Generator().manual_seed(3)
    return Catalogue(
        num_items=NUM_ITEMS,
        num_actions=6,
        num_categories=7,
        category_offsets=torch.arange(NUM_ITEMS + 1),
        category=torch.randint(1, 7, (NUM_ITEMS,), generator=generator),
        gap_s=1800,
        own_sessions=own_sessions,
    )


def random_histories(lengths, seed, *, interleaved=False):
    """Histories cut by pauses or, `interleaved`, whose sessions go on after others."""
    random = np.random.default_rng(seed)
    total = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    gaps = random.choice([0, 5, 600, 86400], total)
    time = np.concatenate([10**9 + np.cumsum(gaps[a:b]) for a, b in pairwise(offsets)])
    session = np.concatenate([np.cumsum(gaps[a:b] > 1800) for a, b in pairwise(offsets)])
    if interleaved:
        session = random.integers(0, 3, total)
    return Histories(
        offsets=offsets,
        item=random.integers(2, NUM_ITEMS, total),
        action=random.integers(1, 6, total),
        timestamp=time,
        session=session,
        request_time=time[offsets[1:] - 1] + 60,
    )


def changed_after(histories, user, position, seed):
    """The same histories with every event of `user` behind `position` replaced.

    The next event's *time* is known at a position by design, so times move only behind that.
    """
    random = np.random.default_rng(seed)
    low = histories.offsets[user] + position + 1
    high = histories.offsets[user + 1]
    item, action = histories.item.copy(), histories.action.copy()
    time, session = histories.timestamp.copy(), histories.session.copy()
    item[low:high] = random.integers(2, NUM_ITEMS, high - low)
    action[low:high] = random.integers(1, 6, high - low)
    time[low + 1 : high] += np.sort(random.integers(0, 10**6, max(0, high - low - 1)))
    session[low:high] += np.cumsum(random.integers(0, 2, high - low))
    request = histories.request_time.copy()
    if high > low:
        request[user] = time[high - 1] + 999
    return Histories(histories.offsets, item, action, time, session, request)


def trained_looking(model, seed=0):
    """Weights large enough that every path matters: a fresh gate or bias of zero hides leaks."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # What is not learned may be a variance: it stays positive.
            noise = torch.randn_like(parameter) * 0.3 if parameter.requires_grad else None
            parameter.add_(torch.rand_like(parameter) if noise is None else noise)
    return model.eval()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"name": "hstu"},
        {"name": "sasrec"},
        {"name": "esasrec"},
        {"name": "mtgr"},
        {},
        {"max_history": SPARSE},
        {"history_rows": "preference"},
        {"history_rows": "preference", "max_history": SPARSE},
        {"history_rows": "preference", "max_history": SPARSE, "recent_window": 1},
    ],
    ids=str,
)
def test_states_up_to_t_do_not_move_when_later_events_change(changes, interleaved):
    """Not by a bit, selection included."""
    model = trained_looking(build(settings(**changes), catalogue(), ranking=True))
    histories = random_histories([30, 17, 9], seed=1, interleaved=interleaved)
    slack = ROUNDING if interleaved else 0
    with torch.no_grad():
        before = model(pack(histories, CPU), None)[0]
        for user, position in [(0, 0), (0, 12), (0, 28), (1, 5), (2, 7)]:
            other = changed_after(histories, user, position, seed=position)
            after = model(pack(other, CPU), None)[0]
            low = histories.offsets[user]
            torch.testing.assert_close(
                after[low : low + position + 1],
                before[low : low + position + 1],
                rtol=0,
                atol=slack,
            )
            # The test can fail: what follows the change does move.
            assert not torch.allclose(after[low + position + 1], before[low + position + 1])


@pytest.mark.parametrize("recent_window", [0, 4])
def test_long_histories_select_and_read_the_same_when_later_events_change(recent_window):
    """Not by a bit: selection in several levels, many tiles, blocks shared by many readers."""
    model = trained_looking(
        build(settings(history_rows="preference", max_history=1400), catalogue(), ranking=True)
    )
    model.row_window = recent_window
    histories = random_histories([1400, 300, 5], seed=1)
    with torch.no_grad():
        found = []
        for user, position in [(0, 1399), (0, 1200), (0, 250), (1, 100)]:
            packed = pack(changed_after(histories, user, position, seed=3), CPU)
            reading = model.read(packed)
            found.append((reading.states, reading.mask.anchor))
    for (user, position), after in zip([(0, 1200), (0, 250), (1, 100)], found[1:], strict=True):
        low = histories.offsets[user]
        past, next_row = slice(low, low + position + 1), low + position + 1
        for before, moved in zip(found[0], after, strict=True):
            assert torch.equal(moved[past], before[past])
        assert not torch.equal(after[0][next_row], found[0][0][next_row])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        *({"name": name} for name in ("hstu", "sasrec", "esasrec", "mtgr")),
        {},
        {"max_history": SPARSE},
    ],
    ids=str,
)
def test_candidates_see_only_events_before_their_request(changes, interleaved):
    known = catalogue(own_sessions=interleaved)
    model = trained_looking(build(settings(**changes), known, ranking=True))
    histories = random_histories([30, 17], seed=2, interleaved=interleaved)
    offsets, visible = np.array([0, 3, 5]), np.array([0, 4, 13, 2, 9])
    user = np.repeat([0, 1], [3, 2])
    row = histories.offsets[user] + visible
    time = histories.timestamp[row]
    visible = events_before(histories, user, time)
    item = np.array([5, 6, 7, 8, 9])

    def logits(h):
        placed = place_candidates(h, offsets, item, visible, time, CPU)
        with torch.no_grad():
            return model(pack(h, CPU), placed)[2]

    before = logits(histories)
    for candidate in range(5):
        other = changed_after(histories, user[candidate], visible[candidate] - 1, seed=candidate)
        if visible[candidate] == 0:
            other = changed_after(histories, user[candidate], -1, seed=candidate)
        slack = ROUNDING if interleaved else 0
        torch.testing.assert_close(logits(other)[candidate], before[candidate], rtol=0, atol=slack)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", ["hpgr", "hstu", "sasrec", "esasrec", "mtgr"])
def test_a_candidate_scores_alone_as_in_company(name, interleaved):
    """Candidates of one pass do not see each other, and a cut history equals a visible prefix."""
    known = catalogue(own_sessions=interleaved)
    model = trained_looking(build(settings(name=name), known, ranking=True))
    histories = random_histories([30], seed=4, interleaved=interleaved)
    row = np.array([3, 11, 29])
    time = histories.timestamp[row]
    visible = events_before(histories, np.zeros(3, dtype=int), time)
    item = np.array([5, 6, 7])
    with torch.no_grad():
        placed = place_candidates(histories, np.array([0, 3]), item, visible, time, CPU)
        together = model(pack(histories, CPU), placed)[2]
        for i, count in enumerate(visible):
            part = slice(0, count)
            alone = Histories(
                np.array([0, count]),
                histories.item[part],
                histories.action[part],
                histories.timestamp[part],
                histories.session[part],
                time[i : i + 1],
            )
            placed = place_candidates(
                alone, np.array([0, 1]), item[i : i + 1], visible[i : i + 1], time[i : i + 1], CPU
            )
            score = model(pack(alone, CPU), placed)[2]
            torch.testing.assert_close(score[0], together[i], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("interleaved", [False, True])
def test_users_do_not_see_each_other(interleaved):
    model = trained_looking(HPGR(settings(), catalogue()))
    histories = random_histories([12, 20, 5], seed=5, interleaved=interleaved)
    with torch.no_grad():
        before = model(pack(histories, CPU), None)[0]
        other = changed_after(histories, 1, -1, seed=9)
        after = model(pack(other, CPU), None)[0]
    keep = np.r_[0:12, 32:37]
    torch.testing.assert_close(after[keep], before[keep], rtol=0, atol=ROUNDING)


def test_a_visit_s_end_is_not_known_before_it_is_over():
    """A row must not see that its session goes on later: that reveals what comes next.

    The same prefix, once with its first session going on behind it and once without.
    """
    model = trained_looking(HPGR(settings(), catalogue()))
    histories = random_histories([12], seed=8)
    prefix = np.array([0, 0, 0, 1, 1, 0, 1, 2, 2])
    states = []
    for rest in ([0, 0, 0], [2, 2, 2], [3, 3, 3]):
        session = np.concatenate([prefix, rest])
        with torch.no_grad():
            states.append(model(pack(replace(histories, session=session), CPU), None)[0])
    for other in states[1:]:
        torch.testing.assert_close(other[:9], states[0][:9], rtol=0, atol=ROUNDING)
        assert not torch.allclose(other[9:], states[0][9:])


@pytest.mark.parametrize("causal", [True, False])
def test_an_event_reads_its_own_session_wherever_its_events_lie(causal):
    """Inside a session, interleaved rows read what they would read if it were a user's only one."""
    encoder = trained_looking(
        SessionEncoder(16, 2, intra_blocks=2, inter_blocks=1, num_positions=41, dropout=0.0)
    )
    histories = random_histories([30, 17], seed=3, interleaved=True)
    x = torch.randn(47, 16, generator=torch.Generator().manual_seed(0))
    user = np.repeat([0, 1], [30, 17])
    with torch.no_grad():
        together = encoder(x, pack(histories, CPU), tile=8, causal=causal)[1][:47]
        for key in {*zip(user.tolist(), histories.session.tolist(), strict=True)}:
            rows = np.flatnonzero((user == key[0]) & (histories.session == key[1]))
            alone = Histories(
                np.array([0, len(rows)]), histories.item[rows], histories.action[rows],
                histories.timestamp[rows], np.zeros(len(rows), int), histories.request_time[:1],
            )  # fmt: skip
            found = encoder(x[rows], pack(alone, CPU), tile=8, causal=causal)[1][: len(rows)]
            torch.testing.assert_close(together[rows], found, rtol=0, atol=1e-5)


def test_the_newest_state_equals_the_last_row_of_all_states():
    model = trained_looking(HPGR(settings(), catalogue()))
    histories = random_histories([12, 20, 5], seed=6)
    with torch.no_grad():
        full = model(pack(histories, CPU), None)[0]
        packed = pack(histories, CPU)
        newest = model(packed, None, rows=packed.newest)[0]
    torch.testing.assert_close(newest, full[histories.offsets[1:] - 1], rtol=0, atol=1e-5)


def test_a_masked_item_reaches_nothing_in_pretraining():
    """Neither its own token nor its session's token may carry it to the head."""
    model = trained_looking(MaskedItemModel(settings(), catalogue(), mim_blocks=1))
    histories = random_histories([30, 17], seed=7)
    masked = torch.zeros(47, dtype=torch.bool)
    masked[[4, 20, 33]] = True
    item, action = histories.item.copy(), histories.action.copy()
    item[masked.numpy()] = 2 + (item[masked.numpy()] + 1) % (NUM_ITEMS - 2)
    action[masked.numpy()] = 1 + action[masked.numpy()] % 5
    other = Histories(
        histories.offsets, item, action, histories.timestamp, histories.session,
        histories.request_time,
    )  # fmt: skip
    with torch.no_grad():
        before = model(pack(histories, CPU), masked)[0]
        after = model(pack(other, CPU), masked)[0]
        seen = model(pack(other, CPU), torch.zeros_like(masked))[0]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not torch.allclose(seen, before)


def small_log(seed=0):
    """Six users with training, validation and test events, as flat arrays."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 60, 6)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    split = np.full(total, TRAIN, dtype=np.int8)
    split[offsets[1:] - 1], split[offsets[1:] - 2] = TEST, VALIDATION
    time = np.concatenate([10**9 + np.cumsum(random.integers(0, 5000, n)) for n in lengths])
    return EventLog(
        Meta(6, NUM_ITEMS, 6, 7, total, "leave-one-out", 1800),
        offsets,
        random.integers(2, NUM_ITEMS, total).astype(np.int32),
        time,
        random.integers(1, 6, total).astype(np.int16),
        random.integers(0, 2, total).astype(np.int8),
        np.zeros(total, dtype=np.int32),
        split,
        np.arange(NUM_ITEMS + 1),
        random.integers(1, 7, NUM_ITEMS).astype(np.int32),
        np.array([np.nan, 1, 2, 3, 4, 5], dtype=np.float32),
    )


def test_training_batches_hold_no_held_out_event():
    """Marking held-out items with ids of their own: none appears, as input, target or candidate."""
    log = small_log()
    held_out = np.asarray(log.split) != TRAIN
    item = np.where(held_out, NUM_ITEMS - 1, np.minimum(log.item, NUM_ITEMS - 2)).astype(np.int32)
    log = EventLog(**{**log.__dict__, "item": item})
    for random_windows in (False, True):
        windows = TrainingWindows(
            log, max_history=20, batch_tokens=64, num_candidates=8,
            random_windows=random_windows, seed=0,
        )  # fmt: skip
        for epoch in range(4):
            for index, numbers in enumerate(windows.plan(epoch)):
                batch = windows.batch(numbers, epoch, index)
                for items in (batch.histories.item, batch.target, batch.candidates.item):
                    assert (items != NUM_ITEMS - 1).all()


def test_a_target_is_never_part_of_its_own_input():
    """Targets are the inputs moved by one: row i of the input ends before target i."""
    log = small_log(1)
    windows = TrainingWindows(
        log, max_history=20, batch_tokens=10**6, num_candidates=0, random_windows=False, seed=0
    )
    batch = windows.batch(windows.plan(0)[0], 0, 0)
    histories = batch.histories
    for a, b in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        assert (histories.item[a + 1 : b] == batch.target[a : b - 1]).all()
