from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.contracts.errors import NotReady, ProcessFailed
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, Settings, load_settings
from jobs.world import value
from jobs.world.episodes import NOTHING, play
from jobs.world.served import Asked, Published, Recommender, first_free, histories, indexed
from jobs.world.truth import load_world
from jobs.world.value import expected, print_values, true_values
from tests.jobs.world.world_logs import drawn, lived, written

LAST = date(2026, 1, 6)
# A process that speaks the protocol: every user gets the items in the order of their ids, or from the last one down.
SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    names = sorted((f"i{n:05d}" for n in range(1, 51)), reverse=sys.argv[1] == "down")
    print(json.dumps({"lists": [names[: asked["n"]] for _ in asked["histories"]]}), flush=True)
"""


def server(order: str) -> Recommender:
    return Recommender([sys.executable, "-c", SERVER, order])


def test_a_history_is_what_a_log_shows_before_the_step() -> None:
    """Against a plain reading of the day's events in the order of time."""
    world = drawn(2, items=60)
    (first, _), (second, _) = lived(world, 600, 2)
    found = histories(world, [first], second, np.arange(600), 5)
    weights = {"click": 1, "favourite": 2, "purchase": 3}
    answered = 0
    for user, history in enumerate(found):
        steps = [(first, step) for step in np.flatnonzero(first.item[user] != NOTHING)] + [(second, step) for step in range(5)]
        times = [*(int(log.time[user, step]) for log, step in steps), int(second.time[user, 5])]
        assert [entry["event_time"] for entry in history] == times[:-1]
        for entry, (log, step), until in zip(history, steps, times[1:], strict=True):
            came = [kind for kind in weights if 0 < getattr(log, f"{kind}_time")[user, step] < until]
            assert entry["response"] == max(came, key=lambda kind: weights[kind], default=None)
            assert entry["item_id"] == world.item_ids[log.item[user, step]]
            answered += bool(came)
    assert answered > 100
    assert any(entry["response"] == "purchase" for history in found for entry in history), "a purchase that came before the next day's first step"
    assert all(len(history) <= 64 for history in histories(world, [first] * 5, second, np.arange(80), 5))


def test_lists_are_consumed_in_order_and_end() -> None:
    world = drawn(2, items=60)
    gone = int(np.flatnonzero(~world.available(0))[0])
    there = np.flatnonzero(world.available(0))[:3].tolist()
    names = [world.item_ids[item] for item in (there[0], gone, there[1], there[2])]
    lists = indexed(world, [[*names, "never seen"], []])
    log, hidden = play(world, 0, np.zeros((2, 36)), Published(lists), np.random.default_rng(0))
    assert log.item[0, :4].tolist() == [*there, NOTHING]
    assert (log.item[1] == NOTHING).all()
    assert hidden.expected[0, :3].min() > 0
    assert hidden.expected[0, 3:].sum() == hidden.expected[1].sum() == 0
    assert first_free(lists, log, np.array([0, 1]), 1).tolist() == [there[1], NOTHING]


def test_a_list_is_worth_the_same_asked_for_and_published() -> None:
    world = drawn(2, items=50)
    _, tastes = world.draw_tastes(np.random.default_rng(1), 30)
    names = sorted(world.item_ids)
    with server("up") as asked:
        stepwise = expected(world, 0, tastes, Asked(world, [], asked), seed=3)
    np.testing.assert_array_equal(stepwise, expected(world, 0, tastes, Published(indexed(world, [names] * 30)), seed=3))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Settings]:
    """A landing folder, and a lake in which the list of everybody goes from the last item down; the popular ones go up."""
    landing = written(tmp_path / "landing")
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    monkeypatch.setattr(value, "recommender", lambda day, policy: server("up" if policy else "down"))
    settings = load_settings()
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    rows: list[dict[str, Any]] = [
        {"user_id": user, "rank": rank, "item_id": f"i{51 - rank:05d}", "score": 0.0, "propensity": 1.0, "reason": "", "day": LAST, "policy_version": "p1"}
        for user in ("*", "u000001")
        for rank in range(1, 21)
    ]
    for table in ("serving.recommendations", "gold.recommendations"):
        lake.replace(table, pa.Table.from_pylist(rows, schema=lake.schema(table)), "publish", [LAST], {})
    return landing, settings


def test_the_values_stand_side_by_side(served: tuple[Path, Settings], capsys: pytest.CaptureFixture[str]) -> None:
    landing, settings = served
    found = true_values(landing, settings, None, users=40, seed=0)
    assert (found.day, found.policy_version) == (LAST, "p1")
    stepwise = {row.name: row for row in found.stepwise}
    assert list(stepwise) == ["policy", "popularity", "logging policy", "myopic planner", "myopic planner + rule", "full-information planner"]
    assert max(stepwise.values(), key=lambda row: row.mean).name in {"full-information planner", "myopic planner + rule"}
    assert stepwise["popularity"].share == 0
    assert stepwise["full-information planner"].share == 1
    world = load_world(landing)
    down = indexed(world, [sorted(world.item_ids, reverse=True)[:20]] * 60)
    own = np.sort(np.random.default_rng([world.seed, 0, 12]).permutation(60)[:40])
    by_hand = expected(world, 6, world.tastes[own], Published(down[:40]), seed=0)
    assert next(row.mean for row in found.published if row.name == "policy") == pytest.approx(by_hand.mean())
    assert true_values(landing, settings, LAST, users=40, seed=0) == found
    print_values(landing, settings, LAST, users=10, seed=0)
    assert "full-information planner" in capsys.readouterr().out


def test_what_is_missing_is_named(served: tuple[Path, Settings], tmp_path: Path) -> None:
    landing, settings = served
    with pytest.raises(NotReady, match="only a landing folder that `nightjar simulate` wrote"):
        true_values(tmp_path, settings, None, users=5, seed=0)
    with pytest.raises(NotReady, match="no list of user \\* for 2026-01-02"):
        true_values(landing, settings, date(2026, 1, 2), users=5, seed=0)
    with pytest.raises(NotReady, match="no table serving"):
        true_values(landing, settings.model_copy(update={"lake": str(tmp_path / "empty")}), None, users=5, seed=0)


@pytest.mark.parametrize(
    ("program", "message"),
    [("raise SystemExit(3)", "ended with status 3 instead of answering"), ("input(); print('{\"lists\": []}', flush=True)", "asked for 1 lists and gave 0")],
)
def test_a_process_that_fails_is_named(program: str, message: str) -> None:
    with Recommender([sys.executable, "-c", program]) as broken, pytest.raises(ProcessFailed, match=message):
        broken.ask([[]], [0], 3)
