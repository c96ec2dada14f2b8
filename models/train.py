"""Trains tonight's policies on the days of the window; what comes out is a folder each, and a row of gold.policies."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import nullcontext
from datetime import date, timedelta
from typing import Any

import pyarrow as pa

from jobs.contracts.days import DayRange
from jobs.contracts.errors import Interrupted
from jobs.contracts.revision import revision
from jobs.lake import Lake
from jobs.runs import noted
from jobs.settings import Settings
from jobs.steps import find_step
from jobs.storage import whole_folder
from models.components import reduced
from models.data import day_number, load_catalogue, version_as_of
from models.gate import MANIFEST, POLICIES, POPULARITY, champion_before
from models.learner import config_of, fit, goes_on
from models.policy import Learnt, device_of_choice, save_policy
from models.popularity import DecayedCounts
from models.ranks import ALONE, Ranks, joined
from models.shards import ShardManifest
from models.training_data import TrainingData
from models.user_features import FeatureFiles


def run_together(lake: Lake, settings: Settings, day: date) -> None:
    """`run` as one of the processes that torchrun has started; the first of them keeps the note of the run."""
    step = find_step("train")
    with joined() as ranks:
        if ranks.is_first:
            lake.require_writable(step.writes)
        with noted(lake, step, DayRange(day, day)) if ranks.is_first else nullcontext():
            run(lake, settings, day, ranks)


def run(lake: Lake, settings: Settings, day: date, ranks: Ranks = ALONE) -> None:
    """Train on the days [day - window + 1, day - holdout_days], write a policy folder, or one for each of train.policies, and register it in gold.policies.

    With train.patience the last train.validation_days of them are not learnt from: they say when to stop.
    Raises NotReady when the day has no transitions, or a day of the window no features where train.user_features names some; FutureData when
    all that is there knows more than `day`, TooLittleData when there is nothing to choose between, TrainingFailed when the loss is no number,
    and Interrupted when SIGTERM has ended it: the same run again goes on from there, to the same policy. Of several ranks the first one writes.
    """
    inputs = lake.versions(find_step("train").reads)
    first, last = day - timedelta(days=settings.train.window_days - 1), day - timedelta(days=settings.evaluate.holdout_days)
    inputs["gold.transitions"] = version = version_as_of(lake, first, day)
    features = FeatureFiles.load(lake, settings.train.user_features, first - timedelta(days=1), last, inputs.pop("gold.user_features", None))
    champion = champion_before(lake, day) if settings.train.warm_epochs else None
    learnt = Learnt.load(lake.root / champion.path) if champion and champion.version != POPULARITY else None
    catalogue = reduced(load_catalogue(lake, day, version), settings.train.vector_dim, learnt.catalogue.axes if learnt else {})
    validated = [last - timedelta(days=back) for back in reversed(range(settings.train.validation_days if settings.train.patience else 0))]
    last -= timedelta(days=len(validated))
    data = TrainingData.load(lake, catalogue, version, first, last, len(validated), settings.train.context, features)
    train = settings.train.model_copy(update={"critics": learnt.network.config.critics}) if learnt and not settings.train.critics else settings.train
    train, event_types, repeats = train.for_size(data.steps, len(catalogue) - 1), tuple(settings.event_types), settings.evaluate.repeats
    if learnt and champion and not goes_on(config_of(train, event_types, repeats), learnt.network.config):
        learnt = None
        if ranks.is_first:
            print(f"train: begins from nothing, as the settings ask for another network than that of {champion.version}.", file=sys.stderr)
    shards = ShardManifest.of(lake, first, last + timedelta(days=len(validated)), version).shards
    manifest = {
        "day": str(day),
        "trained_from": str(first),
        "trained_to": str(last),
        "validated_on": [*map(str, validated)],
        "inputs": inputs | features.inputs,
        "shards": [shard.content for shard in shards],
        "revision": revision(),
        "seed": settings.train.seed,
        "began_with": champion.version if champion and learnt else None,
        "settings": {name: getattr(settings, name).model_dump() for name in ("train", "evaluate", "episodes")},
        "event_types": {name: event_type.model_dump() for name, event_type in settings.event_types.items()},
    }
    if ranks.count > 1:
        manifest["ranks"] = ranks.count
    run_version = _version(day, manifest)
    if ranks.is_first:
        lake.ensure("gold.policies")
    draft = lake.root / POLICIES / f"{run_version}.checkpoint"
    fitted = fit(data, event_types, train, repeats, device_of_choice(), draft, learnt, ranks=ranks)
    if not ranks.is_first:
        return
    if fitted is None:
        raise Interrupted(f"The training of {run_version} was ended by SIGTERM. What it has learnt is saved: the same command goes on.")
    network, scale = fitted

    evening = DecayedCounts.of(data.counts, len(catalogue), day_number(last) + 1, 1).features()[0]
    rows = []
    for head, (name, policy) in enumerate(train.each(data.counts.has_refusals).items()):
        own = manifest | ({"policy": name} if name else {})
        policy_version = _version(day, own)
        with whole_folder(lake.root / POLICIES / policy_version, last=MANIFEST) as folder:
            save_policy(folder, network.alone(head), catalogue, evening, {"reward_scale": scale, "train": policy.model_dump()}, own)
        row = {
            "policy_version": policy_version,
            "name": name or None,
            "path": f"{POLICIES}/{policy_version}",
            "trained_from": first,
            "trained_to": last,
            "steps": int(data.counts.steps.sum()),
            "items": len(catalogue) - 1,
            "manifest": json.dumps(own, sort_keys=True),
            "day": day,
        }
        rows.append(row)
    lake.replace("gold.policies", pa.Table.from_pylist(rows, lake.schema("gold.policies")), "train", [day], inputs | features.inputs)


def _version(day: date, manifest: dict[str, Any]) -> str:
    return f"{day}-{hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:8]}"
