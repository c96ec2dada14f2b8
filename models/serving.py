"""What is served after a day: the ranker that the verdict names, with states and popularity as of the end of that day."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
import pyarrow.compute as pc

from jobs.lake import Lake
from jobs.settings import Settings
from models.baselines import Popularity
from models.data import EPOCH, Bools, Catalogue, DailyCounts, Ints, Ranker, Steps, day_number, load_catalogue, load_steps, version_as_of
from models.gate import POPULARITY, policy_named
from models.histories import offered
from models.policy import Policy
from models.popularity import DecayedCounts


@dataclass(frozen=True)
class Served:
    """A ranker and what it ranks by."""

    version: str
    ranker: Ranker
    catalogue: Catalogue
    steps: Steps  # of the window; all there are where an item that was met before is no candidate
    transitions_version: int

    def candidates(self, steps: Steps, users: Ints, repeats: bool) -> Bools:
        """What may be recommended to each user: bool[users, items]."""
        return offered(self.catalogue.available, steps, users, repeats)


def load_served(lake: Lake, settings: Settings, day: date, version: str | None) -> Served:
    """The policy of that version, or `popularity`; None = what gold.verdicts serves for the day.

    Raises NotReady when the day has no verdict, or there is no such policy; FutureData as `version_as_of`.
    """
    version = version or _verdict(lake, day)
    window = day - timedelta(days=settings.train.window_days - 1)
    first = min(window, day - timedelta(days=settings.score.active_days - 1)) if settings.evaluate.repeats else EPOCH
    pinned = version_as_of(lake, first, day)
    catalogue, event_types = load_catalogue(lake, day, pinned), tuple(settings.event_types)
    steps = load_steps(lake, catalogue, event_types, first, day, pinned)
    if version == POPULARITY:
        within = load_steps(lake, catalogue, event_types, window, day, pinned)
        return Served(version, Popularity(within, len(catalogue)), catalogue, steps, pinned)
    popularity = DecayedCounts.of(DailyCounts.of([steps]), len(catalogue), day_number(day) + 1, 1).features()[0]
    policy = Policy.load(lake.root / policy_named(lake, version).path, catalogue, event_types, popularity)
    return Served(version, policy, catalogue, steps, pinned)


def with_stranger(steps: Steps, user_id: str) -> Steps:
    """The steps with one more user, who has none; the last one."""
    return replace(steps, user_ids=(*steps.user_ids, user_id), offsets=np.append(steps.offsets, steps.offsets[-1]))


def _verdict(lake: Lake, day: date) -> str:
    lake.require("gold.verdicts", [day])
    return str(lake.read("gold.verdicts", ["serving"], pc.field("day") == day)["serving"][0].as_py())
