"""What a log is good for: with its propensities, the value of another policy; and what confounding does to that."""

from __future__ import annotations

import numpy as np

from jobs.world.episodes import NOTHING
from jobs.world.truth import REWARDS, TOPIC_OF
from tests.jobs.world.world_logs import drawn, lived

USERS, DAYS = 600, 3


def estimate(confounded: bool) -> tuple[float, float, float]:
    """Inverse propensity estimate, the standard error of its distance from the truth, and the truth, of one step of a known policy.

    The policy draws evenly from the free items of the topic that the user clicked last; it is judged at the logged steps before which
    the user had clicked and the episode's tendency was to repeat. The truth is the mean over those steps of what the answer would be worth.
    """
    world = drawn(2, confounded=confounded)
    topic = TOPIC_OF[world.category]
    guesses, truths, steps = np.zeros(USERS), np.zeros(USERS), 0
    for log, hidden in lived(world, USERS, DAYS):
        worth = world.click_rates(hidden.tastes) * world.reward
        paid = sum(((getattr(log, f"{kind}_time") > 0) * reward for kind, reward in REWARDS.items()), start=np.zeros(log.item.shape))
        last = np.full(USERS, -1)
        for step in range(log.item.shape[1]):
            free = log.available & (topic == last[:, None])
            for earlier in range(step):
                free[np.arange(USERS), log.item[:, earlier]] = False
            judged = np.flatnonzero((log.item[:, step] != NOTHING) & (log.tendency == 1) & free.any(axis=1))
            item, size = log.item[judged, step], free[judged].sum(axis=1)
            guesses[judged] += free[judged, item] / size / log.propensity[judged, step] * paid[judged, step]
            truths[judged] += (worth[judged] * free[judged]).sum(axis=1) / size * (hidden.sated[judged, step] == 0)
            steps += len(judged)
            last = np.where(log.click_time[:, step] > 0, topic[log.item[:, step]], last)
    error = (guesses - truths).std() * np.sqrt(USERS) / steps
    return float(guesses.sum() / steps), float(error), float(truths.sum() / steps)


def test_the_logged_propensities_tell_the_value_of_another_policy() -> None:
    guess, error, truth = estimate(confounded=False)
    assert error < 0.05 * truth
    assert abs(guess - truth) < 3 * error


def test_under_confounding_the_same_estimate_is_too_high_however_exact_its_propensities() -> None:
    """The logger follows its score only where the user is in the mood.

    Its propensities are exact given all that the log shows, and yet what it likes to choose looks a tenth better than it is, and more.
    """
    guess, error, truth = estimate(confounded=True)
    assert guess > truth + 4 * error
    assert guess > 1.1 * truth


def test_the_mood_changes_no_rate_of_itself() -> None:
    """Over moods, users of an ordinary log click as often as the truth says."""
    world = drawn(2)
    log, hidden = lived(world, 4000, 1)[0]
    here = log.item != NOTHING
    assert abs(hidden.in_mood[here].mean() - 0.5) < 0.01
    clicked, rate = (log.click_time > 0)[here], (hidden.expected / world.reward[log.item])[here]
    assert abs(clicked.mean() - rate.mean()) < 4 * np.sqrt((rate * (1 - rate)).sum()) / here.sum()
