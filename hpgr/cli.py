"""The command line: `hpgr STAGE` for DVC, and the commands of a person.

    hpgr validate | sessionize | pretrain | finetune | evaluate | register
    hpgr train | refresh PATH        a flow each, as a Prefect run (flows/commands.py)
    hpgr up | down | worker POOL     the services (host/service_commands.py)
    hpgr gate | promote | lineage VERSION | base | monitor
    hpgr fetch NAME | doctor | incoming PATH | cache | params
    hpgr recommend | recommend-all | serve | result

A stage takes no arguments: it reads params.yaml and the artifacts of the stages before it
(docs/artifacts.md). Every mistake of the user is one message on stderr and exit code 2. A stage's
modules are imported when it is called, so that the command line itself starts at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
import yaml

from hpgr.added_commands import Commands
from hpgr.config import ConfigError, load_config
from hpgr.failure import explained
from hpgr.folder import require_folder
from hpgr.loopback import spare_loopback
from hpgr.masking import install as mask_output
from hpgr.options import Overrides, Profile
from hpgr.params_file import PARAMS_FILE
from hpgr.profiles import for_request, read_overrides, set_params
from hpgr.registry.resources import recorded
from hpgr.runtime import TELEMETRY_OFF, UserError, end_with_parent, sole_run, sole_writer
from hpgr.terminal import printable
from hpgr.torchrun import launched
from hpgr.workspace import HERE, STAGES, Workspace

app = typer.Typer(
    cls=Commands,
    help="HPGR: train, judge and ship a session-aware generative recommender.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> NoReturn:
    """Entry point of `hpgr`; see the module's docstring."""
    run(app)


def run(command: Callable[[], None]) -> NoReturn:
    """Run `command` as this process's own, telemetry off, and exit: 2 for a user's mistake."""
    os.environ.update(TELEMETRY_OFF)
    spare_loopback()
    mask_output()
    # Threads that wait must sleep, not spin: on a busy machine two spinning processes starve each
    # other, and a training step took ten times as long. Read when torch loads OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        require_folder()
        command()
    except (ConfigError, UserError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def run_stage(name: str, workspace: Workspace = HERE) -> None:
    """Run stage `name` with params.yaml as it stands; its resources are recorded beside it."""
    _enter_stage()
    stage, cfg = STAGES[name], load_config(workspace.params)
    output = workspace.output(name)
    # Under torchrun the first process writes the outputs, and what they cost.
    first = launched().rank == 0
    with (
        explained(name, output),
        sole_writer(output) if first else nullcontext(),
        recorded(output) if first else nullcontext(),
    ):
        getattr(import_module(stage.module), name)(cfg, workspace)


def _enter_stage() -> None:
    """Set up a stage's process: live output, a clean end on SIGTERM and with its parent."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, _leave)
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        # A killed DVC must not leave a stage that goes on writing the outputs of the next run.
        # Not for a stage started by hand, which may outlive its shell.
        end_with_parent()
        # Killed before that: the process that adopts this one is in another group. So is torchrun.
        if os.getpgid(os.getppid()) != os.getpgrp() and not launched().by_torchrun:
            _leave()


def _leave(*_: object) -> NoReturn:
    """Exit on SIGTERM; a second one, from a dying parent, must not cut off the cleaning up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _add_stage(name: str, summary: str) -> None:
    def command() -> None:
        run_stage(name)

    app.command(name, help=summary, rich_help_panel="Stages")(command)


for _name, _stage in STAGES.items():
    _add_stage(_name, _stage.summary)


@app.command(rich_help_panel="Registry")
def register() -> None:
    """Put the model into MLflow's registry, with its lineage; the same model only once."""
    from hpgr.registry.register import register

    register(load_config())


@app.command(rich_help_panel="Registry")
def gate(
    version: Annotated[
        int | None, typer.Argument(help="registered version; default: the challenger")
    ] = None,
) -> None:
    """Judge a version against the champion on the same test queries; a refusal is exit code 0."""
    from hpgr.registry.judge import as_markdown, judge

    print(printable(as_markdown(judge(load_config(), version))))


@app.command(rich_help_panel="Registry")
def promote(
    version: Annotated[
        int | None, typer.Argument(help="registered version; default: the challenger")
    ] = None,
    why: Annotated[str, typer.Option(help="the reason, kept with the move")] = "",
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="make the previous champion champion again")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="promote although the gate has not accepted it")
    ] = False,
    who: Annotated[
        str | None, typer.Option(help="whose decision it is; default: this account")
    ] = None,
) -> None:
    """Make a version the champion, or go back to the one before."""
    from hpgr.registry import moves

    moved = moves.move(load_config(), version, why=why, back=roll_back, force=force, who=who)
    print(printable(moves.describe(moved)))


@app.command(rich_help_panel="Registry")
def lineage(
    version: Annotated[int, typer.Argument(help="registered version")],
    restore: Annotated[
        bool, typer.Option("--restore", help="write params.yaml, data.dvc and dvc.lock as then")
    ] = False,
) -> None:
    """Walk back from a version to its commit, parameters and rows, and bring them back."""
    from hpgr.registry.trace import restore as bring_back
    from hpgr.registry.trace import trace

    cfg = load_config()
    if restore:
        with sole_run(HERE.run_lock):
            bring_back(cfg, version)
    else:
        print(printable(trace(cfg, version)))


@app.command(rich_help_panel="Registry")
def base(
    version: Annotated[
        int | None, typer.Argument(min=1, help="registered version; default: the champion")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="train from nothing")] = False,
) -> None:
    """Have training start from a registered model, or from nothing."""
    from hpgr.registry.fill_base import clear_base, fill_base

    if clear and version is not None:
        raise UserError(f"say either a version ({version}) or --clear")
    with sole_run(HERE.run_lock):
        if clear:
            clear_base()
        else:
            fill_base(load_config(), version)


