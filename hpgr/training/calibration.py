"""Calibration of pCTR after training: slope and shift of the logits, fitted to validation events.

A network that learns from the events to which its item factors were fitted trusts its evidence too
much on other events. Two numbers correct that and leave the order of candidates as it is. Source:
Platt, "Probabilistic outputs for support vector machines", 1999; Guo et al., "On calibration of
modern neural networks", ICML 2017 (the slope). Reads and writes nothing.
"""

from __future__ import annotations

import numpy as np

from hpgr.model.scoring import Calibration

PRIOR = 10.0  # precision of a normal prior around no change: as much as some fifty events say
LEAST_SLOPE = 0.05  # the order of candidates stays
STEPS, TOLERANCE = 50, 1e-9


def fitted(probability: np.ndarray, label: np.ndarray) -> Calibration:
    """Fit the calibration of events: the least log loss with a prior around no change.

    Args:
        probability: pCTR as the network gives it, [N].
        label: 1 for positive events, 0 for others, [N].
    """
    logit_N = _logits(probability)
    x_N2 = np.stack([logit_N, np.ones_like(logit_N)], axis=1)
    none = np.array(Calibration())

    def loss(weight: np.ndarray) -> float:
        z_N = x_N2 @ weight
        losses_N = np.logaddexp(0, z_N) - label * z_N
        return float(losses_N.sum() + PRIOR / 2 * ((weight - none) ** 2).sum())

    weight = none
    for _ in range(STEPS):  # Newton's method; the loss is convex
        p_N = (1 + np.tanh(x_N2 @ weight / 2)) / 2
        gradient = x_N2.T @ (p_N - label) + PRIOR * (weight - none)
        curvature = (x_N2 * (p_N * (1 - p_N))[:, None]).T @ x_N2 + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weight - step) > loss(weight) and np.abs(step).max() > TOLERANCE:
            step /= 2
        weight = weight - step
        if np.abs(step).max() <= TOLERANCE:
            break
    slope, shift = np.round(weight, 6).tolist()
    return Calibration(max(slope, LEAST_SLOPE), shift)


def calibrated(probability: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return the calibrated probabilities of any model, float64, [N] as they came."""
    found: np.ndarray = (
        1 + np.tanh((calibration.slope * _logits(probability) + calibration.shift) / 2)
    ) / 2
    return found


def _logits(probability: np.ndarray) -> np.ndarray:
    kept = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    found: np.ndarray = np.log(kept / (1 - kept))
    return found
