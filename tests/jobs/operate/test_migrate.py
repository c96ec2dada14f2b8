from __future__ import annotations

from dataclasses import replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.contracts.errors import ContractBroken
from jobs.contracts.migrations import MIGRATIONS, Migration
from jobs.contracts.tables import TABLES, Column
from jobs.lake import Lake, insist
from jobs.operate import migrate as module
from jobs.operate.migrate import migrate, print_migration
from jobs.settings import Settings
from tests.jobs.test_lake import blank

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY, NEXT = date(2026, 1, 1), date(2026, 1, 2)
TABLE = "gold.unattributed"


def contract(monkeypatch: pytest.MonkeyPatch, table: str, **types: Column | None) -> None:
    """Change columns of a contract; null = there is no such column."""
    columns = [types.get(column.name, column) for column in TABLES[table].columns]
    new = [column for name, column in types.items() if column and name not in {column.name for column in TABLES[table].columns}]
    first, *others = [column for column in columns if column]
    monkeypatch.setitem(TABLES, table, replace(TABLES[table], columns=(first, *new, *others)))


def write(lake: Lake, day: date) -> None:
    lake.replace(TABLE, blank(lake, TABLE, day), "transitions", [day], {})


def test_nothing_to_do(lake: Lake, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    write(lake, DAY)
    migrate(lake, settings)
    print_migration(lake)
    assert capsys.readouterr().out.startswith("Every table is as its contract has it.")
    assert lake.version(TABLE) == 1


def test_a_new_nullable_column_is_harmless(
    spark: SparkSession, lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(lake, DAY)
    contract(monkeypatch, TABLE, note=Column("note", "double", "new"))
    assert lake.read(TABLE)["note"].to_pylist() == [None], "readers see it already"
    assert lake.frame(spark, TABLE).select("note").collect()[0]["note"] is None
    lake.require_writable([TABLE])
    print_migration(lake)
    assert "added, null in the rows there are" in capsys.readouterr().out
    migrate(lake, settings)
    assert lake.differences(TABLE) == []

    contract(monkeypatch, TABLE, other=Column("other", "double", "new"))
    lake.replace(TABLE, blank(lake, TABLE, NEXT).set_column(1, "other", pa.array([2.5])), "transitions", [NEXT], {})
    assert sorted(map(str, lake.read(TABLE)["other"].to_pylist())) == ["2.5", "None"]
    lake.replace_frame(TABLE, lake.frame(spark, TABLE).where("day = '2026-01-02'"), "transitions", [NEXT], {})
    assert sorted(map(str, lake.read(TABLE)["other"].to_pylist())) == ["2.5", "None"]
    assert lake.done(TABLE) == {DAY, NEXT}


def test_a_column_that_the_contract_has_no_more(lake: Lake, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it may be null it stays, and is null in rows to come; another event type less is such a case."""
    contract(monkeypatch, TABLE, note=Column("note", "string", "old"))
    lake.replace(TABLE, blank(lake, TABLE, DAY).set_column(1, "note", pa.array(["kept"])), "transitions", [DAY], {})
    contract(monkeypatch, TABLE, note=None)
    write(lake, NEXT)
    lake.replace_frame(TABLE, lake.frame(spark, TABLE).where("day = '2026-01-02'"), "transitions", [NEXT], {})
    assert lake.read(TABLE).num_rows == 2
    assert "note" not in lake.read(TABLE).column_names
    contract(monkeypatch, TABLE, note=Column("note", "string", "again"))
    assert sorted(map(str, lake.read(TABLE)["note"].to_pylist())) == ["None", "kept"]


@pytest.mark.parametrize("change", [{"reward": Column("reward", "string", "text")}, {"who": Column("who", "string", "required", nullable=False)}])
def test_what_is_refused_without_a_migration(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch, change: dict[str, Column]) -> None:
    write(lake, DAY)
    version = lake.version(TABLE)
    contract(monkeypatch, TABLE, **change, note=Column("note", "string", "new"))
    for refused in (lambda: lake.read(TABLE), lambda: lake.require_writable([TABLE])):
        with pytest.raises(ContractBroken, match=f"{next(iter(change))}: expected string, (got double|and there is no)"):
            refused()
    with pytest.raises(ContractBroken, match=r"Nothing was changed\.\n  gold\.unattributed\..*declare a migration in jobs/contracts/migrations\.py"):
        migrate(lake, settings)
    assert lake.version(TABLE) == version


def test_a_declared_migration(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another type, a required column, and one that is only new, in one commit; what was done stays done."""
    write(lake, DAY)
    write(lake, NEXT)
    contract(monkeypatch, TABLE, reward=Column("reward", "string", "text"), who=Column("who", "string", "", nullable=False), note=Column("note", "bigint", ""))
    declared = (Migration(TABLE, "reward", "double", "'worth ' || reward"), Migration(TABLE, "who", None, "user_id || '!'"))
    monkeypatch.setattr(module, "MIGRATIONS", declared)
    migrate(lake, settings)
    assert lake.differences(TABLE) == []
    rows: list[dict[str, Any]] = lake.read(TABLE).sort_by("day").to_pylist()
    assert [(row["reward"], row["who"], row["note"], row["day"]) for row in rows] == [("worth 0.0", "!", None, DAY), ("worth 0.0", "!", None, NEXT)]
    assert lake.done(TABLE) == {DAY, NEXT}
    assert len(lake.dataset(TABLE).files) == 2, "still a file a day"
    lake.replace(TABLE, lake.read(TABLE, filter=pc.field("day") == DAY), "transitions", [DAY], {})
    assert lake.read(TABLE).num_rows == 2


def test_quarantine_of_before_it_kept_bytes(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    table = "bronze.quarantine"
    line = next(column for column in TABLES[table].columns if column.name == "line")
    with monkeypatch.context() as before:
        contract(before, table, line=replace(line, type="string"))
        smallest = {"string": "é", "bigint": 0, "date": DAY}
        row = {column.name: smallest[column.type] for column in lake.columns(table)}
        lake.replace(table, pa.Table.from_pylist([row], lake.schema(table)), "bronze", [DAY], {})
    assert [one.table for one in MIGRATIONS] == [table]
    migrate(lake, settings)
    assert lake.read(table)["line"].to_pylist() == ["é".encode()]


def test_two_at_once(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes second finds the columns added, and the rows changed, once."""
    write(lake, DAY)
    contract(monkeypatch, TABLE, note=Column("note", "string", ""))
    original = Lake._open

    def other_first(self: Lake, table: str, version: int | None) -> Any:
        found = original(self, table, version)
        if not done:
            done.append(True)
            work(lake)
        return found

    def both(lake: Lake) -> None:
        done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Lake, "_open", other_first)
            insist(lambda: work(lake))

    done: list[bool] = []
    work = partial(Lake.add_columns, table=TABLE)
    both(lake)
    assert lake.differences(TABLE) == []
    contract(monkeypatch, TABLE, reward=Column("reward", "string", ""))
    monkeypatch.setattr(module, "MIGRATIONS", (Migration(TABLE, "reward", "double", "'worth ' || reward"),))
    work = partial(migrate, settings=settings)
    both(lake)
    assert lake.read(TABLE)["reward"].to_pylist() == ["worth 0.0"]
