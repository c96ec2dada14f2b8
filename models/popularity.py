"""How popular items were: decayed counts as of the end of the day before, by half-life."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.data import DailyCounts, Floats, Ints

HALF_LIVES = (1.0, 4.0, 16.0)  # days
POPULARITY_FEATURES = 2 * len(HALF_LIVES)


@dataclass(frozen=True)
class DecayedCounts:
    """Counts by item, of which the features of some items are made when they are asked for: of all items and days they would not fit."""

    first_day: int  # days since 1970
    days: int
    offsets: Ints  # [items + 1]: item i owns the rows offsets[i]..offsets[i + 1] (exclusive)
    day: Ints  # [n] counted from `first_day`; ascending within an item
    counts: Floats  # [n, 2]: steps, rewarded steps

    @classmethod
    def of(cls, counts: DailyCounts, items: int, first_day: int, days: int) -> DecayedCounts:
        """For `days` days from `first_day` on; what was before `first_day` counts too."""
        order = np.argsort(counts.item, kind="stable")
        offsets = np.searchsorted(counts.item[order], np.arange(items + 1))
        numbers = np.stack([counts.steps, counts.rewarded], axis=1)[order].astype(np.float32)
        return cls(first_day, days, offsets, counts.day[order] - first_day, numbers)

    def features(self, items: Ints | None = None) -> Floats:
        """log(1 + decayed count) of steps and of rewarded steps: float32[days, items, POPULARITY_FEATURES], for all items or those given.

        Row 0 is for the first day, which knows the steps before it and no other.
        """
        begins, ends = (self.offsets[:-1], self.offsets[1:]) if items is None else (self.offsets[items], self.offsets[items + 1])
        sizes = ends - begins
        row = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(row)) + np.repeat(begins - (np.cumsum(sizes) - sizes), sizes)
        day, counts = self.day[place], self.counts[place]
        features = np.zeros((self.days, len(sizes), POPULARITY_FEATURES), dtype=np.float32)
        order = np.argsort(day, kind="stable")
        start = min(int(day.min(initial=0)), 0)
        cuts = np.searchsorted(day[order], np.arange(start, self.days + 1))
        decayed = np.zeros((len(sizes), 2, len(HALF_LIVES)))
        keep = 0.5 ** (1 / np.array(HALF_LIVES))
        for today in range(start, self.days):
            if today >= 0:
                features[today] = decayed.reshape(len(sizes), -1)
            rows = order[cuts[today - start] : cuts[today - start + 1]]
            decayed *= keep
            decayed[row[rows]] += counts[rows][:, :, None]
        return np.log1p(features, out=features)
