"""What a state knows of its user: the features of the eve, of no later day.

The values say themselves whose they are: user u has 1000 u + d at the end of day d, but for some evenings, of which there is no row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.settings import Evaluate, Score, Settings, Train
from models import evaluate
from models import score as scoring
from models import train as training
from models.data import DAY_SECONDS, Evenings, Ints, Steps, day_number, item_places, load_catalogue
from models.histories import steps_of
from models.learner import fit
from models.loader import HeldBucket, LakeBuckets, LateBuckets, Loader, Packed, Packing, Position, pack
from models.network import item_table, view_of
from models.objective import batch_of
from models.policy import Policy, save_policy
from models.reading import Reading
from models.shards import ShardManifest
from models.tune import Window
from models.user_features import TABLE, FeatureFiles, FeaturePart, measure
from tests.models.learner_cases import EVENT_TYPES, NO_POPULARITY, catalogue, network, random_steps

D = date(2026, 1, 12)
DAYS = [D - timedelta(days=back) for back in reversed(range(11))]
NAME, OTHER = "click_count_7d", "purchase_value_mean_30d"
CPU = torch.device("cpu")
ITEMS = 6


def land(lake: Lake, users: int, step: Callable[[int, date], dict[str, Any] | None], known: Callable[[int, date], float | None]) -> None:
    """One step a user and day at noon, where there is one, and the features of each evening from the one before the first day on, where they are known."""
    rows = [
        {
            "user_id": f"u{user:02}",
            "event_time": datetime(day.year, day.month, day.day, 12, tzinfo=UTC),
            "step": 1,
            "event_type": "impression",
            "first": True,
            "end": "truncated_gap",
            "propensity": 1 / ITEMS,
            "as_of_day": D,
            "day": day,
            "bucket": user % 2,
        }
        | own
        for day in DAYS
        for user in range(users)
        if (own := step(user, day))
    ]
    lake.replace("gold.item_index", pa.Table.from_pylist(
        [{"item": number, "item_id": f"i{number}", "day": DAYS[0]} for number in range(1, ITEMS + 1)], lake.schema("gold.item_index")
    ), "transitions", DAYS, {})  # fmt: skip
    lake.replace("gold.transitions", pa.Table.from_pylist(rows, lake.schema("gold.transitions")), "transitions", DAYS, {})
    know(lake, users, [DAYS[0] - timedelta(days=1), *DAYS], known)


def know(lake: Lake, users: int, days: Sequence[date], known: Callable[[int, date], float | None]) -> None:
    rows = [{"user_id": f"u{user:02}", "day": day, NAME: value} for day in days for user in range(users) if (value := known(user, day)) is not None]
    lake.replace(TABLE, pa.Table.from_pylist(rows, lake.schema(TABLE)), "features", days, {})


def random_step(user: int, day: date) -> dict[str, Any] | None:
    """Of two days of three."""
    rng = np.random.default_rng([user, day_number(day)])
    return None if rng.random() < 0.3 else {"item": int(rng.integers(1, ITEMS + 1)), "reward": float(rng.integers(0, 2))}


def telling(user: int, day: date) -> float | None:
    """Of nobody whose number and day are together a multiple of 5."""
    return None if (user + day_number(day)) % 5 == 0 else 1000.0 * user + day_number(day) - day_number(D)


def buckets_of(lake: Lake, last: date = D) -> LakeBuckets:
    places = item_places(lake, load_catalogue(lake, D))
    files = FeatureFiles.load(lake, [NAME, OTHER], DAYS[0] - timedelta(days=1), last, lake.version(TABLE))
    return LakeBuckets(lake, ShardManifest.of(lake, DAYS[0], last, lake.version("gold.transitions")).shards, places, features=files)


def moments_and_known(packed: Packed) -> list[tuple[int, float]]:
    """The day of the moment of each state, and what it knows, in an order that no value changes."""
    batch = batch_of(packed, 0, 1.0, CPU)
    there = packed.segment > 0
    days = ((packed.time + packed.wait) // DAY_SECONDS)[there].tolist()
    return list(zip(days, batch.known[there][:, 0].nan_to_num(-1).tolist(), strict=True))


def test_a_state_knows_the_eve_of_its_moment(lake: Lake) -> None:
    """In windows of at most 4 steps, whoever's they are; the state after a user's last step is that of the midnight that ends the bucket's last day."""
    land(lake, 9, random_step, telling)
    buckets, seen = buckets_of(lake), 0
    for place in range(2):
        bucket, log = buckets.read(place)
        packed = pack(log, 4, 12, np.random.default_rng(0))
        known = batch_of(packed, 0, 1.0, CPU).known
        assert known[..., 1].isnan().all(), "the other one is null everywhere"
        for row in range(len(packed)):
            for segment in range(1, int(packed.segment[row].max()) + 1):
                slots = packed.segment[row] == segment
                eves = ((packed.time + packed.wait)[row, slots] // DAY_SECONDS - 1 - day_number(D)).tolist()
                found = known[row, slots, 0].tolist()
                users = {round((value - eve) / 1000) for value, eve in zip(found, eves, strict=True) if not np.isnan(value)}
                assert len(users) <= 1, "a window is of one user"
                for user in users:
                    assert user % 2 == bucket
                    expected = [telling(user, D + timedelta(days=eve)) for eve in eves]
                    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float64))
                    seen += len(found)
        assert len(packed.features) <= 1 + len({(int(user), int(day)) for user, day in zip(log.users(), log.day, strict=True)}) + len(log.user_ids)
    assert seen > 60


