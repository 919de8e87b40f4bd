"""Requests and answers as they travel, through `hpgr serve` and `mlflow models serve` alike.

Types are strict: "5" is no time and 1.5 no item. Whether the values make sense is checked in one
place, `hpgr.serving.request`. Of a list only the first wrong entry is reported: a body of a million
mistakes must not cost a million messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hpgr.config import LARGEST_LIKE_WEIGHT
from hpgr.serving.recommender import Answer
from hpgr.serving.request import Request
from hpgr.terminal import short, shown

SHOWN_PROBLEMS = 5


def _numbers_as_text(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [str(one) if type(one) is int else one for one in value]  # a bool is no number


Name = Annotated[
    str,
    Field(strict=True),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]

LikeWeight = Annotated[float, Field(strict=True, ge=0, le=LARGEST_LIKE_WEIGHT, allow_inf_nan=False)]

T = TypeVar("T")
Listed = Annotated[list[T], Field(fail_fast=True)]
# Ids and actions are text; a whole number is taken for its digits, as in a log of numbers. A list
# is turned at once: pydantic calls no function for each of its entries.
Named = Annotated[list[T], Field(fail_fast=True), BeforeValidator(_numbers_as_text)]


class Sent(BaseModel):
    """Base of what is sent: an unknown key is an error, and many of them are one error."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + SHOWN_PROBLEMS:
            expected = ", ".join(cls.model_fields)
            raise PydanticCustomError("too_many_keys", f"Expected no other keys than {expected}")
        return value


class Asked(Sent):
    """One asker: events as columns of equal length, in any order; no events for a newcomer."""

    request_time: StrictInt | None = Field(
        default=None, description="when it is asked, seconds since 1970, UTC; must be given"
    )
    item_ids: Named[Name] = Field(
        default=[], description="as in your log; unknown ones are allowed"
    )
    timestamps: Listed[StrictInt] = Field(default=[], description="seconds since 1970, UTC")
    actions: Named[Name | None] | None = Field(
        default=None, description='as in your log: a rating as "5", an event type as "view"'
    )
    session_ids: Named[Name | None] | None = Field(
        default=None, description="without them a pause starts a session"
    )

    def request(self) -> Request:
        """The same for the recommender."""
        return Request(**dict(self))


class Question(Sent):
    """The body of POST /recommend."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "requests": [
                        {
                            "request_time": 978302000,
                            "item_ids": ["1", "588"],
                            "timestamps": [978301000, 978301500],
                            "actions": ["5", "4"],
                        }
                    ],
                    "k": 10,
                }
            ]
        }
    )

    requests: Listed[Asked] = Field(min_length=1)
    k: StrictInt | None = Field(default=None, ge=1, description="items an answer; null: serve.k")
    allow: Named[Name] | None = Field(default=None, description="nothing else is recommended")
    deny: Named[Name] = Field(default=[], description="never recommended")
    like_weight: LikeWeight | None = Field(
        default=None,
        description="w of the order log p(next) + w log p(like), p(like) being `score`; 0: the "
        "order of retrieval alone; null: as the model was judged",
    )


class ModelName(BaseModel):
    """The version that answered."""

    name: str
    version: int


class Answers(BaseModel):
    """One answer a request, in their order."""

    model: ModelName
    answers: list[Answer]


class Refusal(BaseModel):
    """The reason for a refusal: what was found, what was expected, how to fix it."""

    detail: str


class Ready(BaseModel):
    """The model that answers now; `problem` is null unless the registry could not be read."""

    model: ModelName
    registered_at: str
    age_s: float = Field(description="since the version was registered")
    loaded_at: str
    problem: str | None


class Title(BaseModel):
    """An item of the catalogue."""

    item_id: str
    title: str


def explain(errors: Sequence[Any]) -> str:
    """One message of pydantic's errors: where, what was expected, what was found."""
    lines = []
    for error in errors[:SHOWN_PROBLEMS]:
        if error["type"] == "json_invalid":
            place, reason = error["loc"][-1], error["ctx"]["error"]
            return f"the body is not JSON at character {place}: {reason}"
        path = [short(str(part)) for part in error["loc"] if part != "body"]
        where = ".".join(path) or "body"
        found = "" if error["type"] == "missing" else f", found {shown(error.get('input'))}"
        lines.append(f"{where}: {error['msg']}{found}")
    more = len(errors) - SHOWN_PROBLEMS
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
