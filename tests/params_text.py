"""params.yaml for tests: the working tree's, with a profile of the test's choice.

A run writes its profile into the file, and a test must not depend on what was run before it.
"""

import re
from pathlib import Path

PARAMS = Path(__file__).parents[1] / "params.yaml"


def params_text(profile: str) -> str:
    """The file's text with `profile` in force."""
    text = PARAMS.read_text(encoding="utf-8")
    return re.sub(r"^profile: \w+", f"profile: {profile}", text, count=1, flags=re.MULTILINE)