@pytest.mark.parametrize("changed", DAYS[3:8:2])
def test_what_is_known_of_the_day_itself_or_later_changes_no_state_of_that_day(lake: Lake, changed: date) -> None:
    land(lake, 9, random_step, telling)
    before = [pack(buckets_of(lake).read(place)[1], 4, 12, np.random.default_rng(0)) for place in range(2)]
    know(lake, 9, [day for day in DAYS if day >= changed], lambda user, day: 7e6 + user)
    after = [pack(buckets_of(lake).read(place)[1], 4, 12, np.random.default_rng(0)) for place in range(2)]
    later = 0
    for one, other in zip(before, after, strict=True):
        for (day, known), (same_day, found) in zip(moments_and_known(one), moments_and_known(other), strict=True):
            assert day == same_day
            assert (known == found) == (day <= day_number(changed))
            later += known != found
    assert later > 0


def test_workers_and_epochs_change_nothing_of_what_is_known(lake: Lake) -> None:
    land(lake, 9, random_step, telling)
    loaders = [Loader(buckets_of(lake), Packing(4, 12, 1), 0, workers=workers) for workers in (0, 2)]
    alone, helped = ([moments_and_known(packed) for packed, _ in loader.batches(Position())] for loader in loaders)
    assert alone == helped
    (_, log), late = buckets_of(lake).read(0), LateBuckets(buckets_of(lake), day_number(DAYS[6]), 4).read(0)[1]
    assert late.known is not log.known
    np.testing.assert_array_equal(late.known.values, log.known.values)


