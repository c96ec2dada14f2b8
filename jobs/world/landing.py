"""A day of a world in the landing format: events, items, users, and the settings that fit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jobs.world.episodes import Log
from jobs.world.logger import TENDENCY_NAMES
from jobs.world.truth import CATEGORIES, REWARDS, SEGMENTS, Floats, Ints, World

LOOKS = ("Amber", "Bright", "Calm", "Dusky", "Early", "Fine", "Grand", "Hidden", "Ivory", "Jolly", "Keen", "Light", "Mellow", "Noble", "Old", "Plain")
STUFFS = ("Ash", "Birch", "Copper", "Denim", "Elm", "Felt", "Glass", "Hemp", "Iron", "Jute", "Linen", "Maple", "Nickel", "Oak", "Pine", "Steel")
MATURITY_DAYS = {"click": 1, "favourite": 1, "purchase": 3}


class Event(NamedTuple):
    """One line of an event file, and when it happened (seconds since the epoch)."""

    time: int
    line: str


def events_of(world: World, log: Log, users: Ints, prices: Floats) -> list[Event]:
    """All that happened in one day's episodes of the given users, answers that come on later days included."""
    user_ids, item_ids, listed = world.user_ids, world.item_ids, prices.tolist()
    rows, steps = np.nonzero(log.item >= 0)
    owners, items, tendencies = users[rows].tolist(), log.item[rows, steps].tolist(), log.tendency[rows].tolist()
    requests = [f"r{log.day:03d}-{user_ids[owner]}-{step + 1:02d}" for owner, step in zip(owners, steps.tolist(), strict=True)]
    commons = [
        f'"user_id": "{user_ids[owner]}", "item_id": "{item_ids[item]}", "session_id": "s{log.day:03d}-{user_ids[owner]}", "request_id": "{request}"'
        for owner, item, request in zip(owners, items, requests, strict=True)
    ]
    events = []
    propensities = log.propensity[rows, steps].tolist()
    kinds = {"impression": log.time, "click": log.click_time, "favourite": log.favourite_time, "purchase": log.purchase_time}
    for kind, times in kinds.items():
        happened = times[rows, steps]
        for place, time, text in zip(np.flatnonzero(happened).tolist(), happened[happened > 0].tolist(), iso(happened[happened > 0]), strict=True):
            line = f'{{"event_id": "{requests[place]}-{kind}", "event_type": "{kind}", "event_time": "{text}", {commons[place]}'
            if kind == "impression":
                line += f', "position": 1, "propensity": {propensities[place]!r}, "policy_id": "{TENDENCY_NAMES[tendencies[place]]}"'
            elif kind == "purchase":
                line += f', "value": {listed[items[place]]!r}'
            events.append(Event(time, line + "}"))
    return events


def iso(times: Ints) -> list[str]:
    """Seconds since the epoch as ISO 8601 texts."""
    return [f"{text}Z" for text in np.datetime_as_string(times.astype("datetime64[s]")).tolist()]


def draw_titles(world: World) -> list[str]:
    """A title for each item, such as `Calm Birch Kettle`."""
    rng = np.random.default_rng([world.seed, 4])
    looks, stuffs = rng.integers(0, len(LOOKS), world.items).tolist(), rng.integers(0, len(STUFFS), world.items).tolist()
    kinds = [CATEGORIES[category][1].capitalize() for category in world.category.tolist()]
    return [f"{LOOKS[look]} {STUFFS[stuff]} {kind}" for look, stuff, kind in zip(looks, stuffs, kinds, strict=True)]


def item_lines(world: World, items: Ints, titles: list[str], prices: Floats, available: bool) -> list[str]:
    """Rows of the item feed."""
    return [
        json.dumps(
            {
                "item_id": world.item_ids[item],
                "category": list(CATEGORIES[world.category[item]]),
                "title": titles[item],
                "price": float(prices[item]),
                "available": available,
            }
        )
        for item in items.tolist()
    ]


def user_lines(world: World, users: Ints) -> list[str]:
    """Rows of the user feed."""
    return [json.dumps({"user_id": world.user_ids[user], "attributes": {"segment": SEGMENTS[world.segment[user]]}}) for user in users.tolist()]


def write_lines(folder: Path, lines: Iterable[str]) -> None:
    """Write one gzip file of lines into a folder; the file knows neither its name nor the time, so that same lines are same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    (folder / "part-0000.jsonl.gz").write_bytes(gzip.compress(text.encode(), compresslevel=3, mtime=0))


def settings_text() -> str:
    """`nightjar.toml` for a world: rewards and maturities are those that its users pay by."""
    types = "\n".join(f'[event_types.{kind}]\nreward = "{REWARDS[kind]:g}"\nmaturity_days = {days}\n' for kind, days in MATURITY_DAYS.items())
    return f"""# Settings for a simulated world; the landing folder is the one that this file lies in.

lake = "../lake"

[landing]
folder = "."

[event_types.impression]
step = true

{types}
[episodes]
gap_hours = 2 # an episode takes half an hour at most; seven hours lie between two
buckets = 1 # a few thousand steps a day: one file of them

[train]
window_days = 30

[evaluate]
holdout_days = 2
repeats = true # an item may be shown again, but for within an episode

[score]
top_n = 20 # as many as the longest episode has steps

[spark]
java_options = "-XX:TieredStopAtLevel=1" # the days are small: compiling them well costs more than running them
"""
