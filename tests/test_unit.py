"""Vectors of length one against torch's own, forward and backward."""

import pytest
import torch

from hpgr.model.unit import unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_and_so_does_the_gradient(dtype):
    x = torch.randn(7, 2, 5, dtype=dtype)
    x[3, 1] = 0
    x[4] *= 1e4
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    found, expected = unit(inputs[0]), torch.nn.functional.normalize(inputs[1], dim=-1)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(x)
    upstream[3, 1] = 0
    torch.testing.assert_close(
        *(
            torch.autograd.grad(y, one, upstream)
            for y, one in zip((found, expected), inputs, strict=True)
        )
    )


def test_strided_rows_are_taken_as_they_are():
    x = torch.randn(6, 3, 4)
    torch.testing.assert_close(unit(x[:, 1]), torch.nn.functional.normalize(x[:, 1], dim=-1))
