"""The truth of a world: its items, its users, what makes a user answer, and the rule that greed breaks.

The rule: after the k-th positive in a row within one group of categories, a user answers nothing for m steps. A positive in
another group begins a new row; a refusal changes nothing; each episode begins afresh. So the state is a function of the steps of
the running episode, of which there are at most 20. k, m and the grouping are drawn from the seed, and no log names them.
"""

from __future__ import annotations

from calendar import timegm
from dataclasses import dataclass, fields
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.contracts.errors import NotReady

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TOPICS = {
    "garden": ("spade", "planter", "lantern"),
    "kitchen": ("kettle", "skillet", "mill"),
    "music": ("drum", "flute", "speaker"),
    "books": ("novel", "atlas", "diary"),
    "games": ("puzzle", "deck", "console"),
    "travel": ("rucksack", "tent", "map"),
    "sports": ("racket", "skate", "paddle"),
    "fashion": ("scarf", "jacket", "boot"),
    "beauty": ("soap", "brush", "balm"),
    "tools": ("drill", "saw", "wrench"),
    "pets": ("leash", "bowl", "perch"),
    "art": ("easel", "print", "ink"),
}
CATEGORIES = tuple((topic, kind) for topic, kinds in TOPICS.items() for kind in kinds)
TOPIC_OF = np.repeat(np.arange(len(TOPICS)), 3)
SEGMENTS = ("north", "east", "south", "west")
REWARDS = {"click": 1.0, "favourite": 2.0, "purchase": 5.0}
MOOD = 0.4  # a user in the mood clicks by this share more often, else by this share less
# A longer row takes keener users, or the log would hardly show one.
APPETITE = {3: -1.8, 4: -1.0, 5: -0.3, 6: 0.5}
HIGHEST_CLICK_RATE = 0.7  # times 1 + MOOD it stays below 1
WORLD_FILE = Path(".world", "truth.npz")


@dataclass(frozen=True)
class World:
    """Everything that is true of one world.

    Arrays over items: `category`, `appeal`, `favourite_rate` and `purchase_rate` of a click, `price`, `appears` and `leaves`
    (first day shown, first day not shown any more; days count from 0). Over users: `segment`, `joins` (first day), `tastes`
    (users x categories). Over segments x categories: `segment_tastes`. Over categories: `group`.
    `item_scores` (days + 1 x items) is what the logging policy believed about the items on each day.
    """

    seed: int
    first: date
    days: int
    effect: bool
    confounded: bool
    row: int
    pause: int
    uniform: float
    group: Ints
    segment_tastes: Floats
    category: Ints
    appeal: Floats
    favourite_rate: Floats
    purchase_rate: Floats
    price: Floats
    appears: Ints
    leaves: Ints
    segment: Ints
    joins: Ints
    tastes: Floats
    item_scores: Floats

    @property
    def items(self) -> int:
        return len(self.category)

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(f"i{number:05d}" for number in range(1, self.items + 1))

    @cached_property
    def user_ids(self) -> tuple[str, ...]:
        return tuple(f"u{number:06d}" for number in range(1, len(self.segment) + 1))

    @cached_property
    def item_group(self) -> Ints:
        return self.group[self.category]

    @cached_property
    def reward(self) -> Floats:
        """Reward to expect from a click on each item, what follows it included."""
        return REWARDS["click"] + REWARDS["favourite"] * self.favourite_rate + REWARDS["purchase"] * self.purchase_rate

    def day(self, number: int) -> date:
        """Date of a day of the world."""
        return self.first + timedelta(days=number)

    def midnight(self, number: int) -> int:
        """Beginning of a day of the world, in seconds since the epoch."""
        return timegm(self.day(number).timetuple())

    def available(self, number: int) -> Bools:
        """Which items can be shown on a day."""
        return (self.appears <= number) & (number < self.leaves)

    def click_rate(self, tastes: Floats, items: Ints) -> Floats:
        """Chance of a click of a user of these tastes (users x categories) on items (users x any), where not sated."""
        liking = np.take_along_axis(tastes, self.category[items], axis=1) + self.appeal[items] + APPETITE[self.row]
        return HIGHEST_CLICK_RATE / (1 + np.exp(-liking))

    def click_rates(self, tastes: Floats) -> Floats:
        """Chance of a click on every item: users x items."""
        return self.click_rate(tastes, np.broadcast_to(np.arange(self.items), (len(tastes), self.items)))

    def draw_tastes(self, rng: np.random.Generator, users: int) -> tuple[Ints, Floats]:
        """Segment and tastes of fresh users."""
        return draw_users(rng, self.segment_tastes, users)

    def save(self, landing: Path) -> None:
        """Write the truth below the landing folder, where ingest does not look."""
        path = landing / WORLD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez(path, **(values | {"first": np.array(self.first.isoformat())}))


