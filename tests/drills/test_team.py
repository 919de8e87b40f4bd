"""The services of compose.yaml without containers: Postgres, S3 (moto), Prefect, MLflow, DVC.

The commands of the project's services are compose.yaml's own, with addresses and ports of this
machine in place of the containers'.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import save_file
from servers import ROOT, free_port, make_project
from waiting import until

from host.remote_checkpoints import Store
from hpgr.config import load_config

PLACES = [
    os.environ["PATH"],
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))),
]  # Debian
POSTGRES, INITDB = (shutil.which(n, path=os.pathsep.join(PLACES)) for n in ("postgres", "initdb"))
pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(
        not (POSTGRES and INITDB),
        reason="Postgres is not on this machine (Debian: apt install postgresql)",
    ),
]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
USER = "postgres" if os.name == "posix" and os.geteuid() == 0 else None  # it refuses to be root
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}  # moto takes any


class Team:
    """Addresses of the services, and the project that uses them."""

    def __init__(self, project):
        self.project = project
        self.postgres, self.store, self.mlflow = free_port(), free_port(), free_port()

    def translated(self, text: str) -> str:
        """A value of compose.yaml for this machine."""
        for container, here in {
            "postgres:5432": f"127.0.0.1:{self.postgres}",
            "http://store:8333": f"http://127.0.0.1:{self.store}",
            "127.0.0.1:8333": f"127.0.0.1:{self.store}",
            "127.0.0.1:4200": f"127.0.0.1:{self.project.prefect_port}",
            "127.0.0.1:5000": f"127.0.0.1:{self.mlflow}",
            "0.0.0.0": "127.0.0.1",
        }.items():
            text = text.replace(container, here)
        ports = {"4200": str(self.project.prefect_port), "5000": str(self.mlflow)}
        text = ports.get(text, text)
        text = re.sub(r"\$\{\w+:-\}", "", text)
        return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: KEYS.get(found[1], "secret"), text)

    def command(self, service: str) -> list[str]:
        first, *words = [self.translated(word) for word in COMPOSE[service]["command"]]
        module = {"python": [], "hpgr": ["-m", "hpgr.cli"]}.get(first, ["-m", first])
        return [sys.executable, *module, *words]

    def environment(self, service: str) -> dict[str, str]:
        said = COMPOSE[service]["environment"].items()
        return self.project.environment | {name: self.translated(value) for name, value in said}


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    root = tmp_path_factory.mktemp("team")
    (root / "project").mkdir()
    made = Team(make_project(root / "project"))
    made.project.string = "secret"  # as `translated` fills in what environment/.env holds
    running = []

    def start(command, **options):
        with (root / f"{len(running)}.log").open("w") as log:
            options = {"cwd": made.project.folder, "stdout": log, "stderr": log} | options
            running.append(subprocess.Popen(command, process_group=0, **options))

    data, sockets = Path("/tmp") / f"hpgr-pg-{os.getpid()}", "/tmp"
    data.mkdir(mode=0o700)
    if USER:
        shutil.chown(data, USER)
    try:
        as_user = {"user": USER, "cwd": "/tmp", "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
        initdb = [INITDB, "-D", str(data), "-U", "hpgr", "--auth=trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, **as_user)
        postgres = [POSTGRES, "-D", str(data), "-p", str(made.postgres), "-k", sockets]
        start([*postgres, "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"], **as_user)
        make_databases(made.postgres)
        start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(made.store)])
        subprocess.run(
            made.command("buckets"),
            env=made.environment("buckets"),
            cwd=made.project.folder,
            check=True,
        )
        for service in ("prefect", "mlflow"):
            start(made.command(service), env=made.environment(service))
        project = made.project
        until(project.answers, "Prefect answers")
        until(lambda: project.answers(f"http://127.0.0.1:{made.mlflow}/health"), "MLflow")
        made.start = start
        yield made
    finally:
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(data, ignore_errors=True)
    assert not made.project.processes()


def make_databases(port):
    """Prefect's, and MLflow's as compose's start script makes it."""
    import psycopg2

    def connect():
        try:
            return psycopg2.connect(host="127.0.0.1", port=port, user="hpgr", dbname="postgres")
        except psycopg2.OperationalError:
            return None

    connection = until(connect, "Postgres answers")
    connection.autocommit = True
    script = yaml.safe_load((ROOT / "compose.yaml").read_text())["configs"]["databases"]["content"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE prefect")
        cursor.execute(script)
    connection.close()


def rows(port, database, question):
    import psycopg2

    with psycopg2.connect(host="127.0.0.1", port=port, user="hpgr", dbname=database) as connection:
        cursor = connection.cursor()
        cursor.execute(question)
        return set(cursor.fetchall())


def tables(port, database):
    question = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    return {name for (name,) in rows(port, database, question)}


def test_prefect_keeps_its_runs_in_postgres_and_takes_the_deployments(team):
    team.project.call(
        *team.command("deployments"), **team.environment("deployments") | {"PYTHONUNBUFFERED": "1"}
    )
    with team.project.client as client:
        found = {(d.entrypoint, d.work_pool_name) for d in client.read_deployments()}
    declared = yaml.safe_load((team.project.folder / "prefect.yaml").read_text())["deployments"]
    assert found == {(d["entrypoint"], d["work_pool"]["name"]) for d in declared}
    assert {"flow_run", "deployment"} <= tables(team.postgres, "prefect")


def test_making_the_buckets_again_is_no_error(team):
    done = subprocess.run(
        team.command("buckets"),
        env=team.environment("buckets"),
        cwd=team.project.folder,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_a_model_is_registered_in_the_teams_stores_and_loads_back(team):
    project = team.project
    shutil.copytree(project.folder / "prepared", project.folder / "artifacts", dirs_exist_ok=True)
    client = team.environment("worker")
    message = project.call(sys.executable, "-m", "hpgr.cli", "register", **client).stdout
    assert "registered hpgr version 1, alias champion" in message
    assert not (project.folder / "mlflow/store/mlflow.db").exists()
    assert "registered_models" in tables(team.postgres, "mlflow")
    probe = """
import json, mlflow, boto3
model = mlflow.pyfunc.load_model("models:/hpgr@champion")
keys = [o["Key"] for o in boto3.client("s3").list_objects_v2(Bucket="hpgr-mlflow")["Contents"]]
print(json.dumps([type(model).__name__, sum(k.endswith("model.safetensors") for k in keys)]))
"""
    last = project.call(sys.executable, "-c", probe, **client).stdout.splitlines()[-1]
    assert json.loads(last) == ["PyFuncModel", 1]


def test_a_flow_goes_through_the_worker_and_the_recommender_follows(team):
    """Neither Prefect's nor MLflow's own store on this machine is touched."""
    project = team.project
    for service in ("worker", "recommender"):
        team.start(team.command(service), env=team.environment(service))
    run = project.start()
    project.ends(run, "Completed")
    assert "stage slow: ran" in project.log(run)
    assert ("COMPLETED",) in rows(team.postgres, "prefect", "SELECT state_type FROM flow_run")
    versions = rows(team.postgres, "mlflow", "SELECT version FROM model_versions")
    assert (project.registered()["version"],) in versions
    assert not (project.folder / "mlflow/store/mlflow.db").exists()
    port = load_config(project.folder / "params.yaml").serve.port
    until(lambda: project.answers(f"http://127.0.0.1:{port}/ready"), "a champion answers")


def test_checkpoints_travel_through_the_teams_store(team, tmp_path, monkeypatch):
    """As tests/test_remote_checkpoints.py, in S3."""
    from dvc_s3 import S3FileSystem

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = S3FileSystem(endpointurl=f"http://127.0.0.1:{team.store}")
    checkpoint = Path("checkpoints/train-a/checkpoint.safetensors")
    monkeypatch.chdir(tmp_path)
    checkpoint.parent.mkdir(parents=True)
    save_file({}, checkpoint, {"state": json.dumps({"step": 1, "epoch": 0})})
    before = checkpoint.read_bytes()
    Store("train", store, "hpgr-dvc/checkpoints").send()
    shutil.rmtree("checkpoints")
    another = Store("train", store, "hpgr-dvc/checkpoints")
    assert another.bring() == ["train-a"]
    assert checkpoint.read_bytes() == before
    shutil.rmtree("checkpoints")
    another.drop()
    assert not store.exists("hpgr-dvc/checkpoints/train-a/checkpoint.safetensors")


def test_dvc_carries_data_through_the_teams_store(team, tmp_path):
    project, client = team.project, team.environment("worker")
    dvc = (sys.executable, "-m", "dvc")
    project.call(*dvc, "remote", "add", "-d", "team", "s3://hpgr-dvc")
    project.call(*dvc, "remote", "modify", "team", "endpointurl", client["AWS_ENDPOINT_URL"])
    project.call(*dvc, "push", "data.dvc", **client)
    shutil.rmtree(project.folder / ".dvc/cache")
    shutil.rmtree(project.folder / "data")
    project.call(*dvc, "pull", "data.dvc", **client)
    assert (project.folder / "data/log.txt").read_text() == "events"
