"""AdamW as torch computes it, without torch's compiler.

Nothing of the optimizer is compiled here, but torch's imports the compiler (`torch._dynamo`) to be
left alone by it: more than a second at every start of a training. Reads and writes nothing.
"""

from __future__ import annotations

from inspect import unwrap

import torch
from torch.optim import Optimizer

_step = unwrap(torch.optim.Adam.step)  # AdamW's too


class AdamW(torch.optim.AdamW):
    """torch's AdamW: the same arguments, updates and state."""

    add_param_group = unwrap(Optimizer.add_param_group)
    load_state_dict = unwrap(Optimizer.load_state_dict)
    state_dict = unwrap(Optimizer.state_dict)
    zero_grad = unwrap(Optimizer.zero_grad)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; see `torch.optim.AdamW.step`."""
        return _step(self, closure)
