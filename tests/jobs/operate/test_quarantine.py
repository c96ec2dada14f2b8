from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import UnknownReason
from jobs.ingest import bronze, silver
from jobs.lake import Lake
from jobs.operate import quarantine
from jobs.settings import Settings
from tests.jobs.ingest.test_bronze import event, land

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)
DAYS = DayRange(FIRST, SECOND)


@pytest.fixture
def taken_in(settings: Settings, lake: Lake) -> Lake:
    landing = settings.landing_path
    land(landing, f"events/ds={FIRST}/a.json", event(event_id="a"), event(event_type="wink"), b"caf\xe9 [bold]" + b"x" * 1000)
    land(landing, f"events/ds={SECOND}/a.json", event(event_id="a", value=2), event(event_id="a"), event(event_type="wink"))
    for step in (bronze, silver):
        step.run(lake, settings, DAYS)
    return lake


def test_it_is_counted_and_shown(taken_in: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    quarantine.print_counts(taken_in)
    printed = capsys.readouterr().out
    assert "4 lines in quarantine" in printed
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["2026-01-01"], ["2026-01-02"])]
    assert rows == [
        ["2026-01-01", "events", "bad_encoding", "1"],
        ["2026-01-01", "events", "unknown_event_type", "1"],
        ["2026-01-02", "events", "conflict", "1"],
        ["2026-01-02", "events", "unknown_event_type", "1"],
    ]
    quarantine.print_lines(taken_in, FIRST, None, top=10)
    printed = capsys.readouterr().out
    assert f"events/ds={FIRST}/a.json:2 unknown_event_type" in printed
    assert "event_type: expected one of impression, click, purchase, got wink" in printed
    assert r"caf\xe9 [bold]xxx" in " ".join(printed.split())
    assert "and 614 more characters" in printed
    assert "2 of 2 lines of 2026-01-01" in printed
    quarantine.print_lines(taken_in, SECOND, "conflict", top=10)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"event_id a: expected the content of its first line, events/ds={FIRST}/a.json:1, got another value" in printed
    assert "1 of 1 lines" in printed
    with pytest.raises(UnknownReason, match=r"no reason 'typo'\. Reasons: unreadable_file, "):
        quarantine.print_lines(taken_in, FIRST, "typo", top=10)


def test_it_is_taken_in_again(taken_in: Lake, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mended = settings.model_copy(update={"landing": settings.landing.model_copy(update={"event_types": {"wink": "click"}})})
    quarantine.print_requeued(taken_in, mended, DAYS, ["bad_json"])
    assert "Nothing was taken in." in capsys.readouterr().out
    quarantine.print_requeued(taken_in, mended, DAYS, ["unknown_event_type", "conflict"])
    printed = capsys.readouterr().out
    assert "2026-01-01: 1 of 1 lines taken in, 0 still in quarantine." in printed
    assert "Now run `nightjar run silver --day 2026-01-01 --to 2026-01-02`" in printed
    silver.run(taken_in, mended, DAYS)
    assert taken_in.read("silver.interactions").num_rows == 2
    assert taken_in.read("silver.repeats")["kind"].to_pylist().count("duplicate") == 2
