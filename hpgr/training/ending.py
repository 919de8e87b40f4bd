"""How a training ended, as its config.json keeps it, and what that says about a longer one.

Light: the evaluation report reads it too. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal["plan", "patience", "budget"]


@dataclass(frozen=True)
class Ending:
    """Length of a training in optimizer steps, and why it ended there.

    `wanted` stands in params.yaml, `planned` is what the budget let be planned of it, `steps` were
    run; `best_step` is that of the weights that were kept. `monitor` names the score that chose
    them; `rising`: it was best at the last validation.
    """

    wanted: int
    planned: int
    steps: int
    epochs: float
    best_step: int
    monitor: str
    stopped: Reason
    rising: bool

    @classmethod
    def of(
        cls,
        curves: Sequence[dict[str, float]],
        best: int,
        *,
        wanted: int,
        planned: int,
        monitor: str,
    ) -> Ending:
        """From the curves, whose last row is the last step, and the number of their best row."""
        steps = int(curves[-1]["step"]) if curves else 0
        stopped: Reason = "patience" if steps < planned else "budget"
        return cls(
            wanted=wanted,
            planned=planned,
            steps=steps,
            epochs=curves[-1]["epoch"] if curves else 0.0,
            best_step=int(curves[best]["step"]) if curves else 0,
            monitor=monitor,
            stopped=stopped if steps < wanted else "plan",
            rising=bool(curves) and monitor.startswith("validation") and best == len(curves) - 1,
        )

    def sentences(self, section: str) -> list[str]:
        """What a person is to know of it; `section` is that of params.yaml, the stage's name."""
        if not self.steps:
            return [f"{section}: no step was trained."]
        length = f"{section}: {self.steps:,} of {self.wanted:,} steps, {self.epochs:,.1f} epochs"
        why = {
            "plan": f"stopped at the end of its plan ({section}.steps)",
            "patience": f"stopped because validation no longer rose ({section}.patience)",
            "budget": f"stopped by its time budget ({section}.max_minutes)",
        }[self.stopped]
        kept = f"; best {self.monitor} at step {self.best_step:,}"
        found = [f"{length}, {why}{kept if self.monitor.startswith('validation') else ''}."]
        if self.rising:
            key = "max_minutes" if self.stopped == "budget" else "steps"
            found.append(
                f"{section}: validation was still rising when training stopped: a longer training "
                f"may do better ({section}.{key})."
            )
        return found
