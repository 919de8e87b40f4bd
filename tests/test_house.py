"""The contracts of the architecture: what one file says of another holds."""

import ast
import asyncio
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import AsyncMock
from uuid import uuid4

import grimp
import mlflow
import networkx as nx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel
from readme_tree import tracked

from hpgr.config import PARAMS_FILE, Config
from hpgr.config_model import with_model
from hpgr.model.zoo import ZOO
from hpgr.workspace import STAGES

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
PARAMS = yaml.safe_load((ROOT / PARAMS_FILE).read_text())


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("hpgr", cache_dir=None, exclude_type_checking_imports=True)


def code_of(stage: str, graph) -> set[str]:
    """Files that the stage's module imports, directly or not, and the templates they name."""
    modules = graph.find_upstream_modules(STAGES[stage].module) | {STAGES[stage].module}
    # What the zoo's lines name is imported by name, when it is asked for.
    for module, column in (("hpgr.model.zoo", "section"), ("hpgr.model.interface", "network")):
        if module in modules:
            named = {getattr(entry, column).partition(":")[0] for entry in ZOO.values()}
            modules |= named.union(*(graph.find_upstream_modules(name) for name in named))
    files = set()
    for name in modules:
        path = Path(*name.split("."))
        files.add(f"{path}.py" if (ROOT / f"{path}.py").is_file() else f"{path}/__init__.py")
    text = "".join((ROOT / file).read_text() for file in files)
    others = [p for p in (ROOT / "hpgr").rglob("*") if p.suffix not in (".py", ".pyc")]
    return files | {str(p.relative_to(ROOT)) for p in others if p.is_file() and p.name in text}


def test_layers_and_other_import_contracts_hold():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_modules_import_each_other_in_a_circle():
    """Neither at the top of a module nor inside a function; type checkers alone may."""
    options = {"cache_dir": None, "exclude_type_checking_imports": True}
    graph = grimp.build_graph("hpgr", "flows", "host", **options)
    imports = nx.DiGraph(
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    )
    circles = [sorted(c) for c in nx.strongly_connected_components(imports) if len(c) > 1]
    assert not circles


def test_the_command_line_starts_light():
    probe = "import hpgr.cli, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {
        "torch",
        "sklearn",
        "great_expectations",
        "mlflow",
        "ibis",
        "pandas",
        "matplotlib",
        "prefect",
    }
    assert not heavy & set(done.stdout.split())


def test_mlflow_is_the_installed_package_not_our_folder():
    assert "site-packages" in Path(mlflow.__file__).parts
    # Registered models below mlflow/store/ carry code of their own; git ignores them.
    assert not [file for file in tracked() if file.startswith("mlflow/") and file.endswith(".py")]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_command_function_section_and_docs_line(stage):
    from hpgr.cli import app

    assert stage in {command.name for command in app.registered_commands}
    tree = ast.parse((ROOT / Path(*STAGES[stage].module.split("."))).with_suffix(".py").read_text())
    assert stage in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert stage in PARAMS
    assert re.search(rf"^\| {stage} \|", (ROOT / "docs/artifacts.md").read_text(), re.MULTILINE)
    assert DVC["stages"][stage]["cmd"] == f"exec hpgr {stage}"
    assert DVC["stages"][stage]["outs"] == [STAGES[stage].output]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_the_table_says(stage):
    declared = DVC["stages"][stage]
    files = [dep for dep in declared["deps"] if not dep.startswith("hpgr/")]
    raw = ["${data.path}"] if stage == "validate" else []
    assert files == [*raw, *STAGES[stage].inputs]
    assert declared["params"] == [*STAGES[stage].params]


