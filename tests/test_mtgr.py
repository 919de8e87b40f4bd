"""MTGR against the whole token matrix: explicit tokens, mask, biases and norms, one by one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_leaks import catalogue, random_histories, settings, trained_looking
from torch.nn import functional
from training_runs import both, parameters, train_both, write_project

from hpgr.data.batches import events_before
from hpgr.model.attention.cover import time_bucket
from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates
from hpgr.model.scoring import Scorer

CPU = torch.device("cpu")
PAUSE = catalogue().gap_s
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def make(**changes):
    torch.manual_seed(0)
    return trained_looking(build(settings(name="mtgr", **changes), catalogue(), ranking=True))


def asked(histories, *, every=3):
    """Candidates at the times of every third event of each history and at its request."""
    user, time = [], []
    for u in range(len(histories)):
        own = slice(*histories.offsets[u : u + 2])
        moments = [*histories.timestamp[own][::every], histories.request_time[u]]
        user += [u] * len(moments)
        time += moments
    user, time = np.array(user), np.array(time)
    offsets = np.searchsorted(user, np.arange(len(histories) + 1))
    item = np.random.default_rng(7).integers(2, 50, len(user))
    return place_candidates(
        histories, offsets, item, events_before(histories, user, time), time, CPU
    )


def past():
    """Three histories: one asks after the longest pause within a session, one a second later."""
    histories = random_histories([19, 1, 33], seed=3)
    last = histories.timestamp[histories.offsets[1:] - 1]
    return replace(histories, request_time=last + np.array([PAUSE, 60, PAUSE + 1]))


def judged(model, histories, candidates):
    """States of rows, states of candidates at the ranking head, and logits."""
    caught = []
    hook = model.click.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        output = model(pack(histories, CPU), candidates)
    hook.remove()
    return output.states, caught[0], output.logits


def visits_of(session):
    return np.cumsum(np.concatenate([[0], np.diff(session) != 0]))


def sees(domain, row, visit, other, row_k, visit_k):
    """Tell if token (other, row_k) is shown to the token (domain, row) of an event."""
    if other == "static":
        return visit_k <= visit if domain == "static" else visit_k < visit
    return domain == "real" and visit_k == visit and row_k <= row


def dense(model, histories, candidates):
    """States of rows and of candidates, user by user, over all tokens of the user at once."""
    packed = pack(histories, CPU)
    table = model.items.table()
    x_T = table[packed.item] * table.shape[1] ** 0.5 + model.action(packed.action)
    x_T = x_T + model.place(packed.position, packed.time, packed.previous_time, packed.next_time)
    c_C = model._candidates(packed, candidates, table)
    states, ends = [], []
    for u in range(len(histories)):
        low, high = histories.offsets[u : u + 2]
        own = np.flatnonzero(candidates.first.numpy() == low) if high > low else []
        visit, time = visits_of(histories.session[low:high]), histories.timestamp[low:high]
        following = np.append(time[1:], histories.request_time[u])
        rows = np.arange(high - low)
        # domain, place, time as one who asks, time as one who is read, visit
        tokens = [("static", i, time[i], time[i], visit[i]) for i in rows]
        tokens += [("real", i, following[i], time[i], visit[i]) for i in rows]
        for c in own:
            moment, seen = int(candidates.time[c]), int(candidates.end[c] - low)
            over = seen and moment - time[seen - 1] > PAUSE
            newest = np.inf if over else visit[seen - 1] if seen else -1
            tokens.append(("candidate", seen, moment, moment, newest))
        mask, bias_place, bias_time = (np.zeros((len(tokens),) * 2, dtype=int) for _ in range(3))
        for i, (domain, place, moment, _, where) in enumerate(tokens):
            for j, (other, at, _, happened, there) in enumerate(tokens):
                bias_place[i, j] = min(abs(place - at), model.blocks[0].position_bias.numel() - 1)
                bias_time[i, j] = moment - happened
                if domain == "candidate":
                    if other == "candidate":
                        mask[i, j] = i == j
                    elif at < place:
                        mask[i, j] = there < where if other == "static" else there == where
                elif other != "candidate":
                    mask[i, j] = sees(domain, place, where, other, at, there)
        domain = torch.tensor([("static", "real", "candidate").index(t[0]) for t in tokens])
        x = torch.cat([x_T[low:high], x_T[low:high], c_C[own]])
        mask = torch.tensor(mask)
        length = mask.sum(1)
        for block in model.blocks:

            def norm(rows, layer, domain=domain):
                mean, variance = rows.mean(1, keepdim=True), rows.var(1, False, keepdim=True)
                normed = (rows - mean) / (variance + 1e-6) ** 0.5
                return normed * layer.weight[domain] + layer.bias[domain]

            u_, v, q, k = functional.silu(norm(x, block.entering) @ block.uvqk).chunk(4, 1)
            bias = block.position_bias[bias_place]
            bias = bias + block.time_bias[time_bucket(torch.tensor(bias_time))]
            read = []
            for head in range(model.blocks[0].shape[0]):
                part = slice(head * block.shape[1], (head + 1) * block.shape[1])
                weight = functional.silu(q[:, part] @ k[:, part].T + bias) * mask
                read.append(weight @ v[:, part])
            gated = torch.cat(read, 1) / length.clamp_min(1)[:, None] * u_
            x = x + block.mlp(norm(gated, block.leaving))
        states.append(x[high - low : 2 * (high - low)])
        ends.append(x[2 * (high - low) :])
    return torch.cat(states), torch.cat(ends)


@pytest.mark.parametrize("biases", [True, False])
def test_the_network_equals_the_whole_token_matrix(biases):
    model = make(position_bias=biases, time_bias=biases)
    histories = past()
    candidates = asked(histories)
    states, ends, _ = judged(model, histories, candidates)
    with torch.no_grad():
        expected_states, expected_ends = dense(model, histories, candidates)
    torch.testing.assert_close(states, expected_states, **CLOSE)
    torch.testing.assert_close(ends, expected_ends, **CLOSE)


def test_those_candidates_are_of_every_sort():
    """Behind a pause, in a visit that goes on, and without a past."""
    histories = past()
    candidates, packed, model = asked(histories), pack(histories, CPU), make()
    static = model._static_end(packed, candidates) - candidates.first
    seen = candidates.end - candidates.first
    assert ((static == seen) & (seen > 0)).any() and ((static < seen) & (static > 0)).any()
    assert (seen == 0).any()


def replaced(histories, row, seed=0):
    """The same histories with another item and action at `row`."""
    item, action = histories.item.copy(), histories.action.copy()
    item[row], action[row] = 2 + (item[row] + 5) % 40, 1 + action[row] % 5
    return replace(histories, item=item, action=action)


@pytest.mark.parametrize("cross", ["published", "residual", "fold_in"])
def test_a_logit_moves_with_each_earlier_event_and_with_no_other(cross):
    model = make(cross=cross, readout=False)
    with torch.no_grad():
        model.cross.value.normal_()
        model.cross.valued.fill_(1.0)
    histories = random_histories([7, 12], seed=2)
    candidates = asked(histories)
    before = judged(model, histories, candidates)[2]
    for row in range(19):
        after = judged(model, replaced(histories, row), candidates)[2]
        seen = (candidates.first <= row) & (row < candidates.end)
        torch.testing.assert_close(after[~seen], before[~seen], rtol=0, atol=1e-6)
        assert (after[seen] != before[seen]).all()


def test_blocks_are_not_mute_at_the_start():
    """The sums read lie far above the epsilon of the norm behind them."""
    torch.manual_seed(0)
    model = build(settings(name="mtgr", dim=64), catalogue(), ranking=True).eval()
    spread = []
    for block in model.blocks:
        block.leaving.register_forward_hook(lambda *caught: spread.append(caught[2].std().item()))
    histories = random_histories([30, 17], seed=2)
    with torch.no_grad():
        model(pack(histories, CPU), asked(histories))
    assert len(spread) == 5 and min(spread) > 0.9


def test_candidates_move_no_state():
    model, histories = make(), random_histories([12, 20], seed=2)
    with torch.no_grad():
        alone = model(pack(histories, CPU), None).states
    assert torch.equal(judged(model, histories, asked(histories))[0], alone)


def test_training_starts_at_the_values_of_actions_and_keeps_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    cfg = parameters(
        model__name="mtgr", model__cross="residual", model__readout=False, **both(2, "steps")
    )
    train_both(cfg)
    fitted = load_file("artifacts/pretrain/model.safetensors")
    trained = load_file("artifacts/finetune/model.safetensors")
    for name in ("value", "valued", "bias"):
        assert torch.equal(trained[f"cross.{name}"], fitted[f"factors.{name}"])
    assert trained["cross.value"][2] > 0 > trained["cross.value"][1]
    short = random_histories([3], seed=0)
    histories = replace(short, item=np.array([2, 3, 4]), action=np.array([1, 2, 1]))
    chance = Scorer.load(Path("artifacts/finetune")).rank(
        histories, np.array([0, 1]), np.array([5])
    )
    assert 0 < chance[0] < 1
