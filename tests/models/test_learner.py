from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs.contracts.errors import TrainingFailed
from jobs.settings import PolicySettings, Train
from models import learner
from models.data import Catalogue, DailyCounts, Steps
from models.events import until
from models.factors import item_factors
from models.learner import fit
from models.loader import HeldBucket, LateBuckets
from models.network import Network, item_table, rows_of, view_of
from models.objective import Batch
from models.policy import Learnt, Policy, device_of_choice, save_policy
from models.popularity import POPULARITY_FEATURES
from models.training_data import TrainingData
from tests.models.learner_cases import EVENT_TYPES, NO_POPULARITY, SMALL, catalogue, network, random_steps, steps, training_data, with_content

CPU = torch.device("cpu")
DEVICES = [torch.device(name) for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))]


def trained(data: TrainingData, train: Train, device: torch.device, draft: Path | None = None, learnt: Learnt | None = None) -> Network:
    """Trained to the end."""
    fitted = fit(data, EVENT_TYPES, train, True, device, draft, learnt)
    assert fitted is not None
    return fitted[0]


def weights(made: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_same_seed_gives_the_same_weights(device: torch.device) -> None:
    data = training_data(catalogue(12), random_steps(9, 20, 12, seed=3))
    train = SMALL.model_copy(update={"dropout": 0.2, "id_dropout": 0.2, "step_id_dropout": 0.5, "gap": 1.0})
    first, second = (weights(trained(data, train, device)) for _ in range(2))
    other = weights(trained(data, train.model_copy(update={"seed": 1}), device))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) if device.type == "cpu" else torch.allclose(tensor, second[name], atol=1e-3), name
    assert not torch.equal(first["heads.0.query.weight"], other["heads.0.query.weight"])


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("exact_items", [40, 39], ids=["exact", "drawn"])
def test_each_device_learns_the_same(device: torch.device, exact_items: int) -> None:
    """The losses of the first epochs, of each encoder, in a catalogue with categories; a GPU rounds products more."""
    data = training_data(catalogue(40, [(f"r{item % 3}", f"c{item % 7}") for item in range(40)]), random_steps(30, 40, 40, seed=3))
    for encoder, critics in (("gru", 1), ("gru", 3), ("transformer", 1), ("mean", 1)):
        train = SMALL.model_copy(update={"exact_items": exact_items, "negatives": 15, "encoder": encoder, "critics": critics, "backup": "logged"})
        here, there = (losses_of(data, train, on) for on in (CPU, device))
        np.testing.assert_allclose(there, here, rtol=1e-5 if device == CPU else 0.01)


def losses_of(data: TrainingData, train: Train, device: torch.device) -> list[float]:
    """The loss of each update."""
    found, update = [], learner._Learner._update

    def told(learner: learner._Learner, batch: Batch, rate: float) -> dict[str, float]:
        parts = update(learner, batch, rate)
        found.append(parts["loss"])
        return parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner._Learner, "_update", told)
        trained(data, train, device)
    return found


def test_threads_that_race_change_no_weight() -> None:
    """Batches so large that torch shares the sums of one gradient among its threads, which it does from 32,768 numbers on."""
    data = training_data(catalogue(40), random_steps(40, 60, 40, seed=3))
    train = Train(epochs=2, batch_steps=2400)
    first, *others = (weights(trained(data, train, CPU)) for _ in range(4))
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """SIGTERM comes while the learner is at one of its updates."""
    update, left = learner._Learner._update, iter(range(at - 1, -1, -1))

    def interrupted(learner: learner._Learner, batch: Batch, rate: float) -> dict[str, float]:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(learner, batch, rate)

    monkeypatch.setattr(learner._Learner, "_update", interrupted)


@pytest.mark.parametrize("critics", [1, 3])
@pytest.mark.parametrize("exact_items", [12, 11], ids=["exact", "drawn"])
def test_interrupted_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_items: int, critics: int) -> None:
    """Bit for bit, with dropout, wherever it is interrupted: twice, in the middle of an epoch and at its end."""
    data = training_data(with_content(catalogue(12), text=3), random_steps(9, 20, 12, seed=3))
    train = SMALL.model_copy(update={"dropout": 0.2, "id_dropout": 0.2, "epochs": 3, "exact_items": exact_items, "negatives": 5, "critics": critics})
    whole, draft = weights(trained(data, train, CPU)), tmp_path / "policies" / "p.checkpoint"
    for update in (4, 3):
        with monkeypatch.context() as patch:
            interrupt(patch, update)
            assert fit(data, EVENT_TYPES, train, True, CPU, draft) is None
        assert draft.is_file()
        torch.manual_seed(update)
    resumed = weights(trained(data, train, CPU, draft))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert list(draft.parent.iterdir()) == []


