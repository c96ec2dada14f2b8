"""Bronze to silver: one row an event id, by the day on which it happened; items and users with validity intervals.

What is here is a pure function of the bronze rows of the arrival days that were taken in: no order of runs, files or lines and
no number of threads changes a row. Of each event id the first arrival counts. A later line with the same content is a duplicate,
one with other content a conflict, and both lie in silver.repeats.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from jobs.contracts.days import DayRange, portions
from jobs.contracts.landing import CONFLICT
from jobs.contracts.tables import EVENT_COLUMNS, TABLES, Column
from jobs.database import database, one_of, tables_of
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_EVENTS, _INTERACTIONS, _REPEATS = "bronze.events", "silver.interactions", "silver.repeats"
_PORTION_ROWS = 20_000_000  # of bronze.events: what is written in one commit lies in memory, encoded, until then


def run(lake: Lake, settings: Settings, days: DayRange) -> None:
    """Write silver.repeats and silver.interactions for what the arrival days brought, and silver.items and silver.users whole.

    Raises NotReady when bronze does not hold the days.
    """
    step = find_step("silver")
    for table in step.reads:
        lake.require(table, days)
    with database(settings.duckdb) as duck:
        # DuckDB takes every table of the lake for one row, and would put the whole history into a hash table to probe it with a few ids.
        duck.execute("set disabled_optimizers = 'build_side_probe_side'")
        duck.register("events", lake.dataset(_EVENTS))
        counted = f"select arrival_day, count(*) from events where {one_of('arrival_day', days)} group by arrival_day"
        for some_days in portions(days, dict(duck.sql(counted).fetchall()), _PORTION_ROWS):
            _take_in(duck, lake, some_days)
        for name, key in (("items", "item_id"), ("users", "user_id")):
            source, target = f"bronze.{name}", f"silver.{name}"
            lake.ensure(target)
            seen = lake.version(target)
            done = lake.done(target) | {*days}
            inputs = lake.versions([source])
            duck.register("said", lake.dataset(source, inputs[source]))
            held = [column for column in lake.columns(target) if column.name not in (key, "valid_from", "valid_to")]
            intervals = duck.sql(validity(key, held, done)).to_arrow_table()
            lake.replace(target, intervals, step.name, list(days), inputs, seen=seen)


def _take_in(duck: duckdb.DuckDBPyConnection, lake: Lake, days: Sequence[date]) -> None:
    """Replace what the arrival days brought, and every other row whose event id they bring, or brought when they were last read."""
    seen = {}
    for table, name in ((_INTERACTIONS, "held"), (_REPEATS, "held_repeats")):
        lake.ensure(table)
        seen[table] = lake.version(table)
        duck.register(name, lake.dataset(table, seen[table]))
    scope = lake.done(_INTERACTIONS) | {*days}
    # Only now, so that the events hold all that the days done were made from.
    inputs = lake.versions([_EVENTS])
    events = lake.dataset(_EVENTS, inputs[_EVENTS])
    duck.register("events", events)
    if scope == {*days}:
        # All of it, but for repeats of a day that another run has half taken in.
        affected = one_of("arrival_day", days)
        duck.execute("create or replace temp table doubtful as from events limit 0")
    else:
        affected = "event_id in (select event_id from arrived)"
        _find_arrived(duck, days, scope)
    _find_copies(duck, events, days)
    duck.execute(_REPEATS_OF_DOUBTFUL)
    leaving = _days(duck, f"select day from held where {affected}")  # where rows of these ids are held
    event_days = leaving | _days(duck, f"select event_day from events where {one_of('arrival_day', days)} union select event_day from doubtful")
    arrival_days = _days(duck, f"select arrival_day from repeats union select arrival_day from held_repeats where {affected}") | {*days}

    # The repeats come first. Were they older than the interactions, and this run killed in between, the next one would find
    # no trace of an id whose first arrival was withdrawn.
    repeats = f"from repeats union all by name from held_repeats where {one_of('arrival_day', arrival_days)} and not {affected}"
    lake.replace(_REPEATS, duck.sql(repeats).to_arrow_table(), "silver", days, inputs, arrival_days, seen[_REPEATS])
    came = "select *, event_day as day from doubtful where (source_file, source_line) not in (select (source_file, source_line) from repeats)"
    gone = f"select *, day as event_day from held where {one_of('day', leaving)} and {affected}"
    kept = f"select *, day as event_day from held where {one_of('day', event_days)} and not {affected}"
    changed = _others_changed(duck, came, gone, days)
    rows = itertools.chain(_came_once(duck, events, days), tables_of(duck.sql(f"{came} union all by name {kept}")))
    lake.replace(_INTERACTIONS, rows, "silver", days, inputs, event_days, seen[_INTERACTIONS], changed=changed)


def _others_changed(duck: duckdb.DuckDBPyConnection, came: str, gone: str, days: Collection[date]) -> set[date]:
    """The arrival days, beside `days`, of which other rows have come than have gone: a first arrival withdrawn brings up a repeat, for one."""
    others = f"where not {one_of('arrival_day', days)}"
    names = ", ".join(column.name for column in TABLES[_INTERACTIONS].columns)
    before, after = (f"select {names} from ({rows}) {others}" for rows in (gone, came))
    return _days(duck, f"select arrival_day from (({before}) except ({after}) union all (({after}) except ({before})))")


def _find_arrived(duck: duckdb.DuckDBPyConnection, days: Collection[date], scope: Collection[date]) -> None:
    """Make `arrived`, the ids that the days bring or brought, and `doubtful`, the events of these ids that other days have brought.

    Of the history only the ids are read, and those days whole that have one of them.
    """
    sources = " union ".join(f"select event_id from {name} where {one_of('arrival_day', days)}" for name in ("events", "held", "held_repeats"))
    duck.execute(f"create or replace temp table arrived as {sources}")
    of_arrived = "semi join arrived using (event_id)"
    came = _days(duck, f"select arrival_day from events {of_arrived} where {one_of('arrival_day', {*scope} - {*days})}")
    duck.execute(f"create or replace temp table doubtful as select * from events {of_arrived} where {one_of('arrival_day', came)}")


def _find_copies(duck: duckdb.DuckDBPyConnection, events: ds.Dataset, days: Collection[date]) -> None:
    """Add to `doubtful` the events of the days whose id comes twice, there or on the days; make `twice`, which tells each of these ids by day.

    By the hash of the id, which may bring in a few too many: most ids come once, and sorting them all would cost more than all the rest.
    """
    brought = f"from events where {one_of('arrival_day', days)}"
    duck.execute(f"""
        create or replace temp table twice as
        with hashes as (select hash(event_id) as hash {brought} union all select hash(event_id) from doubtful)
        select arrival_day, event_id {brought} and hash(event_id) in (select hash from hashes group by all having count(*) > 1)
    """)
    for day in days:
        if len(ids := _ids_twice(duck, day)):
            duck.register("copies", events.scanner(filter=(pc.field("arrival_day") == day) & pc.field("event_id").isin(ids)).to_reader())
            duck.execute("insert into doubtful by name from copies")


def _came_once(duck: duckdb.DuckDBPyConnection, events: ds.Dataset, days: Collection[date]) -> Iterator[pa.Table]:
    """The other events of the days: straight from bronze, as the way through the database costs half as much again."""
    for day in days:
        once = ~pc.field("event_id").isin(_ids_twice(duck, day))
        for batch in events.scanner(filter=(pc.field("arrival_day") == day) & once).to_batches():
            yield pa.Table.from_batches([batch]).append_column("day", batch["event_day"])


def _ids_twice(duck: duckdb.DuckDBPyConnection, day: date) -> pa.Array:
    return duck.sql(f"select event_id from twice where arrival_day = date '{day}'").to_arrow_table()["event_id"].combine_chunks()


def _content(columns: Iterable[Column]) -> str:
    """A struct of the columns that is equal whenever its meaning is: the order of a map's entries has none."""
    values = (f"{column.name}: {f'list_sort(map_entries({column.name}))' if column.type.startswith('map') else column.name}" for column in columns)
    return f"{{{', '.join(values)}}}"


