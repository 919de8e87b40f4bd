"""Row-wise Adagrad beside torch's Adagrad and AdamW, and trainings whose tables it updates."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from training_runs import both, parameters, train_both, write_project

import hpgr.training.finetune as stage_two
from hpgr.training.device import ALONE
from hpgr.training.memory import MemoryNeed
from hpgr.training.table_optimizer import TableAdamW

ROWS, WIDTH = 12, 5


def optimizer_of(weights, *, rows, scale=1.0, weight_decay=0.0):
    settings = SimpleNamespace(learning_rate=0.1, weight_decay=weight_decay)
    tables = SimpleNamespace(adagrad_rows=rows, adagrad_scale=scale)
    return TableAdamW([(weights, 1.0)], settings, tables)


def steps(weights, optimizer, count=6):
    """Steps in which row 3 never has a gradient, and row 0 only at first."""
    for n in range(count):
        optimizer.zero_grad(set_to_none=True)
        used = [r for r in range(len(weights[0])) if r != 3 and (r or not n)]
        sum((w[used].sin() * (n + 1)).sum() for w in weights).backward()
        optimizer.step()


def table(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(*shape, generator=draw))


@pytest.mark.parametrize("shape", [(ROWS, 1), (ROWS,)])
def test_with_one_number_a_row_it_is_torchs_adagrad(shape):
    ours, torchs = table(*shape), table(*shape)
    steps([ours], optimizer_of([ours], rows=ROWS, scale=0.5))
    steps([torchs], torch.optim.Adagrad([torchs], lr=0.05))
    torch.testing.assert_close(ours, torchs)


def test_a_row_goes_by_its_mean_square():
    """Against torch's Adagrad whose accumulator is replaced by the row's mean before each step."""
    ours, other = table(ROWS, WIDTH), table(ROWS, WIDTH)
    optimizer = optimizer_of([ours], rows=ROWS)
    total = torch.zeros(ROWS)
    for n in range(5):
        for weight in (ours, other):
            weight.grad = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(n))
        total += other.grad.square().mean(1)
        rule = torch.optim.Adagrad([other], lr=0.1)
        rule.state[other]["sum"] = total[:, None] - other.grad.square()
        rule.step()
        optimizer.step()
    torch.testing.assert_close(ours, other)


def test_a_row_without_gradient_stays_bit_for_bit():
    weight = table(ROWS, WIDTH)
    before = weight.detach().clone()
    steps([weight], optimizer_of([weight], rows=ROWS, weight_decay=0.1))
    moved = (weight != before).any(1)
    assert not moved[3] and moved[torch.arange(ROWS) != 3].all()


def test_decay_shortens_the_rows_in_use_by_rate_times_decay():
    plain, decayed = table(ROWS, WIDTH), table(ROWS, WIDTH)
    steps([plain], optimizer_of([plain], rows=ROWS), 1)
    start = table(ROWS, WIDTH).detach()
    steps([decayed], optimizer_of([decayed], rows=ROWS, weight_decay=0.5), 1)
    expected = torch.where(torch.arange(ROWS)[:, None] == 3, 0.0, -0.1 * 0.5 * start)
    torch.testing.assert_close(decayed - plain, expected)


def test_smaller_weights_are_adamws():
    small, beside = table(ROWS - 1, WIDTH), table(ROWS, WIDTH, seed=1)
    alone = table(ROWS - 1, WIDTH)
    optimizer = optimizer_of([small, beside], rows=ROWS, weight_decay=0.1)
    steps([small], optimizer)
    adamw = torch.optim.AdamW([alone], lr=0.1, betas=(0.9, 0.98), weight_decay=0.1)
    steps([alone], adamw)
    assert torch.equal(small, alone)


def test_the_state_goes_on_in_another_optimizer():
    whole, cut = table(ROWS, WIDTH), table(ROWS, WIDTH)
    steps([whole], (optimizer := optimizer_of([whole], rows=ROWS)), 3)
    cut.data.copy_(whole.data)
    later = optimizer_of([cut], rows=ROWS)
    later.load_state_dict(deepcopy(optimizer.state_dict()))
    steps([whole], optimizer, 2)
    steps([cut], later, 2)
    assert torch.equal(whole, cut)


@pytest.fixture
def announced(tmp_path, monkeypatch):
    """Train stage 2 with Adagrad from so many rows on; return its optimizer and need of memory."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    plain, found = stage_two.train, SimpleNamespace()

    def train(model, optimizer, windows, **kwargs):
        found.optimizer = optimizer
        found.memory = MemoryNeed.of(model, optimizer, windows, kwargs["loss"], ALONE)
        return plain(model, optimizer, windows, **kwargs)

    monkeypatch.setattr(stage_two, "train", train)

    def run(rows):
        train_both(parameters(**both(2, "steps"), finetune__adagrad_rows=rows))
        return found

    return run


def test_both_stages_say_which_tables_and_keep_one_number_a_row(announced, capsys):
    found = announced(20)
    printed = capsys.readouterr().out
    for stage in ("pretrain", "finetune"):
        line = next(x for x in printed.splitlines() if x.startswith(f"{stage}: at least"))
        assert "row-wise Adagrad for tables of " in line
    states = found.optimizer.state.values()
    held = sum(v.numel() * v.element_size() for state in states for v in state.values())
    assert found.memory.optimizer == held
    assert any(set(state) == {"sum", "step"} for state in states)
    less, found = found.memory.optimizer, announced(10**9)
    assert less < found.memory.optimizer / 2
    assert "Adagrad" not in capsys.readouterr().out
