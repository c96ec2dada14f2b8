"""Small worlds, lived in memory or written and read back by plain Python."""

from __future__ import annotations

import gzip
import json
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jobs.world.episodes import Hidden, Log, play
from jobs.world.logger import Logger, Memory
from jobs.world.pilot import settle
from jobs.world.simulate import simulate
from jobs.world.truth import World, draw_world

FIRST = date(2026, 1, 1)


@cache
def drawn(seed: int, *, items: int = 150, null: bool = False, confounded: bool = False) -> World:
    return settle(sketched(seed, items=items, null=null, confounded=confounded))


def sketched(seed: int, *, items: int = 36, null: bool = False, confounded: bool = False) -> World:
    """A world whose number of groups is not settled yet."""
    return draw_world(seed, users=20, items=items, first=FIRST, days=10, null=null, confounded=confounded)


def lived(world: World, users: int, days: int) -> list[tuple[Log, Hidden]]:
    """Days of fresh users under the logging policy."""
    rng = np.random.default_rng([world.seed, 99])
    _, tastes = world.draw_tastes(rng, users)
    memory, past = Memory.empty(users), []
    for day in range(days):
        log, hidden = play(world, day, tastes, Logger(world, memory.copy(), np.zeros(world.items), rng), rng)
        memory.learn(world, log, np.arange(users))
        past.append((log, hidden))
    return past


def written(landing: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {"users": 60, "items": 50, "first": FIRST, "days": 6, "seed": 0, "null": False, "confounded": False, "faults": False}
    simulate(landing, **(options | changes))
    return landing


def raw_lines(landing: Path, feed: str) -> list[tuple[str, str]]:
    """Folder day and text of every line of a feed, in order."""
    found = []
    for path in sorted((landing / feed).rglob("*.jsonl.gz")):
        found += [(path.parent.name.removeprefix("ds="), line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return found


def events(landing: Path) -> list[dict[str, Any]]:
    return [json.loads(line) | {"arrival": day} for day, line in raw_lines(landing, "events")]
