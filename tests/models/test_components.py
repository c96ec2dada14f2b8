from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.components import along, principal_axes, reduced
from models.content import Projection
from models.data import Catalogue, Floats
from models.policy import Learnt, Policy, save_policy
from tests.models.learner_cases import EVENT_TYPES, NO_POPULARITY, catalogue, network, random_steps, with_content


def vectors(items: int, width: int, rank: int, seed: int = 0) -> Floats:
    """Around a point, in so many directions, each of another size; at length 1, and none for item 0 and each third one."""
    rng = np.random.default_rng(seed)
    drawn = 3 + rng.normal(size=(items, rank)) @ (rng.normal(size=(rank, width)) * 2.0 ** -np.arange(rank)[:, None])
    drawn *= (np.arange(items) % 3 > 0)[:, None]
    return np.asarray(drawn / np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def wide(items: Catalogue, **values: Floats) -> Catalogue:
    return replace(items, vectors=values)


def test_the_axes_are_those_of_a_singular_value_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the vectors that are given, less their mean; the signs are open. However many are looked at at once."""
    values = vectors(200, 12, 6)
    given = values[values.any(1)].astype(np.float64)
    _, _, rows = np.linalg.svd(given - given.mean(0))
    for at_once in (1 << 14, 7):
        monkeypatch.setattr("models.components._ROWS", at_once)
        axes = principal_axes(values, 4)
        np.testing.assert_allclose(np.abs(np.sum(axes.T * rows[:4], axis=1)), 1, atol=1e-5)
        np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-6)


def test_what_varies_in_few_directions_is_told_whole() -> None:
    """Length 1 bends a plane, so that vectors of two directions about a point take three numbers; then all distances are as they were."""
    items = wide(catalogue(59), text=vectors(60, 12, 2))
    found = reduced(items, 3).vectors["text"]
    before, after = (values[np.arange(60) % 3 > 0] for values in (items.vectors["text"], found))
    assert after.shape == (40, 3)
    distances = [np.linalg.norm(values[:, None] - values, axis=2) for values in (before, after)]
    np.testing.assert_allclose(distances[1], distances[0], atol=1e-5)


def test_missing_vectors_stay_missing_and_narrow_ones_as_they_are() -> None:
    items = wide(catalogue(29), text=vectors(30, 12, 5), image=vectors(30, 4, 3))
    found = reduced(items, 4)
    assert {name: axes.shape for name, axes in found.axes.items()} == {"text": (12, 4)}
    assert found.vectors["image"] is items.vectors["image"]
    np.testing.assert_array_equal(found.vectors["text"].any(1), items.vectors["text"].any(1))
    _, known = Projection(found.vectors["text"], 8)(torch.from_numpy(found.vectors["text"]))
    assert known.tolist() == items.vectors["text"].any(1).tolist()


def test_of_a_later_catalogue_a_vector_is_told_along_the_same_axes() -> None:
    """One of another width is none, and so is none of a name that is told as it is; axes of another form are learnt anew."""
    axes = reduced(wide(catalogue(29), text=vectors(30, 12, 5)), 4).axes
    later = wide(catalogue(9), text=vectors(10, 12, 5, seed=1), image=vectors(10, 12, 5))
    found = along(later, axes).vectors
    np.testing.assert_array_equal(found["text"], later.vectors["text"] @ axes["text"])
    assert found["image"] is later.vectors["image"]
    assert along(wide(catalogue(9), text=vectors(10, 4, 3)), axes).vectors == {}

    kept = reduced(later, 4, axes).axes
    assert kept["text"] is axes["text"]
    assert kept["image"].shape == (12, 4)
    assert reduced(later, 3, axes).axes["text"].shape == (12, 3)


def test_a_policy_folder_scores_vectors_as_they_are_given(tmp_path: Path) -> None:
    """Those that it learnt from, and a new item's. The folder holds the few numbers."""
    raw = with_content(catalogue(8), text=12, image=2)
    items, log = reduced(raw, 3), random_steps(3, 6, 8, seed=2)
    made, asked = network(items), (log, np.arange(3), log.offsets[1:])
    save_policy(tmp_path / "p", made, items, NO_POPULARITY.repeat(9, 0), {}, {})
    kept = Learnt.load(tmp_path / "p").catalogue
    assert {name: values.shape for name, values in kept.vectors.items()} == {"image": (9, 2), "text": (9, 3)}

    trained = Policy("p", made, items.item_ids, items.categories, items, EVENT_TYPES, NO_POPULARITY.repeat(9, 0)).score(*asked)
    assert np.ptp(trained[:, 1:], axis=1).min() > 0
    np.testing.assert_allclose(Policy.load(tmp_path / "p").score(*asked), trained, atol=1e-6)
    np.testing.assert_allclose(Policy.load(tmp_path / "p", raw).score(*asked), trained, atol=1e-6)

    parts = Policy.load(tmp_path / "p", night(raw)).parts()
    whole, own = parts[2].whole.cpu().numpy(), made.item_vector.weight.detach().numpy()
    np.testing.assert_allclose(whole[9] - own[0], whole[4] - own[4], atol=1e-5)
    assert not np.allclose(whole[9] - own[0], whole[5] - own[5], atol=1e-2)


def night(items: Catalogue) -> Catalogue:
    """With a new item at the end, to which all is given that item 4 has."""
    places = np.array([*range(len(items)), 4])
    numbers, vectors = ({name: values[places] for name, values in given.items()} for given in (items.numbers, items.vectors))
    categories = tuple(items.categories[place] for place in places)
    return Catalogue((*items.item_ids, "new"), categories, (None,) * len(places), np.arange(len(places)) > 0, numbers, vectors)
