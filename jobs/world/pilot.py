"""How many groups a world has: as many as make its rule matter in about one logged step in twenty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jobs.world.episodes import play
from jobs.world.logger import Logger, Memory
from jobs.world.truth import World, draw_groups

WANTED = 0.05
GROUPS = (2, 3, 4, 6, 8, 12)  # numbers that the 12 topics can be dealt into evenly, but for 8


def settle(world: World) -> World:
    """The world with the number of groups that brings its critical steps nearest to WANTED, by a short log of other users."""
    return min((replace(world, group=draw_groups(world.seed, groups)) for groups in GROUPS), key=lambda tried: abs(_critical_share(tried) - WANTED))


def _critical_share(world: World) -> float:
    """Share of steps at which one more positive would sate the user, in five logged days of 100 users, with the rule in force."""
    world = replace(world, effect=True, confounded=False)
    rng = np.random.default_rng([world.seed, 3])
    _, tastes = world.draw_tastes(rng, 100)
    memory = Memory.empty(len(tastes))
    critical = steps = 0
    for _ in range(5):
        _, hidden = play(world, 0, tastes, Logger(world, memory, np.zeros(world.items), rng), rng)
        critical += int(hidden.critical(world).sum())
        steps += int(hidden.length.sum())
    return critical / steps
