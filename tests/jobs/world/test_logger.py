from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.world.episodes import NOTHING, Log, play
from jobs.world.logger import TENDENCY, Logger, Memory
from jobs.world.truth import TOPIC_OF, World, load_world
from tests.jobs.world.world_logs import drawn, events, lived, raw_lines, sketched, written


def test_each_logged_propensity_follows_from_what_the_log_showed_before(tmp_path: Path) -> None:
    """Line by line, from the log, the item feed and the uniform share alone: no taste, no rule, no mood is looked at."""
    landing = written(tmp_path / "landing", users=40, items=45, days=4)
    uniform = load_world(landing).uniform
    found = events(landing)
    clicks = {event["request_id"] for event in found if event["event_type"] == "click"}
    category = {row["item_id"]: tuple(row["category"]) for row in (json.loads(line) for _, line in raw_lines(landing, "items"))}
    steps = sorted((event for event in found if event["event_type"] == "impression"), key=lambda event: event["event_time"])
    by_user: dict[tuple[str, Any], list[int]] = defaultdict(lambda: [0, 0])
    by_item: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for day in sorted({step["arrival"] for step in steps}):
        there: dict[str, bool] = {}
        for arrival, line in raw_lines(landing, "items"):
            if arrival <= day:
                there[json.loads(line)["item_id"]] = json.loads(line)["available"]
        yesterday = {item: tuple(by_item[item]) for item in there}
        episode: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        for step in (step for step in steps if step["arrival"] == day):
            user, item, seen = step["user_id"], step["item_id"], episode[step["user_id"]]
            topics = [category[earlier][0] for earlier, clicked in seen if clicked]
            sign = {"repeat": 1, "vary": -1}[step["policy_id"]]
            weights = {}
            for candidate in [name for name, available in there.items() if available and name not in {earlier for earlier, _ in seen}]:
                shown, clicked = by_user[user, category[candidate]]
                all_shown, all_clicked = yesterday[candidate]
                weight = (clicked + 1) / (shown + 5) * (all_clicked + 4) / (all_shown + 20)
                weights[candidate] = weight * np.exp(TENDENCY * sign * bool(topics and topics[-1] == category[candidate][0]))
            expected = uniform / len(weights) + (1 - uniform) * weights[item] / sum(weights.values())
            assert step["propensity"] == pytest.approx(expected, rel=1e-9)
            hit = step["request_id"] in clicks
            seen.append((item, hit))
            for counts in (by_user[user, category[item]], by_item[item]):
                counts[0] += 1
                counts[1] += hit
    assert len(steps) > 500


@pytest.mark.parametrize("confounded", [False, True])
def test_chances_sum_to_one_and_are_those_with_which_items_come(confounded: bool) -> None:
    """40,000 twins: after the same log, how often each item is shown agrees with the propensity that is logged for it (chi-square)."""
    world = drawn(0, items=40, confounded=confounded)
    twins = 40_000
    log, hidden = play(world, 0, np.zeros((twins, 36)), Logger(world, Memory.empty(twins), np.zeros(40), np.random.default_rng(1)), np.random.default_rng(2))
    before = np.flatnonzero(world.available(0))[[3, 7]]
    log.item[:, :2], log.click_time[:, :2], log.tendency[:] = before, [0, 1], 1
    logger = Logger(world, Memory.empty(twins), np.zeros(40), np.random.default_rng(3))
    users = np.arange(twins)
    logger.choose(log, hidden, users, 1)
    items, propensity = logger.choose(log, hidden, users, 2)
    by_mood = logger.probabilities(log, users[:1], 2)
    chances = np.mean([matrix[0] for matrix in by_mood], axis=0)
    assert chances.sum() == pytest.approx(1)
    assert chances[before].tolist() == [0, 0]
    np.testing.assert_allclose(propensity, chances[items], rtol=1e-9)
    free = chances > 0
    counts = np.bincount(items, minlength=40)
    assert counts[~free].sum() == 0
    degrees = free.sum() - 1
    chi_square = ((counts[free] - twins * chances[free]) ** 2 / (twins * chances[free])).sum()
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_the_uniform_share_is_15_to_25_per_cent() -> None:
    shares = [sketched(seed).uniform for seed in range(40)]
    assert all(0.15 <= share <= 0.25 for share in shares)
    assert max(shares) - min(shares) > 0.04


def test_the_tendency_is_independent_of_the_user() -> None:
    world = drawn(2)
    days = lived(world, 400, 6)
    tendencies = np.stack([log.tendency for log, _ in days]).astype(float)
    pull = np.corrcoef(tendencies.mean(axis=0), days[0][1].tastes.max(axis=1))[0, 1]
    assert abs(pull) < 3 / np.sqrt(400)
    assert abs(tendencies.mean()) < 3 / np.sqrt(tendencies.size)
    topics = {
        sign: np.mean([len(set(topics_shown(world, log, int(row)))) for log, _ in days for row in np.flatnonzero(log.tendency == sign)]) for sign in (1, -1)
    }
    assert topics[1] < topics[-1] - 1, "an episode that repeats shows fewer topics"


def topics_shown(world: World, log: Log, row: int) -> list[int]:
    items = log.item[row][log.item[row] != NOTHING]
    return [int(topic) for topic in TOPIC_OF[world.category[items]]]
