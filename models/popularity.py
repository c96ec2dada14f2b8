"""How popular items were: decayed counts as of the end of the day before, by half-life."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.data import DailyCounts, Floats, Ints

HALF_LIVES = (1.0, 4.0, 16.0)  # days
YOUTH = 4.0  # days after an item's first step in which it stays half as young
POPULARITY_FEATURES = 3 * len(HALF_LIVES) + 2
_BLOCK = 1 << 14  # items whose counts by day are held at once


@dataclass(frozen=True)
class DecayedCounts:
    """Counts by item, of which the features of some items are made when they are asked for: of all items and days they would not fit."""

    first_day: int  # days since 1970
    days: int
    offsets: Ints  # [items + 1]: item i owns the rows offsets[i]..offsets[i + 1] (exclusive)
    day: Ints  # [n] counted from `first_day`, different within an item
    counts: Floats  # [n, 2]: steps, rewarded steps

    @classmethod
    def of(cls, counts: DailyCounts, items: int, first_day: int, days: int) -> DecayedCounts:
        """For `days` days from `first_day` on; what was before `first_day` counts too."""
        order = np.argsort(counts.item, kind="stable")
        offsets = np.searchsorted(counts.item[order], np.arange(items + 1))
        numbers = np.stack([counts.steps, counts.rewarded], axis=1)[order].astype(np.float32)
        return cls(first_day, days, offsets, counts.day[order] - first_day, numbers)

    def features(self, items: Ints | None = None) -> Floats:
        """float32[days, items, POPULARITY_FEATURES], for all items or those given: log(1 + decayed count) of steps and of rewarded steps, by
        half-life, and a quarter of the square of the latter, as what tells the first ten apart is not what tells them from the rest; how young
        the item is, 1 on the day after its first step and 0 before that; and the product of that and of the first of all.

        Row 0 is for the first day, which knows the steps before it and no other.
        """
        count = len(self.offsets) - 1 if items is None else len(items)
        features = np.empty((self.days, count, POPULARITY_FEATURES), dtype=np.float32)
        for begin in range(0, count, _BLOCK):
            some = slice(begin, begin + _BLOCK)
            asked = np.arange(count)[some] if items is None else items[some]
            logs = np.log1p(self._decayed(asked))
            features[:, some, : 2 * len(HALF_LIVES)] = logs
            features[:, some, 2 * len(HALF_LIVES) : -2] = logs[..., len(HALF_LIVES) :] ** 2 / 4
            features[:, some, -2] = young = self._young(asked)
            features[:, some, -1] = young * features[:, some, 0]
        return features

    def _young(self, items: Ints) -> Floats:
        begins = self.offsets[items]
        met = begins < self.offsets[items + 1]
        first = np.where(met, np.append(self.day, 0)[begins], self.days)
        age = np.arange(self.days)[:, None] - 1 - first
        young: Floats = np.where(age >= 0, 0.5 ** (np.maximum(age, 0) / YOUTH), 0.0).astype(np.float32)
        return young

    def _decayed(self, items: Ints) -> Floats:
        begins, sizes = self.offsets[items], self.offsets[items + 1] - self.offsets[items]
        row = np.repeat(np.arange(len(items)), sizes)
        place = np.arange(len(row)) + np.repeat(begins - (np.cumsum(sizes) - sizes), sizes)
        start = min(int(self.day[place].min(initial=0)), 0)
        counts = np.zeros((self.days - start, len(items), 2), dtype=np.float32)
        counts[self.day[place] - start, row] = self.counts[place]
        ago = np.arange(self.days)[:, None] - 1 - np.arange(start, self.days)  # days between the evening before and each day of counts
        decayed = np.empty((self.days, len(items), 2, len(HALF_LIVES)), dtype=np.float32)
        for number, half_life in enumerate(HALF_LIVES):
            keep = np.where(ago >= 0, 0.5 ** (np.maximum(ago, 0) / half_life), 0.0).astype(np.float32)
            decayed[..., number] = (keep @ counts.reshape(len(counts), -1)).reshape(self.days, len(items), 2)
        return decayed.reshape(self.days, len(items), -1)
