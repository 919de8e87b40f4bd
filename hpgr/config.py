"""Configuration: params.yaml, validated at the edge.

One frozen model per section of params.yaml; an unknown key, a wrong type or a value out of range
is one clear error that names the key. Reads params.yaml (hpgr/params_file.py); writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from hpgr.config_messages import described, fields_of
from hpgr.config_model import with_model
from hpgr.config_rules import impossible
from hpgr.params_file import FORMER, PARAMS_FILE, ConfigError, Switch, meant, read_params
from hpgr.paths import inside_folder, inside_project

ProjectPath = Annotated[Path, AfterValidator(inside_project)]
FileName = Annotated[str, AfterValidator(inside_folder)]


LARGEST_LIKE_WEIGHT = 100.0  # beyond it log p(next) decides between equal pCTR alone


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse yes, no, on, off, true and false for a number, as Python takes them for 1 or 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind is bool:
            return value
        if isinstance(value, Switch | bool) and True in get_args(kind):
            return value if isinstance(value, bool) else value.lower() in ("yes", "on")
        if isinstance(value, bool | Switch):
            raise ValueError(
                "a switch (yes, no, on, off, true, false) is no value here; null is none, and "
                'a word such as "on" needs its quotes'
            )
        if isinstance(value, list):  # in a list of words it can only be one of them
            return [str(word) if isinstance(word, Switch) else word for word in value]
        return value


class Columns(Section):
    """Names of the contract's columns in the user's own file."""

    user_id: str
    item_id: str
    timestamp: str
    action: str | None
    session_id: str | None
    title: str | None
    categories: str | None
    impression_id: str | None
    position: str | None
    label: str | None


class Data(Section):
    """The raw log: its place and its format."""

    path: ProjectPath
    format: Literal["movielens-1m", "movielens-100k", "complete-journey", "table"]
    interactions: FileName | None
    items: FileName | None
    users: FileName | None
    impressions: FileName | None
    columns: Columns
    category_separator: str = Field(min_length=1)
    quoting: Literal["auto", "doubled", "backslash", "none"]


class Validate(Section):
    """Limits of the data contract."""

    max_bad_share: float = Field(ge=0, le=1)
    min_timestamp: int
    max_timestamp_ahead_s: int = Field(ge=0)
    max_volume_change: float = Field(gt=0)
    max_age_days: float | None = Field(gt=0)
    chunk_rows: int = Field(ge=1000)


class Sessionize(Section):
    """Sessions, vocabulary, splits and labels."""

    engine: Literal["duckdb", "spark"]
    gap_s: int = Field(gt=0)
    min_user_events: int = Field(ge=1)
    min_item_events: int = Field(ge=1)
    split: Literal["leave-one-out", "global-time"]
    validation_share: float = Field(gt=0, lt=0.5)
    test_share: float = Field(gt=0, lt=0.5)
    positive_from: float | None
    positive_actions: tuple[str, ...] | None
    min_label_events: int = Field(ge=1)
    min_label_share: float = Field(ge=0, le=0.5)

    @field_validator("positive_actions", mode="before")
    @classmethod
    def _whole_numbers_are_words(cls, value: Any) -> Any:
        """Read the actions [1, 2] as the texts 1 and 2."""
        if isinstance(value, list):
            return [str(word) if type(word) is int else word for word in value]
        return value


class Model(Section):
    """The network that `name` picks; its other keys are those of its section in the zoo."""

    name: str
    max_history: int


class Pretrain(Section):
    """Stage 1: session-based masked item modeling."""

    steps: int = Field(ge=0)
    warm_steps: int = Field(ge=0)
    validate_steps: int = Field(ge=1)
    max_minutes: float | None = Field(gt=0)
    learning_rate: float = Field(gt=0, le=1)
    weight_decay: float = Field(ge=0)
    start_length: float = Field(ge=0)
    mim_blocks: int = Field(ge=1, le=128)
    mask_share: float = Field(gt=0, lt=1)
    session_mask_share: float = Field(ge=0, le=1)
    batch_tokens: int = Field(ge=64)
    warmup_steps: int = Field(ge=0)
    clip_norm: float = Field(gt=0)
    checkpoint_steps: int = Field(ge=1)
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int = Field(ge=0, lt=2**63)


class Finetune(Section):
    """Stage 2: retrieval and ranking."""

    steps: int = Field(ge=1)
    warm_steps: int = Field(ge=1)
    validate_steps: int = Field(ge=1)
    patience: int = Field(ge=1)
    max_minutes: float | None = Field(gt=0)
    learning_rate: float = Field(gt=0, le=1)
    inherit: bool
    inherited_scale: float = Field(ge=0)
    factor_scale: float = Field(ge=0)
    decay: bool
    random_windows: bool
    monitor: Literal[
        "validation_ndcg@10",
        "validation_hr@10",
        "validation_auc",
        "validation_ranking",
        "validation_heads",
        "validation_basket_ndcg@10",
    ]
    validation_queries: int = Field(ge=1)
    validation_events: int = Field(ge=1)
    weight_decay: float = Field(ge=0)
    loss: Literal["auto", "full", "shared", "sampled"]
    full_items: int = Field(ge=1)
    shared_negatives: int = Field(ge=1)
    num_negatives: int = Field(ge=1)
    adagrad_rows: int = Field(ge=1)
    adagrad_scale: float = Field(gt=0)
    # The softmax subtracts no maximum: beyond 1 / 80 its exponentials overflow.
    temperature: float = Field(ge=1 / 80)
    candidates: Literal["auto", "events", "impressions"]
    basket_weight: float = Field(ge=0)
    ranking_weight: float = Field(ge=0)
    pairwise_weight: float = Field(ge=0)
    num_candidates: int | None = Field(ge=1)
    repeat_weights: tuple[Annotated[float, Field(ge=0, le=100)], ...]
    repeat_decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    successor_weights: tuple[Annotated[float, Field(ge=0, le=100)], ...]
    successor_decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    successors: int = Field(ge=1)
    batch_tokens: int = Field(ge=64)
    warmup_steps: int = Field(ge=0)
    clip_norm: float = Field(gt=0)
    checkpoint_steps: int = Field(ge=1)
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int = Field(ge=0, lt=2**63)


class Evaluate(Section):
    """Protocols, cutoffs and the report."""

    cutoffs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    list_cutoffs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    catalogue_chunk: int = Field(ge=1)
    remove_history: Literal["auto", True, False]
    max_repeat_share: float = Field(ge=0, le=1)
    retrieve: int = Field(ge=1)
    bootstrap_samples: int = Field(ge=1)
    report_users: int = Field(ge=0)
    like_weights: tuple[Annotated[float, Field(ge=0, le=LARGEST_LIKE_WEIGHT)], ...]
    calibration_bins: int = Field(ge=1)
    tuning_queries: int = Field(ge=1)
    mechanism_queries: int = Field(ge=0)
    history_decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    transition_events: int = Field(ge=1)
    ease_ridge: float = Field(gt=0)
    ease_max_items: int = Field(ge=0)
    recency_half_life_days: float = Field(gt=0)
    baskets: bool
    basket_cutoffs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    basket_decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    prior_events: float = Field(gt=0)
    fold_in_factors: int = Field(ge=1)
    fold_in_decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    tree_events: int = Field(ge=0)
    tree_rounds: int = Field(ge=1)
    tree_learning_rate: float = Field(gt=0, le=1)
    seed: int = Field(ge=0, lt=2**63)


class Register(Section):
    """Names in MLflow."""

    model_name: str = Field(min_length=1)
    experiment: str = Field(min_length=1)


class Gate(Section):
    """Rules by which a challenger takes the champion's place."""

    metric: str = Field(pattern=r"^((basket\.(recall|ndcg)|hr|ndcg)@[1-9]\d*|auc)$")
    margin: float = Field(ge=0)
    significance: float = Field(gt=0, le=1)
    guards: dict[str, Annotated[float, Field(ge=0, le=1)]]
    max_slice_fall: float = Field(ge=0, le=1)
    min_slice_queries: int = Field(ge=1)
    promotes: bool


