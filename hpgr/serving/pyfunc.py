"""The model as MLflow serves it ("models from code": MLflow runs this file to load a version).

Input, one row a request: `request_time` (seconds, UTC), `item_ids`, `timestamps`, `actions`
(lists of equal length, oldest first within a second). Parameter `k`: items to return.
Output, one row a recommended item: `request` (row of the input, from 0), `rank` (from 1),
`item_id`, `title`, `score`, `similarity`, `because` (titles of the history items that drove it).
Reads the version's artifact `bundle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from hpgr.serving.recommender import Recommender, Request


class RecommenderModel(PythonModel):
    """Adapter between MLflow's data frames and `Recommender`; no logic of its own."""

    recommender: Recommender

    def load_context(self, context: Any) -> None:
        """Load the bundle onto the best device that is there."""
        self.recommender = Recommender.load(Path(context.artifacts["bundle"]), device="auto")

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """See the module's docstring; errors are those of `Recommender.recommend`."""
        requests = [
            Request(
                request_time=None if pd.isna(row.request_time) else int(row.request_time),
                item_ids=[str(item) for item in row.item_ids],
                timestamps=[int(time) for time in row.timestamps],
                actions=list(row.actions) if getattr(row, "actions", None) is not None else None,
            )
            for row in model_input.itertuples(index=False)
        ]
        answers = self.recommender.recommend(requests, k=int((params or {})["k"]))
        rows = [
            {
                "request": number,
                "rank": rank,
                "item_id": item.item_id,
                "title": item.title,
                "score": item.score,
                "similarity": item.similarity,
                "because": [driver.title for driver in answer.drivers],
            }
            for number, answer in enumerate(answers)
            for rank, item in enumerate(answer.items, start=1)
        ]
        return pd.DataFrame(
            rows,
            columns=["request", "rank", "item_id", "title", "score", "similarity", "because"],
        )


set_model(RecommenderModel())
