"""The main flow: every stage in DVC's order, then registration.

    python -m flows.train [--profile full] [--set section.key=value ...]    without a server
    prefect deployment run 'train/local' --param profile=full               with server and worker

Overrides are written to params.yaml, as `dvc exp run --set-param` does, and stay there: the file
always says what the artifacts beside it were made with, and `git diff params.yaml` what was
changed. Reads params.yaml and data/. Writes params.yaml, artifacts/ and the MLflow store.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from ruamel.yaml import YAML

from flows.stages import StageFailed, as_task, check_data, stage_order
from hpgr.config import PARAMS_FILE, ConfigError, load_config, resolve
from hpgr.registry.register import register
from hpgr.registry.stages import STAGES
from hpgr.registry.summary import markdown_tables
from hpgr.runtime import UserError, atomic_path


@flow(name="train", persist_result=False)
def train(profile: str | None = None, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run every stage, then register the model; returns what registered.json holds.

    Args:
        profile: a name below `profiles` in params.yaml; None leaves the file's own.
        overrides: `section.key` to value, on top of params.yaml.
    """
    logger = get_run_logger()
    changed = set_params({**(overrides or {}), **({"profile": profile} if profile else {})})
    logger.info("profile %s; changed in %s: %s", load_config().profile, PARAMS_FILE, changed)
    check_data()
    outcomes = {stage: as_task(stage)(stage) for stage in stage_order()}
    registered = register_model()
    publish(outcomes, registered)
    return registered


def set_params(values: dict[str, Any], path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Set `section.key` entries in params.yaml, comments kept; returns those that changed.

    A key that the profile in force sets is set there, where it counts. Nothing is written unless
    the result is a valid configuration.

    Raises:
        ConfigError: a key is no parameter, or the value is not allowed.
    """
    yaml = YAML()  # round trip: comments and order survive
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), _null)
    document = yaml.load(path.read_text(encoding="utf-8"))
    changed = {}
    for dotted, value in sorted(values.items(), key=lambda entry: entry[0] != "profile"):
        target, key = _place(document, dotted)
        if not isinstance(target, dict) or key not in target:
            raise ConfigError(f"{path}: no parameter {dotted!r}; `hpgr params` prints them all")
        if target[key] != value:
            target[key] = changed[dotted] = value
    resolve(document, source=f"{path} with overrides")
    if changed:
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
    return changed


def _place(document: dict[str, Any], dotted: str) -> tuple[Any, str]:
    """The mapping that holds the value in force of `dotted`, and its key there."""
    profile = document["profiles"].get(document["profile"]) or {}
    if dotted in profile:
        return profile, dotted
    *sections, key = dotted.split(".")
    target: Any = document
    for section in sections:
        target = target.get(section) if isinstance(target, dict) else None
    return target, key


def _null(representer: Any, _: None) -> Any:
    """None as `null`; by default it is written as nothing at all."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


@task(name="register", task_run_name="register", cache_policy=NO_CACHE)
def register_model() -> dict[str, Any]:
    """Register the artifacts' model in MLflow; a model that is there already is left as it is."""
    return register(load_config())


def publish(outcomes: dict[str, str], registered: dict[str, Any]) -> None:
    """Put the table of metrics, what each stage did and the report's place on the run's page."""
    evaluation = STAGES["evaluate"].output
    stages = "".join(f"| {stage} | {outcome} |\n" for stage, outcome in outcomes.items())
    create_markdown_artifact(
        key="result",
        markdown=(
            f"{markdown_tables()}\n\n**{registered['name']}** version {registered['version']}, "
            f"alias `{registered['alias']}`\n\n| stage | |\n|---|---|\n{stages}"
        ),
        description="HPGR beside the baselines, model version, what each stage did",
    )
    create_link_artifact(
        key="report",
        link=(evaluation / "report.html").resolve().as_uri(),
        link_text="evaluation report",
        description="self-contained HTML on the machine that ran the flow",
    )


def main() -> None:
    """Entry point of `python -m flows.train`; a mistake of the user ends with code 2."""
    parser = argparse.ArgumentParser(prog="python -m flows.train", description="Run the flow train")
    parser.add_argument("--profile", help="name below `profiles` in params.yaml")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE"
    )
    arguments = parser.parse_args()
    overrides = {}
    for entry in arguments.overrides:
        dotted, separator, value = entry.partition("=")
        if not separator:
            parser.error(f"--set {entry!r}: expected SECTION.KEY=VALUE")
        overrides[dotted] = YAML(typ="safe").load(value)
    try:
        # Ctrl-C reaches the temporary server too: what the run then still wants to tell it is lost,
        # and should not be tried again for minutes.
        patience = {} if PREFECT_API_URL.value() else {PREFECT_CLIENT_MAX_RETRIES: 1}
        with temporary_settings(patience):
            train(profile=arguments.profile, overrides=overrides)
    except (ConfigError, UserError, StageFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
