"""The gate's decision: the challenger may replace the champion or not, with reasons.

The rules are the section `gate` of params.yaml, the figures a `Contest`; a `Past` holds what no
figure shows. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpgr.config import Gate
from hpgr.data.trained_events import Overlap
from hpgr.metrics import BASKET, LOWER_IS_BETTER
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from hpgr.evaluation.contest import Change, Contest

ACCEPTED, REFUSED = "accepted", "refused"
TRAIN_AGAIN = "train again under today's split (flow train), or promote by hand with --force"


@dataclass(frozen=True)
class Check:
    """Outcome of one rule, with the found and the expected value in words."""

    rule: str
    passed: bool
    found: str
    expected: str


@dataclass(frozen=True)
class Verdict:
    """The checks; accepted only if every one passed."""

    checks: tuple[Check, ...]

    @property
    def accepted(self) -> bool:
        """True if every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def word(self) -> str:
        """`accepted` or `refused`."""
        return ACCEPTED if self.accepted else REFUSED

    @property
    def reasons(self) -> list[str]:
        """One sentence for each failed check; if none failed, the gain that decided."""
        deciding = [check for check in self.checks if not check.passed] or list(self.checks[:1])
        return [f"{check.rule}: {check.found}, expected {check.expected}" for check in deciding]


@dataclass(frozen=True)
class Past:
    """Facts about the versions that no figure shows.

    `trained` is the overlap of each version's training events with today's test events.
    `rolled_back` says who rolled the challenger back, when and why; None if nobody did.
    """

    trained: Mapping[int, Overlap] = field(default_factory=dict)
    rolled_back: str | None = None


def decide(contest: Contest, rules: Gate, past: Past) -> Verdict:
    """Apply the rules to the figures and the versions' past.

    Raises:
        UserError: a rule names a metric that the contest does not have.
    """
    return Verdict(tuple(_checks(contest, rules, past)))


def _checks(contest: Contest, rules: Gate, past: Past) -> Iterator[Check]:
    deciding = _metric(contest, rules.metric, "gate.metric")
    gain = deciding.relative
    yield Check(
        f"{rules.metric} gains",
        gain > rules.margin,
        _shown(deciding),
        f"more than {rules.margin:+.1%}",
    )
    if rules.significance < 1:
        yield Check(
            f"{rules.metric} gains beyond chance",
            gain > 0 and deciding.p < rules.significance,
            f"p = {deciding.p:.4f} over {deciding.queries:,} queries",
            f"p < {rules.significance:g} (paired bootstrap over users)",
        )
    for name, limit in rules.guards.items():
        change = _metric(contest, name, f"gate.guards.{name}")
        held = _fall(name, change) <= limit
        yield Check(f"{name} holds", held, _shown(change), _most(name, limit))
    for name, change in contest.slices.items():
        if change.queries >= rules.min_slice_queries:
            yield Check(
                f"{rules.metric} holds for {name}",
                _fall(rules.metric, change) <= rules.max_slice_fall,
                f"{_shown(change)}, {change.queries:,} queries",
                _most(rules.metric, rules.max_slice_fall),
            )
    for version, found in past.trained.items():
        yield Check(
            f"version {version} has not trained on today's test events",
            found.trained == 0,
            f"{found.trained:,} of {found.known:,}",
            "none" if found.trained == 0 else f"none; {TRAIN_AGAIN}",
        )
    if past.rolled_back is not None:
        yield Check(
            "the version was not rolled back",
            False,
            f"rolled back: {past.rolled_back}",
            "a version that served well; promote by hand with --force",
        )


def _metric(contest: Contest, name: str, key: str) -> Change:
    if name not in contest.metrics:
        fix = "name one of these, or add its cutoff to evaluate.cutoffs"
        if name == "auc":
            fix = (
                "auc needs sessionize.split: global-time and two models trained with a ranking loss"
            )
        elif name.startswith(BASKET):
            fix = (
                "it needs evaluate.baskets: true, a log that was cut with sessionize.split: "
                "global-time, and a test session with an earlier event of its user"
            )
        raise UserError(
            f"{key} names {name!r}, but under {' and '.join(contest.protocols)} there are "
            f"{', '.join(contest.metrics)}: {fix}"
        )
    return contest.metrics[name]


def _fall(name: str, change: Change) -> float:
    """Return the relative loss, negative for a gain; NaN, which passes no limit, if undefined."""
    return change.relative if name in LOWER_IS_BETTER else -change.relative


def _shown(change: Change) -> str:
    return f"{change.champion:.4f} to {change.challenger:.4f} ({change.relative:+.1%})"


def _most(name: str, limit: float) -> str:
    return f"at most {limit:.1%} {'higher' if name in LOWER_IS_BETTER else 'lower'}"
