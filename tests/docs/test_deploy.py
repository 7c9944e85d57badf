"""The files of docs/deploy/ are valid, fit to the settings and to each other, and their command works."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import asyncpg
import kubernetes_validate
import pytest
import yaml

from blocks import DOCS, read_blocks
from freeloop.cli import app as commands
from freeloop.database import Budget
from freeloop.inspection import find_processes
from freeloop.inspection.folder import prepare_folder
from freeloop.settings import PREFIX, Settings, read_settings
from run_process import BOUND, Processes

FOLDER = DOCS / "deploy"
UNITS = ["notes.service", "notes-worker.service"]
APP = """
import os
from fastapi import FastAPI
from freeloop import Freeloop

app = FastAPI()
kit = Freeloop(app)


@app.get("/who")
async def tell() -> dict:
    return {"version": "first", "pid": os.getpid()}
"""
TASKS_APP = """
import os
from fastapi import FastAPI
from freeloop import Freeloop

app = FastAPI()
kit = Freeloop(app, database=True)


@kit.task()
async def tell() -> int:
    return os.getpid()


@app.post("/tell")
async def start() -> dict:
    handle = await kit.tasks.start(tell)
    return {"pid": await handle.result(timeout=30)}
"""
LISTENERS = 3  # of a process with tasks, beside its pool
ALLOWED = 97  # connections: PostgreSQL's max_connections as it comes, less those for superusers


def read_unit(name):
    """Return the values of a unit by key; a key that stands twice has its last."""
    lines = (FOLDER / name).read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def read_environment(unit=None):
    """Return the settings of both units, or all those of one of them."""
    lines = (FOLDER / "notes.env").read_text("utf-8").splitlines()
    common = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    if unit is None:
        return common
    name, _, value = read_unit(unit)["Environment"].partition("=")
    assert name not in common  # the file's would win
    return {**common, name: value}


def settings_of(environment, monkeypatch):
    """Read them as a process does that has this environment."""
    assert all(name.startswith(PREFIX) for name in environment)
    assert {name.removeprefix(PREFIX).lower() for name in environment} <= set(Settings.model_fields)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return read_settings()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(name, tmp_path):
    text = (FOLDER / name).read_text("utf-8")
    there = Path(sys.executable).parent / "freeloop"  # systemd looks whether the program is there
    assert "/srv/notes/.venv/bin/freeloop" in text
    (tmp_path / name).write_text(text.replace("/srv/notes/.venv/bin/freeloop", str(there)), "utf-8")
    done = _verify(tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert name not in done.stderr  # a key that is not known is a warning only

    (tmp_path / name).write_text(text, "utf-8")
    assert _verify(tmp_path / name).returncode != 0, "the check lets everything pass"


def _verify(unit):
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", UNITS)
def test_systemd_waits_longer_than_the_shutdown_takes(name, monkeypatch):
    unit = read_unit(name)
    settings = settings_of(read_environment(name), monkeypatch)
    assert float(unit["TimeoutStopSec"]) > settings.shutdown_timeout > settings.drain_delay
    assert unit["KillMode"] == "mixed"
    assert unit["EnvironmentFile"] == "/etc/notes.env"


def test_the_connections_of_the_units_fit_into_postgresql(monkeypatch):
    settings = settings_of(read_environment(), monkeypatch)
    served = int(read_unit("notes.service")["ExecStart"].partition("--workers ")[2].split()[0])
    budget = Budget(
        pool=settings.database_pool_size,
        listeners=LISTENERS,
        workers=served,
        replicas=settings.replicas,
        reserve=settings.database_reserve,
    )
    assert budget.total <= ALLOWED
    task_workers = settings.replicas * (settings.database_pool_size + LISTENERS)
    assert settings.database_reserve >= task_workers + 5  # which the processes that serve do not count


def test_each_unit_has_a_folder_of_its_own_for_its_sockets(monkeypatch):
    folders = [settings_of(read_environment(name), monkeypatch).runtime_dir for name in UNITS]
    assert folders == [Path("/run") / read_unit(name)["RuntimeDirectory"] for name in UNITS]
    assert len({*folders}) == len(UNITS)  # systemd removes it once its unit stops


@pytest.fixture
def runtime():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket must be short
        yield Path(folder)


def start_unit(processes, name, *, cwd, runtime, **environment):
    """Run the command of a unit as it stands, with its settings but for port, folder and database."""
    program, *arguments = shlex.split(read_unit(name)["ExecStart"])
    assert Path(program).name == "freeloop"
    if "--port" in arguments:
        port = arguments.index("--port") + 1
        assert arguments[port] == "8000"
        arguments[port] = "0"  # it may be taken here: a free one
    settings = {**read_environment(name), "FREELOOP_RUNTIME_DIR": runtime, "FREELOOP_DRAIN_DELAY": "0"}
    del settings["FREELOOP_DATABASE_URL"]
    return processes.command(*arguments, cwd=cwd, **{**settings, **environment})


def wait_for_workers(runtime, *, other_than=frozenset()):
    """Return the numbers of the two processes that answer there, once the others have gone."""
    until = time.monotonic() + BOUND
    while True:
        found = {each.pid for each in find_processes(runtime)}
        if len(found) == 2 and not found & other_than:
            return found
        assert time.monotonic() < until, found


def look(runtime, *arguments):
    """Return what a command of the one who looks after the machine says."""
    done = subprocess.run(
        [sys.executable, "-m", "freeloop", *arguments, "--json"],
        env={**os.environ, "FREELOOP_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_of_the_unit_serves_reloads_and_ends_in_time(tmp_path, runtime):
    unit = read_unit("notes.service")
    assert shlex.split(unit["ExecStart"])[1] == "run"
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    (tmp_path / "main.py").write_text(APP)
    with Processes() as processes:
        run = start_unit(processes, "notes.service", cwd=tmp_path, runtime=runtime)
        assert run.get("/readyz").status == 200
        assert run.get("/who").json()["version"] == "first"
        old = wait_for_workers(runtime)
        assert {each["pid"] for each in look(runtime, "ps", "main:app")} == old
        assert look(runtime, "blocks", "main:app")["watched"]

        # Of another length: of two versions of one second, Python looks at nothing else.
        (tmp_path / "main.py").write_text(APP.replace("first", "the second"))
        subprocess.run(
            shlex.split(unit["ExecReload"].replace("$MAINPID", str(run.process.pid))),
            timeout=BOUND,
            check=True,
        )
        new = wait_for_workers(runtime, other_than=old)
        answers = [run.get("/who").json() for _ in range(10)]
        assert {each["version"] for each in answers} == {"the second"}
        assert {each["pid"] for each in answers} <= new
        assert run.stop(timeout=float(unit["TimeoutStopSec"])) == 0
    assert list(runtime.iterdir()) == []


async def test_the_worker_of_the_unit_runs_what_the_service_starts_and_ends_in_time(
    tmp_path, runtime, address
):
    host = quote(str(address.host), safe="")
    url = f"postgresql://{address.user}@/{address.database}?host={host}&port={address.port}"
    folders = {name: runtime / name for name in UNITS}

    def run():
        (tmp_path / "main.py").write_text(TASKS_APP)
        with Processes() as processes:
            service, worker = (
                start_unit(processes, name, cwd=tmp_path, runtime=folder, FREELOOP_DATABASE_URL=url)
                for name, folder in folders.items()
            )
            worker.wait_for(lambda record: record.get("event") == "working", timeout=BOUND)
            answer = service.get("/tell", method="POST")
            assert (answer.status, answer.json()) == (200, {"pid": worker.process.pid})
            (seen,) = look(folders["notes-worker.service"], "ps")
            assert seen["pid"] == worker.process.pid
            for name, process in zip(UNITS, (service, worker), strict=True):
                assert process.stop(timeout=float(read_unit(name)["TimeoutStopSec"])) == 0

    await asyncio.to_thread(run)


def test_the_worker_of_the_unit_is_a_command():
    _, command, target = shlex.split(read_unit("notes-worker.service")["ExecStart"])
    assert command in {each.callback.__name__ for each in commands.registered_commands}
    assert target == "main:app"


@pytest.fixture(scope="module")
def manifests():
    return list(yaml.safe_load_all((FOLDER / "notes.yaml").read_text("utf-8")))


def find(manifests, kind, name):
    (found,) = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def test_kubernetes_accepts_the_manifests(manifests):
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.33", strict=True)
    manifests[0]["metadate"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifests[0], "1.33", strict=True)
    del manifests[0]["metadate"]


def environment_of(manifests, container):
    """Return the settings that a container gets."""
    given = dict(find(manifests, "ConfigMap", "notes")["data"])
    for each in container.get("env", []):
        secret = {"database-url": "postgresql://notes:secret@db/notes", "token": "x" * 32}
        given[each["name"]] = each.get("value") or secret[each["valueFrom"]["secretKeyRef"]["key"]]
    return given


@pytest.mark.parametrize("name", ["notes", "notes-worker"])
def test_kubernetes_waits_longer_than_the_shutdown_takes(manifests, monkeypatch, name):
    pod = find(manifests, "Deployment", name)["spec"]["template"]["spec"]
    settings = settings_of(environment_of(manifests, pod["containers"][0]), monkeypatch)
    assert pod["terminationGracePeriodSeconds"] > settings.shutdown_timeout > 2 * settings.drain_delay
    assert pod["enableServiceLinks"] is False


def test_the_probes_ask_what_the_service_answers(manifests, monkeypatch):
    (container,) = find(manifests, "Deployment", "notes")["spec"]["template"]["spec"]["containers"]
    settings = settings_of(environment_of(manifests, container), monkeypatch)
    (port,) = container["ports"]
    target = find(manifests, "Service", "notes")["spec"]["ports"][0]["targetPort"]
    assert port["name"] == target
    assert str(port["containerPort"]) == container["args"][container["args"].index("--port") + 1]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == settings.readiness_path
    ready = container["readinessProbe"]
    turned_away = ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"]
    assert settings.drain_delay >= turned_away
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= settings.start_timeout


def test_the_connections_of_the_pods_fit_into_postgresql(manifests, monkeypatch):
    web, worker = (find(manifests, "Deployment", name)["spec"] for name in ("notes", "notes-worker"))
    pods = web["replicas"] + web["strategy"]["rollingUpdate"]["maxSurge"] + worker["replicas"]
    environment = environment_of(manifests, web["template"]["spec"]["containers"][0])
    settings = settings_of(environment, monkeypatch)
    assert settings.replicas == pods
    budget = Budget(
        pool=settings.database_pool_size,
        listeners=LISTENERS,
        replicas=pods,
        reserve=settings.database_reserve,
    )
    assert budget.total <= ALLOWED


@pytest.mark.parametrize("name", ["notes", "notes-worker"])
def test_the_sockets_of_a_pod_lie_where_its_user_may_make_a_folder(manifests, monkeypatch, name):
    pod = find(manifests, "Deployment", name)["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert volume == {"name": mount["name"], "emptyDir": {}}
    folder = settings_of(environment_of(manifests, container), monkeypatch).runtime_dir
    assert Path(mount["mountPath"]) in folder.parents
    assert container["securityContext"]["readOnlyRootFilesystem"] is True  # nowhere else could it be made


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_volume_of_somebody_else_is_refused_and_a_folder_in_it_is_not(tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    os.chown(volume, 10_001, 10_001)
    with pytest.raises(PermissionError):
        prepare_folder(volume)
    prepare_folder(volume / "sockets")


def test_the_budget_keeps_what_is_behind_a_disruption(manifests):
    web = find(manifests, "Deployment", "notes")["spec"]
    assert find(manifests, "PodDisruptionBudget", "notes")["spec"]["minAvailable"] < web["replicas"]


@pytest.fixture
def setup():
    (block,) = [each for each in read_blocks(DOCS / "deploy.md") if each.language == "sql"]
    return block.text


async def test_postgresql_accepts_how_it_is_set_up(postgres, setup):
    connection = await asyncpg.connect(**postgres.arguments())
    try:
        for statement in filter(str.strip, setup.split(";")):
            await connection.execute(statement)
        owner = (
            "select rolname from pg_roles join pg_database on datdba = pg_roles.oid where datname = 'notes'"
        )
        assert await connection.fetchval(owner) == "notes"
    finally:
        await connection.execute("drop database if exists notes")
        await connection.execute("drop role if exists notes")
        await connection.close()
