"""Audit and publish: each check finds its row, the audit fails closed, and what is served is replaced whole."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import AuditFailed, NotReady, OlderThanServed
from jobs.lake import Lake
from jobs.publish import audit, publish
from jobs.settings import Settings
from jobs.steps import find_step
from sql import checks

DAY = date(2026, 1, 31)
DAYS = DayRange(DAY, DAY)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
Row = dict[str, Any]


def listed(user: str, rank: int, item: str, **columns: Any) -> Row:
    return {"user_id": user, "rank": rank, "item_id": item, "score": 1.0, "propensity": 0.5, "reason": "popular", "day": DAY, "policy_version": "p", **columns}


ITEMS = {"a": 1, "b": 2, "c": 3, "gone": 4}


def stepped(event: str, user: str, item: str, **columns: Any) -> Row:
    """An event and the transition that it is."""
    base = {"event_id": event, "user_id": user, "item_id": item, "event_type": "impression", "event_time": NOON, "day": DAY}
    return {
        **base,
        "step": 1,
        "item": ITEMS[item],
        "source_file": "f",
        "source_line": int(event[1:]),
        "arrival_day": DAY,
        "reward": 0.0,
        "first": True,
        "bucket": 0,
        "as_of_day": DAY,
        **columns,
    }


def numbered(name: str, **columns: Any) -> Row:
    return {"item": ITEMS[name], "item_id": name, "day": DAY, **columns}


def rewarded(reward: float, **columns: Any) -> Row:
    """A line of the ledger about the day's steps, and the day before's events."""
    return {"event_day": DAY - timedelta(days=1), "event_type": "click", "reason": None, "events": 1, "reward": reward, "as_of_day": DAY, "day": DAY, **columns}


def landed(source_file: str, **columns: Any) -> Row:
    base = {"source_file": source_file, "feed": "events", "bytes": 9, "sha256": "0", "requeued": 0, "quarantined": [], "rules": "r"}
    return {**base, "arrival_day": DAY, **columns}


def kept(source_file: str, line: int) -> Row:
    return {"feed": "events", "reason": "bad_json", "detail": "…", "line": b"x", "source_file": source_file, "source_line": line, "arrival_day": DAY}


GOOD = [listed(user, rank, item) for user in ("*", "ann", "bob") for rank, item in ((1, "a"), (2, "b"))]


def write(lake: Lake, **tables: list[Row]) -> None:
    """Write a lake that passes every check, but for the tables given."""
    steps = [stepped("e1", "ann", "a"), stepped("e2", "bob", "b")]
    content: dict[str, list[Row]] = {
        "bronze.files": [landed("f", lines=4, rows=3), landed("g", feed="items", lines=1, rows=1)],
        "bronze.quarantine": [kept("f", 4)],
        "silver.repeats": [{"event_id": "e1", "kind": "duplicate", "changed": [], **kept("f", 3), "first_source_file": "f", "first_source_line": 1}],
        "silver.interactions": steps,
        "silver.items": [{"item_id": item, "available": item != "gone", "valid_from": date(2026, 1, 1)} for item in ("a", "b", "gone")],
        "gold.item_index": [*map(numbered, ITEMS)],
        "gold.set_aside": [],
        "gold.transitions": steps,
        "gold.unattributed": [],
        "gold.rewards": [],
        "gold.verdicts": [
            {"challenger": "p", "champion": "popularity", "verdict": "promote", "serving": "p"}
            | {"reasons": [], "effective_sample_size": 1.0, "overlap": 1.0, "day": DAY}
        ],
        "gold.recommendations": GOOD,
        **{name.replace("_", ".", 1): rows for name, rows in tables.items()},
    }
    for table, rows in content.items():
        schema = lake.schema(table)
        filled = [{name: row.get(name) for name in schema.names} for row in rows]
        lake.replace(table, pa.Table.from_pylist(filled, schema), "test", [DAY - timedelta(days=1), DAY], {})


BROKEN: dict[str, dict[str, list[Row]]] = {
    "file_lines_are_accounted_for": {"bronze_files": [landed("f", lines=4, rows=3), landed("h", feed="items", lines=2, rows=1)]},
    "list_for_active_users": {"gold_recommendations": [row for row in GOOD if row["user_id"] != "bob"]},
    "list_for_strangers": {"gold_recommendations": [row for row in GOOD if row["user_id"] != "*"]},
    "list_has_each_item_once": {"gold_recommendations": [*GOOD, listed("ann", 3, "a")]},
    "list_has_each_rank_once": {"gold_recommendations": [*GOOD[:-1], listed("bob", 3, "b")]},
    "recommended_by_the_policy_of_the_verdict": {"gold_recommendations": [*GOOD[:-1], listed("bob", 2, "b", policy_version="q")]},
    "recommended_item_is_available": {"gold_recommendations": [*GOOD[:-1], listed("bob", 2, "gone")]},
    "recommended_propensity_is_a_chance": {"gold_recommendations": [*GOOD[:-1], listed("bob", 2, "b", propensity=1.5)]},
    "recommended_reason_is_given": {"gold_recommendations": [*GOOD[:-1], listed("bob", 2, "b", reason=" ")]},
    "recommended_score_is_finite": {"gold_recommendations": [*GOOD[:-1], listed("bob", 2, "b", score=float("nan"))]},
    "item_has_one_number": {"gold_item_index": [*map(numbered, ITEMS), numbered("gone", item=5)]},
    "reward_in_is_reward_out": {"gold_rewards": [rewarded(2.0, event_day=DAY, day=DAY - timedelta(days=1))]},
    "reward_is_in_the_ledger": {"gold_transitions": [stepped("e1", "ann", "a", reward=1.000001), stepped("e2", "bob", "b")], "gold_rewards": [rewarded(1.0)]},
    "transition_for_each_step": {"gold_transitions": [stepped("e1", "ann", "a")]},
    "transition_is_an_event": {"gold_transitions": [stepped("e1", "ann", "a"), stepped("e2", "bob", "a")]},
    "transition_item_is_numbered": {"gold_item_index": [*map(numbered, ITEMS), numbered("b", item_id="d")]},
    "transition_knows_its_own_day": {"gold_transitions": [stepped("e1", "ann", "a"), stepped("e2", "bob", "b", as_of_day=DAY - timedelta(days=1))]},
    "transition_reward_is_finite": {"gold_transitions": [stepped("e1", "ann", "a"), stepped("e2", "bob", "b", reward=float("inf"))]},
    "interaction_is_unique": {"silver_interactions": [stepped("e1", "ann", "a"), stepped("e2", "bob", "b"), stepped("e2", "bob", "b")]},
    "interaction_is_not_from_the_future": {
        "silver_interactions": [stepped("e1", "ann", "a"), stepped("e2", "bob", "b", event_time=NOON + timedelta(days=1))],
        "gold_transitions": [stepped("e1", "ann", "a"), stepped("e2", "bob", "b", event_time=NOON + timedelta(days=1))],
    },
    "list_is_no_longer_than_asked": {"gold_recommendations": [*GOOD, *(listed("ann", rank, f"i{rank}") for rank in range(3, 22))]},
}


def offending(lake: Lake, settings: Settings, *names: str) -> dict[str, int]:
    with audit.opened(lake, lake.versions(find_step("audit").reads), settings) as database:
        return {row["check"]: row["offending"] for row in audit.findings(database, {name: checks()[name] for name in names}, DAY, settings)}


def test_each_check_has_a_row_that_breaks_it() -> None:
    assert sorted(BROKEN) == sorted(checks())


def test_each_check_finds_its_row_and_passes_without(lake: Lake, settings: Settings) -> None:
    write(lake)
    assert offending(lake, settings, *checks()) == dict.fromkeys(checks(), 0)
    short = settings.model_copy(update={"score": settings.score.model_copy(update={"top_n": 1})})
    assert offending(lake, short, "list_is_no_longer_than_asked") == {"list_is_no_longer_than_asked": 3}
    for name, tables in BROKEN.items():
        write(lake, **tables)
        assert offending(lake, settings, name) == {name: 1}


@pytest.mark.parametrize(("numbers", "offending_users"), [((1, 2), 0), ((1, 3), 1), ((2, 3), 1), ((1, 1), 1)])
def test_steps_are_numbered_from_1_without_a_gap(lake: Lake, settings: Settings, numbers: tuple[int, int], offending_users: int) -> None:
    steps = [stepped(f"e{place}", "ann", "a", step=number) for place, number in enumerate(numbers, start=1)]
    write(lake, silver_interactions=steps, gold_transitions=steps)
    assert offending(lake, settings, "transition_for_each_step") == {"transition_for_each_step": offending_users}


def test_a_step_that_arrived_after_the_transitions_were_made_is_not_missed(lake: Lake, settings: Settings) -> None:
    """Nor is one missed that arrived after its day, once its day was made again."""
    late = stepped("e3", "bob", "b", step=2, arrival_day=DAY + timedelta(days=1))
    made = [stepped("e1", "ann", "a"), stepped("e2", "bob", "b")]
    write(lake, silver_interactions=[*made, late])
    assert offending(lake, settings, "transition_for_each_step") == {"transition_for_each_step": 0}
    write(lake, silver_interactions=[*made, late], gold_transitions=[{**row, "as_of_day": DAY + timedelta(days=1)} for row in made])
    assert offending(lake, settings, "transition_for_each_step") == {"transition_for_each_step": 1}


def test_rewards_are_followed_from_the_events_to_where_they_went(lake: Lake, settings: Settings) -> None:
    """A click of the day is worth 1, a purchase 5; one went to a step of the day before, one to none, and what was set aside counts on neither side."""
    steps = [stepped("e1", "ann", "a"), stepped("e2", "bob", "b")]
    answers = [stepped(f"e{n}", "ann", "a", event_type=kind) for n, kind in ((3, "click"), (4, "purchase"))]
    bots = [stepped("e5", "bot", "a", event_type="purchase")]
    stray = {"event_id": "e4", "user_id": "ann", "item": 1, "event_type": "purchase", "reward": 5.0, "reason": "too_late", "as_of_day": DAY, "day": DAY}
    content: dict[str, list[Row]] = {
        "silver_interactions": [*steps, *answers, *bots],
        "gold_transitions": steps,
        "gold_unattributed": [stray],
        "gold_rewards": [
            rewarded(1.0, event_day=DAY, day=DAY - timedelta(days=1)),
            rewarded(5.0, event_day=DAY, event_type="purchase", reason="too_late"),
        ],
        "gold_set_aside": [{"user_id": "bot", "event_day": DAY, "reason": "events_per_day", "events": 1, "busiest_minute": 1, "arrival_day": DAY}],
    }
    names = ("reward_in_is_reward_out", "reward_is_in_the_ledger", "transition_for_each_step")
    write(lake, **content)
    assert offending(lake, settings, *names) == dict.fromkeys(names, 0)
    write(lake, **content | {"gold_set_aside": []})
    assert offending(lake, settings, *names) == {"reward_in_is_reward_out": 1, "reward_is_in_the_ledger": 0, "transition_for_each_step": 0}
    write(lake, **content | {"gold_unattributed": []})
    assert offending(lake, settings, *names) == {"reward_in_is_reward_out": 0, "reward_is_in_the_ledger": 1, "transition_for_each_step": 0}


def test_an_item_without_a_row_is_known_by_its_steps(lake: Lake, settings: Settings) -> None:
    """A log without an items feed, or an item whose row has not arrived: `c` was shown, `d` is from nowhere."""
    steps = [stepped("e1", "ann", "a"), stepped("e2", "bob", "c")]
    write(lake, silver_interactions=steps, gold_transitions=steps, gold_recommendations=[*GOOD, listed("ann", 3, "c")])
    assert offending(lake, settings, "recommended_item_is_available") == {"recommended_item_is_available": 0}
    write(lake, silver_interactions=steps, gold_transitions=steps, gold_recommendations=[*GOOD, listed("ann", 3, "c"), listed("bob", 3, "d")])
    assert offending(lake, settings, "recommended_item_is_available") == {"recommended_item_is_available": 1}


def test_a_night_is_published_once_audited_and_never_else(lake: Lake, settings: Settings) -> None:
    write(lake, gold_recommendations=[row for row in GOOD if row["user_id"] != "*"])
    with pytest.raises(NotReady, match=r"gold\.audits"):
        publish.run(lake, settings, DAYS)
    with pytest.raises(AuditFailed, match=r"list_for_strangers: 1 rows, for example \{\"user_id\":\"\*\"") as caught:
        audit.run(lake, settings, DAYS)
    assert "Nothing is published" in str(caught.value)
    with pytest.raises(AuditFailed, match="list_for_strangers"):
        publish.run(lake, settings, DAYS)
    assert not lake.exists("serving.recommendations")

    write(lake)
    with pytest.raises(AuditFailed):
        publish.run(lake, settings, DAYS)
    audit.run(lake, settings, DAYS)
    publish.run(lake, settings, DAYS)
    served = lake.read("serving.recommendations").sort_by([("user_id", "ascending"), ("rank", "ascending")])
    assert served.to_pylist() == sorted(GOOD, key=lambda row: (row["user_id"], row["rank"]))

    write(lake)
    with pytest.raises(AuditFailed, match="made again after their audit"):
        publish.run(lake, settings, DAYS)
    lake.replace("serving.recommendations", served, "publish", [DAY + timedelta(days=1)], {})
    audit.run(lake, settings, DAYS)
    with pytest.raises(OlderThanServed, match="2026-02-01 are served"):
        publish.run(lake, settings, DAYS)
