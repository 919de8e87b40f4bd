"""Triton's kernels in its interpreter, on a CPU, against the whole matrix: sums and gradients."""

import os

import pytest
import torch
from gathered import Problem

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs the kernels on the device", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"  # read as triton is imported
pytest.importorskip("triton", reason="triton is not installed: its kernels run on CUDA alone")
from hpgr.model.attention.entry import additive_attention

CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize(
    ("lengths", "per_user", "num_anchors", "window", "width"),
    [
        ([70, 1, 0, 29], None, 3, 4, 5),
        ([70, 0, 29], 4, 3, 0, 16),
        ([5], None, 6, 0, 20),
        ([0, 3], 2, 2, 9, 16),
    ],
)
def test_equals_the_whole_matrix(lengths, per_user, num_anchors, window, width, exponential):
    problem = Problem(
        lengths, 0, per_user=per_user, num_anchors=num_anchors, dtype=torch.float32, width=width
    )
    with torch.no_grad():
        for factor in problem.factors[:2]:
            factor.mul_(0.3)
    tiles, weight = problem.tiles(sigma=1.5, window=window, size=16, group=16)
    position, time = problem.biases
    out = additive_attention(
        *problem.factors, tiles, position_bias=position, time_bias=time,
        weight=weight, exponential=exponential, name="triton",
    )  # fmt: skip
    expected = problem.dense(problem.weights(sigma=1.5, window=window), exponential=exponential)
    for got, want in zip(problem.gradients(out), problem.gradients(expected), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_without_weights():
    problem = Problem([40, 9], 1, dtype=torch.float32)
    tiles, _ = problem.tiles(sigma=1.0, window=100, size=16, group=16)
    position, time = problem.biases
    out = additive_attention(
        *problem.factors, tiles, position_bias=position, time_bias=time, name="triton"
    )
    for got, want in zip(
        problem.gradients(out), problem.gradients(problem.dense(None)), strict=True
    ):
        torch.testing.assert_close(got, want, **CLOSE)


def test_half_products_stay_near_float32():
    """The interpreter multiplies no bfloat16; tests/gpu does."""
    problem = Problem([50, 20], 2, dtype=torch.float32, width=16)
    position, time = problem.biases
    results = []
    for dtype in (torch.float32, torch.float16):
        tiles, weight = problem.tiles(sigma=2.0, window=4, size=16)
        out = additive_attention(
            *(x.to(dtype) for x in problem.factors), tiles,
            position_bias=position, time_bias=time, weight=weight, name="triton",
        )  # fmt: skip
        assert out.dtype == dtype
        results.append(problem.gradients(out.float()))
    for want, got in zip(*results, strict=True):
        assert (got - want).norm() < 0.005 * want.norm()
