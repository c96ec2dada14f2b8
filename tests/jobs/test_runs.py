from __future__ import annotations

import json
import multiprocessing
import os
import signal
from datetime import date

import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.runs import noted, runs
from jobs.steps import find_step

STEP = find_step("gate")
TABLE = "gold.verdicts"
FIRST, SECOND = DayRange.parse("2026-01-01"), DayRange.parse("2026-01-02")
BOTH = DayRange(FIRST.first, SECOND.last)


def make(lake: Lake, days: DayRange) -> None:
    lake.replace(TABLE, lake.schema(TABLE).empty_table(), STEP.name, [*days], {})


def fail(lake: Lake, days: DayRange, error: BaseException) -> None:
    with pytest.raises(type(error)), noted(lake, STEP, days):
        raise error


def left(lake: Lake) -> list[tuple[str | None, set[date]]]:
    return [(run.failure, {*run.days}) for run in runs(lake)]


def test_a_run_is_seen_while_it_goes_on(lake: Lake) -> None:
    with noted(lake, STEP, BOTH):
        assert left(lake) == [(None, {*BOTH})]
    assert runs(lake) == []


def test_a_failure_is_kept_until_its_days_have_been_run_again(lake: Lake) -> None:
    make(lake, BOTH)
    fail(lake, BOTH, NotReady("there is no wind"))
    assert left(lake) == [("there is no wind", {*BOTH})]
    with noted(lake, STEP, FIRST):
        pass
    assert left(lake) == [("there is no wind", {*SECOND})]
    with noted(lake, find_step("score"), BOTH):
        pass
    assert len(runs(lake)) == 1, "another step mends nothing"
    with noted(lake, STEP, BOTH):
        pass
    assert runs(lake) == []


def test_an_interruption_is_a_failure(lake: Lake) -> None:
    make(lake, FIRST)
    fail(lake, FIRST, KeyboardInterrupt())
    assert left(lake) == [("KeyboardInterrupt", {*FIRST})]


def test_a_first_run_that_made_nothing_leaves_no_lake(lake: Lake) -> None:
    fail(lake, FIRST, NotReady("nothing has arrived"))
    assert not lake.root.exists()


def test_a_first_run_that_made_something_leaves_it_and_its_failure(lake: Lake) -> None:
    def make_and_fail() -> None:
        with noted(lake, STEP, FIRST):
            make(lake, FIRST)
            raise NotReady("half way")

    with pytest.raises(NotReady):
        make_and_fail()
    assert left(lake) == [("half way", {*FIRST})]


def die(lake: Lake) -> None:
    with noted(lake, STEP, FIRST):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_has_failed(lake: Lake) -> None:
    make(lake, SECOND)
    process = multiprocessing.get_context("spawn").Process(target=die, args=[lake])
    process.start()
    process.join()
    [(failure, days)] = left(lake)
    assert failure is not None
    assert failure.startswith("it ended without a word")
    assert days == {*FIRST}


def test_another_host_is_taken_at_its_word(lake: Lake) -> None:
    """Whether its process lives can't be seen from here; until the day has been run by somebody, it is running."""
    note = lake.root / "_runs" / "gate-1.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"name": note.name, "step": "gate", "days": ["2026-01-01"], "host": "elsewhere", "process": 1, "born": 0}))
    assert left(lake) == [(None, {*FIRST})]
    with noted(lake, STEP, SECOND):
        pass
    assert len(runs(lake)) == 1
    with noted(lake, STEP, FIRST):
        pass
    assert runs(lake) == []


def test_a_note_that_can_not_be_read_stops_nothing(lake: Lake) -> None:
    """Half of one, as a machine leaves it that goes down; or one of another version."""
    make(lake, FIRST)
    for number, text in enumerate(("", "{}", '{"step": 1}', "[]")):
        note = lake.root / "_runs" / f"{number}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(text)
    with noted(lake, STEP, FIRST):
        assert left(lake) == [(None, {*FIRST})]
    assert runs(lake) == []