@app.command(rich_help_panel="Registry")
def monitor() -> None:
    """Judge data and champion by the thresholds; a breach is reported and fails nothing."""
    from hpgr.monitoring import thresholds as monitor

    print(printable(monitor.as_text(monitor.monitor(load_config()))))


@app.command()
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(help="ml-1m, ml-100k or complete-journey; default: the log of data.path"),
    ] = None,
    root: Annotated[Path, typer.Option(help="folder that gets the data set's folder")] = Path(
        "data"
    ),
) -> None:
    """Download a public log, checksums checked, into data/NAME."""
    from hpgr.intake.public_logs import DATASETS, fetch

    if name is None:
        path = load_config().data.path
        if path.name not in DATASETS:
            print(f"{path} is a log of your own (data.path in params.yaml): nothing to fetch")
            return
        name, root = path.name, path.parent
    fetch(name, root)


@app.command()
def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="file or folder; default: data.path of params.yaml")
    ] = None,
) -> None:
    """List the problems of a log, line by line, before anything runs."""
    from hpgr.intake.doctor import doctor
    from hpgr.intake.file_problems import FileProblem

    cfg, outlook = load_config(), list[FileProblem]()
    problems = doctor(path or cfg.data.path, cfg, outlook)
    for problem in problems:
        print(printable(problem))
    if not problems:
        print("nothing is wrong with it")
    for note in outlook:
        print(note)
    if any(problem.serious for problem in problems):
        raise typer.Exit(1)


@app.command()
def incoming(path: Annotated[Path, typer.Argument(help="file or folder of new events")]) -> None:
    """Check a batch of new events as `hpgr refresh` would; nothing is written."""
    from hpgr.intake.incoming import examine

    verdict = examine(load_config(), path, evidence=False)
    if verdict.taken:
        print(f"{path} is in the log already: {verdict.taken}")
        return
    print(printable(verdict.figures()))
    if verdict.reasons:
        raise UserError(verdict.refusal())
    print(f"it would be taken in: hpgr refresh {path}")


@app.command()
def cache() -> None:
    """Remove the corrupted files of DVC's cache; `dvc repro` then makes them anew."""
    from hpgr.cache import clean_cache

    removed = clean_cache()
    for path in removed:
        print(f"{path}: corrupted, removed")
    if removed:
        print("now run: dvc repro")
    else:
        print("every file of DVC's cache is what its name says")


@app.command()
def params(profile: Profile = None, overrides: Overrides = None) -> None:
    """Print the parameters in force, or write a profile or single values into params.yaml."""
    if profile is None and not overrides:
        values = load_config().model_dump(mode="json", by_alias=True)
        print(yaml.safe_dump(values, sort_keys=False), end="")
        return
    with sole_run(HERE.run_lock):
        changes = set_params(read_overrides(overrides), profile)
    for change in changes:
        print(printable(change))
    print(f"{PARAMS_FILE}: {len(changes) or 'no'} value{'s' * (len(changes) != 1)} changed")


@app.command()
def recommend(
    user: Annotated[str | None, typer.Option(help="id of a user of the log")] = None,
    history: Annotated[
        str | None, typer.Option(help="titles or item ids, oldest first, commas between them")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="time of the request, ISO 8601 (UTC) or seconds since 1970"),
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="items to print")] = 10,
    source: Annotated[
        str, typer.Option(help="champion (of the registry) | artifacts (of the last run)")
    ] = "champion",
    like_weight: Annotated[
        float | None,
        typer.Option(
            help="weight of the score in the order, from 0 (the order of similarity alone); "
            "default: as the model was judged"
        ),
    ] = None,
) -> None:
    """Recommend titles to a user of the log, or for a history given here.

    Without --at, a user asks one second after the last event; a history is read as one session,
    a minute between events, that ended a minute ago.
    """
    from hpgr.serving.answer import recommend

    recommend(
        load_config(),
        user=user,
        history=history,
        at=at,
        k=k,
        source=source,
        like_weight=like_weight,
    )


@app.command("recommend-all")
def recommend_all(
    k: Annotated[int | None, typer.Option(help="items for each user")] = None,
    at: Annotated[
        str | None,
        typer.Option(help="time of the request, ISO 8601 (UTC) or seconds since 1970"),
    ] = None,
    seen: Annotated[
        Literal["keep", "drop"] | None, typer.Option(help="items that the user had before")
    ] = None,
    allow: Annotated[
        Path | None, typer.Option(help="file of item ids: nothing else is recommended")
    ] = None,
    deny: Annotated[Path | None, typer.Option(help="file of item ids: never recommended")] = None,
) -> None:
    """Answer every user of the log with the champion, into Parquet; continues after a stop.

    The users are those that sessionize kept (min_user_events). For an option
    that is not given, the section recommend of params.yaml holds.
    """
    from hpgr.serving.batch import recommend_all

    cfg = for_request(k=k, at=at, seen=seen, allow=allow, deny=deny)
    _enter_stage()
    recommend_all(cfg)


@app.command()
def serve() -> None:
    """Answer histories over HTTP with the registry's champion, and follow its promotions."""
    from hpgr.serving.listen import serve

    serve(load_config())


@app.command()
def result() -> None:
    """Print the last run's table, some recommendations and, as last line, one JSON object."""
    from hpgr.serving.answer import result

    result(load_config())


if __name__ == "__main__":
    main()
