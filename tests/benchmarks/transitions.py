"""Silver to transitions, against DuckDB alone and against the usual way with Spark; and a night on histories of two lengths: `make bench-transitions`.

DuckDB makes the same narrow rows with window functions, with no as-of day, no ledger and no way to run again. The usual way with
Spark copies each step's last 20 steps into its row. CPU seconds, as the machine may be shared.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import duckdb
import typer
from rich.console import Console
from rich.table import Table

from jobs.lake import Lake
from jobs.settings import elsewhere
from tests.benchmarks.measured import measure

FIRST = date(2026, 1, 1)
SILVER = "silver.interactions"
_REWARDS = "case event_type when 'click' then 1.0 when 'purchase' then 5.0 + 0.1 * coalesce(value, 0) else 0 end"
_PEER = f"""
import duckdb, sys
silver, target, last = sys.argv[1:]
duck = duckdb.connect(config={{"threads": 2, "memory_limit": "4GB"}})
duck.execute("set preserve_insertion_order = false; set timezone = 'UTC'")
duck.execute(f'''
copy (
    with events as (
        select day, user_id, event_time, position, event_id, item_id, event_type, request_id, propensity, {_REWARDS} as reward,
            event_type = 'impression' as is_step, case event_type when 'click' then 1 when 'purchase' then 3 else 0 end as maturity
        from read_parquet('{{silver}}/day=*/*.parquet', hive_partitioning = true)
    ),
    attributed as (
        select *, last(step ignore nulls) over (of_item rows unbounded preceding) as by_item,
            last(step ignore nulls) over (of_request rows unbounded preceding) as by_request
        from (select *, case when is_step then struct_pack(event_id := event_id, day := day) end as step from events)
        window of_item as (partition by user_id, item_id order by event_time, is_step desc, position, event_id),
            of_request as (partition by user_id, item_id, request_id order by event_time, is_step desc, position, event_id)
    ),
    placed as (
        select *, case when is_step then event_id else coalesce(
            case when request_id is not null and day - by_request.day <= maturity then by_request.event_id end,
            case when day - by_item.day <= maturity then by_item.event_id end) end as step_id
        from attributed
    ),
    neighbours as (
        select *, lag(event_time) over by_time as previous_time, lead(event_time) over by_time as next_time
        from placed where is_step window by_time as (partition by user_id order by event_time, position, event_id)
    ),
    answers as (
        select a.step_id, sum(a.reward) as reward,
            arg_max(a.event_type, a.reward) filter (n.next_time is null or a.event_time < n.next_time) as response
        from placed as a join neighbours as n on n.event_id = a.step_id where not a.is_step group by a.step_id
    )
    select user_id, event_time, position, item_id, event_type, response, coalesce(answers.reward, 0) + neighbours.reward as reward,
        previous_time is null or event_time - previous_time > interval 6 hours as first,
        case when day + 3 > date '{{last}}' then 'immature' when next_time - event_time <= interval 6 hours then null
            when event_time + interval 6 hours < date '{{last}}' + 1 then 'truncated_gap' else 'truncated_window' end as "end",
        propensity, hash(user_id) % 16 as bucket, day
    from neighbours left join answers on neighbours.event_id = answers.step_id
    order by day, bucket, user_id, event_time, position
) to '{{target}}' (format parquet, compression zstd, partition_by (day))
''')
"""
_USUAL = f"""
import sys
from pyspark.sql import Window, functions as sf
from jobs.settings import load_settings
from jobs.spark import start_session
silver, target = sys.argv[1:]
spark = start_session(load_settings())
events = spark.read.format("delta").load(silver).withColumn("reward", sf.expr("{_REWARDS}"))
answers = events.where("event_type != 'impression'").groupBy("user_id", "item_id", "request_id").agg(
    sf.sum("reward").alias("reward"), sf.max_by("event_type", "reward").alias("response"))
steps = events.where("event_type = 'impression'").drop("reward").join(answers, ["user_id", "item_id", "request_id"], "left")
by_time = Window.partitionBy("user_id").orderBy("event_time", "position", "event_id")
(steps.withColumn("history", sf.collect_list(sf.struct("item_id", "response", "event_time")).over(by_time.rowsBetween(-20, -1)))
    .withColumn("next_item", sf.lead("item_id").over(by_time)).withColumn("next_time", sf.lead("event_time").over(by_time))
    .selectExpr("user_id", "event_time", "item_id", "coalesce(reward, 0) as reward", "history",
        "slice(concat(history, array(struct(item_id, response, event_time))), -20, 20) as next_history",
        "next_item", "next_time is null or next_time - event_time > interval 6 hours as done", "propensity", "day")
    .write.format("delta").partitionBy("day").save(target))
