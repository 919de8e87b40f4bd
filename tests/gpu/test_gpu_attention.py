"""Attention on a CUDA device: every cover and chunk gives what the CPU gives in float32."""

import pytest
import torch

import hpgr.model.attention.cover
import hpgr.model.placement
from hpgr.model.attention.cover import NUM_TIME_BUCKETS, build_tiles
from hpgr.model.attention.entry import additive_attention, softmax_attention

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
