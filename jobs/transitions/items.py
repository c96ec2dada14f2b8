"""The item index: a number for each item, given at first sight and never to another one."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from jobs.contracts.days import DayRange
from jobs.lake import Lake
from jobs.steps import find_step

INDEX, ITEMS = "gold.item_index", "silver.items"


def number_items(lake: Lake, duck: duckdb.DuckDBPyConnection, days: DayRange, known: str, inputs: Mapping[str, int], seen: int) -> None:
    """Give the next numbers to items that have none: those of the interactions that are `known`, a condition, and those of silver.items up to `days`.

    In the order of the day of first sight and of the id, so that night after night gives the numbers of one run over all nights.
    Only appends: an item that is gone keeps its number. `duck` sees `interactions`.
    """
    index = lake.read(INDEX, version=seen)
    duck.register("numbered", index)
    sights = f"select item_id, min(arrival_day) as day from interactions where {known} group by item_id"
    if ITEMS in inputs:
        duck.register("items", lake.dataset(ITEMS, inputs[ITEMS]))
        sights += f" union all select item_id, min(valid_from) as day from items where valid_from <= date '{days.last}' group by item_id"
    new = duck.sql(f"""
        select cast({len(index)} + row_number() over (order by min(day), item_id) as int) as item, item_id, min(day) as day
        from ({sights}) where item_id not in (select item_id from numbered) group by item_id
    """).to_arrow_table()
    rows = pa.concat_tables([index, new.cast(index.schema)])
    replaced = sorted({*new["day"].to_pylist()})
    touched = rows.filter(pc.is_in(rows["day"], value_set=pa.array(replaced, pa.date32())))
    lake.replace(INDEX, touched, find_step("transitions").name, [*days], inputs, replaced, seen)
