"""The simple models of likes that a network has to beat wherever ranking is judged.

Smoothed means, the linear-Gaussian fold-in and gradient-boosted trees, fitted to training events,
their free choices made on validation. Their probabilities are calibrated on validation exactly as
the network's are, so that log losses compare. Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from hpgr import metrics
from hpgr.config import Evaluate
from hpgr.data.log import TRAIN, VALIDATION, EventLog
from hpgr.evaluation.fold_in import Factors, FoldIn
from hpgr.evaluation.headline import label
from hpgr.evaluation.protocols import LabelledQueries, labelled
from hpgr.evaluation.ranking import mean_models
from hpgr.evaluation.trees import Trees, at_most
from hpgr.model.scoring import Calibration
from hpgr.training.calibration import calibrated, fitted

CALIBRATION_EVENTS = 50_000  # training events, at most, that fit the fold-in's slope and intercept


class SimpleRankers:
    """Fits each model when it is first asked; `notes` say what was chosen or left out."""

    def __init__(self, log: EventLog, settings: Evaluate):
        self.log, self.settings = log, settings
        self.notes: list[str] = []

    def probabilities(self, candidates: LabelledQueries) -> dict[str, np.ndarray]:
        """Probability of every candidate by every model, the most elaborate first; float64 [C].

        A log whose training events share one label has the means alone.
        """
        return {
            name: calibrated(probability, self._calibrations[name])
            for name, probability in self._uncalibrated(candidates).items()
        }

    @cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        validation = labelled(self.log, VALIDATION)
        return {
            name: fitted(probability, validation.label)
            for name, probability in self._uncalibrated(validation).items()
        }

    def _uncalibrated(self, candidates: LabelledQueries) -> dict[str, np.ndarray]:
        log = self.log
        means = mean_models(log, candidates, prior_events=self.settings.prior_events)
        found = {
            name: model.probability(log, candidates)
            for name, model in (("boosted_trees", self.trees), ("fold_in", self.fold_in))
            if model is not None
        }
        return found | dict(reversed(means.items()))

    @cached_property
    def fold_in(self) -> FoldIn | None:
        """The fold-in with the decay that is best on validation."""
        log, settings = self.log, self.settings
        if len(np.unique(log.label[log.split == TRAIN])) < 2:
            return None
        factors = Factors.fit(log, settings.fold_in_factors, seed=settings.seed)
        decays = settings.fold_in_decays
        models = [FoldIn(factors, decay) for decay in decays]
        validation = labelled(log, VALIDATION)
        best = 0
        if len(models) > 1 and len(np.unique(validation.label)) == 2:
            areas = [
                metrics.auc(validation.label, model.standardised(log, validation)) or 0.0
                for model in models
            ]
            best = int(np.argmax(areas))
            self.notes.append(
                f"{label('fold_in')}: decay {decays[best]:g} of "
                f"{', '.join(f'{decay:g}' for decay in decays)} was best on "
                f"{len(validation.label):,} validation candidates (AUC {areas[best]:.4f})."
            )
        train = at_most(labelled(log, TRAIN), CALIBRATION_EVENTS, seed=settings.seed)
        return models[best].calibrated(log, train)

    @cached_property
    def trees(self) -> Trees | None:
        """The trees, on the fold-in's factors and decay."""
        if self.fold_in is None:
            return None
        most = self.settings.tree_events
        rows, held_out = (
            at_most(labelled(self.log, split), most, seed=self.settings.seed)
            for split in (TRAIN, VALIDATION)
        )
        if len(np.unique(rows.label)) < 2:
            self.notes.append(
                f"{label('boosted_trees')} are left out: they learn from at most {most:,} training "
                "events (evaluate.tree_events), and these do not hold both labels."
            )
            return None
        trees = Trees.fit(self.log, self.fold_in, self.settings, rows=rows, held_out=held_out)
        self.notes.append(
            f"{label('boosted_trees')}: {trees.model.n_iter_} trees from {len(rows.label):,} "
            "training events."
        )
        return trees
