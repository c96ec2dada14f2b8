"""What a policy learns from: the days that it may know of, and what could have been chosen on them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date, timedelta

from jobs.contracts.errors import TooLittleData
from jobs.lake import Lake
from models.candidates import CandidateSets
from models.data import Bools, Catalogue, DailyCounts, day_number, item_places, load_availability
from models.loader import Buckets, LakeBuckets, LateBuckets
from models.shards import ShardManifest
from models.user_features import FeatureFiles


def _check_enough(counts: DailyCounts, catalogue: Catalogue, first: date, last: date, validation_days: int, lake: Lake) -> None:
    if last < first:
        taken = " and train.validation_days" if validation_days else ""
        raise TooLittleData(f"No day is left to learn from: evaluate.holdout_days{taken} take all of train.window_days. Widen it, or lower what it takes.")
    known = counts.until(day_number(last))
    steps, items = int(known.steps.sum()), len({*known.item.tolist()})
    kept = f" The {validation_days} after them are kept for validation: lower train.validation_days." if validation_days else ""
    if steps < 2 or items < 2:
        raise TooLittleData(
            f"Training needs at least 2 steps with 2 different items; the days {first}..{last} of gold.transitions in {lake.root} hold {steps} "
            f"steps with {items} items ({len(catalogue) - 1} are known).{kept} Land more days, widen train.window_days, or lower evaluate.holdout_days."
        )
    if validation_days and len(known.day) == len(counts.day):
        raise TooLittleData(
            f"Validation needs a step; the {validation_days} days after {last} hold none in gold.transitions in {lake.root}. Raise train.validation_days."
        )


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from; days count from `first_day` on."""

    catalogue: Catalogue
    buckets: Buckets
    counts: DailyCounts  # of the steps of all buckets; what is learnt is in units of their mean reward
    first_day: int  # days since 1970-01-01
    eligible: Bools  # [days, items], those of validation included
    validation: LateBuckets | None = None  # steps of the days after, which say when to stop; popularity is as of the evening before them
    sets: CandidateSets = field(default_factory=CandidateSets.none)  # that the buckets tell of

    @property
    def steps(self) -> int:
        """That are learnt from."""
        return sum(self.buckets.sizes)

    @classmethod
    def load(
        cls, lake: Lake, catalogue: Catalogue, version: int, first: date, last: date, validation_days: int, context: int, features: FeatureFiles | None = None
    ) -> TrainingData:
        """The days first..last of a version of gold.transitions, and so many days of validation after them; what was chosen counts as available.

        States have what the `features` tell of their users, those of the evenings from the one before `first` on.
        Raises TooLittleData when there is nothing to choose between, or no step in the days of validation.
        """
        end, places = last + timedelta(days=validation_days), item_places(lake, catalogue)
        sets = CandidateSets.load(lake, catalogue.item_ids, first, end)
        bare = LakeBuckets(lake, ShardManifest.of(lake, first, end, version).shards, places, sets if len(sets) else None)
        counts = DailyCounts.of(steps for _, steps in map(bare.read, range(len(bare.sizes))))
        _check_enough(counts, catalogue, first, last, validation_days, lake)
        begin = int(counts.day[0])
        eligible = load_availability(lake, catalogue, counts, first + timedelta(days=begin - day_number(first)), end)
        eligible[counts.day - begin, counts.item] = True
        eligible[:, 0] = False
        everything = replace(bare, features=features)
        learnt = replace(everything, shards=ShardManifest.of(lake, first, last, version).shards)
        validation = LateBuckets(everything, day_number(last) + 1, context) if validation_days else None
        return cls(catalogue, learnt, counts.until(day_number(last)), begin, eligible, validation, sets)