def test_dvc_has_no_other_stages():
    assert list(DVC["stages"]) == list(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_imports(stage, graph):
    declared = {dep for dep in DVC["stages"][stage]["deps"] if dep.startswith("hpgr/")}
    needed = code_of(stage, graph)
    assert declared == needed, "dvc.yaml should list:\n" + "\n".join(
        f"      - {file}" for file in sorted(needed)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_every_parameter_its_code_reads(stage, graph):
    sections = {name.rstrip("_") for name in Config.model_fields}
    # Another stage's entry module is imported for its paths; that stage's settings are not read.
    others = {f"{s.module.replace('.', '/')}.py" for name, s in STAGES.items() if name != stage}
    declared = set(DVC["stages"][stage]["params"])
    assert stage in declared
    configuration = {
        "hpgr/config.py",
        "hpgr/config_model.py",
        "hpgr/config_rules.py",
    }  # they check every section
    for file in code_of(stage, graph) - others - configuration:
        if not file.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            root, *path = ast.unparse(node).split(".")
            path = [part.rstrip("_") for part in path]
            if root != "cfg" or path[0] not in sections:
                continue
            covered = path[0] in declared or any(p.startswith(f"{path[0]}.") for p in declared)
            if len(path) > 1:
                covered = path[0] in declared or f"{path[0]}.{path[1]}" in declared
            assert covered, f"{file} reads {ast.unparse(node)}"


def test_package_files_that_no_stage_depends_on_hold_no_code():
    for file in (ROOT / "hpgr").rglob("__init__.py"):
        body = ast.parse(file.read_text()).body
        docstring, *rest = body
        assert isinstance(docstring, ast.Expr)
        assert all(isinstance(node, ast.Assign) for node in rest), file


def test_params_keys_equal_the_configurations():
    def compare(values: dict, model: type[BaseModel], where: str) -> None:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        assert set(values) == set(fields), where
        for key, field in fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                compare(values[key], field.annotation, f"{where}.{key}")

    compare(PARAMS, with_model(Config, PARAMS["model"]), "params")


def test_nothing_is_pickled():
    for file in tracked():
        if not (file.startswith(("hpgr/", "flows/", "host/")) and file.endswith(".py")):
            continue
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "joblib", "cloudpickle"}, file
            if isinstance(node, ast.Call):
                allowed = {k.arg for k in node.keywords if ast.unparse(k.value) == "True"}
                assert "allow_pickle" not in allowed, file
                assert ast.unparse(node.func) not in ("torch.load", "torch.save"), file


def test_telemetry_is_off_on_every_path():
    from hpgr.runtime import TELEMETRY_OFF

    makefile = (ROOT / "Makefile").read_text()
    for name, value in TELEMETRY_OFF.items():
        assert re.search(rf"^export {name} :?= {value}$", makefile, re.MULTILINE), name
    environment = {k: v for k, v in os.environ.items() if k not in TELEMETRY_OFF}
    probe = "import flows, os, json; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    assert TELEMETRY_OFF.items() <= yaml.safe_load(done.stdout).items()


def test_a_worker_hands_its_environment_on_to_a_run_which_can_set_nothing_of_it():
    """A worker imports `flows`, which switches telemetry off; a deployment must not undo it."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers.process import ProcessJobConfiguration

    from host.prefect_server import TEMPLATE
    from hpgr.runtime import TELEMETRY_OFF

    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        assert "job_variables" not in deployment["work_pool"]
    nobody = AsyncMock()  # a server that must not be needed
    asked = {"command": "id", "env": {"DO_NOT_TRACK": "0"}, "env.A": "1", "working_dir": "/"}

    async def configured():
        made = await ProcessJobConfiguration.from_template_and_values(
            TEMPLATE, asked, client=nobody
        )
        made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="run"))
        return made

    with pytest.MonkeyPatch.context() as patch:
        for name, value in TELEMETRY_OFF.items():
            patch.setenv(name, value)
        made = asyncio.run(configured())
    assert {name: made.env[name].lower() for name in TELEMETRY_OFF} == TELEMETRY_OFF
    assert "A" not in made.env
    assert made.command.endswith("-m prefect.engine")
    assert made.working_dir is None


def test_the_lock_pins_every_direct_dependency_and_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    pins = [Requirement(line) for line in lock.splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert all(re.fullmatch(r"==[\w.!]+", version) for version in pinned.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(line) for lines in lists for line in lines):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pinned[name].removeprefix("==")), name
