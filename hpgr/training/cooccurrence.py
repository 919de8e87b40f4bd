"""Item vectors in closed form: PPMI-SVD of co-occurrence within sessions.

Two items occur together where events of one session lie at most WINDOW events apart. The positive
pointwise mutual information (PPMI) of the counts, with the context's distribution smoothed, is
factorised to U sqrt(S), as Levy, Goldberg and Dagan recommend ("Improving distributional similarity
with lessons learned from word embeddings", TACL 2015). Training events only.
Reads the arrays of `hpgr.data.log`. Writes nothing. Shapes: V items, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpgr.data.log import FIRST_ITEM, TRAIN, EventLog

WINDOW = 8  # events; the cost grows with it
MOST_EVENTS = 1 << 22  # of users drawn from a larger log: 2^25 pairs, seconds
SMOOTHING = 0.75  # exponent of the context's distribution
OVERSAMPLING, ITERATIONS = 16, 4  # of the randomised SVD


def ppmi_svd(log: EventLog, dim: int, *, seed: int) -> Tensor:
    """Return item vectors [V, D], float32; those of an item without company are 0.

    Args:
        log: the sessionized log.
        dim: D; dimensions beyond the number of items are 0.
        seed: of the users drawn from a large log, and of the SVD.
    """
    ppmi = session_ppmi(log, seed=seed)
    size = min(dim + OVERSAMPLING, len(ppmi))
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        left, scale, _ = torch.svd_lowrank(ppmi, q=size, niter=ITERATIONS)
        # A singular vector has two signs, and which one comes depends on the processor.
        left = left * torch.sign(torch.randn(len(ppmi)) @ left)
    found = torch.zeros(len(ppmi), dim)
    kept = min(dim, size)
    company = ppmi.indices()[0].unique()  # elsewhere the decomposition leaves rounding
    found[company, :kept] = left[company, :kept] * scale[:kept].sqrt()
    return found


def directions(vectors_VD: Tensor, own_VD: Tensor) -> Tensor:
    """Return the directions of `vectors_VD`, of length 1 [V, D]; where they are 0, of `own_VD`.

    All have one length: a network would not recognise an item of a shorter one when it comes again.
    """
    company = vectors_VD.any(dim=1, keepdim=True)
    return functional.normalize(torch.where(company, vectors_VD, own_VD), dim=-1)


def session_ppmi(log: EventLog, *, seed: int) -> Tensor:
    """Return the positive pointwise mutual information of items, sparse float32 [V, V].

    Args:
        log: the sessionized log.
        seed: of the users drawn from a log with more than MOST_EVENTS training events.
    """
    session, item = _training_events(log, seed)
    size = log.meta.num_items
    pairs = []
    for lag in range(1, min(WINDOW + 1, len(item))):
        one, two = item[:-lag], item[lag:]
        together = (session[:-lag] == session[lag:]) & (one != two)
        together &= np.minimum(one, two) >= FIRST_ITEM
        pairs.append((np.minimum(one, two) * size + np.maximum(one, two))[together])
    key, count = np.unique(np.concatenate([*pairs, item[:0]]), return_counts=True)
    row, column = np.append(key // size, key % size), np.append(key % size, key // size)
    count = np.append(count, count).astype(np.float64)
    total = np.bincount(row, weights=count, minlength=size)
    context = total**SMOOTHING
    # log p(a, b) / (p(a) p(b)), where the probability p(b) of the context is smoothed.
    information = np.log(count * context.sum() / (total[row] * context[column]))
    positive = information > 0
    index = torch.from_numpy(np.stack([row[positive], column[positive]]))
    values = torch.from_numpy(information[positive]).float()
    with torch.sparse.check_sparse_tensor_invariants():  # the argument still warns in torch 2.11
        return torch.sparse_coo_tensor(index, values, (size, size)).coalesce()


def _training_events(log: EventLog, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Session and item of each training event, int64; events of a session are neighbours."""
    kept, user = _drawn(log, seed)
    session = (user[kept] << 32) | np.asarray(log.session)[kept]
    order = np.argsort(session, kind="stable")  # sessions of a user may interleave
    return session[order], np.asarray(log.item)[kept][order].astype(np.int64)


def drawn_events(log: EventLog, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return user and item of each training event in the log's order, int64.

    Args:
        log: the sessionized log.
        seed: of the users drawn from a log with more than MOST_EVENTS training events.
    """
    kept, user = _drawn(log, seed)
    return user[kept], np.asarray(log.item)[kept].astype(np.int64)


def _drawn(log: EventLog, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mark the training events, of drawn users in a large log; and the user of every event."""
    kept, user = np.asarray(log.split) == TRAIN, log.user_of_event()
    if kept.sum() > MOST_EVENTS:
        order = np.random.default_rng(seed).permutation(log.meta.num_users)
        events = np.bincount(user[kept], minlength=log.meta.num_users)[order]
        drawn = np.zeros(log.meta.num_users, dtype=bool)
        drawn[order[np.cumsum(events) <= MOST_EVENTS]] = True
        kept &= drawn[user]
    return kept, user