class Orchestrate(Section):
    """Retries, time-outs and work pools of the stages under Prefect."""

    retries: int = Field(ge=0)
    retry_delay_s: float = Field(ge=0)
    stage_timeout_s: float | None = Field(gt=0)
    remote: dict[str, str]


class Serve(Section):
    """The HTTP server."""

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    workers: int = Field(ge=1)
    allowed_hosts: list[Annotated[str, Field(pattern=r"^[^\s/:]+$")]]
    receive_timeout_s: float = Field(gt=0)
    max_connections: int = Field(ge=1)
    k: int = Field(ge=1)
    max_k: int = Field(ge=1)
    max_events: int = Field(ge=1)
    max_requests: int = Field(ge=1)
    max_body_mb: float = Field(gt=0)
    reload_s: float = Field(gt=0)
    index_items: int | None = Field(ge=1)
    index_recall: float = Field(gt=0, le=1)


class Recommend(Section):
    """Batch scoring of all users."""

    k: int = Field(ge=1)
    at: str | int | datetime | None
    chunk_users: int = Field(ge=1)
    seen: Literal["keep", "drop"] | None
    allow: ProjectPath | None
    deny: ProjectPath | None


class Refresh(Section):
    """Limits on a batch of new events, against the newest events of the log."""

    reference_events: int = Field(ge=1)
    max_volume_change: float = Field(gt=1)
    max_item_drift: float = Field(ge=0, le=1)
    max_action_drift: float = Field(ge=0, le=1)
    max_unknown_items: float = Field(ge=0, le=1)


