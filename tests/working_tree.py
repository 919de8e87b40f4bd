"""This working tree's files in another folder."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_working_tree(folder, *, without=()):
    """Copy what git has or would take; with times, and what is compiled, which costs seconds."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if name in without or not (ROOT / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
        compiled = Path(importlib.util.cache_from_source(str(ROOT / name)))
        if name.endswith(".py") and compiled.is_file():
            (folder / name).parent.joinpath("__pycache__").mkdir(exist_ok=True)
            shutil.copy2(compiled, (folder / name).parent / "__pycache__" / compiled.name)
