"""Fixtures of the drills: one project whose every stage has run, to be copied and broken."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the other tests

from once import made_once
from workspace import copy, dvc, make_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A project in which `dvc repro` ran the stages up to finetune; not to be changed."""

    def make(folder):
        make_project(folder)
        done = dvc("repro", "finetune", cwd=folder)
        assert done.returncode == 0, done.output[-6000:]

    return made_once("finished", make, tmp_path_factory)


@pytest.fixture
def project(finished, tmp_path):
    """A copy of `finished` to break."""
    return copy(finished, tmp_path / "project")
