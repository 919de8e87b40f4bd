"""Names, words, sizes and paths that the whole project keeps to."""

from collections import defaultdict
from pathlib import Path

from readme_tree import ROOT, tracked

CODE = ("hpgr/", "flows/", "host/")
PYTHON = [file for file in tracked() if file.endswith(".py")]
PRODUCT = [file for file in PYTHON if file.startswith(CODE)]
MAX_LINES = 400


def test_no_two_modules_have_one_name():
    homes = defaultdict(list)
    for file in map(Path, PRODUCT):
        homes[file.parent.name if file.stem == "__init__" else file.stem].append(file)
    found = []
    for name, files in homes.items():
        # A module may have the name of a package that it lies in, as hpgr/model/hpgr.py does.
        own = [file for file in files if file.stem == name and name in file.parts[:-1]]
        if len(files) - len(own) > 1:
            found.append(f"{name}: {', '.join(map(str, files))}")
    assert not found, "\n".join(found)


def test_files_are_short():
    folders = (*CODE, "tests/", "benchmarks/")
    lengths = {
        file: len((ROOT / file).read_text().splitlines())
        for file in PYTHON
        if file.startswith(folders)
    }
    assert not {file: length for file, length in lengths.items() if length > MAX_LINES}
