from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.contracts.landing import Reason
from jobs.ingest import bronze
from jobs.ingest.requeue import Requeued, requeue
from jobs.lake import Lake
from jobs.settings import Settings
from tests.jobs.ingest.test_bronze import event, land

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)
DAYS = DayRange(FIRST, SECOND)
TABLES = ("bronze.events", "bronze.items", "bronze.users", "bronze.quarantine", "bronze.files")


@pytest.fixture
def mended(settings: Settings) -> Settings:
    """The settings once somebody has told them what a wink is."""
    return settings.model_copy(update={"landing": settings.landing.model_copy(update={"event_types": {"wink": "click"}})})


def content(lake: Lake, but: Collection[str] = ()) -> dict[str, list[Any]]:
    tables = {table: [{name: value for name, value in row.items() if name not in but} for row in lake.read(table).to_pylist()] for table in TABLES}
    return {table: sorted(rows, key=repr) for table, rows in tables.items()}


def land_winks(settings: Settings) -> None:
    landing = settings.landing_path
    land(landing, f"events/ds={FIRST}/a.json", event(), event(event_type="wink"), b"no json", event(event_type="wink", value=3) + b"\r", b"caf\xe9")
    land(landing, f"events/ds={FIRST}/b.json", event(event_id="b"), event(event_type="frown"))
    land(landing, f"users/ds={FIRST}/u.json", b'{"user_id": "u"}', b"{}")
    land(landing, f"events/ds={SECOND}/a.json", event(event_id="c"))


def test_what_can_be_typed_by_now_is_as_if_it_had_been_read_so(settings: Settings, mended: Settings, lake: Lake) -> None:
    land_winks(settings)
    bronze.run(lake, settings, DAYS)
    before, version = content(lake), lake.version("bronze.quarantine")
    assert requeue(lake, mended, DAYS, [Reason.BAD_JSON, Reason.UNREADABLE_FILE]) == [Requeued(FIRST, 1, 0)]
    assert (content(lake), lake.version("bronze.quarantine")) == (before, version), "nothing was written"
    assert requeue(lake, mended, DAYS, list(Reason)) == [Requeued(FIRST, 6, 2)]
    found = content(lake, but=["requeued", "rules"])
    requeued = {row["source_file"]: row["requeued"] for row in lake.read("bronze.files").to_pylist()}
    assert requeued == {f"events/ds={FIRST}/a.json": 2, f"events/ds={FIRST}/b.json": 0, f"users/ds={FIRST}/u.json": 0, f"events/ds={SECOND}/a.json": 0}

    clean = Lake(lake.root.parent / "clean", lake.event_types)
    bronze.run(clean, mended, DAYS)
    assert found == content(clean, but=["requeued", "rules"])
    # The next run reads the files again, as other settings may make something else of the lines that were fine.
    bronze.run(lake, mended, DAYS)
    assert content(lake) == content(clean)


@pytest.mark.parametrize("last", ["bronze.events", "bronze.quarantine"])
def test_killed_half_way_it_can_be_done_again(settings: Settings, mended: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    land_winks(settings)
    bronze.run(lake, settings, DAYS)
    replace = Lake.replace

    def die_after(self: Lake, table: str, *arguments: Any, **named: Any) -> None:
        replace(self, table, *arguments, **named)
        if table == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "replace", die_after)
        with pytest.raises(KeyboardInterrupt):
            requeue(lake, mended, DAYS, list(Reason))
    requeue(lake, mended, DAYS, list(Reason))
    clean = Lake(lake.root.parent / "clean", lake.event_types)
    bronze.run(clean, mended, DAYS)
    assert content(lake, but=["requeued", "rules"]) == content(clean, but=["requeued", "rules"])


def test_bronze_must_hold_the_days(settings: Settings, lake: Lake) -> None:
    with pytest.raises(NotReady, match=r"bronze\.files"):
        requeue(lake, settings, DAYS, list(Reason))