def load_world(landing: Path) -> World:
    """Read the truth that `simulate` left. Raises NotReady where there is none."""
    path = landing / WORLD_FILE
    if not path.is_file():
        raise NotReady(f"There is no {path}: only a landing folder that `nightjar simulate` wrote has a truth to compare with.")
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] if stored[name].ndim else stored[name].item() for name in stored.files}
    return World(**(values | {"first": date.fromisoformat(values["first"])}))


def draw_world(seed: int, *, users: int, items: int, first: date, days: int, null: bool, confounded: bool) -> World:
    """Draw a world. A null world differs from the one of the same seed in nothing but the rule, which it lacks."""
    rng = np.random.default_rng([seed, 1])
    row, pause = int(rng.integers(3, 7)), int(rng.integers(3, 9))
    likes = rng.normal(0, 0.7, (len(SEGMENTS), len(TOPICS)))
    segment_tastes = likes[:, TOPIC_OF] + rng.normal(0, 0.3, (len(SEGMENTS), len(CATEGORIES)))
    segment, tastes = draw_users(rng, segment_tastes, users)
    joins = np.where(rng.random(users) < 0.8, 0, rng.integers(0, days, users))
    category = rng.permutation(np.arange(items) % len(CATEGORIES))
    # Four items in five are there from the start, and one in five leaves; the first of all stays, so that no day is without an item.
    stays = np.arange(items) == 0
    appears = np.where(stays | (rng.random(items) < 0.8), 0, rng.integers(0, days, items))
    leaves = np.where(stays | (rng.random(items) < 0.8), days + 365, appears + rng.integers(3, days + 4, items))
    return World(
        seed=seed,
        first=first,
        days=days,
        effect=not null,
        confounded=confounded,
        row=row,
        pause=pause,
        uniform=float(rng.uniform(0.15, 0.25)),
        group=draw_groups(seed, 4),
        segment_tastes=segment_tastes,
        category=category,
        appeal=rng.normal(0, 0.6, items),
        favourite_rate=rng.beta(2, 18, items),
        purchase_rate=rng.beta(2, 28, items),
        price=np.exp(rng.normal(3, 0.8, items)).round(2),
        appears=appears,
        leaves=leaves,
        segment=segment,
        joins=joins,
        tastes=tastes,
        item_scores=np.zeros((days + 1, items)),
    )


def draw_users(rng: np.random.Generator, segment_tastes: Floats, users: int) -> tuple[Ints, Floats]:
    """Segment of each user, and tastes (users x categories): those of the segment, a topic's and a category's own."""
    segment = rng.integers(0, len(SEGMENTS), users)
    own = rng.normal(0, 1.2, (users, len(TOPICS)))[:, TOPIC_OF] + rng.normal(0, 0.4, (users, len(CATEGORIES)))
    return segment, segment_tastes[segment] + own


def draw_groups(seed: int, groups: int) -> Ints:
    """Group of each category: whole topics together, but for one category in six, so that no name gives the grouping away."""
    rng = np.random.default_rng([seed, 2, groups])
    group = rng.permutation(np.arange(len(TOPICS)) % groups)[TOPIC_OF]
    moved = rng.random(len(CATEGORIES)) < 1 / 6
    return np.where(moved, rng.integers(0, groups, len(CATEGORIES)), group)
