"""The true value of a policy in its simulated world: what users who live by it pay per episode, and what others would have earned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.world.episodes import Log, Policy, play
from jobs.world.logger import Logger, Memory
from jobs.world.planners import Myopic, Planner
from jobs.world.served import Asked, Published, indexed, recommender
from jobs.world.truth import Floats, World, load_world

POLICY, POPULARITY, LOGGING = "policy", "popularity", "logging policy"
MYOPIC, WITH_RULE, OPTIMUM = "myopic planner", "myopic planner + rule", "full-information planner"
LIVED = 3  # days that fresh users have lived under the logging policy before they meet the policy to be judged
ANYBODY = "*"


@dataclass(frozen=True)
class Value:
    """Mean reward per episode of one policy, its standard error over users, and its share of the way from popularity to the optimum."""

    name: str
    mean: float
    error: float
    share: float


@dataclass(frozen=True)
class Values:
    """Values step by step (fresh users, the policy sees each answer), and as published (the world's users consume the lists next day)."""

    day: date
    policy_version: str
    stepwise: tuple[Value, ...]
    published: tuple[Value, ...]


def print_values(landing: Path, settings: Settings, day: date | None, *, users: int, seed: int) -> None:
    """Print the true values of the policy served after `day` (None = newest), beside popularity's and the planners'."""
    values = true_values(landing, settings, day, users=users, seed=seed)
    published = {value.name: value for value in values.published}
    table = Table(
        title=f"True reward per episode on the day after {values.day}; {users} users; policy {values.policy_version}",
        caption="± standard error; way = share of the way from popularity to the full-information planner",
    )
    table.add_column("", no_wrap=True)
    for block in ("step by step", "as published"):
        table.add_column(block, justify="right", no_wrap=True)
        table.add_column("way", justify="right", no_wrap=True)
    for value in values.stepwise:
        table.add_row(value.name, *_cells(value), *(_cells(published[value.name]) if value.name in published else ("", "")))
    Console().print(table)


def true_values(landing: Path, settings: Settings, day: date | None, *, users: int, seed: int) -> Values:
    """Values of the policy served after `day` (None = newest), with `users` fresh users and as many of the world's own.

    Asks `python -m models recommend`, so the settings in force must be `settings`. Raises NotReady when the landing folder has
    no truth, or the lake no lists for the day; ProcessFailed when the policy does not answer.
    """
    world = load_world(landing)
    day, policy_version, lists = _published(Lake(settings.lake_path, tuple(settings.event_types)), day)
    number = (day - world.first).days
    if not 0 <= number < world.days:
        raise NotReady(f"{landing} holds the days {world.first} to {world.day(world.days - 1)}; the lists are of {day}, from other logs.")
    with recommender(str(day), None) as served, recommender(str(day), POPULARITY) as popular:
        fresh = Fresh.draw(world, number, users, seed)
        policies: dict[str, Policy] = {POLICY: Asked(world, fresh.past, served), POPULARITY: Asked(world, fresh.past, popular)}
        stepwise = fresh.values(world, number, policies, seed)
        popular_list = popular.ask([[]], [0], settings.score.top_n)[0]
    own = np.sort(np.random.default_rng([world.seed, seed, 12]).permutation(len(world.segment))[:users])
    fixed: dict[str, Policy] = {
        POLICY: Published(indexed(world, [lists.get(world.user_ids[user], lists[ANYBODY]) for user in own.tolist()])),
        POPULARITY: Published(indexed(world, [popular_list] * len(own))),
        OPTIMUM: Planner(world),
    }
    published = _compare({name: expected(world, number + 1, world.tastes[own], policy, seed) for name, policy in fixed.items()})
    return Values(day, policy_version, stepwise, published)


@dataclass(frozen=True)
class Fresh:
    """Users that no log has seen: their tastes (users x categories), their days under the logging policy, and what it remembers of them."""

    tastes: Floats
    past: Sequence[Log]
    memory: Memory

    @classmethod
    def draw(cls, world: World, day: int, users: int, seed: int) -> Fresh:
        """Draw users and let them live the LIVED days up to `day` under the logging policy."""
        rng = np.random.default_rng([world.seed, seed, 10])
        _, tastes = world.draw_tastes(rng, users)
        memory, past = Memory.empty(users), []
        for lived in range(max(0, day + 1 - LIVED), day + 1):
            log, _ = play(world, lived, tastes, Logger(world, memory.copy(), world.item_scores[lived], rng), rng)
            memory.learn(world, log, np.arange(users))
            past.append(log)
        return cls(tastes, past, memory)

    def values(self, world: World, day: int, policies: dict[str, Policy], seed: int) -> tuple[Value, ...]:
        """Values on the day after `day` of the given policies, popularity among them, and of the logging policy and the planners."""
        logger = Logger(world, self.memory.copy(), world.item_scores[day + 1], np.random.default_rng([world.seed, seed, 13]))
        known: dict[str, Policy] = {
            LOGGING: logger,
            MYOPIC: Myopic(world, keeps_rule=False),
            WITH_RULE: Myopic(world, keeps_rule=True),
            OPTIMUM: Planner(world),
        }
        return _compare({name: expected(world, day + 1, self.tastes, policy, seed) for name, policy in (policies | known).items()})


def expected(world: World, day: int, tastes: Floats, policy: Policy, seed: int) -> Floats:
    """Reward of one episode of each user: of every step the expectation, given the state that the steps before it led to."""
    _, hidden = play(world, day, tastes, policy, np.random.default_rng([world.seed, seed, 11]))
    rewards: Floats = hidden.expected.sum(axis=1)
    return rewards


def _compare(rewards: dict[str, Floats]) -> tuple[Value, ...]:
    low, high = rewards[POPULARITY].mean(), rewards[OPTIMUM].mean()
    return tuple(
        Value(
            name=name,
            mean=float(reward.mean()),
            error=float(reward.std() / np.sqrt(len(reward))),
            share=float((reward.mean() - low) / (high - low)) if high > low else float("nan"),
        )
        for name, reward in rewards.items()
    )


def _cells(value: Value) -> tuple[str, str]:
    return f"{value.mean:.2f} ± {value.error:.2f}", f"{value.share:.0%}"


def _published(lake: Lake, day: date | None) -> tuple[date, str, dict[str, list[str]]]:
    """Day, policy version and lists by user: those served now, or those of a day."""
    table = "serving.recommendations" if day is None else "gold.recommendations"
    rows = lake.read(table, ["user_id", "rank", "item_id", "day", "policy_version"]).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()
    rows = [row for row in rows if day in (None, row["day"])]
    lists: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        lists[row["user_id"]].append(row["item_id"])
    if ANYBODY not in lists:
        wanted = f"for {day}" if day else "yet"
        raise NotReady(f"{table} holds no list of user {ANYBODY} {wanted}. Run `nightjar night --day DAY` first.")
    return rows[0]["day"], rows[0]["policy_version"], lists
