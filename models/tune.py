"""Looks for better settings of the learner: `nightjar tune`.

Every trial learns from the training days but the last train.validation_days, and is judged on these as `evaluate` judges a night. The
days that `evaluate` holds out are not looked at: they judge what comes out. The first trial is of today's settings. One that is behind
the median of the others after an epoch is given up (Optuna's MedianPruner).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from jobs.contracts.errors import BadSettings, FolderUnwritable, Interrupted, OtherStudy, TooLittleData, TrainingFailed
from jobs.lake import Lake
from jobs.settings import Settings, Train, config_path
from jobs.storage import SCHEME, write_whole
from models.components import reduced
from models.data import DailyCounts, Floats, day_number, load_availability, load_catalogue, load_steps, version_as_of
from models.evaluate import Court
from models.events import Candidates, until
from models.gate import Measure
from models.learner import fit
from models.metrics import Estimate
from models.network import ENCODERS, Network
from models.policy import Policy, device_of_choice
from models.popularity import DecayedCounts
from models.shards import ShardManifest
from models.training_data import TrainingData
from models.user_features import FeatureFiles

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

console = Console(stderr=True, highlight=False)


def tune(lake: Lake, settings: Settings, day: date, trials: int, timeout: float | None, storage: Path) -> None:
    """Go on to so many trials in all, and write the best settings beside `storage`, the record of the trials; none begins after `timeout` minutes.

    Raises NotReady, FutureData and TooLittleData as `models.train.run`; TooLittleData when the validation days have nothing to judge by;
    OtherStudy when `storage` holds something else; FolderUnwritable when it can't be written; BadSettings when the settings file has a
    form that can't be changed; TrainingFailed when today's settings can't be learnt with; Interrupted when a signal has ended it.
    """
    window = Window.load(lake, settings, day)
    study = _open(storage, str(day), window.basis)
    console.print(f"tune: {window.metric} on {window.days}, {window.reason}", soft_wrap=True)
    began = monotonic()
    with _asked_to_end() as is_asked_to_end:
        while len(_finished(study)) < trials and not is_asked_to_end() and (timeout is None or monotonic() - began < 60 * timeout):
            _try(study, window, trials)
        is_ended = is_asked_to_end()
    if study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        place = _write(storage.with_suffix(".toml"), study, window, day)
        print(f"{_told(study, window)}\n{place}: these settings, for --config.")
    if is_ended and len(_finished(study)) < trials:
        raise Interrupted(f"Tuning was ended after {len(_finished(study))} of {trials} trials, which are stored in {storage}. The same command goes on.")


@dataclass(frozen=True)
class Window:
    """The validation days: what a trial learns from, what judges it, and by which metric."""

    settings: Settings
    train: Train  # today's, as of `for_size` and `for_log`, of one policy
    data: TrainingData
    court: Court
    popularity: Floats  # of the evening before
    metric: str
    reason: str
    days: str
    basis: dict[str, Any]  # what trials have to have in common to be compared

    @classmethod
    def load(cls, lake: Lake, settings: Settings, day: date) -> Window:
        """The last train.validation_days before the days that evaluate holds out."""
        first, last = day - timedelta(days=settings.train.window_days - 1), day - timedelta(days=settings.evaluate.holdout_days)
        begin = last - timedelta(days=settings.train.validation_days - 1)
        version, event_types = version_as_of(lake, first, day), tuple(settings.event_types)
        catalogue = reduced(load_catalogue(lake, last, version), settings.train.vector_dim)
        days_before = begin - timedelta(days=1)
        known = lake.versions(["gold.user_features"]).get("gold.user_features")
        features = FeatureFiles.load(lake, settings.train.user_features, first - timedelta(days=1), last, known)
        data = TrainingData.load(lake, catalogue, version, first, days_before, settings.train.validation_days, settings.train.context, features)
        steps = features.beside(load_steps(lake, catalogue, event_types, first, last, version), day_number(begin), day_number(last))
        available = load_availability(lake, catalogue, DailyCounts.of([steps]), begin, last)
        court = Court(steps, until(steps, day_number(days_before)), Candidates(available, day_number(begin), settings.evaluate.repeats), settings)
        ndcg = f"ndcg@{settings.evaluate.cutoff}"
        if not data.counts.has_refusals:
            metric, reason = ndcg, "as the log is of interactions alone: what a user does next is what is sought."
        elif court.is_logged:
            metric, reason = court.value_metric, "as the log holds refusals and propensities: what lists of the policy would have earned."
        else:
            metric, reason = ndcg, "as the log holds no propensities: what lists would have earned can only be guessed."
        return cls(
            settings,
            settings.train.model_copy(update={"policies": {}}).for_size(data.steps, len(catalogue) - 1).for_log(data.counts.has_refusals),
            data,
            court,
            DecayedCounts.of(data.counts, len(catalogue), day_number(begin), 1).features()[0],
            metric,
            reason,
            str(begin) if begin == last else f"{begin}..{last}",
            {
                "shards": [shard.content for shard in ShardManifest.of(lake, first, last, version).shards],
                "features": [[file.rows, file.bytes] for file in features.files],
                "event_types": {name: event_type.model_dump() for name, event_type in settings.event_types.items()},
                **{name: getattr(settings, name).model_dump() for name in ("train", "evaluate", "score")},
            },
        )

    def space(self) -> dict[str, BaseDistribution]:
        """What is tried of [train]; today's value lies within."""
        train = self.train

        def number(name: str, low: float, high: float, log: bool = False) -> FloatDistribution:
            today = getattr(train, name)
            return FloatDistribution(min(low, today), max(high, today), log=log and today > 0)

        today = train.batch_steps
        assert today is not None
        dims = sorted({train.dim, *(dim for dim in (32, 64, 128) if dim % (2 * train.heads) == 0)})
        space: dict[str, BaseDistribution] = {
            "learning_rate": number("learning_rate", 3e-4, 1e-2, log=True),
            "batch_steps": IntDistribution(min(256, today), max(4096, today), log=True),
            "dim": CategoricalDistribution(dims),
            # Attention shares the width among its heads, in pairs.
            "encoder": CategoricalDistribution(sorted(ENCODERS) if train.dim % (2 * train.heads) == 0 else [train.encoder]),
            "layers": IntDistribution(1, max(3, train.layers)),
            "dropout": number("dropout", 0.0, 0.5),
            "gamma": number("gamma", 0.5, 0.98),
        }
        if train.step_id_dropout is not None:
            space["step_id_dropout"] = number("step_id_dropout", 0.0, 0.95)
        if train.backup == "logged":
            space["mixing"] = number("mixing", 0.8, 1.0)
        if not self.data.counts.has_refusals:
            space["supervised"] = number("supervised", 0.0, 1.0)
            if train.gap is None:
                space["alpha"] = number("alpha", 0.01, 200.0, log=True)
        return space

    def today(self) -> dict[str, Any]:
        """The values of the space that the settings have."""
        return {name: getattr(self.train, name) for name in self.space()}

    def judge(self, network: Network) -> dict[str, Estimate]:
        """Metrics over all steps of the window. Raises TooLittleData when there is nothing to judge by."""
        catalogue = self.data.catalogue
        policy = Policy("trial", network.alone(0), catalogue.item_ids, catalogue.categories, catalogue, tuple(self.settings.event_types), self.popularity)
        judged = dict(self.court.judge_steps(policy))
        if judged[self.metric].samples == 0:
            raise TooLittleData(f"There is nothing to judge by on {self.days}: no step was rewarded. Raise train.validation_days, or land more days.")
        return judged