def with_validation(log: Steps, items: int) -> TrainingData:
    """The last day of a log is for validation."""
    last = int(log.day.max())
    data = training_data(catalogue(items), log)
    learnt = until(log, last - 1)
    return dataclasses.replace(data, buckets=HeldBucket(learnt), counts=DailyCounts.of([learnt]), validation=LateBuckets(HeldBucket(log), last, SMALL.context))


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Validation loss and weights of each epoch to come."""
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    validate = learner._Learner._validate

    def watched(learner: learner._Learner, best: Network) -> float:
        found.append((validate(learner, best), weights(learner._online)))
        return found[-1][0]

    monkeypatch.setattr(learner._Learner, "_validate", watched)
    return found


NOISE = random_steps(9, 20, 12, seed=3)  # of which nothing can be learnt but by heart
BY_HEART = SMALL.model_copy(update={"learning_rate": 0.05, "epochs": 12, "patience": 2, "dropout": 0.2})


@pytest.mark.parametrize("exact_items", [12, 11], ids=["exact", "drawn"])
def test_training_stops_where_validation_gets_no_better(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exact_items: int) -> None:
    """After two epochs without a lower loss; the weights are those of the lowest. To watch changes no weight of any epoch."""
    train = BY_HEART.model_copy(update={"exact_items": exact_items, "negatives": 5})
    watched, data = watch(monkeypatch), with_validation(NOISE, 12)
    made = weights(trained(data, train, CPU))
    losses = [loss for loss, _ in watched]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 12
    assert all(torch.equal(tensor, made[name]) for name, tensor in watched[best][1].items())
    told = capsys.readouterr().err
    assert all(f"validation {loss:.4f}; " in told for loss in losses)
    del watched[:]
    trained(data, train.model_copy(update={"patience": 12}), CPU)
    assert [loss for loss, _ in watched[: len(losses)]] == losses
    unwatched = weights(trained(data, train.model_copy(update={"patience": None}), CPU))
    assert all(torch.equal(tensor, watched[-1][1][name]) for name, tensor in unwatched.items())


def test_the_validation_loss_is_that_of_the_steps_of_its_days() -> None:
    """Two users of two days with one step each on the second: the mean of what each alone gives, whatever the first day's steps were worth."""
    train = SMALL.model_copy(update={"patience": 1})

    def loss(*users: int, first_reward: float = 0.0, last_reward: float = 1.0) -> float:
        histories: list[list[dict[str, Any]]] = [
            [{"item": 1 + user, "reward": first_reward}, {"item": 3, "reward": 0}, {"item": 2 + user, "reward": last_reward, "time": 24 * 3600}]
            for user in users
        ]
        data = dataclasses.replace(with_validation(steps(histories), 6), counts=DailyCounts.of([]))
        return learner._Learner(network(catalogue(6), seed=1), data, train, CPU)._validation_loss()

    assert loss(0, 1) == pytest.approx((loss(0) + loss(1)) / 2, rel=1e-5)
    assert loss(0, first_reward=5.0) == loss(0) != loss(0, last_reward=0.0)


@pytest.mark.parametrize("exact_items", [12, 11], ids=["exact", "drawn"])
def test_interrupted_is_uninterrupted_with_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_items: int) -> None:
    """Bit for bit, interrupted after every second batch, each epoch's last one among them."""
    data, train = with_validation(NOISE, 12), BY_HEART.model_copy(update={"exact_items": exact_items, "negatives": 5})
    whole, draft = weights(trained(data, train, CPU)), tmp_path / "p.checkpoint"
    for interruptions in range(100):
        with monkeypatch.context() as patch:
            interrupt(patch, 2)
            fitted = fit(data, EVENT_TYPES, train, True, CPU, draft)
        if fitted is not None:
            break
        torch.manual_seed(interruptions)
    assert fitted is not None
    assert interruptions > 4
    assert all(torch.equal(tensor, weights(fitted[0])[name]) for name, tensor in whole.items())


