"""Attention on a CUDA device: every cover and chunk gives what the CPU gives in float32."""

import pytest
import torch
from gathered import Problem

import hpgr.model.attention.cover
import hpgr.model.placement
from hpgr.model.attention.cover import NUM_TIME_BUCKETS, build_tiles
from hpgr.model.attention.entry import additive_attention, softmax_attention
from hpgr.model.attention.select import select

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
LENGTHS = [200, 1, 133, 64, 300, 77]


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    if request.param == "many chunks":
        monkeypatch.setattr(hpgr.model.placement, "ACCELERATOR_BYTES", 1 << 18)


def attended(device, dtype, *, segments, candidates):
    """Output and gradients of one seeded problem; numbers are drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(LENGTHS)
    start = lengths.cumsum(0) - lengths
    if candidates:
        first = torch.repeat_interleave(start, 8)
        share = torch.rand(len(LENGTHS), 8, generator=generator).sort(1).values
        last = first + (share * (lengths[:, None] + 1)).long().flatten()
    else:
        first = torch.repeat_interleave(start, lengths)
        last = torch.arange(len(first)) + 1
    total = int(lengths.sum())
    time = torch.randint(0, 10**5, (total,), generator=generator).cumsum(0)
    asked = torch.randint(0, 10**7, (len(first),), generator=generator)

    def rand(*shape):
        return torch.randn(*shape, generator=generator).mul_(0.3).to(device)

    tiles = build_tiles(
        first.to(device), last.to(device), total, size=64,
        query_time=asked.to(device), key_time=time.to(device),
        query_position=last.to(device) if candidates else None, segments=segments,
    )  # fmt: skip
    assert (tiles.rows is not None) == segments
    q, k, v = rand(len(first), 4, 32), rand(total, 4, 32), rand(total, 4, 32)
    factors = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    biases = [rand(250).requires_grad_(), rand(NUM_TIME_BUCKETS).requires_grad_()]
    out = additive_attention(*factors, tiles, position_bias=biases[0], time_bias=biases[1])
    out = out + softmax_attention(*factors, tiles, biases[0])
    upstream = rand(*out.shape)
    gradients = torch.autograd.grad((out.float() * upstream).sum(), [*factors, *biases])
    return [x.detach().float().cpu() for x in (out, *gradients)]


@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)], ids=str
)
def test_equals_the_cpu(dtype, tolerance, segments, candidates, chunks, monkeypatch):
    monkeypatch.setattr(hpgr.model.attention.cover, "SEGMENT_WASTE", 10**6)
    expected = attended("cpu", torch.float32, segments=False, candidates=candidates)
    found = attended("cuda", dtype, segments=segments, candidates=candidates)
    for got, want in zip(found, expected, strict=True):
        assert (got - want).norm() < tolerance * want.norm()


def test_segments_are_the_choice_on_a_device():
    first = torch.arange(400, device="cuda") // 100 * 100
    last = torch.arange(400, device="cuda") + 1
    assert build_tiles(first, last, 400, size=64).rows is not None
    assert build_tiles(first.cpu(), last.cpu(), 400, size=64).rows is None


@pytest.mark.parametrize("per_user", [None, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)], ids=str
)
@pytest.mark.parametrize("name", ["tiles", "triton"])
def test_a_sparse_mask_equals_the_whole_matrix_of_the_cpu(name, dtype, tolerance, per_user):
    if name == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    expected, found = [], []
    for device, results in (("cpu", expected), ("cuda", found)):
        problem = Problem(LENGTHS, 0, per_user=per_user, dtype=torch.float32, width=64)
        with torch.no_grad():
            problem.factors[0].mul_(0.1)
        if device == "cpu":
            out = problem.dense(problem.weights(sigma=2.0, window=16))
        else:
            problem.to(device)
            tiles, weight = problem.tiles(sigma=2.0, window=16, size=16)
            position, time = problem.biases
            out = additive_attention(
                *(x.to(dtype) for x in problem.factors), tiles,
                position_bias=position, time_bias=time, weight=weight, name=name,
            )  # fmt: skip
        results += [x.detach().float().cpu() for x in problem.gradients(out.float())]
    for got, want in zip(found, expected, strict=True):
        assert (got - want).norm() < tolerance * want.norm()


def test_triton_adds_up_in_one_order():
    """Sums of queries, keys and values are the same bits every time."""
    pytest.importorskip("triton", reason="triton is not installed")
    results = []
    for _ in range(2):
        problem = Problem([700, 300], 0, dtype=torch.float32, width=64).to("cuda")
        tiles, weight = problem.tiles(sigma=2.0, window=16, size=16)
        position, time = problem.biases
        out = additive_attention(
            *problem.factors, tiles,
            position_bias=position, time_bias=time, weight=weight.detach(), name="triton",
        )  # fmt: skip
        results.append(problem.gradients(out)[:4])
    for once, again in zip(*results, strict=True):
        assert torch.equal(once, again)


def test_anchors_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    signal = torch.nn.functional.normalize(torch.randn(5000, 32, generator=generator), dim=-1)
    row = torch.arange(5000)
    found = [
        select(signal.to(device), signal.to(device), (row // 2500 * 2500).to(device),
               (row + 1).to(device), 8)
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    (_, want), (_, got) = found
    torch.testing.assert_close(got.cpu()[8:], want[8:], rtol=0, atol=1e-5)
