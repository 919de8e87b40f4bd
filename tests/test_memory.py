"""The memory that a training announces, against the tensors that it then holds."""

from types import SimpleNamespace

import pytest
import torch
from training_runs import parameters, write_project

import hpgr.training.finetune as stage_two
from hpgr.runtime import UserError
from hpgr.training import memory
from hpgr.training.device import ALONE
from hpgr.training.memory import MemoryNeed, available


@pytest.fixture
def training(tmp_path, monkeypatch):
    """The arguments of the loop before its first step, kept after it."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    found, plain = SimpleNamespace(), stage_two.train

    def train(model, optimizer, windows, **kwargs):
        found.model, found.optimizer, found.windows = model, optimizer, windows
        found.loss = kwargs["loss"]
        found.memory = MemoryNeed.of(model, optimizer, windows, found.loss, ALONE)
        return plain(model, optimizer, windows, **kwargs)

    monkeypatch.setattr(stage_two, "train", train)
    found.cfg = parameters(finetune__inherit=False, finetune__steps=2, finetune__batch_tokens=400)
    return found


def held(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_weights_gradients_and_moments_are_exact(training):
    stage_two.finetune(training.cfg)
    weights = list(training.model.state_dict().values())
    assert training.memory.weights == held(weights)
    states = training.optimizer.state.values()
    assert training.memory.optimizer == held(value for state in states for value in state.values())
    gradients = [w.grad for w in training.optimizer.state]
    assert training.memory.gradients == held(gradients)


def test_activations_of_a_batch_are_foretold_from_parts_of_it(training):
    stage_two.finetune(training.cfg)
    model, windows = training.model.eval(), training.windows
    numbers, kept = windows.plan(0)[0], {}
    weights = {weight.data_ptr() for weight in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = training.loss(model, windows.batch(numbers, 0, 0), 0, 0)
    whole = sum(count for place, count in kept.items() if place not in weights)
    assert losses["loss"].requires_grad and windows.length[numbers].sum() >= 400
    assert training.memory.activations == pytest.approx(whole, rel=0.1)


def test_counting_leaves_weights_averages_and_random_state(training):
    stage_two.finetune(training.cfg)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    state = torch.get_rng_state()
    MemoryNeed.of(
        training.model.train(), training.optimizer, training.windows, training.loss, ALONE
    )
    assert all(torch.equal(before[name], v) for name, v in training.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and training.model.training


def test_a_training_that_cannot_fit_is_refused_before_its_first_step(training, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2**17)
    with pytest.raises(UserError, match=r"finetune needs at least .* lower finetune.batch_tokens"):
        stage_two.finetune(training.cfg)
    assert not hasattr(training, "model")


def test_what_is_available_is_the_least_of_machine_and_container(tmp_path, monkeypatch):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:   4000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", info)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available(ALONE.device) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 1200\ninactive_file 800\n")
    assert available(ALONE.device) == 3000 - (2000 - 800)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available(ALONE.device) == 1800 // 4