def test_an_evening_is_found_by_user_and_day() -> None:
    """Users 0 and 2 on days 10, 11 and 11; after the last day, 12, the last evening holds, of which nobody but user 1 is known."""
    keys = np.array([10, 11, (1 << 32) + 12, (2 << 32) + 11])
    known = Evenings(("a", "b"), keys, np.array([[np.nan] * 2, [1, 2], [3, np.nan], [5, 6], [7, 8]], dtype=np.float32), 12)
    users, days = np.array([0, 0, 0, 1, 1, 1, 2, 3]), np.array([9, 10, 11, 11, 12, 99, 11, 11])
    assert known.rows(users, days).tolist() == [0, 1, 2, 0, 3, 3, 4, 0]
    np.testing.assert_array_equal(known.of(np.array([2, 0]), np.array([11, 11]), ["b", "c"]), [[8, np.nan], [np.nan, np.nan]])
    alone = known.alone(np.array([2, 3, 0]))
    assert alone.rows(np.array([0, 1, 2, 2]), np.array([11, 11, 10, 11])).tolist() == [1, 0, 2, 3]
    np.testing.assert_array_equal(alone.of(np.array([0, 2]), np.array([11, 10]), ["a"]), [[7], [1]])
    given = Evenings.given([{"a": 1, "b": None}, {}, {"c": 2.5}])
    np.testing.assert_array_equal(given.of(np.arange(3), np.array([-5, 0, 20_000]), ["a", "c"]), [[1, np.nan], [np.nan, np.nan], [np.nan, 2.5]])
    assert Evenings.none().rows(np.array([0, 1]), -1).tolist() == [0, 0]


def test_who_reads_a_list_stays_who_it_is() -> None:
    """The features go with the user, and after midnight those of the last evening still hold."""
    log = random_steps(3, 4, 9, seed=1)
    log = replace(log, known=Evenings(("a",), np.array([0, 1 << 32, 2 << 32]), np.array([[np.nan], [0], [1], [2]], dtype=np.float32), 0))
    read = Reading(event=1, response=2, seconds=50_000).after(log, np.array([2, 0]), np.array([[1, 2], [3, 4]]), now=DAY_SECONDS + 43_200)
    users = np.arange(2)
    np.testing.assert_array_equal(read.known.of(users, read.eves(users, read.offsets[1:], np.full(2, 3 * DAY_SECONDS)), ["a"]), [[2], [0]])


def known_steps(seed: int = 3) -> Steps:
    """Three users of 8 steps over two days, and what was known of them on each evening but one."""
    log = random_steps(3, 8, 9, seed=seed)
    evenings = [(user << 32) + day for user in range(3) for day in (-1, 0, 1) if (user, day) != (1, 0)]
    values = np.random.default_rng(seed).exponential(30, (len(evenings) + 1, 2)).astype(np.float32)
    values[0] = np.nan
    values[2, 1] = np.nan
    return replace(log, known=Evenings((NAME, OTHER), np.array(evenings), values, 1))


@pytest.mark.parametrize("encoder", ["gru", "transformer", "mean"])
def test_a_policy_values_states_as_training_does(encoder: str) -> None:
    """V of each state in packed rows is that of the policy at that moment, with the features of the eve; without them it is another one."""
    items, log = catalogue(9), known_steps()
    made = network(items, encoder=encoder, user_features=(NAME, OTHER))
    batch = batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU)
    table = item_table(items.item_ids, items.categories, items, CPU)
    with torch.no_grad():
        (states,) = made.states(batch.rows, view_of(batch.rows, 8), made.items(table), batch.known)
    policy = Policy("p", made, items.item_ids, items.categories, items, EVENT_TYPES, NO_POPULARITY.repeat(10, 0))
    assert policy.user_features == (NAME, OTHER)
    changed = 0
    for row in range(3):
        user = next(user for user in range(3) if log.item[8 * user : 8 * user + 8].tolist() == batch.rows.item[row, 1:].tolist())
        for slot in range(9):
            moment = (batch.rows.time + batch.rows.wait)[row, [slot]].numpy()

            def value_of(log: Steps, end: int = 8 * user + slot, user: int = user, moment: Ints = moment) -> float:
                asked = log, np.array([user]), np.array([end]), moment
                return float(policy.q(*asked)[0, 1] - policy.score(*asked)[0, 1])

            assert value_of(log) == pytest.approx(float(states.value[row, slot, 0]), abs=1e-5)
            changed += abs(value_of(replace(log, known=Evenings.none())) - value_of(log)) > 1e-4
    assert changed == int(batch.known.isfinite().any(2).sum())


