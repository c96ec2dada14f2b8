"""What the tasks of a run read: the rows that sights show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from jobs.contracts.rewards import micros_sql
from jobs.database import database, one_of, tables_of
from jobs.lake import Lake
from jobs.noise import set_aside
from jobs.settings import Settings
from jobs.transitions.cuts import Sight
from jobs.transitions.items import INDEX

if TYPE_CHECKING:
    import pyarrow.dataset as ds

SILVER = "silver.interactions"
_BATCH_ROWS = 1 << 20


@dataclass(frozen=True)
class Sources:
    """A version of silver.interactions and one of the item index, in a lake, as the settings have them read."""

    lake: Lake
    settings: Settings
    interactions: int
    index: int

    def looked_at(self, sights: Iterable[pa.RecordBatch]) -> Iterator[tuple[date, pa.Table]]:
        """The cut of each sight and the rows that it shows, batch by batch, as `sequences.outcomes` wants them."""
        event_types = self.settings.event_types
        codes = " ".join(f"when '{name}' then {code}" for code, name in enumerate(event_types))
        rewards = {name: event_type.reward for name, event_type in event_types.items()}
        for sight in _sights(sights):
            with self._visible(sight) as duck:
                duck.register("numbered", _numbered(self.lake, self.index))
                rows = duck.sql(f"""
                    select
                        user_id,
                        event_time,
                        position,
                        event_id,
                        item,
                        cast(case event_type {codes} end as tinyint) as event_type,
                        request_id,
                        {micros_sql(rewards)} as reward,
                        cast(propensity as float) as propensity,
                        candidate_set,
                        as_of_day,
                        day
                    from visible
                    inner join numbered on visible.item_id = numbered.item_id
                    where event_type in ({_quoted(event_types)})
                """)
                yield from ((sight.cut, table) for table in tables_of(rows, _BATCH_ROWS))

    def candidate_sets(self, sights: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """The distinct candidate sets of the days that each sight makes, sorted."""
        for sight in _sights(sights):
            with self._visible(sight) as duck:
                sets = duck.sql(
                    "select distinct candidate_set, items, day from visible where items is not null and as_of_day is not null order by day, candidate_set"
                )
                yield from tables_of(sets)

    @contextmanager
    def _visible(self, sight: Sight) -> Iterator[duckdb.DuckDBPyConnection]:
        """A database whose `visible` are the rows that a sight shows, with the items that could have been chosen for a step, sorted, and a hash of them."""
        with database(self.settings.duckdb.model_copy(update={"threads": 1})) as duck:
            duck.register("interactions", _interactions(self.lake, self.interactions))
            duck.register("looks", pa.table({"day": pa.array(sight.days, pa.date32()), "as_of_day": pa.array(sight.as_of_days, pa.date32())}))
            of_days = f"(from interactions where {one_of('day', sight.days)})"
            duck.execute(f"""
                create temp table beyond as select user_id, event_day as day, arrival_day from ({set_aside(of_days, self.settings.limits)});
                create temp view visible as
                select *, cast(md5_number_lower(cast(to_json(items) as varchar)) // 2 as bigint) as candidate_set
                from (
                    select *, case when event_type in ({_quoted(self.settings.step_types)}) then nullif(list_sort(list_distinct(candidates)), []) end as items
                    from {of_days}
                    inner join looks using (day)
                    anti join beyond using (user_id, day, arrival_day)
                    where arrival_day <= date '{sight.cut}'
                )
            """)
            yield duck


# A process takes one sight after the other, and to open a table takes as long as to read a day.


@cache
def _interactions(lake: Lake, version: int) -> ds.Dataset:
    return lake.dataset(SILVER, version)


@cache
def _numbered(lake: Lake, version: int) -> pa.Table:
    return lake.read(INDEX, ["item", "item_id"], version=version)


def _sights(batches: Iterable[pa.RecordBatch]) -> Iterator[Sight]:
    for batch in batches:
        for row in batch.to_pylist():
            yield Sight(**row)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
