"""Logs with shown lists for the tests: arrays of lists, and a log whose rule only lists show."""

import json

import numpy as np
from evaluation_log import make_log

from hpgr.data.histories import offsets_of
from hpgr.data.list_log import LIST_DTYPES, ListLog
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, UNKNOWN, VALIDATION, EventLog


def make_lists(lists, *, can_rank=True):
    """From (user, time, end, split, [(item, label), ...]) of each list."""
    user, time, end, split, shown = zip(*lists, strict=True)
    items = [one for own in shown for one in own]
    columns = {
        "offsets": offsets_of([len(own) for own in shown]), "user": user, "end": end,
        "timestamp": time, "split": split,
        "item": [item for item, _ in items], "label": [label for _, label in items],
        "place": [place for own in shown for place in range(len(own))],
    }  # fmt: skip
    return ListLog(
        can_rank=can_rank,
        **{name: np.asarray(columns[name], dtype) for name, dtype in LIST_DTYPES.items()},
    )


def write_lists(lists, folder):
    """Write `lists` the way the sessionize stage does."""
    folder.mkdir(parents=True)
    for name in LIST_DTYPES:
        np.save(folder / f"{name}.npy", getattr(lists, name))
    (folder / "meta.json").write_text(json.dumps({"can_rank": lists.can_rank}))


def random_lists(log, seed=0, *, num_lists=60, after=1):
    """Lists at seconds of the log and between them, also before and after all events of a user."""
    rng, lists = np.random.default_rng(seed), []
    for user in np.sort(rng.integers(0, log.meta.num_users, num_lists)):
        start, stop = log.user_offsets[user : user + 2]
        stamps = np.asarray(log.timestamp[start:stop])
        time = int(rng.choice([*stamps, stamps[0] - 1, stamps[-1] + after]) + rng.integers(0, 2))
        items = rng.choice(np.arange(UNKNOWN, log.meta.num_items), rng.integers(2, 6))
        shown = [(int(item), int(rng.random() < 0.3)) for item in items]
        end = int(start + (stamps < time).sum())
        lists.append((int(user), time, end, int(rng.choice([TRAIN, VALIDATION])), shown))
    return make_lists(sorted(lists, key=lambda one: one[:2]))


NUM_GROUPS, GROUP_SIZE = 4, 6


def planted_group(num_users=120, seed=0):
    """A log and lists in which what is taken is of the group of the user's only history item.

    A group is a category. The history holds its first item alone, so that no event and no session
    tells which other items are of the group, and labels of events are coins.
    """
    rng = np.random.default_rng(seed)
    num_items = NUM_GROUPS * GROUP_SIZE
    group = np.arange(num_items) // GROUP_SIZE
    # One who meets everything once, so that every item is known.
    users = [
        [(int(i) + FIRST_ITEM, 1 + n, n % 2) for n, i in enumerate(rng.permutation(num_items))]
    ]
    parts, lists, end = [[TRAIN] * num_items], [], num_items
    for user in range(1, num_users + 1):
        own = int(rng.integers(NUM_GROUPS))
        first = own * GROUP_SIZE + FIRST_ITEM
        users.append([(first, 1000 + n, int(rng.integers(2))) for n in range(2)])
        users[-1].append((first, 5000, int(rng.integers(2))))
        split = VALIDATION if user % 3 == 0 else TRAIN
        parts.append([TRAIN, TRAIN, VALIDATION if user % 2 else TEST])
        others = [rng.choice(np.flatnonzero((group == g) & (np.arange(num_items) % GROUP_SIZE > 0)))
                  for g in rng.permutation(NUM_GROUPS)]  # fmt: skip
        shown = [(int(i) + FIRST_ITEM, int(group[i] == own)) for i in others]
        lists.append((user, 2000, end + 2, split, shown))
        end += 3
    log = make_log(users, split="global-time", num_items=num_items + FIRST_ITEM, held_out=parts)
    reserved = np.zeros(FIRST_ITEM, dtype=np.int64)
    offsets = np.concatenate([reserved, np.arange(num_items + 1)])
    meta = type(log.meta)(**{**vars(log.meta), "num_categories": NUM_GROUPS + 1})
    log = EventLog(
        **{
            **vars(log),
            "meta": meta,
            "category_offsets": offsets,
            "category": (group + 1).astype(np.int32),
        }
    )
    return log, make_lists(lists)