class Monitor(Section):
    """Thresholds of the monitoring page."""

    max_age_days: float = Field(gt=0)
    max_volume_change: float = Field(gt=1)
    max_item_drift: float = Field(ge=0, le=1)
    max_action_drift: float = Field(ge=0, le=1)
    max_unknown_items: float = Field(ge=0, le=1)
    max_quarantined: float = Field(ge=0, le=1)
    max_metric_fall: float = Field(ge=0, le=1)


class Config(Section):
    """All of params.yaml."""

    data: Data
    validate_: Validate = Field(alias="validate")
    sessionize: Sessionize
    model: Model
    pretrain: Pretrain
    finetune: Finetune
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    gate: Gate
    orchestrate: Orchestrate
    serve: Serve
    recommend: Recommend
    refresh: Refresh
    monitor: Monitor


def load_config(path: Path = PARAMS_FILE) -> Config:
    """Read and validate `path`.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or a bad value.
    """
    return resolve(read_params(path), source=str(path))


def resolve(
    raw: dict[str, Any], *, source: str = "params", origins: Mapping[str, str] | None = None
) -> Config:
    """Validate the sections of a params.yaml.

    Args:
        raw: the sections by name.
        source: where they come from, for the message.
        origins: `section.key` of values that come from elsewhere, and from where.

    Raises:
        ConfigError: a key is unknown or missing, or values are not allowed; one line for each.
    """
    if former := [key for key in FORMER if key in raw]:
        name = raw.get("profile")
        raise ConfigError(
            f"{source}: {' and '.join(former)} cannot stand here: a profile is a file in profiles/ "
            f"whose values are written into {PARAMS_FILE}. To do that and remove the key: "
            f"hpgr params --profile {name if isinstance(name, str) else 'NAME'}"
        )
    known = fields_of(Config)
    if unknown := [str(name) for name in raw if name not in known]:
        raise ConfigError(
            f"{source}: " + "; ".join(f"{u}: unknown section{meant(u, known)}" for u in unknown)
        )
    whole = with_model(Config, raw.get("model"))
    try:
        cfg = whole.model_validate(raw)
        lines = list(impossible(cfg))
    except ValidationError as error:
        lines = list(described(error, whole))
    if lines:
        places = "1 place" if len(lines) == 1 else f"{len(lines)} places"
        lines = [line + _origin(line, origins or {}) for line in lines]
        raise ConfigError(f"{source} is wrong in {places}:\n" + "\n".join(lines))
    return cfg


def _origin(line: str, origins: Mapping[str, str]) -> str:
    """Name the file that set the value of a message's key, if not params.yaml itself."""
    place = line.strip().partition(":")[0]
    found = [at for key, at in origins.items() if f"{place}.".startswith(f"{key}.")]
    return f" [set by {found[-1]}]" if found else ""  # the last one counts