def _try(study: optuna.Study, window: Window, trials: int) -> None:
    """One trial, stored: today's settings, as long as there is none of them, else what Optuna proposes."""
    today = window.today()
    if not any(trial.params == today for trial in _finished(study)):
        study.enqueue_trial(today)
    # A seed a trial: a study that is gone on with draws what it would have drawn, and a trial that was killed comes again.
    study.sampler = optuna.samplers.TPESampler(seed=window.settings.train.seed + len(_finished(study)))
    trial = study.ask(window.space())
    is_today = trial.params == today
    try:
        judged = _judged(trial, window, is_today)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        outcome = "given up"
    except TrainingFailed:
        if is_today:
            raise
        study.tell(trial, state=TrialState.PRUNED)
        outcome = "the loss is no number"
    else:
        trial.set_user_attr("metrics", {name: [estimate.value, *(estimate.interval or (None, None))] for name, estimate in judged.items()})
        trial.set_user_attr("draws", judged[window.metric].draws.tolist())
        study.tell(trial, judged[window.metric].value)
        outcome = f"{window.metric} {judged[window.metric].value:.4f}, best {study.best_value:.4f}"
    tried = "today's settings" if is_today else ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
    console.print(f"tune: trial {len(_finished(study))} of {trials}: {outcome}; {tried}", soft_wrap=True)


