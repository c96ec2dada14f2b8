"""One day of a world: each user lives one episode, step by step, all users at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jobs.world.truth import MOOD, Bools, Floats, Ints, World

SHORTEST, LONGEST = 8, 20  # steps of an episode
HOUR, DAY = 3600, 86400
NOTHING = -1  # no item: the list ran out, or the episode is over


@dataclass(frozen=True)
class Log:
    """What a log shows of one day, in seconds since the epoch; arrays users x steps, `tendency` one a user.

    `item` is NOTHING where no item was shown; `time` of an answer is 0 where there was none.
    """

    day: int
    available: Bools
    item: Ints
    time: Ints
    propensity: Floats
    click_time: Ints
    favourite_time: Ints
    purchase_time: Ints
    tendency: Ints


@dataclass(frozen=True)
class Hidden:
    """What no log shows, users x steps: the state in which each step found its user.

    `length` (users) is the number of steps of the episode; `row_group` and `row` are the running row of positives, `sated` the steps
    for which the user still answers nothing, `in_mood` a coin of each step; `expected` is the reward to expect of the item shown.
    """

    tastes: Floats
    length: Ints
    row_group: Ints
    row: Ints
    sated: Ints
    in_mood: Bools
    expected: Floats

    def critical(self, world: World) -> Bools:
        """Steps at which one more positive in the row's group would sate the user."""
        steps = np.arange(self.row.shape[1]) < self.length[:, None]
        critical: Bools = steps & (self.row == world.row - 1) & (self.sated == 0)
        return critical


class Policy(Protocol):
    """Chooses what to show. No item is shown twice within an episode, whoever chooses."""

    def choose(self, log: Log, hidden: Hidden, users: Ints, step: int) -> tuple[Ints, Floats]:
        """Item for each of the rows `users` at `step`, NOTHING where there is none, and the propensity to be logged (NaN = none).

        Only the columns before `step` are filled in, those of the hidden state up to `step`.
        """


def play(world: World, day: int, tastes: Floats, policy: Policy, rng: np.random.Generator) -> tuple[Log, Hidden]:
    """Let users of these tastes (users x categories) live a day under a policy.

    The chances of the day are drawn first and don't depend on what is chosen: the same `rng` makes policies comparable user by user.
    """
    log, hidden, answers = _draw_day(world, day, len(tastes), tastes, rng)
    for step in range(log.item.shape[1]):
        users = np.flatnonzero(step < hidden.length)
        items, log.propensity[users, step] = policy.choose(log, hidden, users, step)
        log.item[users, step] = items
        shown, items = users[items != NOTHING], items[items != NOTHING]
        rate = world.click_rate(tastes[shown], items[:, None])[:, 0] * (hidden.sated[shown, step] == 0)
        hidden.expected[shown, step] = rate * world.reward[items]
        lifted = rate * np.where(hidden.in_mood[shown, step], 1 + MOOD, 1 - MOOD)
        clicked = answers.chance[0, shown, step] < lifted
        favourite = clicked & (answers.chance[1, shown, step] < world.favourite_rate[items])
        bought = clicked & (answers.chance[2, shown, step] < world.purchase_rate[items])
        click_time = log.time[shown, step] + answers.click_delay[shown, step]
        log.click_time[shown, step] = np.where(clicked, click_time, 0)
        log.favourite_time[shown, step] = np.where(favourite, click_time + 3, 0)
        log.purchase_time[shown, step] = np.where(bought, click_time + answers.purchase_delay[shown, step], 0)
        if step + 1 < log.item.shape[1]:
            _advance(world, hidden, shown[clicked], items[clicked], step)
    return log, hidden


def _advance(world: World, hidden: Hidden, users: Ints, items: Ints, step: int) -> None:
    """The rule: carry the hidden state from `step` to the next one, given who clicked on what."""
    hidden.row_group[:, step + 1] = hidden.row_group[:, step]
    hidden.row[:, step + 1] = hidden.row[:, step]
    hidden.sated[:, step + 1] = np.maximum(hidden.sated[:, step] - 1, 0)
    group = world.item_group[items]
    row = np.where(hidden.row_group[users, step] == group, hidden.row[users, step] + 1, 1)
    sates = world.effect & (row >= world.row)
    hidden.row_group[users, step + 1] = np.where(sates, NOTHING, group)
    hidden.row[users, step + 1] = np.where(sates, 0, row)
    hidden.sated[users, step + 1] = np.where(sates, world.pause, 0)


@dataclass(frozen=True)
class _Answers:
    """Chances of a click, a favourite and a purchase (3 x users x steps), and how long an answer takes, in seconds."""

    chance: Floats
    click_delay: Ints
    purchase_delay: Ints


def _draw_day(world: World, day: int, users: int, tastes: Floats, rng: np.random.Generator) -> tuple[Log, Hidden, _Answers]:
    available = world.available(day)
    steps = min(LONGEST, int(available.sum()))
    shape = (users, steps)
    length = np.minimum(rng.integers(SHORTEST, LONGEST + 1, users), steps)
    # From 6:00 to 22:30, and 20 steps take at most half an hour: no episode crosses midnight, and seven hours lie between two.
    start = world.midnight(day) + rng.integers(6 * HOUR, 22 * HOUR + HOUR // 2, users)
    pause = rng.integers(30, 90, shape)
    answers = _Answers(
        chance=rng.random((3, *shape)),
        click_delay=rng.integers(2, 25, shape),
        # An hour at least, a day as a rule, always less than three: maturity_days = 3 loses none.
        purchase_delay=np.minimum(HOUR + rng.exponential(18 * HOUR, shape), 2.9 * DAY).astype(np.int64),
    )
    log = Log(
        day=day,
        available=available,
        item=np.full(shape, NOTHING, dtype=np.int64),
        time=start[:, None] + np.cumsum(pause, axis=1) - pause[:, :1],
        propensity=np.full(shape, np.nan),
        click_time=np.zeros(shape, dtype=np.int64),
        favourite_time=np.zeros(shape, dtype=np.int64),
        purchase_time=np.zeros(shape, dtype=np.int64),
        tendency=rng.choice((-1, 1), users),
    )
    hidden = Hidden(
        tastes=tastes,
        length=length,
        row_group=np.full(shape, NOTHING, dtype=np.int64),
        row=np.zeros(shape, dtype=np.int64),
        sated=np.zeros(shape, dtype=np.int64),
        in_mood=rng.random(shape) < 0.5,
        expected=np.zeros(shape),
    )
    return log, hidden, answers