"""


def interactions(number: int, sessions: int) -> str:
    """A query for a day: sessions of two requests for ten items; one item in eight is clicked, another one bought, within hours."""
    day = FIRST + timedelta(days=number)
    return f"""
        with shown as materialized (
            select
                'u' || lpad(cast(hash(s, {number}) % 100000 as varchar), 6, '0') as user_id,
                'i' || lpad(cast(cast(floor(20000 * pow((hash(s, r, p, {number}) % 1000003) / 1000003.0, 2)) as int) as varchar), 5, '0') as item_id,
                timestamptz '{day} 00:00:00+00'
                + to_milliseconds(cast(hash(s, {number}, 7) % 77000 * 1000 + 97000 * r + hash(s, r, 5) % 1000 as bigint)) as shown,
                'r{number}-' || s || '-' || r as request_id,
                cast(p as int) as position,
                hash(s, r, p, {number}, 3) as h
            from range({sessions}) as a (s), range(2) as b (r), range(10) as c (p)
        ),
        events as (
            select
                *, 'impression' as event_type, shown as event_time, null as value, round(0.002 + 0.9 * pow((h % 1000000) / 1e6, 3), 6) as propensity
            from shown
            union all
            select *, 'click', shown + to_seconds(cast(5 + position + h // 7 % 50 as bigint)), null, null from shown where h % 8 = 0
            union all
            select *, 'purchase', shown + to_seconds(cast(100 + h // 7 % 9000 as bigint)), round(h % 20000 / 100, 2), null from shown where h % 8 = 1
        )
        select
            '{day}-' || row_number() over () || '-' || event_type as event_id, user_id, item_id, event_type, event_time, cast(value as double) as value,
            null::varchar as session_id, request_id, position, propensity, 'p' as policy_id, null::varchar[] as candidates,
            null::map(varchar, varchar) as context, 'events/ds={day}/part-0.json' as source_file, row_number() over () as source_line,
            date '{day}' as arrival_day, date '{day}' as day
        from events
    """


def fill(lake: Lake, numbers: range, sessions: int) -> None:
    """Put days into silver, as if they had arrived each on itself."""
    with duckdb.connect() as duck:
        duck.execute("set timezone = 'UTC'")
        for number in numbers:
            day = [FIRST + timedelta(days=number)]
            lake.replace(SILVER, duck.sql(interactions(number, sessions)).to_arrow_table(), "silver", day, {})
    whole = [FIRST + timedelta(days=number) for number in numbers]
    for table in ("silver.items", "silver.users"):
        lake.replace(table, lake.schema(table).empty_table(), "silver", whole, {})


def main(
    days: Annotated[int, typer.Option(help="of history")] = 100,
    sessions: Annotated[int, typer.Option(help="a day, of 25 events")] = 8000,
    usual: Annotated[bool, typer.Option(help="the usual way with Spark too")] = True,
    features: Annotated[bool, typer.Option(help="the night of the features too, which needs their whole history")] = True,
) -> None:
    """Make the transitions of the history, with the peers beside; then a night on all of it, and on its last ten days."""
    page = Table("what", "CPU s", "ratio", "peak GB", "wall s", "bytes a row")
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as name:
        folder = Path(name)
        lake = Lake(folder / "lake", ("impression", "click", "purchase"))
        fill(lake, range(days), sessions)
        last = FIRST + timedelta(days=days - 1)
        silver, rows = lake.path(SILVER), days * sessions * 20

        def bytes_a_row(target: str) -> str:
            return f"{sum(file.stat().st_size for file in Path(target).glob('day=*/**/*.parquet')) / rows:.1f}"

        def run(step: str, root: str, first: date, to: date) -> tuple[float, float, float]:
            config = folder / f"{root}.toml"
            config.write_text(f'lake = "{root}"\n[episodes]\nbuckets = 16\n')
            cost = measure([sys.executable, "-m", "jobs", "run", step, "--day", str(first), "--to", str(to)], elsewhere(config))
            return cost.cpu, cost.peak, cost.wall

        peer = measure([sys.executable, "-c", _PEER, silver, str(folder / "peer"), str(last)], elsewhere(folder / "nightjar.toml"))
        page.add_row(f"DuckDB alone, {rows:,} steps", f"{peer.cpu:.0f}", "1", f"{peer.peak:.1f}", f"{peer.wall:.0f}", bytes_a_row(str(folder / "peer")))
        cpu, peak, wall = run("transitions", "lake", FIRST, last)
        page.add_row("transitions", f"{cpu:.0f}", f"{cpu / peer.cpu:.2f}", f"{peak:.1f}", f"{wall:.0f}", bytes_a_row(lake.path("gold.transitions")))
        if usual:
            (folder / "usual.toml").write_text('lake = "usual"\n')
            cost = measure([sys.executable, "-c", _USUAL, silver, str(folder / "copied")], elsewhere(folder / "usual.toml"))
            copied = bytes_a_row(str(folder / "copied"))
            page.add_row("the usual way with Spark", f"{cost.cpu:.0f}", f"{cost.cpu / peer.cpu:.2f}", f"{cost.peak:.1f}", f"{cost.wall:.0f}", copied)
        steps = ["transitions", "features"] if features else ["transitions"]
        for step in steps[1:]:
            run(step, "lake", FIRST, last)
        shutil.rmtree(folder / "copied", ignore_errors=True)
        night = FIRST + timedelta(days=days)
        short = Lake(folder / "short", lake.event_types)
        fill(short, range(days - 10, days), sessions)
        for step in steps:
            run(step, "short", night - timedelta(days=10), last)
        for each in (lake, short):
            fill(each, range(days, days + 1), sessions)
        for step in steps:
            alone, peak, wall = run(step, "short", night, night)
            page.add_row(f"{step}, one night on 10 days", f"{alone:.0f}", "1", f"{peak:.1f}", f"{wall:.0f}", "")
            cpu, peak, wall = run(step, "lake", night, night)
            page.add_row(f"{step}, the same night on {days} days", f"{cpu:.0f}", f"{cpu / alone:.2f}", f"{peak:.1f}", f"{wall:.0f}", "")
    Console(width=120).print(page)


if __name__ == "__main__":
    typer.run(main)
