"""End of a training, as its config.json keeps it, and advice about a longer one.

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

    `wanted` steps stand in params.yaml, `planned` steps fit the budget, `steps` were run;
    `best_step` is the step of the weights that were kept. `monitor` names the score that selected
    them; `rising` is true if it was best at the last validation.
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
        """Describe a training by its curves, up to the last step, and its best row."""
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
        """Describe the ending; `section` is the stage's section of params.yaml."""
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
