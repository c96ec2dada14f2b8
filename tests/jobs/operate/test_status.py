from __future__ import annotations

import os
from datetime import date

import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import LandingChanged, NotReady
from jobs.ingest import bronze, silver
from jobs.lake import Lake
from jobs.operate.status import print_status, ruler
from jobs.runs import noted
from jobs.settings import Settings
from jobs.steps import find_step
from tests.jobs.ingest.test_bronze import event, land
from tests.jobs.test_lake import blank

FIRST, SECOND, THIRD = (date(2026, 1, day) for day in (1, 2, 3))


def calendar(lake: Lake, settings: Settings, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[str]], str]:
    """By table, the cells of its row from the count of days on; and what stands below the calendar."""
    print_status(lake, settings)
    rows, below = capsys.readouterr().out.split("● made")
    return {cells[-4]: cells[-3:] for line in rows.splitlines() if len(cells := line.split()) > 3}, below


def test_made_empty_and_missing(lake: Lake, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    lake.replace("gold.unattributed", blank(lake, "gold.unattributed", FIRST), "transitions", [FIRST, THIRD], {})
    rows, _ = calendar(lake, settings, capsys)
    assert rows["gold.unattributed"] == ["2", "2026-01-03", "●·○"]
    assert rows["gold.policies"] == ["0", "none", "···"]
    assert ruler([FIRST, date(2026, 1, 29)]) == "19"


def test_stale_running_and_failed(lake: Lake, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    for day in (FIRST, SECOND):
        land(settings.landing_path, f"events/ds={day}/a.json", event(event_id=str(day), event_time=f"{day}T01:00:00Z"))
    for module in (bronze, silver):
        module.run(lake, settings, DayRange(FIRST, SECOND))
    land(settings.landing_path, f"events/ds={SECOND}/b.json", event(event_id="b", event_time=f"{SECOND}T02:00:00Z"))
    with pytest.raises(NotReady), noted(lake, find_step("transitions"), DayRange(FIRST, FIRST)):
        raise NotReady("no [wind]")
    with noted(lake, find_step("features"), DayRange(SECOND, THIRD)):
        rows, below = calendar(lake, settings, capsys)
    assert rows["bronze.events"] == ["2", "2026-01-02", "●↻·"]
    assert rows["bronze.items"] == ["2", "2026-01-02", "○○·"]
    assert rows["silver.interactions"] == ["2", "2026-01-02", "●↻·"]
    assert rows["gold.user_features"] == ["0", "none", "·▶▶"]
    assert rows["gold.transitions"] == ["0", "none", "✗··"]
    assert "✗ transitions 2026-01-01 failed: no [wind]" in below
    assert f"▶ features 2026-01-02..2026-01-03 is running: process {os.getpid()} of " in below
    assert "3 days of tables would come out otherwise" in below


def test_what_is_stale_can_not_be_told(lake: Lake, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LandingChanged("a.json changed while it was read")

    lake.replace("gold.unattributed", blank(lake, "gold.unattributed", FIRST), "transitions", [FIRST], {})
    monkeypatch.setattr("jobs.operate.status.find_stale", refuse)
    rows, below = calendar(lake, settings, capsys)
    assert rows["gold.unattributed"][-1] == "●"
    assert "What is stale can't be told: a.json changed while it was read" in below


def test_a_lake_without_a_day(lake: Lake, settings: Settings) -> None:
    with pytest.raises(NotReady, match="No step has made anything"):
        print_status(lake, settings)
