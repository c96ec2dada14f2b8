"""Items that no training has seen, in a world whose users like items by one thing that is given of them: how well they are ranked by that alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from jobs.settings import Train
from models.data import Bools, Catalogue, Floats, Ints, Steps
from models.learner import fit
from models.policy import Policy
from models.popularity import POPULARITY_FEATURES
from tests.models.learner_cases import EVENT_TYPES, steps, training_data

OLD, NEW, USERS, SHOWN = 60, 60, 200, 20
LIKED = 0.4  # share of the items
TRAIN = Train(context=16, epochs=7, batch_steps=256, learning_rate=0.01, dropout=0.0, gamma=0.0)


@dataclass(frozen=True)
class World:
    """Each user likes the items of which a hidden linear function is largest to it."""

    items: Catalogue  # the old ones, then the new ones
    likes: Bools  # [users, items]

    def known(self, places: Ints) -> Catalogue:
        """As many items as there are `places`, with the content of those in these places."""
        numbers, vectors = ({name: values[places] for name, values in given.items()} for given in (self.items.numbers, self.items.vectors))
        count, categories = len(places), tuple(self.items.categories[place] for place in places)
        return Catalogue(self.items.item_ids[:count], categories, (None,) * count, np.arange(count) > 0, numbers, vectors)

    def log(self, seed: int) -> Steps:
        """Old items, shown at random; of the liked ones nine in ten are clicked, of the others one."""
        rng = np.random.default_rng(seed)
        shown = rng.integers(1, OLD + 1, (USERS, SHOWN))
        clicked = rng.random(shown.shape) < np.where(np.take_along_axis(self.likes, shown, 1), 0.9, 0.1)
        rows = np.stack([shown, clicked], axis=2).tolist()
        return steps([[{"item": item, "reward": float(click), "response": 2 * click} for item, click in user] for user in rows])


def world(kind: str) -> World:
    rng, count = np.random.default_rng(1), OLD + NEW + 1
    items = Catalogue(("", *(f"i{place}" for place in range(1, count))), ((),) * count, (None,) * count, np.arange(count) > 0)
    if kind == "vector":
        seen = rng.normal(size=(count, 8))
        seen /= np.linalg.norm(seen, axis=1, keepdims=True)
        seen[0] = 0
        items, hidden = replace(items, vectors={"text": seen.astype(np.float32)}), rng.normal(size=(8, 1))
    elif kind == "price":
        price = np.exp(rng.normal(3, 1, count))
        price[0] = np.nan
        items, seen, hidden = replace(items, numbers={"price": price.astype(np.float32)}), price[:, None], np.ones((1, 1))
    else:
        category = rng.integers(0, 6, count)
        items, seen, hidden = replace(items, categories=((), *((f"c{number}",) for number in category[1:]))), np.eye(6)[category], np.eye(6)
    liking = rng.normal(size=(USERS, hidden.shape[1])) @ (seen @ hidden).T
    return World(items, liking > np.quantile(liking[:, 1:], 1 - LIKED, axis=1, keepdims=True))


def percentiles(made: World, policy: Policy) -> Floats:
    """By user, where the new items that it likes stand among all new ones, from 0 for the first to 1; those alike share their places."""
    log = made.log(seed=2)
    scores, likes = (values[:, OLD + 1 :] for values in (policy.score(log, np.arange(USERS), log.offsets[1:]), made.likes))
    ahead, alike = (compare(scores[:, None, :], scores[:, :, None]).sum(2) for compare in (np.greater, np.equal))
    place = (ahead + (alike - 1) / 2) / (NEW - 1)
    return np.array([place[user][likes[user]].mean() for user in np.flatnonzero(likes.any(1))])


@pytest.mark.parametrize("kind", ["vector", "price", "category"])
def test_new_items_are_ranked_by_their_content(kind: str) -> None:
    """Chance is .5, and so is what the content of other items is worth, and none; .2, half of what is liked, is the best there is."""
    made = world(kind)
    places = np.arange(OLD + NEW + 1)
    before = made.known(places[: OLD + 1])
    fitted = fit(training_data(before, made.log(seed=1)), EVENT_TYPES, TRAIN, True, torch.device("cpu"))
    assert fitted is not None

    def found(places: Ints) -> tuple[float, float]:
        items, popularity = made.known(places), np.zeros((len(places), POPULARITY_FEATURES), np.float32)
        by_user = percentiles(made, Policy("p", fitted[0], before.item_ids, before.categories, items, EVENT_TYPES, popularity))
        return float(by_user.mean()), float(by_user.std() / len(by_user) ** 0.5)

    mean, error = found(places)
    others, _ = found(np.concatenate([places[: OLD + 1], np.random.default_rng(0).permutation(places[OLD + 1 :])]))
    nothing, _ = found(np.where(places > OLD, 0, places))
    assert mean < 0.35
    assert 0.5 - mean > 10 * error
    assert others == pytest.approx(0.5, abs=0.1)
    assert nothing == pytest.approx(0.5)
