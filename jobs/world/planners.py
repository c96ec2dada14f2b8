"""Policies that know the truth: one that takes the best item of the moment, one that also keeps the rule, one that plans ahead."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jobs.world.episodes import NOTHING, Hidden, Log
from jobs.world.truth import Bools, Floats, Ints, World


@dataclass
class Myopic:
    """Shows the item of the highest reward to expect now, from all that is true of user and items, and looks no further.

    With `keeps_rule`, a group is left out where one more positive in it would sate the user.
    """

    world: World
    keeps_rule: bool
    _worth: Floats | None = field(default=None, init=False)

    def choose(self, log: Log, hidden: Hidden, users: Ints, step: int) -> tuple[Ints, Floats]:
        """Take the best item that is still free."""
        if self._worth is None:
            self._worth = self.world.click_rates(hidden.tastes) * self.world.reward
        worth = np.where(_free(log, users, step), self._worth[users], -1.0)
        if self.keeps_rule and self.world.effect:
            last = hidden.row[users, step] == self.world.row - 1
            avoided = last[:, None] & (self.world.item_group == hidden.row_group[users, step, None])
            # Below every item of another group, and in order still, where no other group has an item left.
            worth = np.where(avoided & (worth >= 0), worth - 1.0 - worth.max(axis=1, keepdims=True), worth)
            worth = np.where(_free(log, users, step), worth, -np.inf)
        return worth.argmax(axis=1), np.full(len(users), np.nan)


@dataclass
class Planner:
    """Knows everything but the answers to come, and plans to the end of the episode by dynamic programming, anew at each step.

    The plan takes the best free item of each group as if it stayed free, so it is the optimum up to how fast the best items of a
    group run out; while the user is sated it spends the worst items.
    """

    world: World
    _rates: Floats | None = field(default=None, init=False)

    def choose(self, log: Log, hidden: Hidden, users: Ints, step: int) -> tuple[Ints, Floats]:
        """Take the first item of the best plan."""
        if self._rates is None:
            self._rates = self.world.click_rates(hidden.tastes)
        free = _free(log, users, step)
        worth = np.where(free, self._rates[users] * self.world.reward, -1.0)
        groups = np.arange(self.world.group.max() + 1)
        best = np.stack([np.where(self.world.item_group == group, worth, -1.0).argmax(axis=1) for group in groups], axis=1)
        rows = np.arange(len(users))
        there = np.take_along_axis(worth, best, axis=1) >= 0
        rate = np.where(there, np.take_along_axis(self._rates[users], best, axis=1), 0.0)
        if not self.world.effect:
            return worth.argmax(axis=1), np.full(len(users), np.nan)
        left = hidden.length[users] - step
        action = self._first_action(rate, self.world.reward[best], there, hidden.row_group[users, step], hidden.row[users, step], left)
        sated = hidden.sated[users, step] > 0
        worst = np.where(free, worth, np.inf).argmin(axis=1)
        return np.where(sated, worst, best[rows, action]), np.full(len(users), np.nan)

    def _first_action(self, rate: Floats, reward: Floats, there: Bools, row_group: Ints, row: Ints, left: Ints) -> Ints:
        """Group to choose from, per user, given rate and reward of each group's item (users x groups), the row, and the steps left."""
        users, groups = rate.shape
        # values[t][user, group, row]: reward to expect with t steps left; a row of 0 has no group, so all groups hold the same there.
        values = [np.zeros((users, groups, self.world.row))]
        action = np.zeros(users, dtype=np.int64)
        rows = np.arange(users)
        for remaining in range(1, int(left.max()) + 1):
            after = values[-1]
            fresh = values[max(remaining - 1 - self.world.pause, 0)][:, 0, 0]
            gains = np.full((users, groups, self.world.row, groups), -np.inf)
            for group in range(groups):
                clicked = np.broadcast_to(after[:, group, 1][:, None, None], after.shape).copy()
                clicked[:, group, :-1] = after[:, group, 1:]
                clicked[:, group, -1] = fresh
                chance = rate[:, group][:, None, None]
                gain = chance * (reward[:, group][:, None, None] + clicked) + (1 - chance) * after
                gains[..., group] = np.where(there[:, group][:, None, None], gain, -np.inf)
            values.append(gains.max(axis=3))
            now = left == remaining
            chosen = gains[rows, np.where(row_group == NOTHING, 0, row_group), row].argmax(axis=1)
            action = np.where(now, chosen, action)
        return action


def _free(log: Log, users: Ints, step: int) -> Bools:
    free = np.broadcast_to(log.available, (len(users), len(log.available))).copy()
    shown = log.item[users, :step]
    free[np.arange(len(users))[:, None], shown] &= shown == NOTHING  # a step without an item blocks none
    return free