def test_a_checkpoint_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    data, draft = training_data(catalogue(5), random_steps(3, 5, 5, seed=4)), tmp_path / "p.checkpoint"
    draft.write_bytes(b"half")
    made, whole = (weights(trained(data, SMALL, CPU, place)) for place in (draft, None))
    assert all(torch.equal(tensor, made[name]) for name, tensor in whole.items())


def test_what_is_unset_follows_from_the_log() -> None:
    """One whose steps are nearly all rewarded tells of interactions alone; what is set stays."""
    kinds = {}
    for refused in (0, 1, 2):
        log = steps([[{"item": 1, "reward": float(place >= refused)} for place in range(10)]])
        kinds[refused] = training_data(catalogue(2), log).counts.has_refusals
    assert kinds == {0: False, 1: False, 2: True}
    assert [Train(alpha=alpha).for_log(refusals).alpha for alpha in (None, 0.5) for refusals in (True, False)] == [0.0, 50.0, 0.5, 0.5]
    assert [Train(step_id_dropout=share).for_log(refusals).step_id_dropout for share in (None, 0.5) for refusals in (True, False)] == [0.8, None, 0.5, 0.5]


def test_training_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(training_data(catalogue(5), random_steps(3, 5, 5, seed=4)), EVENT_TYPES, SMALL, True, CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backup", ["best", "logged"])
def test_q_converges_to_dynamic_programming(backup: str) -> None:
    """Two items; choosing 1 pays 1 after a 2 (or at the start) and 0 after a 1; choosing 2 pays 0. Episodes of chance choices never end.

    With gamma 1/2 and s = the item before: Q(2, 1) = 1 + V(1)/2, Q(1, 1) = V(1)/2, Q(1, 2) = Q(2, 2) = V(2)/2. Of the best choices
    V(1) = V(2)/2 and V(2) = 1 + V(1)/2, so V(2) = 4/3, V(1) = 2/3. Of chance ones V(1) = (V(1) + V(2))/4 and V(2) = 1/2 + V(1), so
    V(1) = 1/4, V(2) = 3/4.
    """
    rng = np.random.default_rng(0)
    histories: list[list[dict[str, Any]]] = []
    for _ in range(60):
        chosen = rng.integers(1, 3, 12)
        paid = (chosen == 1) & (np.concatenate([[2], chosen[:-1]]) == 2)
        histories.append([{"item": int(item), "reward": float(pay), "time": 60 * place} for place, (item, pay) in enumerate(zip(chosen, paid, strict=True))])
        histories[-1][-1] |= {"end": "truncated_gap"}
    items, log = catalogue(2, [(), ()]), steps(histories)
    changes = {"alpha": 0.0, "supervised": 0.0, "gamma": 0.5, "n_step": 1, "epochs": 100, "learning_rate": 5e-3, "target_rate": 0.1, "context": 16}
    data = training_data(items, log)
    made, scale = trained(data, SMALL.model_copy(update=changes | {"batch_steps": 256, "backup": backup}), CPU), data.counts.mean_reward
    policy = Policy("p", made, items.item_ids, items.categories, items, EVENT_TYPES, NO_POPULARITY.repeat(3, 0))
    past = steps([[{"item": 2, "time": 0}, {"item": 2, "time": 60}, {"item": item, "time": 120}] for item in (1, 2)])
    q = scale * policy.q(past, np.array([0, 1]), past.offsets[1:], now=np.array([180, 180]))[:, 1:]
    truth = {"best": [[1 / 3, 2 / 3], [4 / 3, 2 / 3]], "logged": [[1 / 8, 3 / 8], [9 / 8, 3 / 8]]}
    np.testing.assert_allclose(q, truth[backup], atol=0.12)


def test_the_batch_and_the_critics_follow_from_the_log_unless_they_are_set() -> None:
    sized = [Train().for_size(steps, 1_000) for steps in (10, 1_000, 10_000, 500_000, 600_000, 2_000_000, 10**8)]
    assert [train.batch_steps for train in sized] == [16, 125, 512, 512, 600, 2000, 8192]
    assert [train.critics for train in sized] == [3, 3, 3, 3, 1, 1, 1]
    own = Train(batch_steps=64, critics=2)
    assert own.for_size(10, 10) == own.for_size(10**8, 10**6) == own
    assert [Train().for_size(100_000, items).critics for items in (10_000, 10_001)] == [3, 1]


@pytest.mark.parametrize(("many", "by_factors"), [(180, True), (181, False)])
def test_item_vectors_begin_by_what_users_liked_where_there_are_enough_steps(monkeypatch: pytest.MonkeyPatch, many: int, by_factors: bool) -> None:
    monkeypatch.setattr(learner, "MANY", many)
    data = training_data(catalogue(12), random_steps(9, 20, 12, seed=3))
    made = trained(data, SMALL.model_copy(update={"epochs": 1, "learning_rate": 1e-12}), CPU)
    factors = item_factors(data.buckets, 13, SMALL.dim, SMALL.seed)
    assert np.allclose(weights(made)["item_vector.weight"].numpy(), factors, atol=1e-6) == by_factors


def skewed() -> Steps:
    """Items 1, 2 and 3 by chance, with .6, .3 and .1, of which the rarest alone is rewarded."""
    rng = np.random.default_rng(7)
    drawn = rng.choice(3, (40, 20), p=[0.6, 0.3, 0.1]) + 1
    return steps([[{"item": item, "reward": float(item == 3), "response": 2 * (item == 3)} for item in row] for row in drawn.tolist()])


def learnt_parts(**changes: Any) -> list[dict[str, float]]:
    """Parts of the loss, batch by batch, of a bandit's training on that log."""
    train, parts = SMALL.model_copy(update={"epochs": 12, "backup": "logged", "supervised": 0.0, "gamma": 0.0, "learning_rate": 5e-3, **changes}), []
    torch.manual_seed(0)
    made = Network(learner.config_of(train, EVENT_TYPES, True), 3, 3)
    learner._Learner(made, training_data(catalogue(3), skewed()), train, CPU).learn(lambda _, part: parts.append(part), lambda: False)
    return parts


def gap_of(parts: list[dict[str, float]]) -> float:
    """How far the logged items stood behind all together at the end."""
    return float(np.mean([part["penalty"] for part in parts[-20:]]))


def test_the_larger_alpha_the_closer_to_the_log() -> None:
    """From log(2 + e) - .1 = 1.45, where z is the reward alone, to the entropy of the log, .90."""
    gaps = [gap_of(learnt_parts(alpha=alpha)) for alpha in (1e-3, 0.3, 30.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == pytest.approx(np.log(2 + np.e) - 0.1, abs=0.1)
    assert gaps[2] == pytest.approx(-sum(chance * np.log(chance) for chance in (0.6, 0.3, 0.1)), abs=0.05)


def test_policies_of_one_run_are_what_each_would_be_alone() -> None:
    """The gaps of a bandit, as above, by two alphas and a gap that is asked for."""
    policies = {"bold": PolicySettings(alpha=1e-3), "close": PolicySettings(alpha=30.0), "between": PolicySettings(gap=1.1)}
    parts = learnt_parts(policies=policies)
    gaps = {name: float(np.mean([part[f"{name} penalty"] for part in parts[-20:]])) for name in policies}
    assert gaps == pytest.approx({"bold": np.log(2 + np.e) - 0.1, "close": 0.9, "between": 1.1}, abs=0.1)


def test_a_head_alone_is_the_policy_of_the_run() -> None:
    """Scores of two heads of one network, and of each as a network of its own."""
    items, log = catalogue(6), random_steps(2, 8, 6, seed=7)
    made = network(items, policies=2)
    rows = rows_of(log, log.offsets[:-1], log.offsets[1:], CPU)
    table = item_table(items.item_ids, items.categories, items, CPU)
    with torch.no_grad():
        together = made.states(rows, view_of(rows, 8), made.items(table))
        alone = [only.states(rows, view_of(rows, 8), only.items(table))[0] for only in (made.alone(0), made.alone(1))]
    for one, other in zip(together, alone, strict=True):
        for name in ("query", "bias", "value", "nearer", "popularity", "meeting", "kin"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not torch.equal(together[0].query, together[1].query)


def test_a_policy_weighs_rewards_as_it_was_told() -> None:
    """Item 1 is clicked, worth 1, and item 2 bought, worth 2: in eyes that see nothing in a purchase item 1 is best."""
    rng = np.random.default_rng(3)
    kinds = {1: (2, 1.0), 2: (3, 2.0), 3: (0, 0.0)}
    log = steps([[{"item": item, "response": kinds[item][0], "reward": kinds[item][1]} for item in rng.integers(1, 4, 20).tolist()] for _ in range(40)])
    policies = {"all": PolicySettings(), "clicks": PolicySettings(rewards={"purchase": 0.0})}
    items, data = catalogue(3, [(), (), ()]), training_data(catalogue(3, [(), (), ()]), log)
    changes = {"policies": policies, "backup": "logged", "alpha": 0.0, "supervised": 0.0, "gamma": 0.0, "epochs": 10, "learning_rate": 2e-2}
    made, scale = trained(data, SMALL.model_copy(update=changes), CPU), data.counts.mean_reward
    found = {}
    for head, name in enumerate(policies):
        policy = Policy(name, made.alone(head), items.item_ids, items.categories, items, EVENT_TYPES, NO_POPULARITY.repeat(4, 0))
        found[name] = (scale * policy.q(log, np.arange(40), log.offsets[1:])).mean(0)[1:]
    np.testing.assert_allclose(found["all"], [1, 2, 0], atol=0.15)
    np.testing.assert_allclose(found["clicks"], [1, 0, 0], atol=0.15)


@pytest.mark.parametrize("gap", [1.0, 1.2])
def test_alpha_is_tuned_to_a_gap(gap: float) -> None:
    assert gap_of(learnt_parts(gap=gap)) == pytest.approx(gap, abs=0.06)


def test_a_context_is_filled_from_the_steps_before() -> None:
    log = random_steps(1, 5, 9, seed=5)
    assert rows_of(log, np.array([2]), np.array([5]), CPU).item.tolist() == [[0, *log.item[2:5].tolist()]]


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    """And leaves the batch for whoever looks for the reason."""
    data = training_data(catalogue(4), steps([[{"item": 1, "reward": 1e38}, {"item": 2, "reward": 1e38}, {"item": 3, "reward": np.inf}]]))
    with pytest.raises(TrainingFailed, match=r"learning_rate"):
        fit(data, EVENT_TYPES, SMALL, True, CPU)
    with pytest.raises(TrainingFailed, match=rf"on the batch in {tmp_path}/p\.checkpoint\.failed: lower"):
        fit(data, EVENT_TYPES, SMALL, True, CPU, tmp_path / "p.checkpoint")
    kept = load_file(tmp_path / "p.checkpoint.failed")
    assert kept["item"].tolist() == [[0, 1, 2, 3, *[0] * 5]]
    assert not kept["reward"].isfinite().all()


def test_a_warm_start_begins_with_what_the_policy_before_has_learnt(tmp_path: Path) -> None:
    """Over a catalogue with an item and a category more, and other vectors, it scores as that policy does there; with another shape it begins anew."""
    before, log = with_content(catalogue(6), text=3, image=2, sound=2), random_steps(4, 6, 6, seed=3)
    newer = Catalogue(("", "a", *before.item_ids[1:]), ((), ("c9", "d"), *before.categories[1:]), (None,) * 8, np.arange(8) > 0)
    newer = with_content(newer, seed=1, text=3, image=4, video=2)
    moved = dataclasses.replace(log, item=log.item + 1)
    learnt_from = network(before)
    save_policy(tmp_path / "p", learnt_from, before, np.zeros((7, POPULARITY_FEATURES), np.float32), {}, {})
    learnt = Learnt.load(tmp_path / "p")

    data = training_data(newer, moved)
    shape = {name: getattr(learnt_from.config, name) for name in ("layers", "heads", "context", "encoder", "dim")}
    still = SMALL.model_copy(update={**shape, "learning_rate": 1e-12, "warm_epochs": 1})
    popularity = np.random.default_rng(0).random((8, POPULARITY_FEATURES)).astype(np.float32)
    warm = Policy("warm", trained(data, still, CPU, learnt=learnt).to(device_of_choice()), newer.item_ids, newer.categories, newer, EVENT_TYPES, popularity)
    served = Policy.load(tmp_path / "p", newer, EVENT_TYPES, popularity)
    users, ends = np.arange(4), moved.offsets[1:]
    np.testing.assert_allclose(warm.q(moved, users, ends)[:, 1:], served.q(moved, users, ends)[:, 1:], atol=1e-5)

    cold = [weights(trained(data, still.model_copy(update={"dim": 8}), CPU, learnt=given)) for given in (learnt, None)]
    assert {name for name, tensor in cold[0].items() if not torch.equal(tensor, cold[1][name])} == set()
