"""What the DAGs are made of: a night of Airflow, one task a step of the plan, and the rule that tells a run its day."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, date, timedelta
from typing import TYPE_CHECKING, Any

import jinja2
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.sensors.bash import BashSensor
from airflow.sdk import DAG, CronDataIntervalTimetable, Param

from jobs.contracts.days import parse_day
from jobs.contracts.errors import BadDay, NotYet
from jobs.steps import find_step

if TYPE_CHECKING:
    from airflow.sdk.types import DagRunProtocol

POOLS = {"spark": "spark", "torch": "gpu", "arrow": "default_pool"}


def nightly_dag(dag_id: str, doc: str | None) -> DAG:
    """A DAG that runs once a UTC day, at its end, and one day at a time: a night rebuilds days that the one before wrote."""
    return DAG(
        dag_id,
        doc_md=doc,
        schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
        catchup=False,
        max_active_runs=1,
        params={"day": Param(None, type=["null", "string"], pattern=r"^\d{4}-\d{2}-\d{2}$", description="data day; else the run's own")},
        user_defined_macros={"data_day": data_day},
        default_args={"retries": 1, "retry_delay": timedelta(minutes=1)},
        tags=["nightjar"],
    )


def run(step: str) -> BashOperator:
    """The task of a step; it waits for the machine that its engine needs."""
    return BashOperator(task_id=step, bash_command=_command("run", step), pool=POOLS[find_step(step).engine])


def report() -> BashOperator:
    """The task that writes the page of the night."""
    return BashOperator(task_id="report", bash_command=_command("report"))


def wait_for(step: str) -> BashSensor:
    """A task that ends once the tables of a step hold the day, whoever made them; it gives up before the next night begins."""
    return BashSensor(
        task_id=f"{find_step(step).name}_ready",
        bash_command=_command("ready", step),
        retry_exit_code=NotYet.status,
        mode="reschedule",
        poke_interval=15,
        timeout=timedelta(hours=23),
    )


@jinja2.pass_context
def data_day(context: Mapping[str, Any]) -> date:
    """The data day of a run: param `day`, else partition key, else start of the data interval, else logical date.

    Scheduled, backfill, manual, API and asset-triggered runs each know some of these. An empty interval does not count; one
    that begins after the logical date contradicts it (`airflow dags trigger --logical-date` takes it from the clock).
    Raises BadDay for a text that is no day, for that contradiction, and for a run that knows none of the four.
    """
    dag_run: DagRunProtocol = context["dag_run"]
    named = context["params"].get("day") or dag_run.partition_key
    if named:
        return parse_day(named)
    start, end, logical = dag_run.data_interval_start, dag_run.data_interval_end, dag_run.logical_date
    if start and logical and start > logical:
        raise BadDay(f"The run's logical date is {logical} but its data interval begins later, on {start}. {_ADVICE}")
    moment = start if start and end and start < end else logical
    if moment is None:
        raise BadDay(f"The run {dag_run.run_id} has no partition key, no data interval and no logical date, so its day is not known. {_ADVICE}")
    return moment.astimezone(UTC).date()


_ADVICE = """Trigger it with the day: --conf '{"day": "2026-01-31"}'."""


def _command(*words: str) -> str:
    return f"{shlex.join([sys.executable, '-m', 'jobs', *words])} --day {{{{ data_day() }}}}"