def test_what_is_read_is_in_deviations_from_the_mean_of_training() -> None:
    """Of 0, 3 and 7 and two unknown ones the logarithms are 0, 2 and 3 log 2: mean 5/3 log 2. What all have alike tells nothing, -3 is -2 log 2."""
    values = np.array([[np.nan, np.nan], [0, 9], [np.nan, 9], [3, 9], [np.nan, np.nan], [7, 9]], dtype=np.float32)
    log = replace(random_steps(5, 1, 9, seed=1), known=Evenings((NAME, OTHER), np.arange(5) << 32, values, 0))
    part = FeaturePart(2, 4).eval()
    measure(nn.ModuleList([part]), HeldBucket(log))
    deviation = float(np.std([0, 2, 3]))
    np.testing.assert_allclose(part.centre, [5 / 3 * np.log(2), np.log(10)], rtol=1e-6)
    np.testing.assert_allclose(part.spread, [deviation * float(np.log(2)), 1.0], rtol=1e-6)
    read: list[torch.Tensor] = []
    part.input.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    part(torch.zeros(1, 3, 4), torch.tensor([[[-3.0, torch.nan], [1e30, 9.0], [torch.nan, torch.inf]]]))
    expected: list[list[float]] = [[(-2 - 5 / 3) / deviation, 0, 1, 0], [4, 0, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(read[0][0, :, 4:], expected, rtol=1e-5, atol=1e-6)


def test_some_states_train_as_if_nothing_were_known() -> None:
    part = FeaturePart(1, 4)
    read: list[torch.Tensor] = []
    part.input.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    torch.manual_seed(0)
    part(torch.zeros(20, 50, 4), torch.ones(20, 50, 1))
    assert 0.15 < 1 - float(read[0][..., 5].mean()) < 0.25


EVE_DECIDES = Train(dim=16, layers=1, context=4, dropout=0.0, epochs=12, batch_steps=128, window_days=11, learning_rate=5e-3, gamma=0.0)
USERS = 60


def mood(user: int, day: date) -> bool:
    """Whether the user likes the items 4 to 6, or 1 to 3, on the day after; nothing but the features tells."""
    return bool(np.random.default_rng([user, day_number(day)]).integers(0, 2))


def moody_step(user: int, day: date) -> dict[str, Any]:
    """An item at random, clicked if it is of those liked."""
    item = int(np.random.default_rng([7, user, day_number(day)]).integers(1, ITEMS + 1))
    is_liked = (item > ITEMS // 2) == mood(user, day - timedelta(days=1))
    return {"item": item, "response": "click" if is_liked else None, "reward": float(is_liked)}


def moody(user: int, day: date) -> float | None:
    """A large number or a small one; user 0 is never known."""
    return None if user == 0 else 900.0 + user if mood(user, day) else user % 3


def serve(lake: Lake, version: str) -> None:
    row = {"challenger": version, "champion": "popularity", "verdict": "promote", "serving": version, "reasons": [], "effective_sample_size": 1.0}
    lake.replace("gold.verdicts", pa.Table.from_pylist([row | {"overlap": 1.0, "day": D}], lake.schema("gold.verdicts")), "gate", [D], {})


def served(lake: Lake, settings: Settings, names: Sequence[str], train: Train = EVE_DECIDES) -> float:
    """Train, serve and score tonight's lists; the share of the users that are known whose best item is one that they like tomorrow."""
    changes = {"train": train.model_copy(update={"user_features": [*names]}), "score": Score(exploration=0.0), "evaluate": Evaluate(bootstrap=20, cutoff=3)}
    settings = settings.model_copy(update=changes)
    training.run(lake, settings, D)
    evaluate.run(lake, settings, D)
    serve(lake, lake.read("gold.policies", ["policy_version"])["policy_version"][0].as_py())
    scoring.run(lake, settings, D)
    lists = lake.read("gold.recommendations").to_pylist()
    assert {row["user_id"] for row in lists} == {"*", *(f"u{user:02}" for user in range(USERS))}
    first = {row["user_id"]: int(row["item_id"][1:]) for row in lists if row["rank"] == 1}
    return float(np.mean([(first[f"u{user:02}"] > ITEMS // 2) == mood(user, D) for user in range(1, USERS)]))


def ndcg(lake: Lake, name: str = "challenger") -> float:
    (found,) = (row["value"] for row in lake.read("gold.evaluations").to_pylist() if (row["name"], row["metric"]) == (name, "ndcg@3"))
    return float(found)


def test_what_the_features_alone_tell_is_learnt(lake: Lake, settings: Settings) -> None:
    """Of six items the three that are liked come first, on the held-out day and in tonight's lists: by chance half of them would.

    Places 1 to 3 at random are an NDCG@3 of (1 + .63 + .5) / 3 = .71; of six at random half of that.
    """
    land(lake, USERS, moody_step, moody)
    without = served(lake, settings, [])
    assert (0.25 < without < 0.75, 0.2 < ndcg(lake) < 0.57) == (True, True)
    for table in ("gold.policies", "gold.evaluations", "gold.recommendations"):
        assert TABLE not in lake.commits(table)[-1].inputs
    assert served(lake, settings, [OTHER, NAME]) > 0.95
    assert ndcg(lake) > 0.62
    for table in ("gold.policies", "gold.evaluations", "gold.recommendations"):
        assert lake.commits(table)[-1].inputs[TABLE] == lake.version(TABLE)


def test_a_night_that_begins_with_an_earlier_one_reads_by_the_same_measure(lake: Lake, settings: Settings) -> None:
    """Warm, with a rate of next to nothing, it ranks as before; cold it does not. The champion is judged by what it knows, whatever tonight's does."""
    land(lake, USERS, moody_step, moody)
    assert served(lake, settings, [NAME]) > 0.95
    earlier = lake.read("gold.verdicts").to_pylist()[0] | {"day": D - timedelta(days=1)}
    lake.replace("gold.verdicts", pa.Table.from_pylist([earlier], lake.schema("gold.verdicts")), "gate", [D - timedelta(days=1)], {})
    warm = EVE_DECIDES.model_copy(update={"warm_epochs": 1, "learning_rate": 1e-9})
    assert served(lake, settings, [NAME], warm) > 0.95
    cold = EVE_DECIDES.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    assert served(lake, settings, [], cold) < 0.8
    assert (ndcg(lake) < 0.5, ndcg(lake, "champion") > 0.62) == (True, True)
    assert TABLE not in lake.commits("gold.policies")[-1].inputs
    assert TABLE in lake.commits("gold.evaluations")[-1].inputs


def test_a_trial_is_judged_with_what_it_learns_with(lake: Lake, settings: Settings) -> None:
    """By the ranking over the last training day."""
    land(lake, USERS, moody_step, moody)
    found = {}
    for names in ([], [NAME]):
        changes = {"train": EVE_DECIDES.model_copy(update={"user_features": names}), "evaluate": Evaluate(bootstrap=20, cutoff=3)}
        window = Window.load(lake, settings.model_copy(update=changes), D)
        fitted = fit(window.data, tuple(settings.event_types), window.train, True, CPU)
        assert fitted is not None
        found[len(names)] = window.judge(fitted[0])["ndcg@3"].value
    assert (found[0] < 0.5, found[1] > 0.62) == (True, True), found


def test_a_day_of_features_that_was_not_made(lake: Lake, settings: Settings) -> None:
    """Before the first one made nothing is known; a gap after it, or none at all, is told."""
    land(lake, 9, random_step, lambda user, day: None if day < DAYS[4] else 1.0)
    settings = settings.model_copy(update={"train": EVE_DECIDES.model_copy(update={"user_features": [NAME], "epochs": 1, "window_days": 11})})
    training.run(lake, settings, D)

    def only(days: Sequence[date]) -> Lake:
        """Another lake, in which features were made for these days alone."""
        other = Lake(lake.root / f"other{len(days)}", lake.event_types)
        for table in ("gold.item_index", "gold.transitions"):
            other.replace(table, lake.read(table), "transitions", DAYS, {})
        if days:
            know(other, 9, days, lambda user, day: 1.0)
        return other

    training.run(only(DAYS[4:]), settings, D)
    for days, missing in ((DAYS[4:7] + DAYS[8:], str(DAYS[7])), (DAYS[4:8], rf"{DAYS[8]}, {DAYS[9]} yet"), (DAYS[10:], rf"{DAYS[9]} yet"), ([], str(DAYS[9]))):
        with pytest.raises(NotReady, match=rf"gold\.user_features in .* does not hold .*{missing}.* Run the step that makes it"):
            training.run(only(days), settings, D)


def test_a_folder_tells_what_it_knows_of_users(tmp_path: Path) -> None:
    """And one of a version that knew of no features is read as before."""
    items = catalogue(9)
    policies = []
    for name, features in (("plain", ()), ("informed", (NAME, OTHER))):
        save_policy(tmp_path / name, network(items, user_features=features), items, NO_POPULARITY.repeat(10, 0), {}, {})
        policies.append(Policy.load(tmp_path / name))
    plain, informed = policies
    assert informed.user_features == (NAME, OTHER)
    log = known_steps()
    asked = log, np.arange(3), log.offsets[1:], np.full(3, 2 * DAY_SECONDS)
    scores, unknown = informed.score(*asked), informed.score(replace(log, known=Evenings.none()), *asked[1:])
    assert np.abs(scores[:, 1:] - unknown[:, 1:]).max() > 1e-3
    config = tmp_path / "plain" / "config.json"
    told = json.loads(config.read_text())
    del told["network"]["user_features"]
    config.write_text(json.dumps(told))
    np.testing.assert_array_equal(Policy.load(tmp_path / "plain").score(*asked), plain.score(*asked))


def test_histories_may_bring_features(tmp_path: Path) -> None:
    """Those of somebody new too; what is not known of a user is as for anybody, and what no policy asks for tells nothing."""
    items = catalogue(9)
    save_policy(tmp_path / "p", network(items, user_features=(NAME, OTHER)), items, NO_POPULARITY.repeat(10, 0), {}, {})
    policy, history = Policy.load(tmp_path / "p"), [{"item_id": "i3", "event_type": "click", "response": None, "event_time": 1767700000}]
    histories = [[], history, history, history, []]
    features: list[dict[str, float | None]] = [{NAME: 4000}, {NAME: 4000, OTHER: 0.5}, {NAME: None}, {"another": 5}, {}]
    scores = policy.score(log := steps_of(histories, items.index(), EVENT_TYPES, features), np.arange(5), log.offsets[1:])[:, 1:]
    np.testing.assert_array_equal(scores[2], scores[3])
    bare = policy.score(other := steps_of(histories, items.index(), EVENT_TYPES), np.arange(5), other.offsets[1:])[:, 1:]
    np.testing.assert_array_equal(scores[3:], bare[3:])
    assert np.abs(scores[:2] - bare[:2]).max(1).min() > 1e-3
    assert [best[0] for best in policy.recommend(histories, 1, features=features)] == [items.item_ids[1 + best] for best in scores.argmax(1)]
    with pytest.raises(ValueError, match="1 users have features, and 5 a history"):
        policy.recommend(histories, 1, features=[{}])


def test_nobody_knows_nothing() -> None:
    """A rank that has run out of batches learns from a row of nobody, of as many features as the others have."""
    batch = batch_of(Packed.of_nobody(9, 0, 2), 0, 1.0, CPU)
    assert batch.known.shape == (1, 9, 2)
    assert not batch.known.isfinite().any()
