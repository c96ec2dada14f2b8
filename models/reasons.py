"""Says of each recommended item what it rests on."""

from __future__ import annotations

from datetime import date

import numpy as np

from jobs.settings import Settings
from models.data import Bools, Ints, Steps, day_number
from models.policy import Policy
from models.serving import Served

_CLOSE = 0.5  # cosine from which two items count as close
_LATEST = 64  # steps of a user among which something close is looked for
_POPULAR = 10  # places at the top of a category, or of everything, that count as popular
_WEEK = 7
_VERBS = {"click": "clicked", "view": "viewed", "purchase": "purchased", "favourite": "favoured", "play": "played", "share": "shared", "rating": "rated"}
_VERBS |= {"cart": "put into the cart", "impression": "saw", "skip": "skipped", "buy": "bought", "pv": "viewed", "fav": "favoured"}


class Reasons:
    """Reasons for the lists of one night. What the item rests on is looked for in this order: chance, a meeting, closeness, popularity."""

    def __init__(self, served: Served, steps: Steps, settings: Settings, day: date) -> None:
        self._steps, self._catalogue, self._today = steps, served.catalogue, day_number(day)
        self._event_types, self._window = tuple(settings.event_types), settings.train.window_days
        self._unit = served.ranker.similarity() if isinstance(served.ranker, Policy) else None
        recent = steps.item[(steps.day > self._today - _WEEK) & (steps.reward > 0)]
        self._count = np.bincount(recent, minlength=len(served.catalogue))
        self._place = _places(np.arange(len(self._count)) * 0, self._count)
        codes = {path: code for code, path in enumerate(sorted(set(served.catalogue.categories)))}
        self._place_in_category = _places(np.array([codes[path] for path in served.catalogue.categories]), self._count)

    def of(self, user: int, items: Ints, drawn: Bools) -> list[str]:
        """A reason for each item of a user's list; `drawn` says which were drawn by chance."""
        own = np.arange(self._steps.offsets[user], self._steps.offsets[user + 1])
        met = dict(zip(self._steps.item[own].tolist(), own.tolist(), strict=True))
        closest = self._closest(own, items)
        return [self._reason(item, by_chance, met, close) for item, by_chance, close in zip(items.tolist(), drawn.tolist(), closest, strict=True)]

    def _reason(self, item: int, by_chance: bool, met: dict[int, int], close: int | None) -> str:
        if by_chance:
            return "to find out: drawn by chance"
        if self._unit is None:
            return f"popular in the last {self._window} days"
        if item in met:
            days = self._today - int(self._steps.day[met[item]])
            ago = "today" if days == 0 else "1 day ago" if days == 1 else f"{days} days ago"
            return f"again: met {ago}"
        if close is not None:
            at = int(self._steps.item[close])
            return f"close to {self._catalogue.titles[at] or self._catalogue.item_ids[at]}, which you {self._verb(close)}"
        return self._without_history(item) or ("fits your latest steps" if met else "a start for somebody new")

    def _without_history(self, item: int) -> str | None:
        if self._count[item] and self._place[item] < _POPULAR:
            return "popular this week"
        if self._count[item] and self._catalogue.categories[item] and self._place_in_category[item] < _POPULAR:
            return f"popular in {self._catalogue.categories[item][-1]}"
        return None

    def _closest(self, own: Ints, items: Ints) -> list[int | None]:
        """For each item the user's liked step that is closest to it, where it is close."""
        latest = own[-_LATEST:]
        liked = latest[((self._steps.reward[latest] > 0) | (self._steps.response[latest] > 0)) & (self._steps.item[latest] > 0)]
        if self._unit is None or len(liked) == 0:
            return [None] * len(items)
        cosine = self._unit[items] @ self._unit[self._steps.item[liked]].T
        best = cosine.argmax(axis=1)
        return [int(liked[place]) if cosine[row, place] >= _CLOSE else None for row, place in enumerate(best.tolist())]

    def _verb(self, step: int) -> str:
        code = int(self._steps.response[step] or self._steps.event[step])
        name = self._event_types[code - 1]
        return _VERBS.get(name, f"met ({name})")


def _places(groups: Ints, counts: Ints) -> Ints:
    """Place of each item within its group, from 0, by count."""
    order = np.lexsort((-counts, groups))
    starts = np.searchsorted(groups[order], groups[order])
    places = np.empty_like(order)
    places[order] = np.arange(len(order)) - starts
    return places