def _judged(trial: Trial, window: Window, is_today: bool) -> dict[str, Estimate]:
    """Learn and judge. Raises TrialPruned when the trial is not worth going on with; today's settings always are."""
    train = window.train.model_copy(update=trial.params)

    def report(epoch: int, network: Network) -> None:
        if epoch < train.epochs:
            trial.report(window.judge(network)[window.metric].value, epoch)
            if trial.should_prune() and not is_today:
                raise optuna.TrialPruned

    fitted = fit(window.data, tuple(window.settings.event_types), train, window.settings.evaluate.repeats, device_of_choice(), after_epoch=report)
    assert fitted is not None  # only one with a draft is ended
    return window.judge(fitted[0])


def _open(storage: Path, name: str, basis: Mapping[str, Any]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if storage.suffix == ".toml":
        raise OtherStudy(f"The record of the trials can't be {storage}: the settings that come out are written there. Name a file of another ending.")
    try:
        storage.parent.mkdir(parents=True, exist_ok=True)
        journal = JournalStorage(JournalFileBackend(str(storage)))
    except OSError as error:
        raise FolderUnwritable(f"{storage} can't be written ({error}). Name another file with --storage.") from error
    except (ValueError, KeyError) as error:
        raise OtherStudy(f"{storage} is no record of trials, or was cut off. Name another file with --storage, or remove it.") from error
    study = optuna.create_study(storage=journal, study_name=name, direction="maximize", load_if_exists=True, pruner=optuna.pruners.MedianPruner())
    known = study.user_attrs.get("basis", basis)
    if differing := sorted(key for key in basis if known.get(key) != json.loads(json.dumps(basis[key]))):
        raise OtherStudy(
            f"The trials in {storage} can't be compared with new ones: {', '.join(differing)} differ. Name another file with --storage, or remove it."
        )
    study.set_user_attr("basis", basis)
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=_FINISHED)


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C has come; the second one does what it always does."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        heard.append(number)
        signal.signal(number, before[number])
        print("tune: ends once this trial is stored; the same again ends it at once.", file=sys.stderr)

    before: dict[int, Any] = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(study: optuna.Study, window: Window) -> str:
    """What today's settings give on the window, and the best ones, metric by metric."""
    before, after = _before(study, window), study.best_trial
    figures = [f"{name:30}{_figure(before, name):30}{_figure(after, name)}" for name in after.user_attrs["metrics"]]
    changes = [f"{name} = {_short(after.params[name])} ({_short(value)})" for name, value in window.today().items() if value != after.params[name]]
    told = [f"{window.metric} gains {_gain(before, after)} on the days that it was chosen by.", ", ".join(changes) or "Nothing changes."]
    return "\n".join([f"{window.days:30}{'today':30}trial {_ordinal(study, after)}", *figures, "", *told])