_CHANGED = ", ".join(f"case when content.{column.name} is distinct from first_content.{column.name} then '{column.name}' end" for column in EVENT_COLUMNS[1:])
_REPEATS_OF_DOUBTFUL = f"""
    create or replace temp table repeats as
    with
    copies as (select *, {_content(EVENT_COLUMNS[1:])} as content from doubtful),
    ranked as (
        select
            *,
            row_number() over by_arrival as copy,
            first(content) over by_arrival as first_content,
            first(source_file) over by_arrival as first_source_file,
            first(source_line) over by_arrival as first_source_line
        from copies
        window by_arrival as (partition by event_id order by arrival_day, source_file, source_line)
    )
    select
        event_id,
        case when content = first_content then 'duplicate' else '{CONFLICT}' end as kind,
        list_filter([{_CHANGED}], lambda name: name is not null) as changed,
        encode(cast(to_json(content) as varchar)) as line,
        source_file,
        source_line,
        first_source_file,
        first_source_line,
        arrival_day
    from ranked
    where copy > 1
"""


def validity(key: str, held: Sequence[Column], days: Collection[date]) -> str:
    """A query that turns what the arrival days `said` about a key into intervals: key, columns held, valid_from, valid_to.

    The last line of a day counts. An interval ends where another row begins; rows that say the same are one.
    """
    columns = ", ".join(column.name for column in held)
    return f"""
        with
        lines as (
            select *, {_content(held)} as content from said
            where {one_of("arrival_day", days)}
            qualify row_number() over (partition by {key}, arrival_day order by source_file desc, source_line desc) = 1
        ),
        changes as (
            select * from lines
            window by_day as (partition by {key} order by arrival_day)
            qualify row_number() over by_day = 1 or content is distinct from lag(content) over by_day
        )
        select {key}, {columns}, arrival_day as valid_from, lead(arrival_day) over (partition by {key} order by arrival_day) as valid_to
        from changes
    """


def _days(duck: duckdb.DuckDBPyConnection, query: str) -> set[date]:
    return {row[0] for row in duck.sql(query).fetchall()}
