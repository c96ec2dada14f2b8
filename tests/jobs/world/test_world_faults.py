from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.jobs.world.world_logs import raw_lines, written


def test_what_was_planted_is_what_is_found(tmp_path: Path) -> None:
    """The files read line by line, by plain Python, hold exactly what the ledger says, and otherwise the events of the sound world."""
    landing = written(tmp_path / "landing", users=300, days=10, faults=True)
    ledger = json.loads((landing / ".world" / "faults.json").read_text())
    lines = raw_lines(landing, "events")
    reasons: Counter[str] = Counter()
    seen: dict[str, str] = {}
    late = set()
    for day, line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            reasons["cut_short"] += 1
            continue
        if event["event_type"] == "wink":
            reasons["unknown_type"] += 1
        elif "user_id" not in event:
            reasons["no_user"] += 1
        elif event["event_time"] == "yesterday":
            reasons["no_time"] += 1
        elif event.get("propensity", 1) > 1:
            reasons["impossible_propensity"] += 1
        elif event["event_time"][:10] > day:
            reasons["skewed"] += 1
        elif event["event_id"] in seen:
            reasons["duplicates"] += 1
            assert seen[event["event_id"]] == line
        else:
            seen[event["event_id"]] = line
            if event["event_time"][:10] < day and event["event_time"][:10] != ledger["missing_day"]:
                late.add(event["event_id"])
    assert reasons.pop("duplicates") == ledger["duplicates"] > 0
    assert reasons == ledger["quarantined"]
    assert all(reasons.values())
    assert (len(lines), len(seen)) == (ledger["lines"], ledger["accepted"])
    assert ledger["lines"] == ledger["accepted"] + ledger["duplicates"] + sum(ledger["quarantined"].values())
    on_missing_day = {event_id for event_id in ledger["late"] if json.loads(seen[event_id])["event_time"][:10] == ledger["missing_day"]}
    assert late == set(ledger["late"]) - on_missing_day
    assert sum(json.loads(line)["user_id"] in ledger["bots"] for line in seen.values()) <= ledger["bot_events"]


def test_the_day_and_the_item_that_go_missing(tmp_path: Path) -> None:
    landing = written(tmp_path / "landing", users=300, days=10, faults=True)
    ledger = json.loads((landing / ".world" / "faults.json").read_text())
    assert not any((landing / feed / f"ds={ledger['missing_day']}").exists() for feed in ("events", "items", "users"))
    assert len(list((landing / "events").iterdir())) == 9
    item, gone = ledger["withdrawn_item"], ledger["withdrawn_day"]
    rows = [(day, json.loads(line)["available"]) for day, line in raw_lines(landing, "items") if json.loads(line)["item_id"] == item]
    assert rows[-1] == (gone, False)
    shown = [line for _, line in raw_lines(landing, "events") if f'"{item}"' in line and '"impression"' in line and '"u0' in line]
    days = {json.loads(line)["event_time"][:10] for line in shown if line.endswith("}")}
    assert gone in days, "still shown on the day on which it is withdrawn"
    assert not {day for day in days if day > gone and day <= "2026-01-10"}


def test_a_sound_world_has_an_empty_ledger(tmp_path: Path) -> None:
    landing = written(tmp_path / "landing")
    ledger = json.loads((landing / ".world" / "faults.json").read_text())
    assert ledger == {"lines": len(raw_lines(landing, "events")), "accepted": len(raw_lines(landing, "events"))}