def _ordinal(study: optuna.Study, trial: FrozenTrial) -> int:
    """Its place among those that are finished, from 1."""
    return 1 + sum(other.number < trial.number for other in _finished(study))


def _before(study: optuna.Study, window: Window) -> FrozenTrial:
    """The trial of today's settings."""
    return next(trial for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]) if trial.params == window.today())


def _figure(trial: FrozenTrial, metric: str) -> str:
    value, lower, upper = trial.user_attrs["metrics"][metric]
    return str(Measure(value, lower, upper, 0))


def _gain(before: FrozenTrial, after: FrozenTrial) -> Measure:
    """The difference in the objective, paired: the same resamples of users."""
    known, found = (Estimate(trial.value or 0.0, np.array(trial.user_attrs["draws"]), 0) for trial in (before, after))
    gain = found.minus(known)
    lower, upper = gain.interval or (None, None)
    return Measure(gain.value, lower, upper, 0)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write(place: Path, study: optuna.Study, window: Window, day: date) -> Path:
    """The settings file with what the best trial changes, as a file of its own; relative paths lead where they led."""
    before, best, config = _before(study, window), study.best_trial, config_path()
    text = config.read_text() if config.is_file() else ""
    raw = tomllib.loads(text)
    changes: dict[tuple[str, str], Any] = {("train", name): value for name, value in best.params.items() if value != window.today()[name]}
    for section, key, default in (("", "lake", "lake"), ("landing", "folder", "landing")):
        known = (raw.get(section, {}) if section else raw).get(key, default)
        if not known.startswith(SCHEME) and not Path(known).is_absolute():
            changes[section, key] = os.path.relpath(config.parent / known, place.parent)
    told = " ".join(["nightjar tune", f"--day {day}", f"--trials {len(_finished(study))}"])
    header = [
        f"# Settings of {config.name} but for {', '.join(name for section, name in changes if section == 'train') or 'nothing'} of [train],",
        f"# found on {datetime.now(UTC).date()} by `{told}`: trial {_ordinal(study, best)} of {len(_finished(study))}.",
        f"# {window.metric} on {window.days}: {_figure(before, window.metric)} before, {_figure(best, window.metric)} after; 95% intervals.",
        f"# The difference is {_gain(before, best)}, on the days that it was chosen by: those that evaluate holds out judge it anew.",
    ]
    try:
        write_whole(place, "\n".join([*header, "", changed(text, changes)]))
    except OSError as error:
        raise FolderUnwritable(f"{place} can't be written ({error}).") from error
    return place


def changed(text: str, changes: dict[tuple[str, str], Any]) -> str:
    """A settings file with other values, by section ("" = above all) and key: lines are replaced, or added to their section.

    Raises BadSettings for a file in which that does not come out, as one with `train = {…}` on a line.
    """
    lines, expected = text.splitlines(), tomllib.loads(text)
    for (section, key), value in reversed(changes.items()):  # each is put on top of its section
        headers = [place for place, line in enumerate(lines) if re.match(r"\s*\[", line)]
        begin = 0
        if section:
            begin = next((place + 1 for place in headers if re.match(rf"\s*\[\s*{section}\s*\]", lines[place])), 0)
            if begin == 0:
                lines += ["", f"[{section}]"]
                begin = len(lines)
        end = next((place for place in headers if place >= begin), len(lines))
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for place in range(begin, end):
            if re.match(rf"\s*{key}\s*=", lines[place]):
                lines[place] = line
                break
        else:
            lines.insert(begin, line)
        (expected.setdefault(section, {}) if section else expected)[key] = value
    made = "\n".join(lines) + "\n"
    try:
        is_right = tomllib.loads(made) == expected
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        wanted = ", ".join(f"{f'{section}.{key}' if section else key} = {json.dumps(value)}" for (section, key), value in changes.items())
        raise BadSettings(f"{config_path()} has a form that can't be changed line by line: write [train] as a section. To be set in it: {wanted}.")
    return made
