"""Landing to silver against DuckDB alone, and a night on a long history against one on an empty lake: `make bench-ingest`.

The peer reads the same JSON lines, types them, keeps the first of each event id and writes Parquet by day. It has no
quarantine, no ledger, no bronze and no way to run again. CPU seconds, as the machine may be shared.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import duckdb
import typer
from rich.console import Console
from rich.table import Table

from jobs.settings import elsewhere
from tests.benchmarks.measured import measure

FIRST = date(2026, 1, 1)
_COLUMNS = """{event_id: 'varchar', user_id: 'varchar', item_id: 'varchar', event_type: 'varchar', event_time: 'timestamptz', value: 'double',
    session_id: 'varchar', request_id: 'varchar', position: 'integer', propensity: 'double', policy_id: 'varchar',
    candidates: 'varchar[]', context: 'map(varchar, varchar)'}"""
_PEER = """
import duckdb, sys
landing, target, columns = sys.argv[1:]
duck = duckdb.connect(config={"threads": 2, "memory_limit": "3GB"})
duck.execute("set preserve_insertion_order = false; set timezone = 'UTC'")
duck.execute(f'''
    copy (
        select * exclude (ds, filename), cast(event_time as date) as day
        from read_json('{landing}/events/*/*.json', format = 'newline_delimited', columns = {columns}, hive_partitioning = true, filename = true)
        qualify row_number() over (partition by event_id order by ds, filename) = 1
    ) to '{target}' (format parquet, partition_by (day))
''')
"""


def land(landing: Path, days: int, events: int) -> None:
    """Days of `events` lines of some 220 bytes each; one in a hundred repeats an earlier one of the day."""
    with duckdb.connect() as duck:
        duck.execute("select setseed(0.5)")
        for number in range(days):
            day = FIRST + timedelta(days=number)
            folder = landing / f"events/ds={day}"
            folder.mkdir(parents=True)
            duck.execute(f"""
                copy (
                    select
                        '{day}-' || lpad(cast(if(i % 100 = 99, i - 50, i) as varchar), 8, '0') as event_id,
                        'u' || lpad(cast(hash(i, {number}) % 100000 as varchar), 6, '0') as user_id,
                        'i' || lpad(cast(hash(i, {number}, 1) % 20000 as varchar), 5, '0') as item_id,
                        ['impression', 'impression', 'impression', 'click', 'purchase'][cast(1 + hash(i, 2) % 5 as int)] as event_type,
                        strftime(timestamp '{day}' + to_seconds(cast(hash(i, 3) % 86400 as bigint)), '%Y-%m-%dT%H:%M:%SZ') as event_time,
                        'r' || hash(i, {number}, 4) % 1000000000 as request_id,
                        hash(i, 5) % 20 as position,
                        round(0.05 + 0.9 * (hash(i, 6) % 1000000) / 1e6, 6) as propensity,
                        'p' as policy_id
                    from range({events}) as events (i)
                ) to '{folder}/part-0.json' (format json)
            """)


def main(
    days: Annotated[int, typer.Option(help="of history")] = 100,
    events: Annotated[int, typer.Option(help="a day")] = 100_000,
) -> None:
    """Land days + 1; take in all but the last and compare with the peer; then the last one, there and on an empty lake."""
    page = Table("what", "CPU s", "ratio", "peak GB", "wall s")
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as name:
        folder = Path(name)
        land(folder / "landing", days + 1, events)
        last = folder / f"landing/events/ds={FIRST + timedelta(days=days)}"
        last.rename(folder / "last")
        peer = measure([sys.executable, "-c", _PEER, str(folder / "landing"), str(folder / "peer"), _COLUMNS], elsewhere(folder / "nightjar.toml"))
        page.add_row(f"DuckDB alone, {days * events:,} events", f"{peer.cpu:.1f}", "1", f"{peer.peak:.1f}", f"{peer.wall:.0f}")

        def ingest(lake: str, first: date, to: date) -> tuple[float, float, float]:
            config = folder / f"{lake}.toml"
            config.write_text(f'lake = "{lake}"\n[landing]\nfolder = "landing"\n')
            span = ["--day", str(first), "--to", str(to)]
            steps = [measure([sys.executable, "-m", "jobs", "run", step, *span], elsewhere(config)) for step in ("bronze", "silver")]
            return sum(step.cpu for step in steps), max(step.peak for step in steps), sum(step.wall for step in steps)

        cpu, peak, wall = ingest("lake", FIRST, FIRST + timedelta(days=days - 1))
        page.add_row("landing to silver, ledger and quarantine", f"{cpu:.1f}", f"{cpu / peer.cpu:.2f}", f"{peak:.1f}", f"{wall:.0f}")
        (folder / "last").rename(last)
        night = FIRST + timedelta(days=days)
        alone, peak, wall = ingest("empty", night, night)
        page.add_row(f"one night, {events:,} events, on an empty lake", f"{alone:.1f}", "1", f"{peak:.1f}", f"{wall:.0f}")
        cpu, peak, wall = ingest("lake", night, night)
        page.add_row(f"the same on {days} days of history", f"{cpu:.1f}", f"{cpu / alone:.2f}", f"{peak:.1f}", f"{wall:.0f}")
    Console(width=110).print(page)


if __name__ == "__main__":
    typer.run(main)
