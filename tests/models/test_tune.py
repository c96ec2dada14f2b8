from __future__ import annotations

import math
import os
import signal
import tomllib
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pytest
import torch

from jobs.contracts.errors import BadSettings, FolderUnwritable, Interrupted, NotReady, OtherStudy, TooLittleData, TrainingFailed
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, PolicySettings, Settings, Train, load_settings
from models import tune as tuning
from models.data import DailyCounts, day_number, load_availability, load_catalogue, load_steps
from models.learner import fit
from models.policy import Policy, device_of_choice
from models.popularity import DecayedCounts
from models.training_data import TrainingData
from models.tune import Window, changed, tune
from tests.models.learner_lake import DAYS, D, land

SMALL = Train(window_days=DAYS, dim=8, heads=1, epochs=2, context=4, batch_steps=64, learning_rate=0.01)
CONFIG = """# Of the shop.
lake = "lake" # here

[train] # the learner
window_days = 6
dim = 8
heads = 1
epochs = 2
context = 4
batch_steps = 64
learning_rate = 0.01

[evaluate]
cutoff = 3
bootstrap = 20
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a file beside the lake, whose trials are small."""
    (tmp_path / "nightjar.toml").write_text(CONFIG)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "nightjar.toml"))
    monkeypatch.setattr(Window, "space", smaller(Window.space))
    return load_settings()


def smaller(space: Callable[[Window], dict[str, Any]]) -> Callable[[Window], dict[str, Any]]:
    """The space without what makes a trial slow."""
    return lambda window: {name: values for name, values in space(window).items() if name not in ("dim", "encoder", "layers", "batch_steps")}


def relanded(lake: Lake, change: Callable[[dict[str, Any]], dict[str, Any]], **sizes: int) -> None:
    """The lake of the learner's tests, with other transitions."""
    land(lake, **({"users": 12, "items": 7} | sizes))
    rows = lake.read("gold.transitions").to_pylist()
    days = sorted({row["day"] for row in rows})
    lake.replace("gold.transitions", pa.Table.from_pylist([change(row) for row in rows], lake.schema("gold.transitions")), "transitions", days, {})


def trials_of(storage: Path) -> list[optuna.trial.FrozenTrial]:
    journal = optuna.storages.journal.JournalStorage(optuna.storages.journal.JournalFileBackend(str(storage)))
    return optuna.load_study(study_name=str(D), storage=journal).trials


