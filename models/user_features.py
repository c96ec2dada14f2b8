"""What is known of users, from gold.user_features to the states of the network.

A state has its user's features as they stood at the end of the day before: what happens on the day itself it has from the steps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from jobs.files import DataFile
from jobs.lake import Lake
from models.data import Evenings, Steps, day_number

if TYPE_CHECKING:
    from models.loader import Buckets

TABLE = "gold.user_features"
_DROPPED = 0.2  # share of the states that train as if nothing were known, so that whoever is known by steps alone is ranked for too
_FARTHEST = 4.0  # deviations from the mean; what lies farther counts as that far


@dataclass(frozen=True)
class FeatureFiles:
    """Where some columns of gold.user_features are read, of one version; nothing is, where there is no column."""

    lake: Lake
    names: tuple[str, ...]
    files: tuple[DataFile, ...]  # by day
    inputs: dict[str, int]  # the version, by table

    @classmethod
    def load(cls, lake: Lake, names: Sequence[str], first_day: date, last_day: date, version: int | None) -> FeatureFiles:
        """Those of the ends of the days first_day..last_day.

        Of the days before the first one made nothing is known, as the log begins there. Raises NotReady when a later one has not been made.
        """
        if not names:
            return cls(lake, (), (), {})
        made = lake.done(TABLE)
        first = max(first_day, min({*made, last_day}))
        lake.require(TABLE, (first + timedelta(days=after) for after in range((last_day - first).days + 1)))
        assert version is not None
        files = (file for file in lake.files(TABLE, version) if first_day <= date.fromisoformat(file.partition["day"]) <= last_day)
        return cls(lake, tuple(names), tuple(files), {TABLE: version})

    def beside(self, steps: Steps, first_day: int, last_day: int) -> Steps:
        """The steps, with what was known on the eve of each from `first_day` on, and of every user at the end of `last_day` (days since 1970-01-01)."""
        if not self.names:
            return steps
        late, everybody = steps.day >= first_day, np.arange(len(steps.user_ids))
        user = np.concatenate([steps.users()[late], everybody])
        day = np.concatenate([steps.day[late] - 1, np.full(len(everybody), last_day)])
        user_ids = pa.array(steps.user_ids, pa.string())
        keys, values = [np.zeros(0, dtype=np.int64)], [np.zeros((0, len(self.names)), dtype=np.float32)]
        for file in self.files:
            number = day_number(date.fromisoformat(file.partition["day"]))
            sought = np.unique(user[day == number])
            if not len(sought):
                continue
            rows = self.lake.read_file(TABLE, file, ["user_id", *self.names])
            found = pc.index_in(rows["user_id"].cast(pa.string()), value_set=user_ids.take(pa.array(sought)))
            rows = rows.filter(pc.is_valid(found))
            keys.append((sought[found.drop_null().to_numpy()] << 32) + number)
            values.append(np.stack([rows[name].to_numpy() for name in self.names], axis=1).astype(np.float32))
        key, value = np.concatenate(keys), np.concatenate(values)
        order = np.argsort(key)
        nobody = np.full((1, len(self.names)), np.nan, dtype=np.float32)
        return replace(steps, known=Evenings(self.names, key[order], np.concatenate([nobody, value[order]]), last_day))


class FeaturePart(nn.Module):
    """What the features of a user add to a state. Counts and sums lie far apart: they are read by their logarithm, in deviations from the mean of training."""

    centre: Tensor
    spread: Tensor

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.input = nn.Linear(dim + 2 * features, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, states: Tensor, features: Tensor) -> Tensor:
        """[rows, slots, dim] and [rows, slots, features], raw, nan = not known → the states. In training some are as if nothing were known."""
        if self.training:
            is_dropped = torch.rand(features.shape[:2], device=features.device) < _DROPPED
            features = features.masked_fill(is_dropped[:, :, None], torch.nan)
        is_known = features.isfinite()
        read = ((_scaled(features) - self.centre) / self.spread).clamp(-_FARTHEST, _FARTHEST)
        read = torch.where(is_known, read, 0.0)
        added: Tensor = self.output(gelu(self.input(torch.cat([states, read, is_known.to(read.dtype)], dim=2))))
        return states + added


def measure(parts: nn.ModuleList, buckets: Buckets) -> None:
    """Give every `FeaturePart` mean and deviation of the evenings of some buckets, each user-day once."""
    count = total = squares = np.zeros(1)
    for place in range(len(buckets.sizes)):
        _, steps = buckets.read(place)
        values = _scaled(torch.from_numpy(steps.known.values)).double().numpy()
        is_known = np.isfinite(values)
        values[~is_known] = 0
        count, total, squares = count + is_known.sum(0), total + values.sum(0), squares + (values**2).sum(0)
    centre = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(squares / np.maximum(count, 1) - centre**2, 0))
    for part in parts:
        assert isinstance(part, FeaturePart)
        part.centre.copy_(torch.from_numpy(centre))
        part.spread.copy_(torch.from_numpy(np.where(spread > 1e-6, spread, 1)))  # the same of everybody tells nothing


def _scaled(values: Tensor) -> Tensor:
    return values.sign() * values.abs().log1p()
