"""Optimizer of both stages: AdamW, and row-wise Adagrad for large tables.

AdamW keeps two moments a weight and moves every row at every step. Row-wise Adagrad keeps one
number a row, the sum of its mean squared gradients, and leaves a row alone that no batch reads.
With g the gradient of a row of width D:

    s <- s + mean(g^2),   row <- row - rate * g / (sqrt(s) + eps)

Source: FBGEMM's `EXACT_ROWWISE_ADAGRAD`, the rule of large recommenders' tables. Reads and writes
nothing.

Shape legend (suffixes of names): V rows of a table, D its width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hpgr.training.adamw import AdamW

BETAS = (0.9, 0.98)  # as in HSTU
EPSILON = 1e-10
SUM = "sum"  # name of the state of a table, float32 [V]


class TableAdamW(AdamW):
    """AdamW for most weights, row-wise Adagrad for tables of at least `adagrad_rows` rows.

    Args:
        parts: weights and the scale of their learning rate.
        settings: of the stage's section: `learning_rate` and `weight_decay` (decoupled; of a table,
            only of the rows that have a gradient).
        tables: of section `finetune`: `adagrad_rows`, and `adagrad_scale` of the learning rate.
        fused: AdamW is computed by one kernel.
    """

    def __init__(
        self,
        parts: Iterable[tuple[list[nn.Parameter], float]],
        settings: Any,
        tables: Any,
        *,
        fused: bool = False,
    ) -> None:
        groups = []
        for weights, scale in parts:
            for rowwise, factor in ((False, 1.0), (True, tables.adagrad_scale)):
                chosen = [w for w in weights if _is_large(w, tables.adagrad_rows) == rowwise]
                rate = settings.learning_rate * scale * factor
                groups.append({"params": chosen, "lr": rate, "rowwise": rowwise})
        super().__init__(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=BETAS,
            weight_decay=settings.weight_decay,
            fused=fused,
        )

    def describe(self) -> str:
        """Name the tables that are large, for the end of a line; nothing without one."""
        tables = [w for group in self.param_groups if group["rowwise"] for w in group["params"]]
        shapes = ", ".join(" x ".join(f"{n:,}" for n in table.shape) for table in tables)
        return f"; row-wise Adagrad for tables of {shapes}" if tables else ""

    def state_bytes(self) -> int:
        """Return the bytes of the state that the weights with a gradient will have."""
        count = 0
        for group in self.param_groups:
            for weight in group["params"]:
                if not weight.requires_grad:
                    continue
                numbers = len(weight) if group["rowwise"] else 2 * weight.numel()
                count += numbers * weight.element_size() + 4  # and a step count
        return count

    @torch.no_grad()
    def step(self, closure=None):
        """Update every weight that has a gradient; those of large tables are gone afterwards."""
        for group in self.param_groups:
            if group["rowwise"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._step_rows(weight, weight.grad, group["lr"], group["weight_decay"])
                        weight.grad = None  # AdamW passes over what has none
        return super().step(closure)

    def _step_rows(
        self, table: nn.Parameter, gradient: Tensor, rate: float, weight_decay: float
    ) -> None:
        """Update a table; no host waits for the device, and no temporary is as large as it."""
        state = self.state[table]
        if not state:
            state[SUM] = torch.zeros(len(table), device=table.device)
            state["step"] = torch.zeros(())  # AdamW looks for it in every loaded state
        state["step"] += 1
        grad_VD = gradient.reshape(len(table), -1)
        square_V = torch.linalg.vector_norm(grad_VD, dim=1).square_().div_(grad_VD.shape[1])
        sum_V = state[SUM].add_(square_V)
        rows_VD = table.data.view(len(table), -1)
        if weight_decay:
            rows_VD.mul_(1 - rate * weight_decay * (square_V > 0)[:, None])
        rows_VD.addcdiv_(grad_VD, sum_V.sqrt().add_(EPSILON)[:, None], value=-rate)


def _is_large(weight: Tensor, rows: int) -> bool:
    return weight.dim() > 0 and len(weight) >= rows