def test_the_same_command_goes_on_to_so_many_trials(lake: Lake, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the same ones as without a break; it says what it goes by."""
    land(lake, users=12, items=7)
    for trials in (2, 3, 3):
        tune(lake, settings, D, trials, None, tmp_path / "tune" / "broken.log")
    tune(lake, settings, D, 3, None, tmp_path / "tune" / "whole.log")
    broken, whole = trials_of(tmp_path / "tune" / "broken.log"), trials_of(tmp_path / "tune" / "whole.log")
    assert [(trial.params, trial.value) for trial in broken] == [(trial.params, trial.value) for trial in whole]
    assert len({trial.params["learning_rate"] for trial in whole}) == len(whole) == 3
    assert whole[0].params == {"learning_rate": 0.01, "dropout": 0.1, "step_id_dropout": 0.8, "gamma": 0.9, "mixing": 0.95}
    told = capsys.readouterr()
    assert "tune: snips on 2026-01-05, as the log holds refusals and propensities" in told.err
    assert "tune: trial 1 of 2: snips 0." in told.err
    assert {"snips", "ndcg@3", "recall@3", "effective_sample_size"} <= {line.split(" ")[0] for line in told.out.splitlines()}
    assert f"{tmp_path}/tune/whole.toml: these settings" in told.out


def test_a_trial_that_was_killed_comes_again(lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's, which is the first, and one that Optuna proposes; nothing was said of how they ended."""

    def killed(*arguments: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    land(lake, users=3, items=4)
    tune(lake, settings, D, 3, None, tmp_path / "whole.log")
    for finished in (1, 3):
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "fit", killed)
            with pytest.raises(KeyboardInterrupt):
                tune(lake, settings, D, finished, None, tmp_path / "broken.log")
        tune(lake, settings, D, finished, None, tmp_path / "broken.log")
    whole, broken = trials_of(tmp_path / "whole.log"), trials_of(tmp_path / "broken.log")
    assert [trial.state.name for trial in broken] == ["RUNNING", "COMPLETE", "RUNNING", "COMPLETE", "COMPLETE"]
    assert [(trial.params, trial.value) for trial in broken if trial.value is not None] == [(trial.params, trial.value) for trial in whole]


def test_the_winner_is_a_settings_file(lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs from today's in [train] alone, leads to the same lake, and is no worse on the window."""
    land(lake, users=12, items=7)
    storage = tmp_path / "tune" / f"{D}.log"
    tune(lake, settings, D, 4, None, storage)
    trials = trials_of(storage)
    best = max((trial for trial in trials if trial.value is not None), key=lambda trial: trial.value or 0.0)
    assert best.value is not None
    assert trials[0].value is not None
    assert best.value >= trials[0].value
    monkeypatch.setenv(CONFIG_VARIABLE, str(storage.with_suffix(".toml")))
    found = load_settings()
    assert (Path(found.lake).resolve(), Path(found.landing.folder).resolve()) == (tmp_path / "lake", tmp_path / "landing")
    places = {"lake": settings.lake, "landing": settings.landing}
    assert found.model_copy(update=places | {"train": settings.train}) == settings
    assert found.train.for_log(True) == settings.train.for_log(True).model_copy(update=best.params)
    text = storage.with_suffix(".toml").read_text()
    assert f"nightjar tune --day {D} --trials 4" in text
    assert f"# snips on 2026-01-05: {trials[0].value:.4f} (" in text
    assert f"# The difference is {best.value - trials[0].value:.4f} (" in text
    assert all(line in text for line in ("# Of the shop.", "[train] # the learner", "cutoff = 3"))


@pytest.mark.parametrize("change", ["rewards of held-out days", "rewards of the window"])
def test_held_out_days_are_not_looked_at(lake: Lake, settings: Settings, tmp_path: Path, change: str) -> None:
    values = []
    changed_day = D if change == "rewards of held-out days" else D - timedelta(days=1)
    for number in range(2):
        relanded(lake, lambda row, number=number: row | {"reward": 1.0 - row["reward"]} if number and row["day"] == changed_day else row)  # type: ignore[misc]
        tune(lake, settings, D, 2, None, tmp_path / f"{number}.log")
        values.append([trial.value for trial in trials_of(tmp_path / f"{number}.log")])
    assert (values[0] == values[1]) == (change == "rewards of held-out days")


def hand_made(lake: Lake, settings: Settings, train: Train) -> tuple[Policy, Any, Any]:
    """The policy that learns from the days before the window, the steps up to the window's end, and what is available on it."""
    first, window = D - timedelta(days=DAYS - 1), D - timedelta(days=1)
    version, catalogue = lake.version("gold.transitions"), load_catalogue(lake, window)
    data = TrainingData.load(lake, catalogue, version, first, window - timedelta(days=1), 0, train.context)
    fitted = fit(data, tuple(settings.event_types), train, True, device_of_choice())
    assert fitted is not None
    before = load_steps(lake, catalogue, tuple(settings.event_types), first, window - timedelta(days=1))
    popularity = DecayedCounts.of(DailyCounts.of([before]), len(catalogue), day_number(window), 1).features()[0]
    steps = load_steps(lake, catalogue, tuple(settings.event_types), first, window)
    policy = Policy("p", fitted[0], catalogue.item_ids, catalogue.categories, catalogue, tuple(settings.event_types), popularity)
    return policy, steps, load_availability(lake, catalogue, DailyCounts.of([steps]), window, window)[0]


def placed(policy: Policy, steps: Any, available: Any) -> list[tuple[int, float, int]]:
    """Of each step of the window's day: rank, reward, candidates."""
    found = []
    for user in range(len(steps.user_ids)):
        for place in range(steps.offsets[user], steps.offsets[user + 1]):
            if steps.day[place] == day_number(D - timedelta(days=1)):
                scores = policy.score(steps, np.array([user]), np.array([place]), steps.time[[place]])[0]
                candidates = {*np.flatnonzero(available).tolist(), int(steps.item[place])}
                rank = sum(scores[item] >= scores[steps.item[place]] for item in candidates)
                found.append((rank, float(steps.reward[place]), len(candidates)))
    return found


def test_the_first_trial_is_todays_policy_by_ndcg(lake: Lake, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log of interactions alone: NDCG@3 of the window's steps, worked out step by step."""
    relanded(lake, lambda row: row | {"reward": 1.0, "response": "click", "propensity": None})
    tune(lake, settings, D, 1, None, tmp_path / "t.log")
    assert "ndcg@3 on 2026-01-05, as the log is of interactions alone" in capsys.readouterr().err
    (trial,) = trials_of(tmp_path / "t.log")
    assert trial.params == {"learning_rate": 0.01, "dropout": 0.1, "gamma": 0.9, "mixing": 0.95, "alpha": 50.0, "supervised": 0.0}
    gains = [1 / math.log2(1 + rank) if rank <= 3 else 0.0 for rank, _, _ in placed(*hand_made(lake, settings, settings.train))]
    assert trial.value == pytest.approx(sum(gains) / len(gains))


def test_the_first_trial_is_todays_policy_by_value(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    """A log with refusals and propensities 1/2: SNIPS, worked out step by step. Lists have 3 places, and 2% are drawn among all."""
    land(lake, users=12, items=7)
    tune(lake, settings, D, 1, None, tmp_path / "t.log")
    (trial,) = trials_of(tmp_path / "t.log")
    judged = placed(*hand_made(lake, settings, settings.train))
    weights = [min(2 * (0.98 * (rank <= 3) / 3 + 0.02 / candidates), math.sqrt(len(judged))) for rank, _, candidates in judged]
    assert trial.value == pytest.approx(sum(weight * reward for weight, (_, reward, _) in zip(weights, judged, strict=True)) / sum(weights))


def test_patience_counts_in_a_trial_too(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    """As training does it: the best epoch of those that the window allows."""
    land(lake, users=12, items=7)
    train = settings.train.model_copy(update={"patience": 1, "epochs": 4, "learning_rate": 0.3})
    tune(lake, settings.model_copy(update={"train": train}), D, 1, None, tmp_path / "t.log")
    (trial,) = trials_of(tmp_path / "t.log")
    assert len(trial.intermediate_values) < 4


def test_a_trial_that_is_behind_is_given_up(lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the median of five: pruned, and counted; today's settings never are."""
    land(lake, users=3, items=4)
    judge, seen = Window.judge, []

    def worse(window: Window, network: Any) -> Any:
        seen.append(network)
        judged = judge(window, network)
        estimate = judged[window.metric]
        return judged | {window.metric: type(estimate)(-float(len(seen)), estimate.draws, estimate.samples)}

    monkeypatch.setattr(Window, "judge", worse)
    tune(lake, settings, D, 7, None, tmp_path / "t.log")
    assert [trial.state.name for trial in trials_of(tmp_path / "t.log")] == ["COMPLETE"] * 5 + ["PRUNED"] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_the_trial_is_stored(
    lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """In the middle of the second trial. What there is by then is written, and the same command goes on."""
    land(lake, users=3, items=4)
    tune(lake, settings, D, 1, None, tmp_path / "t.log")
    (tmp_path / "t.toml").unlink()
    judge, left = Window.judge, iter([number])

    def signalled(window: Window, network: Any) -> Any:
        for each in left:
            os.kill(os.getpid(), each)
        return judge(window, network)

    monkeypatch.setattr(Window, "judge", signalled)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=r"ended after 2 of 3 trials, which are stored in .*t\.log") as caught:
        tune(lake, settings, D, 3, None, tmp_path / "t.log")
    assert caught.value.status == 0
    assert "ends once this trial is stored" in capsys.readouterr().err
    assert (tmp_path / "t.toml").is_file()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    tune(lake, settings, D, 3, None, tmp_path / "t.log")
    assert [trial.state.name for trial in trials_of(tmp_path / "t.log")] == ["COMPLETE"] * 3


def test_no_trial_begins_after_the_timeout(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    land(lake, users=3, items=4)
    tune(lake, settings, D, 5, 0, tmp_path / "t.log")
    assert trials_of(tmp_path / "t.log") == []
    assert not (tmp_path / "t.toml").exists()


def test_a_trial_whose_loss_is_no_number_is_given_up_unless_it_is_todays(
    lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(lake, users=3, items=4)

    def failing(*arguments: Any, **more: Any) -> Any:
        raise TrainingFailed("no number")

    tune(lake, settings, D, 1, None, tmp_path / "t.log")
    monkeypatch.setattr(tuning, "fit", failing)
    tune(lake, settings, D, 2, None, tmp_path / "t.log")
    assert [trial.state.name for trial in trials_of(tmp_path / "t.log")] == ["COMPLETE", "PRUNED"]
    with pytest.raises(TrainingFailed, match="no number"):
        tune(lake, settings, D, 2, None, tmp_path / "other.log")


def test_what_cannot_be_gone_on_with(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    land(lake, users=3, items=4)
    storage = tmp_path / "t.log"
    tune(lake, settings, D, 1, None, storage)
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 1})})
    with pytest.raises(OtherStudy, match=r"t\.log can't be compared with new ones: train differ\. Name another file"):
        tune(lake, other, D, 2, None, storage)
    (tmp_path / "notes.txt").write_text("not of Optuna\nnor of anybody\n")
    with pytest.raises(OtherStudy, match=r"notes\.txt is no record of trials"):
        tune(lake, settings, D, 1, None, tmp_path / "notes.txt")
    with pytest.raises(OtherStudy, match=r"can't be .*nightjar\.toml"):
        tune(lake, settings, D, 1, None, tmp_path / "nightjar.toml")
    with pytest.raises(FolderUnwritable, match=r"--storage"):
        tune(lake, settings, D, 1, None, storage / "below.log")


def test_nothing_to_tune_by(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"gold\.transitions"):
        tune(lake, settings, date(2025, 1, 1), 1, None, tmp_path / "t.log")
    relanded(lake, lambda row: row | {"reward": 0.0, "propensity": None})
    with pytest.raises(TooLittleData, match=r"nothing to judge by on 2026-01-05: no step was rewarded"):
        tune(lake, settings, D, 1, None, tmp_path / "t.log")
    wide = settings.model_copy(update={"train": settings.train.model_copy(update={"validation_days": DAYS})})
    with pytest.raises(TooLittleData, match=r"No day is left to learn from"):
        tune(lake, wide, D, 1, None, tmp_path / "u.log")


@pytest.mark.parametrize(
    "text",
    ["", "[train]\nepochs = 1\n", 'lake = "a"\n[train]\n# epochs = 9\nepochs=2 # two\n[score]\n\n', "[score]\ntop_n = 5", "[event_types.click]\n[ train ]\n"],
)
def test_values_are_changed_in_place(text: str) -> None:
    changes: dict[tuple[str, str], Any] = {("train", "epochs"): 7, ("train", "encoder"): "gru", ("", "lake"): "../ä", ("train", "dropout"): 1e-05}
    known = tomllib.loads(text)
    train = known.get("train", {}) | {"epochs": 7, "encoder": "gru", "dropout": 1e-05}
    made = changed(text, changes)
    assert tomllib.loads(made) == known | {"train": train, "lake": "../ä"}
    assert made.index("encoder") < made.index("dropout")


@pytest.mark.parametrize("text", ["train = { epochs = 2 }\n", "train.epochs = 2\n"])
def test_a_form_that_cannot_be_changed_line_by_line(text: str) -> None:
    with pytest.raises(BadSettings, match=r"write \[train\] as a section\. To be set in it: train\.epochs = 7\."):
        changed(text, {("train", "epochs"): 7})


def test_trials_are_of_one_policy_whatever_is_named(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    """Ranked by its own head: what the settings name beside it, or learn of the log's behaviour, takes no part."""
    land(lake, users=12, items=7)
    named = {"bold": PolicySettings(gamma=0.0), "close": PolicySettings(alpha=5.0)}
    for name, policies in (("one", {}), ("two", named)):
        tune(lake, settings.model_copy(update={"train": settings.train.model_copy(update={"policies": policies})}), D, 1, None, tmp_path / name)
    assert trials_of(tmp_path / "one")[0].value == trials_of(tmp_path / "two")[0].value

    train = settings.train.model_copy(update={"backup": "best", "support": 2})
    window = Window.load(lake, settings.model_copy(update={"train": train}), D)
    fitted = fit(window.data, tuple(settings.event_types), window.train, True, torch.device("cpu"))
    assert fitted is not None
    assert fitted[0].config.behaviour
    beside, alone = (window.judge(made)[window.metric].draws for made in (fitted[0], fitted[0].alone(0)))
    np.testing.assert_array_equal(beside, alone)


def test_the_space_holds_today_whatever_it_is(lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "nightjar.toml"))
    relanded(lake, lambda row: row | {"reward": 1.0})
    unusual = {"learning_rate": 0.5, "dim": 12, "heads": 4, "gamma": 0.0, "alpha": 0.0, "batch_steps": 16, "layers": 5, "step_id_dropout": 0.99}
    window = Window.load(lake, settings.model_copy(update={"train": settings.train.model_copy(update=unusual)}), D)
    space, today = window.space(), window.today()
    assert all(values._contains(values.to_internal_repr(today[name])) for name, values in space.items())
    assert space["encoder"].choices == ("gru",)  # type: ignore[attr-defined]  # 4 heads can't share a width of 12 in pairs
    assert today["alpha"] == 0
