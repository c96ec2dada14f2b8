"""What the tasks of a run read: the rows that looks at days show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from jobs.contracts.rewards import micros_sql
from jobs.database import database, tables_of
from jobs.lake import Lake
from jobs.noise import set_aside
from jobs.settings import Settings
from jobs.transitions.cuts import Look
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

    def looked_at(self, looks: Iterable[pa.RecordBatch]) -> Iterator[tuple[Look, pa.Table]]:
        """The rows that each look shows, batch by batch, as `sequences.outcomes` wants them."""
        event_types = self.settings.event_types
        codes = " ".join(f"when '{name}' then {code}" for code, name in enumerate(event_types))
        rewards = {name: event_type.reward for name, event_type in event_types.items()}
        for look in _looks(looks):
            with self._visible(look) as duck:
                duck.register("numbered", _numbered(self.lake, self.index))
                as_of_day = "null" if look.as_of_day is None else f"'{look.as_of_day}'"
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
                        cast({as_of_day} as date) as as_of_day,
                        day
                    from visible
                    inner join numbered on visible.item_id = numbered.item_id
                    where event_type in ({_quoted(event_types)})
                """)
                yield from ((look, table) for table in tables_of(rows, _BATCH_ROWS))

    def candidate_sets(self, looks: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """The distinct candidate sets that each look shows, sorted."""
        for look in _looks(looks):
            with self._visible(look) as duck:
                sets = duck.sql("select distinct candidate_set, items, day from visible where items is not null order by candidate_set")
                yield from tables_of(sets)

    @contextmanager
    def _visible(self, look: Look) -> Iterator[duckdb.DuckDBPyConnection]:
        """A database whose `visible` are the rows that a look shows, with the items that could have been chosen for a step, sorted, and a hash of them."""
        with database(self.settings.duckdb.model_copy(update={"threads": 1})) as duck:
            duck.register("interactions", _interactions(self.lake, self.interactions))
            of_day = f"(from interactions where day = date '{look.day}')"
            duck.execute(f"""
                create temp table beyond as select user_id, arrival_day from ({set_aside(of_day, self.settings.limits)});
                create temp view visible as
                select *, cast(md5_number_lower(cast(to_json(items) as varchar)) // 2 as bigint) as candidate_set
                from (
                    select *, case when event_type in ({_quoted(self.settings.step_types)}) then nullif(list_sort(list_distinct(candidates)), []) end as items
                    from interactions
                    anti join beyond using (user_id, arrival_day)
                    where
                        day = date '{look.day}'
                        and arrival_day <= date '{look.cut}'
                )
            """)
            yield duck


# A process takes one look after the other, and to open a table takes as long as to read a day.


@cache
def _interactions(lake: Lake, version: int) -> ds.Dataset:
    return lake.dataset(SILVER, version)


@cache
def _numbered(lake: Lake, version: int) -> pa.Table:
    return lake.read(INDEX, ["item", "item_id"], version=version)


def _looks(batches: Iterable[pa.RecordBatch]) -> Iterator[Look]:
    for batch in batches:
        for row in batch.to_pylist():
            yield Look(**row)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
