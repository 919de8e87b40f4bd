"""Share, scale and independence of the fast dropout, against what dropout is by definition."""

import torch

from hpgr.model.dropout import Dropout, dropout


def test_share_and_mean_are_kept():
    torch.manual_seed(0)
    out = dropout(torch.ones(1000, 1003), 0.2, True)
    share = 51 / 256
    assert abs((out == 0).float().mean().item() - share) < 0.002
    assert abs(out.mean().item() - 1) < 0.003
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - share)))


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(8 * 50_000), 0.5, True) != 0).double().view(-1, 8)
    correlation = torch.corrcoef(kept.T)
    assert (correlation - torch.eye(8)).abs().max() < 0.03


def test_nothing_happens_outside_training():
    x = torch.randn(5)
    assert dropout(x, 0.2, False) is x


def test_the_gradient_passes_where_the_value_does():
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    out = dropout(x, 0.3, True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad * x.detach(), out.detach())


def test_the_layer_is_the_function():
    layer, x = Dropout(0.3), torch.ones(1000)
    torch.manual_seed(0)
    out = layer(x)
    torch.manual_seed(0)
    assert torch.equal(out, dropout(x, 0.3, True)) and layer.eval()(x) is x
