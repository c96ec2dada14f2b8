from __future__ import annotations

import numpy as np
import pytest

from models.metrics import Ranks, Resampling
from models.ope import EstimatedBehaviour, Weights, importance_weights, snips, target_probabilities
from tests.models.made import make


def one_user_each(rows: int) -> Resampling:
    return Resampling(np.arange(rows), 400, seed=0)


def test_snips_and_effective_sample_size_by_hand() -> None:
    """π_e / π_b = 0.5/0.25, 0.2/0.4, 0/0.1, 1/1 = 2, 0.5, 0, 1; rewards 1, 4, 7, 0.

    SNIPS = (2 + 2 + 0 + 0) / 3.5 = 8/7; effective sample size = 3.5² / (4 + 0.25 + 1) = 12.25 / 5.25 = 7/3.
    """
    weights = importance_weights(np.array([0.5, 0.2, 0, 1]), np.array([0.25, 0.4, 0.1, 1]))
    assert weights.values.tolist() == [2, 0.5, 0, 1]
    assert snips(weights, np.array([1.0, 4, 7, 0]), one_user_each(4)).value == pytest.approx(8 / 7)
    assert weights.effective_sample_size == pytest.approx(7 / 3)
    assert weights.overlap == pytest.approx(3.5 / 4)
    assert weights.clipped_mass == 0


def test_weights_are_cut_off_at_the_root_of_n() -> None:
    """Of four weights 8, 1, 1, 0 the first is cut to √4 = 2: 6 of 10 are gone."""
    weights = importance_weights(np.array([0.8, 0.1, 0.1, 0]), np.full(4, 0.1))
    assert weights.values.tolist() == pytest.approx([2, 1, 1, 0])
    assert weights.clipped_mass == pytest.approx(0.6)
    assert importance_weights(np.array([0.8, 0, 0, 0]), np.full(4, 0.4)).overlap == pytest.approx(0.5)  # 2 of 4, cut or not
    assert importance_weights(np.array([0.3, 0, 0, 0]), np.full(4, 0.1)).overlap == pytest.approx(0.75)  # 3 of 4, though cut to 2


def test_target_probabilities_by_hand() -> None:
    """ε = 0.1 over 5 candidates.

    A list of 1: the best item 0.9 + 0.02; one of two best 0.45 + 0.02; another 0.02; one that is no candidate 0.
    A list of 4: each of its items 0.9 / 4 + 0.02, the fourth best too. A list of 3: two best alike, and the fourth best not.
    A list of 9 has room for all 5. With 3 places, two items better and four alike, each of those has a quarter of the third place.
    """
    ranks = Ranks(better=np.array([0, 0, 3, 0]), equal=np.array([1, 2, 1, 1]), candidates=np.full(4, 5), eligible=np.array([True, True, True, False]))
    assert target_probabilities(ranks, 1, 0.1).tolist() == pytest.approx([0.92, 0.47, 0.02, 0])
    assert target_probabilities(ranks, 4, 0.1).tolist() == pytest.approx([0.245, 0.245, 0.245, 0])
    assert target_probabilities(ranks, 3, 0.1).tolist() == pytest.approx([0.32, 0.32, 0.02, 0])
    assert target_probabilities(ranks, 9, 0.1).tolist() == pytest.approx([0.2, 0.2, 0.2, 0])
    tied = Ranks(better=np.array([2]), equal=np.array([4]), candidates=np.array([6]), eligible=np.array([True]))
    assert target_probabilities(tied, 3, 0).tolist() == pytest.approx([1 / 12])


def test_an_exact_log_gives_the_exact_value() -> None:
    """A bandit of two contexts and three arms, logged exactly as often as its policy says: SNIPS is the target's true value, to the bit of a float."""
    logging = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    target = np.array([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    reward = np.array([[1.0, 0.0, 3.0], [2.0, -1.0, 0.5]])
    counts = np.rint(logging * 100).astype(int)
    context, arm = (np.repeat(indices.ravel(), counts.ravel()) for indices in np.indices(counts.shape))
    weights = importance_weights(target[context, arm], logging[context, arm])
    true_value = (target * reward).sum() / 2
    assert snips(weights, reward[context, arm], one_user_each(len(arm))).value == pytest.approx(true_value)
    assert weights.overlap == pytest.approx(1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """200 logs of 400 steps of a bandit with a known value: 95% intervals should hold it in 190; 180 is four standard errors off."""
    rng = np.random.default_rng(0)
    logging, target, mean = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.2, 0.6]), np.array([0.2, 0.5, 0.7])
    truth, covered, estimates = target @ mean, 0, []
    for seed in range(200):
        arm = rng.choice(3, size=400, p=logging)
        rewards = (rng.random(400) < mean[arm]).astype(float)
        estimate = snips(importance_weights(target[arm], logging[arm]), rewards, Resampling(np.arange(400), 200, seed))
        assert estimate.interval is not None
        covered += estimate.interval[0] <= truth <= estimate.interval[1]
        estimates.append(estimate.value)
    assert covered >= 180
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / np.sqrt(200))


def test_overlap_is_the_share_of_choices_that_the_log_could_have_made() -> None:
    """The target takes arm 0 or 1 evenly; the log never takes 1."""
    weights = importance_weights(np.full(100, 0.5), np.full(100, 1.0))
    assert weights.overlap == pytest.approx(0.5)


def test_no_weight_is_no_support() -> None:
    for weights in (Weights(np.zeros(3), 0.0), Weights(np.zeros(0), 0.0)):
        assert (weights.effective_sample_size, weights.overlap) == (0, 0)
        assert snips(weights, np.zeros(len(weights.values)), one_user_each(len(weights.values))).samples == 0


def test_estimated_propensities_find_the_mixture_that_made_the_log() -> None:
    """Logs drawn from 20% uniform, 50% popularity, 30% the user's own past: shares and mean log-likelihood come back."""
    rng = np.random.default_rng(1)
    items, popularity = 51, np.zeros(51)
    popularity[1:] = 1 / np.arange(1, 51) ** 2
    popularity /= popularity.sum()
    uniform = np.full(50, 1 / 50)
    histories, truth = {}, []
    for user in range(300):
        past: list[int] = []
        for _ in range(60):
            own = np.bincount(past, minlength=items) / len(past) if past else popularity
            chances = 0.5 * popularity + 0.3 * own
            chances[1:] += 0.2 * uniform
            past.append(int(rng.choice(items, p=chances)))
            truth.append(chances[past[-1]])
        histories[f"u{user:03}"] = [(item, 0.0) for item in past]
    steps = make(histories)
    behaviour = EstimatedBehaviour(steps, items)
    estimated = behaviour.propensities(steps)
    assert behaviour.shares.sum() == pytest.approx(1)
    assert behaviour.shares[2] == pytest.approx(0.3, abs=0.05)
    assert np.log(estimated).mean() == pytest.approx(np.log(truth).mean(), abs=0.02)


def test_estimated_propensities_by_hand() -> None:
    """Uniform 1/3, popularity (2, 1, 1)/4; user v met item 3 in one of two steps before the third. Every part is a distribution, so is the mixture."""
    train = make({"u": [(1, 0.0), (1, 0.0)], "v": [(2, 0.0), (3, 0.0)]})
    behaviour = EstimatedBehaviour(train, 4)
    chances = [behaviour.propensities(make({"v": [(2, 0.0), (3, 0.0), (item, 0.0)]}))[2] for item in (1, 2, 3)]
    uniform, popular, own = behaviour.shares
    assert chances[2] == pytest.approx(uniform / 3 + popular / 4 + own / 2)
    assert sum(chances) == pytest.approx(1)
