"""The logging policy: what chose the items of the log. It knows what the log shows and nothing else.

With a chance of 15 to 25% an item is drawn uniformly; else from a softmax over a simple score: how the user took to the category so
far, how all users took to the item until yesterday, and, with a sign drawn per episode, whether the item is of the topic that the
user clicked last. Confounded, it also sees whether the user is in the mood, and uses its score only then; the propensity that is
logged is the best that one who does not see the mood can say: the mean over moods, which is exact given the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jobs.world.episodes import NOTHING, Hidden, Log
from jobs.world.truth import CATEGORIES, TOPIC_OF, Bools, Floats, Ints, World

TENDENCY = 3.0  # in the exponent: the last topic is 20 times as likely in an episode that repeats, and as much less in one that varies
TENDENCY_NAMES = {1: "repeat", -1: "vary"}


@dataclass
class Memory:
    """What the logging policy has counted of each user: shown and clicked, users x categories."""

    shown: Floats
    clicked: Floats

    @classmethod
    def empty(cls, users: int) -> Memory:
        return cls(np.zeros((users, len(CATEGORIES))), np.zeros((users, len(CATEGORIES))))

    def of(self, users: Ints) -> Memory:
        """Copy of the rows of some users."""
        return Memory(self.shown[users], self.clicked[users])

    def copy(self) -> Memory:
        """A memory of its own."""
        return Memory(self.shown.copy(), self.clicked.copy())

    def learn(self, world: World, log: Log, users: Ints) -> None:
        """Count a day, whose rows are these users."""
        rows, steps = np.nonzero(log.item != NOTHING)
        self.add(users[rows], world.category[log.item[rows, steps]], log.click_time[rows, steps] > 0)

    def add(self, users: Ints, categories: Ints, clicked: Bools) -> None:
        """Count steps: whose, of which category, clicked or not."""
        np.add.at(self.shown, (users, categories), 1)
        np.add.at(self.clicked, (users, categories), clicked)


def item_score(shown: Floats, clicked: Floats) -> Floats:
    """What the logging policy thinks of each item, given how often it was shown and clicked until yesterday."""
    return np.log((clicked + 4) / (shown + 20))


@dataclass
class Logger:
    """The logging policy for one day; `memory` holds what it knew in the morning, `item_scores` (items) what it thought of the items."""

    world: World
    memory: Memory
    item_scores: Floats
    rng: np.random.Generator
    last_topic: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.last_topic = np.full(len(self.memory.shown), -1)

    def choose(self, log: Log, hidden: Hidden, users: Ints, step: int) -> tuple[Ints, Floats]:
        """Draw an item for each user; return items and propensities."""
        if step:
            self._look_back(log, users, step - 1)
        by_mood = self.probabilities(log, users, step)
        drawn = np.where(hidden.in_mood[users, step, None], by_mood[-1], by_mood[0]) if self.world.confounded else by_mood[0]
        total = np.cumsum(drawn, axis=1)
        items = (total < self.rng.random((len(users), 1)) * total[:, -1:]).sum(axis=1)
        rows = np.arange(len(users))
        propensity = np.mean([chances[rows, items] for chances in by_mood], axis=0)
        return items, propensity

    def probabilities(self, log: Log, users: Ints, step: int) -> list[Floats]:
        """Chance of each item for each user, users x items: one matrix, or if confounded one per mood (not in it, in it)."""
        shown = log.item[users, :step]
        memory = self.memory
        # Five shows at a rate of one in five are taken for granted.
        scores = np.log((memory.clicked[users] + 1) / (memory.shown[users] + 5))
        scores += TENDENCY * log.tendency[users, None] * (self.last_topic[users, None] == TOPIC_OF)
        chances = np.exp(scores).take(self.world.category, axis=1)
        chances *= np.exp(self.item_scores) * log.available
        np.put_along_axis(chances, shown, 0.0, axis=1)
        chances *= (1 - self.world.uniform) / chances.sum(axis=1, keepdims=True)
        free = log.available / (log.available.sum() - step)
        chances += self.world.uniform * free
        np.put_along_axis(chances, shown, 0.0, axis=1)
        if not self.world.confounded:
            return [chances]
        blind = np.repeat(free[None], len(users), axis=0)
        np.put_along_axis(blind, shown, 0.0, axis=1)
        return [blind, chances]

    def _look_back(self, log: Log, users: Ints, step: int) -> None:
        categories = self.world.category[log.item[users, step]]
        clicked = log.click_time[users, step] > 0
        self.memory.add(users, categories, clicked)
        self.last_topic[users] = np.where(clicked, TOPIC_OF[categories], self.last_topic[users])
