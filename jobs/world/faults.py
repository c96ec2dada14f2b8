"""What goes wrong on the way from the shop to the landing folder, planted and counted.

Duplicates, late events, malformed lines, bots, a skewed clock, an item withdrawn while it is still shown, a day with no file.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jobs.world.episodes import DAY, HOUR
from jobs.world.landing import Event
from jobs.world.truth import World

DUPLICATED, LATE, SKEWED = 0.005, 0.005, 0.002  # shares of the events of a day
MALFORMED: dict[str, dict[str, Any]] = {  # kind of fault: what is changed in the copy of a sound line
    "unknown_type": {"event_type": "wink"},
    "no_user": {"user_id": None},
    "no_time": {"event_time": "yesterday"},
    "impossible_propensity": {"propensity": 1.7},
}
BOTS, BOT_EVENTS = 2, 200  # bots, and impressions of each a day; every one is clicked a second later
SKEW = 3 * DAY  # ahead of the end of any arrival day that could bring the event


@dataclass
class Faults:
    """Plants faults day by day, and keeps count of them."""

    world: World
    rng: np.random.Generator
    withdrawn_item: int | None
    missing_day: int | None
    planted: Counter[str] = field(default_factory=Counter)
    late_ids: list[str] = field(default_factory=list)

    @classmethod
    def plan(cls, world: World) -> Faults:
        """Choose the item and the day that go missing; a log of fewer than four days is too short for that."""
        rng = np.random.default_rng([world.seed, 5])
        if world.days < 4:
            return cls(world, rng, None, None)
        there = world.available(0) & world.available(world.days - 1)
        item = int(np.where(there, world.appeal, -np.inf).argmax())
        return cls(world, rng, item, int(rng.integers(1, world.days - 2)))

    @property
    def withdrawn_day(self) -> int:
        """Day on which the feed says that the item is gone; it is still shown all that day."""
        return self.world.days - 2

    def changed(self) -> World:
        """The world in which the withdrawn item is gone from the day after its withdrawal on."""
        if self.withdrawn_item is None:
            return self.world
        return replace(self.world, leaves=np.where(np.arange(self.world.items) == self.withdrawn_item, self.withdrawn_day + 1, self.world.leaves))

    def arrival(self, day: int) -> int:
        """Day on which the files of a day arrive."""
        return day + 1 if day == self.missing_day else day

    def spoil(self, day: int, events: list[Event]) -> dict[int, list[Event]]:
        """What arrives when, of the events that happened on a day."""
        arriving: dict[int, list[Event]] = defaultdict(list)
        events = events + self._bots(day)
        fate = self.rng.random(len(events))
        delays = self.rng.integers(1, 4, len(events)).tolist()
        again = self.rng.integers(0, 2, len(events)).tolist()
        for event, chance, delay, next_day in zip(events, fate.tolist(), delays, again, strict=True):
            arrival, arrived = day, event
            if chance < DUPLICATED and day + next_day < self.world.days:
                self.planted["duplicates"] += 1
                arriving[day + next_day].append(event)
            elif DUPLICATED <= chance < DUPLICATED + LATE and day + delay < self.world.days:
                self.planted["late"] += 1
                self.late_ids.append(json.loads(event.line)["event_id"])
                arrival = day + delay
            elif chance > 1 - SKEWED:
                self.planted["skewed"] += 1
                arrived = Event(event.time + SKEW, _changed(event.line, {"event_time": _iso(event.time + SKEW)}))
            arriving[arrival].append(arrived)
        arriving[day] += self._malformed(events)
        return arriving

    def _bots(self, day: int) -> list[Event]:
        items = np.flatnonzero(self.world.available(day))
        start = self.world.midnight(day) + HOUR
        events = []
        for bot in range(BOTS):
            for number, item in enumerate(self.rng.choice(items, BOT_EVENTS).tolist()):
                request = f"r{day:03d}-bot{bot}-{number:03d}"
                for kind, time in (("impression", start + 2 * number), ("click", start + 2 * number + 1)):
                    line: dict[str, Any] = {"event_id": f"{request}-{kind}", "event_type": kind, "event_time": _iso(time), "user_id": f"bot{bot}"}
                    events.append(Event(time, json.dumps(line | {"item_id": self.world.item_ids[item], "request_id": request})))
        self.planted["bot_events"] += len(events)
        return events

    def _malformed(self, events: list[Event]) -> list[Event]:
        """Extra lines, one of each kind and one cut short, after the pattern of sound ones."""
        spoilt = []
        for kind, change in MALFORMED.items():
            event = events[self.rng.integers(len(events))]
            spoilt.append(Event(event.time, _changed(event.line, {"event_id": f"{kind}-{event.time}", **change})))
            self.planted[kind] += 1
        event = events[self.rng.integers(len(events))]
        self.planted["cut_short"] += 1
        return [*spoilt, Event(event.time, event.line[: len(event.line) // 2])]

    def ledger(self, happened: int, lines: int) -> dict[str, Any]:
        """What was planted, for a log of `happened` events that arrived in `lines` lines: lines = accepted + duplicates + quarantined."""
        quarantined = {kind: self.planted[kind] for kind in (*MALFORMED, "cut_short", "skewed")}
        return {
            "lines": lines,
            "accepted": happened + self.planted["bot_events"] - self.planted["skewed"],
            "duplicates": self.planted["duplicates"],
            "quarantined": quarantined,
            "late": sorted(self.late_ids),
            "bot_events": self.planted["bot_events"],
            "bots": [f"bot{bot}" for bot in range(BOTS)],
            "withdrawn_item": None if self.withdrawn_item is None else self.world.item_ids[self.withdrawn_item],
            "withdrawn_day": None if self.withdrawn_item is None else str(self.world.day(self.withdrawn_day)),
            "missing_day": None if self.missing_day is None else str(self.world.day(self.missing_day)),
        }


def _iso(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _changed(line: str, change: dict[str, Any]) -> str:
    """The line with some fields changed; None takes a field away."""
    values = json.loads(line) | change
    return json.dumps({name: value for name, value in values.items() if value is not None})
