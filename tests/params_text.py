"""params.yaml for tests: the working tree's, with a profile of the test's choice.

A run writes its profile into the file, and a test must not depend on what was run before it.
"""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from hpgr.profiles import set_params

ROOT = Path(__file__).parents[1]


@cache
def params_text(profile: str) -> str:
    """The file's text with the values of `profile`."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch, "params.yaml")
        shutil.copy(ROOT / "params.yaml", path)
        set_params(profile=profile, path=path, profiles=ROOT / "profiles")
        return path.read_text(encoding="utf-8")


def params_of(profile: str) -> dict:
    """The same as sections."""
    return yaml.safe_load(params_text(profile))
