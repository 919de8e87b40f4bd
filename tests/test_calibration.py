"""The calibration of pCTR against a general optimiser, and against a planted miscalibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from hpgr.training.calibration import LEAST_SLOPE, PRIOR, fitted


def events(num_events: int, slope: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that a network gives, and labels that follow other ones."""
    rng = np.random.default_rng(num_events)
    z = rng.normal(0, 2, num_events)
    return expit(z), rng.random(num_events) < expit(slope * z + shift)


def test_a_planted_overconfidence_is_found():
    slope, shift = fitted(*events(100_000, 0.7, -0.3))
    assert slope == pytest.approx(0.7, abs=0.02)
    assert shift == pytest.approx(-0.3, abs=0.03)


@pytest.mark.parametrize("num_events", [1, 30, 3000])
def test_it_minimises_the_penalised_log_loss(num_events):
    p, y = events(num_events, 0.8, 0.4)

    def loss(w):
        q = expit(w[0] * logit(p) + w[1])
        fit = -np.log(np.where(y, q, 1 - q)).sum()
        return fit + PRIOR / 2 * ((w[0] - 1) ** 2 + w[1] ** 2)

    best = minimize(loss, [1.0, 0.0], method="BFGS", tol=1e-10).x
    assert list(fitted(p, y)) == pytest.approx(best.tolist(), abs=1e-4)


def test_one_label_and_certain_probabilities_give_finite_numbers():
    found = fitted(np.array([0.0, 1.0, 1.0], np.float32), np.ones(3))
    assert np.isfinite(found).all()


def test_the_order_stays_where_the_network_is_wrong():
    p, y = events(5000, -1.0, 0.0)
    assert fitted(p, y).slope == LEAST_SLOPE
