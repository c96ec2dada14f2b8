"""What is served after a day: the ranker that the verdict names, with states and popularity as of the end of that day."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.settings import Settings
from models.baselines import Popularity
from models.data import EPOCH, Bools, Catalogue, Ints, Ranker, Steps, day_number, load_catalogue, load_steps, version_as_of
from models.gate import POPULARITY
from models.network import popularity_by_day
from models.policy import Policy


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
        allowed = np.tile(self.catalogue.available, (len(users), 1))
        if not repeats:
            for row, user in enumerate(users.tolist()):
                allowed[row, steps.item[steps.offsets[user] : steps.offsets[user + 1]]] = False
        return allowed


def load_served(lake: Lake, settings: Settings, day: date, version: str | None) -> Served:
    """The policy of that version, or `popularity`; None = what gold.verdicts serves for the day.

    Raises NotReady when the day has no verdict, or there is no such policy; FutureData as `version_as_of`.
    """
    version = version or _verdict(lake, day)
    window = day - timedelta(days=settings.train.window_days - 1)
    pinned = version_as_of(lake, window, day)
    catalogue = load_catalogue(lake, day)
    first = min(window, day - timedelta(days=settings.score.active_days - 1)) if settings.evaluate.repeats else EPOCH
    steps = load_steps(lake, catalogue, tuple(settings.event_types), first, day, pinned)
    if version == POPULARITY:
        return Served(version, Popularity(steps, len(catalogue)), catalogue, steps, pinned)
    popularity = popularity_by_day(steps, len(catalogue), day_number(day) + 1, 1)[0]
    return Served(version, Policy.load(_folder(lake, version), catalogue, popularity), catalogue, steps, pinned)


def with_stranger(steps: Steps, user_id: str) -> Steps:
    """The steps with one more user, who has none; the last one."""
    return replace(steps, user_ids=(*steps.user_ids, user_id), offsets=np.append(steps.offsets, steps.offsets[-1]))


def _verdict(lake: Lake, day: date) -> str:
    lake.require("gold.verdicts", [day])
    return str(lake.read("gold.verdicts", ["serving"], pc.field("day") == day)["serving"][0].as_py())


def _folder(lake: Lake, version: str) -> Path:
    paths = lake.read("gold.policies", ["path"], pc.field("policy_version") == version)["path"].to_pylist() if lake.exists("gold.policies") else []
    if not paths:
        raise NotReady(f"There is no policy {version!r} in gold.policies of {lake.root}. Name another one, `{POPULARITY}`, or train its day again.")
    return lake.root / str(paths[0])
