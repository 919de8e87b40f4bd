"""The model as MLflow serves it ("models from code": MLflow runs this file to load a version).

Input, one row a request: `request_time` (seconds, UTC), `item_ids`, `timestamps`, `actions`,
`session_ids` (lists of equal length). Parameters: `k`, items to return; `like_weight`, the weight
of p(like) in their order, null: as the version was judged (`hpgr.evaluation.blend`).
Output, one row a recommended item: `request` (row of the input, from 0), `rank` (from 1),
`item_id`, `title`, `score`, `similarity`, `source` (history | popular), `anchors` (the history
items that placed it: `item_id`, `title`, `weight`). Reads the version's artifact `bundle`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from pydantic import ValidationError

from hpgr.runtime import UserError
from hpgr.serving.recommender import Recommender, load_bundle
from hpgr.serving.request import Request
from hpgr.serving.schema import Asked, explain

COLUMNS = (
    "request", "rank", "item_id", "title", "score", "similarity", "source", "anchors",
)  # fmt: skip


class RecommenderModel(PythonModel):
    """Adapter between MLflow's data frames and `Recommender`; no logic of its own."""

    recommender: Recommender

    def load_context(self, context: Any) -> None:
        """Load the bundle onto the best device that is there.

        Raises:
            UserError: it cannot be read.
        """
        bundle = Path(context.artifacts["bundle"])
        self.recommender = load_bundle(bundle, "the model", "register it again")

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """See the module's docstring.

        Raises:
            MlflowException: a row is wrong (INVALID_PARAMETER_VALUE: HTTP 400); the message says
                which, and what was expected.
        """
        try:
            asked = [_request(row, n) for n, row in enumerate(model_input.to_dict("records"))]
            if not asked:
                raise UserError(
                    "found no request, expected rows with the columns "
                    f"{', '.join(Asked.model_fields)} as dataframe_records, dataframe_split or "
                    "inputs (a list)"
                )
            k = (params or {}).get("k")
            if k is None:
                raise UserError("k is null, expected the number of items to return")
            like_weight = (params or {}).get("like_weight")
            answers = self.recommender.recommend(asked, k=k, like_weight=like_weight)
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        rows = [
            {"request": number, "rank": rank, "source": answer.source, **asdict(item)}
            for number, answer in enumerate(answers)
            for rank, item in enumerate(answer.items, start=1)
        ]
        # A gap in a column of numbers is NaN in pandas, and NaN is no JSON.
        return pd.DataFrame(rows, columns=list(COLUMNS)).replace({np.nan: None})


def _request(row: dict[Any, Any], number: int) -> Request:
    """One row of the data frame, its gaps (NaN, None) left out, checked like a posted request."""
    known = {name: _plain(value) for name, value in row.items() if name in Asked.model_fields}
    try:
        return Asked.model_validate({n: v for n, v in known.items() if v is not None}).request()
    except ValidationError as error:
        raise UserError(f"request {number}: {explain(error.errors())}") from error


def _plain(value: Any) -> Any:
    """Python's own types for numpy's; a missing value, also inside a list, is None."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and np.isnan(value):
        return None
    # A column of whole numbers with a gap arrives as floats.
    return int(value) if isinstance(value, float) and value.is_integer() else value


set_model(RecommenderModel())
