"""An Airflow of one's own in a folder: SQLite, LocalExecutor, one listening socket, on loopback. For demos and tests.

It runs api-server, dag-processor and scheduler. A triggerer is not needed (no task defers), nor is a log server (the api-server
reads the logs from the same disk). Left out are also the schedule, unless asked for, and every look-up of a host's name.
`python -m jobs.operate.airflow FOLDER` stops one that was kept.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]

from jobs.contracts.errors import ProcessFailed

MARK = "NIGHTJAR_EMBEDDED"  # in the environment of every process of an embedded Airflow: the folder that it lives in
POOLS = ("spark", "gpu")
START_SECONDS = 180
STOP_SECONDS = 15

_COMPONENTS: dict[str, tuple[str, ...]] = {"api-server": (), "dag-processor": (), "scheduler": ("--skip-serve-logs",)}
_TAIL_LINES = 20


@dataclass(frozen=True)
class Run:
    """One run of a DAG."""

    dag: str
    id: str


@dataclass(frozen=True)
class TaskState:
    """One task of a run; `state` is null until it was scheduled, `seconds` until it has ended."""

    task: str
    state: str | None
    attempt: int
    seconds: float | None


class EmbeddedAirflow:
    """Airflow in a folder of its own, while a `with` block lasts; then every process ends, those of running tasks too.

    `variables` reach the tasks. With `schedule` the DAGs also run by their timetable. Raises ProcessFailed, which names the
    log and shows its end, when a component fails or is not ready in time, or a DAG file can't be loaded.
    """

    def __init__(self, home: Path, dags: Path, variables: Mapping[str, str], *, schedule: bool = False) -> None:
        self.home = home.absolute()
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._dags = dags.absolute()
        self._environment = {**marked(self.home), **variables, **_configuration(self.home, self._dags, port, schedule)}
        self._components: dict[str, subprocess.Popen[bytes]] = {}
        self._kept = False

    def __enter__(self) -> Self:
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        try:
            self.command("db", "migrate")
            for name, options in _COMPONENTS.items():
                self._components[name] = self._start(name, *options)
            self._wait_until_ready()
            for pool in POOLS:
                self._call("POST", "pools", {"name": pool, "slots": 1})
        except BaseException:
            stop(self.home)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None or not self._kept:
            stop(self.home)

    def keep(self) -> str:
        """Let it run on after the block; return the command that stops it."""
        self._kept = True
        return shlex.join([sys.executable, "-m", __name__, str(self.home)])

    def command(self, *words: str) -> None:
        """Run `airflow WORDS…` in this Airflow and wait. Raises ProcessFailed with the end of its log."""
        name = "-".join(word for word in words[:2])
        status = self._start(name, *words[1:], command=words[0]).wait()
        if status != 0:
            raise ProcessFailed(f"`airflow {shlex.join(words)}` ended with status {status}. {tail(self._log(name))}")

    def trigger(self, dag: str, conf: Mapping[str, Any], logical_date: str | None = None) -> Run:
        """Trigger a run. Raises ProcessFailed with Airflow's own words when it refuses."""
        return Run(dag, self._call("POST", f"dags/{dag}/dagRuns", {"conf": dict(conf), "logical_date": logical_date})["dag_run_id"])

    def runs(self, dag: str) -> list[Run]:
        """All runs of a DAG, in the order of their making."""
        return [Run(dag, run["dag_run_id"]) for run in self._call("GET", f"dags/{dag}/dagRuns?limit=100&order_by=id")["dag_runs"]]

    def state(self, run: Run) -> str:
        """queued, running, success or failed. Raises ProcessFailed when a component of Airflow has ended."""
        self._check_components()
        return str(self._call("GET", _path(run))["state"])

    def tasks(self, run: Run) -> list[TaskState]:
        """The tasks of a run, in no particular order."""
        rows = self._call("GET", f"{_path(run)}/taskInstances?limit=100")["task_instances"]
        return [TaskState(row["task_id"], row["state"], row["try_number"], row["duration"] if row["end_date"] else None) for row in rows]

    def failure(self, run: Run) -> ProcessFailed:
        """What to say about a run that failed: which task, where its log is, and the end of it."""
        failed = [task for task in self.tasks(run) if task.state == "failed"]
        if not failed:
            return ProcessFailed(f"Run {run.id} of {run.dag} failed before any of its tasks did. {tail(self._log('scheduler'))}")
        task = failed[0]
        log = self.home / "logs" / f"dag_id={run.dag}" / f"run_id={run.id}" / f"task_id={task.task}" / f"attempt={task.attempt}.log"
        return ProcessFailed(f"Task {task.task} of {run.dag} failed, run {run.id}, attempt {task.attempt}. {tail(log)}")

    def _start(self, name: str, *words: str, command: str | None = None) -> subprocess.Popen[bytes]:
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "airflow", command or name, *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                start_new_session=True,  # a Ctrl-C in the terminal is answered by `stop`, in order, and not by each by itself
            )

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _check_components(self) -> None:
        for name, process in self._components.items():
            if process.poll() is not None:
                raise ProcessFailed(f"Airflow's {name} ended with status {process.returncode}. {tail(self._log(name))}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        component, wanted = "api-server", "an answer"
        while time.monotonic() < deadline:
            self._check_components()
            try:
                health = self._call("GET", "monitor/health")
            except ConnectionError:
                time.sleep(0.3)
                continue
            unhealthy = [name for name in ("scheduler", "dag_processor") if health[name]["status"] != "healthy"]
            component = unhealthy[0].replace("_", "-") if unhealthy else "dag-processor"
            wanted = "its heartbeat" if unhealthy else f"DAGs from {self._dags}"
            errors = self._call("GET", "importErrors")["import_errors"]
            if errors:
                raise ProcessFailed(f"Airflow can't load {errors[0]['filename']}:\n{errors[0]['stack_trace'].strip()}")
            if not unhealthy and self._call("GET", "dags")["total_entries"]:
                return
            time.sleep(0.3)
        raise ProcessFailed(f"Airflow's {component} is not ready: {wanted} did not come within {START_SECONDS} s. {tail(self._log(component))}")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call the REST API. Raises ConnectionError while nothing answers, ProcessFailed when the answer is a refusal."""
        request = urllib.request.Request(f"{self.url}/api/v2/{path}", method=method, headers={"Content-Type": "application/json"})
        try:
            with _open.open(request, data=json.dumps(body).encode() if body is not None else None, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ProcessFailed(f"Airflow refused {method} {path}, {error.code}: {error.read().decode()[:1000]}") from error
        except urllib.error.URLError as error:
            raise ConnectionError(f"Nothing answers at {self.url}: {error.reason}") from error


def marked(home: Path) -> dict[str, str]:
    """The environment of this process, less any settings of another Airflow, with the mark by which `stop` knows its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    # SPT_NOENV: setproctitle, with which Airflow names its processes, would write over the mark.
    return inherited | {MARK: str(home.absolute()), "SPT_NOENV": "1"}


def running(home: Path) -> list[psutil.Process]:
    """Processes started with the mark of that folder, wherever in the tree they are now."""
    return list(_running(str(home.absolute())))


def stop(home: Path) -> None:
    """End every process that carries the mark of that folder, by SIGTERM, and by SIGKILL what is left after some seconds.

    Killing is safe at any time: each write to the lake is one commit. Raises ProcessFailed when one lives on.
    """
    for process in running(home):
        _signal(process, psutil.Process.terminate)
    deadline = time.monotonic() + STOP_SECONDS
    while (left := running(home)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.2)
    for process in left:
        _signal(process, psutil.Process.kill)
    psutil.wait_procs(left, timeout=5)
    if left := running(home):
        raise ProcessFailed(f"These processes of {home} can't be ended: {', '.join(str(process.pid) for process in left)}.")


def tail(log: Path) -> str:
    """Where a log is, and its last lines; of a task's log, which is JSON lines, the messages."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join([f"Its log is {log}" + (", and ends with:" if lines else "."), *(f"  {_message(line)}" for line in lines[-_TAIL_LINES:])])


def _running(home: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["environ", "status"]):
        environment = process.info["environ"]  # null for the processes of others
        if environment and environment.get(MARK) == home and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process


def _signal(process: psutil.Process, send: Any) -> None:
    try:
        send(process)
    except psutil.NoSuchProcess:
        return  # it ended by itself meanwhile, which is what is wanted


def _message(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict) or "event" not in entry:
        return line
    details = [f"{problem.get('exc_type')}: {problem.get('exc_value')}" for problem in entry.get("error_detail", [])]
    return " ".join([str(entry["event"]), *details])


def _path(run: Run) -> str:
    return f"dags/{run.dag}/dagRuns/{quote(run.id, safe='')}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _configuration(home: Path, dags: Path, port: int, schedule: bool) -> dict[str, str]:
    """Environment of the components: what differs from Airflow's defaults, and why."""
    url = f"http://127.0.0.1:{port}"
    loopback = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), "127.0.0.1"]))
    settings: dict[str, Any] = {
        "core__dags_folder": dags,
        "core__load_examples": False,
        "core__executor": "LocalExecutor",
        "core__parallelism": 3,  # forked at once, about 100 MB each; the pools let one Spark step and one torch step run beside the sensor
        "core__dags_are_paused_at_creation": False,
        "core__execution_api_server_url": f"{url}/execution/",
        "core__hostname_callable": "socket.gethostname",  # the default asks the name server
        "core__simple_auth_manager_all_admins": True,
        "api__host": "127.0.0.1",
        "api__port": port,
        "api__base_url": url,
        "api__workers": 1,
        "scheduler__use_job_schedule": schedule,
        "dag_processor__min_file_process_interval": 3600,  # each look at a DAG file costs seconds of CPU
    }
    variables = {f"AIRFLOW__{name.upper()}": str(value) for name, value in settings.items()}
    return {"AIRFLOW_HOME": str(home), "NO_PROXY": loopback, "no_proxy": loopback, "PYTHONWARNINGS": "ignore", **variables}


_open = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy


if __name__ == "__main__":
    stop(Path(sys.argv[1]))
