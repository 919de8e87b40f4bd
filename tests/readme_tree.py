"""The tree in README.md, written from the first line of every file's docstring: `make tree`.

Prints nothing when README.md is right already; `tests/test_readme_tree.py` compares the two.
"""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MARKERS = "<!-- tree: written by `make tree` -->", "<!-- end of tree -->"

CODE = ("hpgr", "flows", "host", "benchmarks")
# What stands at the top, in this order; a package's line is the one of its docstring.
TOP = {
    "params.yaml": "every tunable value, one section a stage",
    "profiles": "one file of values a profile, from a quick run to a full one",
    "dvc.yaml": "the only graph: validate -> sessionize -> pretrain -> finetune -> evaluate",
    "data.dvc": "pins the raw log below data/",
    "hpgr": None,
    "flows": None,
    "host": None,
    "base": "the model a warm start begins from; empty in a clone",
    "mlflow": "model card template and how to look at the store; no Python",
    "benchmarks": "models x data sets x splits x seeds as a DVC matrix; scripts, committed results",
    "tests": "one file a module; leaks, contracts, drills, the whole pipeline",
    "docs": "model, data, evaluation, serving, operations and decisions, a page each",
    "prefect.yaml": "deployments of the flows",
    "prefect.toml": "Prefect's settings in this folder",
    "compose.yaml": "the services of `make up` for a team",
    "environment": "image and variables of the team's services",
    "pyproject.toml": "packages, tools, import contracts",
    "requirements.lock": "installed versions, CPU and GPU alike",
    "Makefile": "run, up, down, test, lint, tree",
}
UNNAMED = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "dvc.lock"}


def tracked() -> list[str]:
    """Files that git tracks or would track; an ignored file is not part of the project."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(line for line in set(listed.splitlines()) if (ROOT / line).exists())


def first_line(path: Path) -> str:
    """First line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n")[0].removesuffix(".")


def modules_by_folder(files: list[str]) -> dict[Path, list[Path]]:
    """Python files below the folders of `CODE`, by folder, in the order of `CODE`."""
    folders: dict[Path, list[Path]] = {}
    for top in CODE:
        for path in map(Path, files):
            if path.parts[0] == top and path.suffix == ".py":
                folders.setdefault(path.parent, []).append(path)
    return folders


def outline(files: list[str], folders: dict[Path, list[Path]]) -> str:
    """Top-level files, folders and packages, a line each."""
    names = dict.fromkeys([*TOP, *sorted({Path(file).parts[0] for file in files})])
    rows = []
    for name in names:
        if name in UNNAMED or name.startswith(".") or not (ROOT / name).exists():
            continue
        if name not in TOP:
            raise SystemExit(f"{name}: give it a line in TOP of {Path(__file__).name}")
        line = TOP[name] or first_line(ROOT / name / "__init__.py")
        rows.append((name + "/" * (ROOT / name).is_dir(), line))
        for folder in folders:
            if folder.parts[0] == name and (parents := len(folder.parts) - 1):
                package = first_line(ROOT / folder / "__init__.py")
                rows.append(("  " * parents + folder.name + "/", package))
    return "\n".join(f"{name:20}{line}" for name, line in rows)


def tree() -> str:
    """The text between README.md's markers."""
    files = tracked()
    folders = modules_by_folder(files)
    parts = [f"```\n{outline(files, folders)}\n```", "<details><summary>Every module</summary>"]
    for folder, paths in folders.items():
        lines = [f"**{folder}/**\n"]
        for path in paths:
            if path.name != "__init__.py":
                lines.append(f"- [{path.name}]({path}): {first_line(ROOT / path)}")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "</details>"])


def written(readme: str) -> str:
    """README.md's text with the tree as it should be."""
    start, end = map(re.escape, MARKERS)
    fresh = f"{MARKERS[0]}\n{tree()}\n{MARKERS[1]}"
    text, count = re.subn(f"{start}.*{end}", lambda _: fresh, readme, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"README.md should hold {MARKERS[0]} and {MARKERS[1]} once")
    return text


if __name__ == "__main__":
    before = README.read_text()
    if (after := written(before)) != before:
        README.write_text(after)
        print("README.md: tree written")
