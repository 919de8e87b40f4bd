"""Names, words, sizes and paths that the whole project keeps to."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from readme_tree import ROOT, tracked

from hpgr.workspace import HERE

CODE = ("hpgr/", "flows/", "host/")
PYTHON = [file for file in tracked() if file.endswith(".py")]
PRODUCT = [file for file in PYTHON if file.startswith(CODE)]
TEXT = [
    file
    for file in tracked()
    if file.startswith((*CODE, "profiles/", "docs/", "tests/", "benchmarks/", "mlflow/"))
    or "/" not in file
    if file.endswith((".py", ".j2", ".yaml", ".toml", ".md", ".conf", "Makefile"))
    if file not in ("tests/test_style.py", "CHANGELOG.md")
]
MAX_LINES = 400

# A docstring says what a thing is or does; these open a riddle instead.
RIDDLES = "What|Whether|How|Where|Who|Whose|Why|When|Which|Is|Are|May|Does|Do|Can|Has"
WORDS = r"told(?! apart)|cures?|cured|(?:in|out)side[ _-]?ids?"

# Folders and files of a run that only `hpgr.workspace` may name, and the same in several parts.
RUN_PATHS = [
    HERE.artifacts,
    HERE.base,
    HERE.checkpoints,
    HERE.store,
    HERE.data_pin,
    HERE.dvc_lock,
]


def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


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


def test_no_two_classes_have_one_name():
    homes = defaultdict(list)
    for file in PRODUCT:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(file)
    found = [f"{name}: {', '.join(files)}" for name, files in homes.items() if len(files) > 1]
    assert not found, "\n".join(found)


def test_no_docstring_opens_with_a_question():
    found = []
    for file in PYTHON:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                if re.match(rf"(?:{RIDDLES})\b", docstring):
                    found.append(f"{file}: {docstring.partition(chr(10))[0]}")
    assert not found, "\n".join(found)


def test_words_are_those_of_today():
    """No `told` or `cure`, and ids are an index or an external id."""
    pattern = re.compile(rf"(?<![a-z])(?:{WORDS})(?![a-z])", re.IGNORECASE)
    found = [
        f"{file}:{number}: {line.strip()}"
        for file in TEXT
        for number, line in enumerate((ROOT / file).read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_files_are_short():
    folders = (*CODE, "tests/", "benchmarks/")
    lengths = {
        file: len((ROOT / file).read_text().splitlines())
        for file in PYTHON
        if file.startswith(folders)
    }
    assert not {file: length for file, length in lengths.items() if length > MAX_LINES}


def constants(node: ast.expr) -> list[str | None]:
    """Operands of a chain `a / "b" / "c"`, from left to right; None where one is no constant."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [*constants(node.left), *constants(node.right)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Path", "joinpath")):
        return [part for argument in node.args for part in constants(argument)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    return [None]


def run_paths_of(file: str) -> list[str]:
    """Paths of a run that the file builds, as the source has them."""
    found = []
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.BinOp | ast.Call):
            runs = "\0".join("" if part is None else part + "/" for part in constants(node))
            # Below a folder of MLflow's store, `artifacts` is MLflow's own.
            start = "^" if file.startswith("hpgr/registry/") else r"(?:^|\0)"
            for path in RUN_PATHS:
                if re.search(rf"{start}{re.escape(str(path))}/", runs.replace("/\0", "/")):
                    found.append(ast.unparse(node))
    return found


def test_only_the_workspace_names_a_path_of_a_run():
    found = [
        f"{file}: {path}"
        for file in PRODUCT
        if file != "hpgr/workspace.py"
        for path in run_paths_of(file)
    ]
    assert not found, "\n".join(found)
