"""The answers of all models as tables, one row a query or a candidate.

They go into `artifacts/evaluation/` beside the means, for whoever wants to look at single answers.
Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hpgr.evaluation.protocols import CandidateQueries, Queries
from hpgr.evaluation.retrieval import Retrieved


def query_table(queries: Queries, outcomes: Mapping[str, Retrieved]) -> pd.DataFrame:
    """One row a query: user, target and request time, and the target's rank by every model."""
    columns: dict[str, Any] = {
        "user": queries.user.astype(np.int32),
        "target": queries.target.astype(np.int32),
        "request_time": queries.request_time,
    }
    columns |= {f"rank_{name}": o.ranks.astype(np.int32) for name, o in outcomes.items()}
    return pd.DataFrame(columns)


def candidate_table(
    candidates: CandidateQueries, probabilities: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """One row a candidate of K1: user, item, request time, label, probability by every model."""
    columns = candidate_columns(candidates)
    columns |= {f"probability_{n}": p.astype(np.float32) for n, p in probabilities.items()}
    return pd.DataFrame(columns)


def candidate_columns(candidates: CandidateQueries) -> dict[str, Any]:
    """User, item, request time and label of every candidate."""
    return {
        "user": candidates.candidate_user().astype(np.int32),
        "item": candidates.item.astype(np.int32),
        "request_time": np.repeat(candidates.request_time, np.diff(candidates.offsets)),
        "label": candidates.label,
    }
