"""Great Expectations driven by the rules of `contract.py`: checks frames chunk by chunk.

The result of a chunk names the rows that break each rule. The results of all chunks of a suite are
added up, so that Data Docs show one page for each suite, however long the log. Making an
`Expectations` imports Great Expectations, which takes seconds. Writes the Data Docs folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hpgr.intake.contract import Rule
from hpgr.runtime import TELEMETRY_OFF

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.core.expectation_validation_result import (
        ExpectationSuiteValidationResult,
    )
    from great_expectations.core.run_identifier import RunIdentifier

EXAMPLES = 20  # values shown for a rule in Data Docs, as Great Expectations itself does


@dataclass
class Tally:
    """Counts for one rule over the chunks so far."""

    rule: Rule
    checked: int = 0
    missing: int = 0
    broken: int = 0
    examples: list[Any] = field(default_factory=list)


class Expectations:
    """Suites of rules in one ephemeral context, with their tallies."""

    def __init__(self) -> None:
        os.environ.update(TELEMETRY_OFF)  # read by the import
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._source = self._context.data_sources.add_pandas("log")
        self._batches: dict[str, Any] = {}
        self._suites: dict[str, ExpectationSuite] = {}
        self.tallies: dict[str, list[Tally]] = {}

    def add(self, suite: str, rules: Sequence[Rule]) -> None:
        """Declare `suite` with its `rules`."""
        from great_expectations import ExpectationSuite

        asset = self._source.add_dataframe_asset(suite)
        self._batches[suite] = asset.add_batch_definition_whole_dataframe("chunk")
        self._suites[suite] = self._context.suites.add(
            ExpectationSuite(
                name=suite,
                expectations=[
                    {
                        "type": rule.check,
                        "kwargs": rule.arguments,
                        "meta": {"rule": rule.name},
                        "notes": f"{rule.name}: expected {rule.expected}",
                        "severity": "critical" if rule.gate else "info",
                    }
                    for rule in rules
                ],
            )
        )
        self.tallies[suite] = [Tally(rule) for rule in rules]

    def check(self, suite: str, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """Positions of the rows of `frame` that break each rule; rules without any are left out.

        Raises:
            RuntimeError: Great Expectations could not evaluate a rule.
        """
        batch = self._batches[suite].get_batch({"dataframe": frame.reset_index(drop=True)})
        outcome = batch.validate(
            self._suites[suite],
            result_format={"result_format": "COMPLETE", "partial_unexpected_count": EXAMPLES},
        )
        results = {r.expectation_config.meta["rule"]: r for r in outcome.results}
        broken = {}
        for tally in self.tallies[suite]:
            result = results[tally.rule.name].result
            if "unexpected_index_list" not in result and "element_count" not in result:
                reason = results[tally.rule.name].exception_info
                raise RuntimeError(f"rule {tally.rule.name!r} could not be evaluated: {reason}")
            rows = np.array(result.get("unexpected_index_list") or [], dtype=np.int64)
            tally.checked += result["element_count"]
            tally.missing += result.get("missing_count", 0)
            tally.broken += len(rows)
            room = EXAMPLES - len(tally.examples)
            tally.examples += result.get("partial_unexpected_list", [])[:room]
            if len(rows):
                broken[tally.rule.name] = rows
        return broken

    def passed(self, suite: str, rows: int, *, without: Sequence[str]) -> None:
        """Count rows that are known to break no rule; all lack these columns and no other."""
        for tally in self.tallies[suite]:
            tally.checked += rows
            if tally.rule.arguments["column"] in without:
                tally.missing += rows

    def write_docs(self, folder: Path, *, run_name: str, run_time: datetime) -> None:
        """Write Data Docs below `folder`; the same findings give the same bytes.

        `run_name` and `run_time` appear in the pages and their addresses.
        """
        from great_expectations.core.run_identifier import RunIdentifier
        from great_expectations.data_context.types.resource_identifiers import (
            ExpectationSuiteIdentifier,
            ValidationResultIdentifier,
        )

        run = RunIdentifier(run_name=run_name, run_time=run_time)
        for name, tallies in self.tallies.items():
            suite = ExpectationSuiteIdentifier(name)
            key = ValidationResultIdentifier(
                expectation_suite_identifier=suite, run_id=run, batch_identifier=name
            )
            result = self._suite_result(name, tallies, run)
            self._context.validation_results_store.set(key, result)
        site: Any = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                # The store expands variables of the environment: a folder may have a $ in its name.
                "base_directory": str(folder.resolve()).replace("$", r"\$"),
            },
        }
        self._context.add_data_docs_site("local", site)
        self._context.build_data_docs(site_names=["local"])
        for page in sorted(folder.rglob("*.html")):
            page.write_text(_repeatable(page.read_text(encoding="utf-8")), encoding="utf-8")

    def _suite_result(
        self, name: str, tallies: Sequence[Tally], run: RunIdentifier
    ) -> ExpectationSuiteValidationResult:
        from great_expectations import __version__
        from great_expectations.core.expectation_validation_result import (
            ExpectationSuiteValidationResult,
            ExpectationValidationResult,
        )

        configurations = {
            e.meta["rule"]: e.configuration for e in self._suites[name].expectations if e.meta
        }
        results = [
            ExpectationValidationResult(
                success=tally.broken == 0,
                expectation_config=configurations[tally.rule.name],
                result={
                    "element_count": tally.checked,
                    "missing_count": tally.missing,
                    "unexpected_count": tally.broken,
                    "unexpected_percent": 100 * tally.broken / max(tally.checked, 1),
                    "partial_unexpected_list": tally.examples,
                },
            )
            for tally in tallies
        ]
        kept = sum(bool(r.success) for r in results)
        return ExpectationSuiteValidationResult(
            success=kept == len(results),
            results=results,
            suite_name=name,
            statistics={
                "evaluated_expectations": len(results),
                "successful_expectations": kept,
                "unsuccessful_expectations": len(results) - kept,
                "success_percent": 100 * kept / len(results),
            },
            meta={"great_expectations_version": __version__, "run_id": run},
        )


def _repeatable(html: str) -> str:
    """Number the random element ids in order, and drop the time that the logo's address carries."""
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return numbers.setdefault(match[0], f"id-{len(numbers)}")

    html = re.sub(r"\?d=\d{8}T[\d.]+Z", "", html)
    return re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", number, html)
