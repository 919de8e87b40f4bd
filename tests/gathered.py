"""Random problems for attention through a Gaussian mask, sparse and as a whole matrix."""

import torch

from hpgr.model.attention.bells import bell_weights, find_bells
from hpgr.model.attention.cover import NUM_TIME_BUCKETS, time_bucket
from hpgr.model.attention.key_tiles import build_key_tiles
from hpgr.model.attention.reference import dense_attention


class Problem:
    """Jagged histories with random anchors; `per_user` candidates query them, or their own rows.

    Peaks are drawn from few values, so that bells of equal height meet.
    """

    def __init__(
        self, lengths, seed, *, per_user=None, num_anchors=3, dtype=torch.float64, width=5
    ):
        generator = torch.Generator().manual_seed(seed)
        first, end, start = [], [], 0
        for length in lengths:
            count = length if per_user is None else per_user
            ends = torch.randint(0, length + 1, (count,), generator=generator).sort().values
            first += [start] * count
            end += (ends + start).tolist() if per_user else range(start + 1, start + length + 1)
            start += length
        self.first, self.end = torch.tensor(first, dtype=torch.long), torch.tensor(end).long()
        self.num_keys, count = start, len(first)
        self.position = self.end if per_user else None

        def rand(*shape):
            return torch.randn(*shape, generator=generator, dtype=dtype)

        self.key_time = torch.randint(0, 10**7, (start,), generator=generator).cumsum(0)
        self.query_time = torch.randint(0, 10**8, (count,), generator=generator)
        chance = torch.rand(count, max(start, 1), generator=generator)[:, :start]
        column = torch.arange(start)
        self.visible = (column >= self.first[:, None]) & (column < self.end[:, None])
        chance = chance.masked_fill(~self.visible, -1.0)
        best = chance.topk(min(num_anchors, start), 1)
        self.anchor = torch.full((count, num_anchors), -1)
        self.anchor[:, : best.indices.shape[1]] = torch.where(best.values >= 0, best.indices, -1)
        heights = torch.randint(1, 4, self.anchor.shape, generator=generator).to(dtype) / 4
        self.peak = (heights * (self.anchor >= 0)).requires_grad_()
        self.factors = [rand(n, 2, width) for n in (count, start, start)]
        self.biases = [rand(20), rand(NUM_TIME_BUCKETS)]
        self.upstream = rand(count, 2, width)
        for x in (*self.factors, *self.biases):
            x.requires_grad_()

    def to(self, device):
        """Move everything to `device`; returns itself."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                moved = value.detach().to(device)
                setattr(self, name, moved.requires_grad_(value.requires_grad))
            elif isinstance(value, list):
                setattr(self, name, [x.detach().to(device).requires_grad_() for x in value])
        return self

    @property
    def inputs(self):
        return (*self.factors, *self.biases, self.peak)

    def gradients(self, out):
        """The output and the gradient of each input."""
        grads = torch.autograd.grad(
            out, self.inputs, self.upstream, allow_unused=True, materialize_grads=True
        )
        return [out, *grads]

    def tiles(self, *, sigma, window, size=8, group=None):
        """The tile list of the mask, and the weights."""
        bells = find_bells(self.anchor, self.first, self.end, size=size, sigma=sigma, window=window)
        query, block, pair = bells.pairs(len(self.first))
        tiles, row = build_key_tiles(
            query, block, self.first, self.end, self.num_keys, size=size, group=group,
            query_time=self.query_time, key_time=self.key_time, query_position=self.position,
        )  # fmt: skip
        weight = bell_weights(self.peak, bells, row[pair], tiles.rows.numel())
        return tiles, weight.view(tiles.bucket.shape)

    def weights(self, *, sigma, window):
        """The mask as a matrix, by its definition."""
        column = torch.arange(self.num_keys)
        step = column - self.anchor[:, :, None]
        near = (step.abs() <= int(3 * sigma)) & (self.anchor >= 0)[:, :, None]
        bell = torch.exp(-(step.float() ** 2) / (2 * sigma**2)).to(self.peak.dtype) * near
        mask = (bell * self.peak[:, :, None]).amax(1)
        recent = column >= self.end[:, None] - window
        return torch.where(recent, 1.0, mask) * self.visible

    def dense(self, weight, *, exponential=False):
        """The attention over the whole matrix."""
        position_bias, time_bias = self.biases
        row = self.position if self.position is not None else torch.arange(len(self.first))
        distance = (row[:, None] - torch.arange(self.num_keys)).clamp(0, len(position_bias) - 1)
        elapsed = self.query_time[:, None] - self.key_time
        return dense_attention(
            *self.factors, visible=self.visible, weight=weight, exponential=exponential,
            bias=position_bias[distance] + time_bias[time_bucket(elapsed)],
        )  # fmt: skip
