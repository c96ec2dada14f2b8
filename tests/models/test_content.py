from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.lake import Lake
from models import learner as training
from models.content import Levels, Projection, given_of
from models.data import Catalogue, load_catalogue
from models.loader import pack
from models.network import ItemVectors, Network, item_table
from models.objective import batch_of
from models.policy import Learnt, Policy, save_policy
from models.vectors import vectors_by_name
from tests.models.learner_cases import EVENT_TYPES, NO_POPULARITY, SMALL, catalogue, network, random_steps, training_data, with_content
from tests.models.learner_lake import DAYS, D

CPU = torch.device("cpu")
NAN = float("nan")


def floats(*values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def vectors_of(made: Network, known: Catalogue, items: Catalogue) -> ItemVectors:
    with torch.no_grad():
        return made.items(item_table(known.item_ids, known.categories, items, CPU))


def test_a_vector_counts_by_its_matrix() -> None:
    """Of (1, 0) and (0, 1) the mean is (.5, .5), from which each lies √.5 off. With W = (1 0; 0 2; 1 1): W (.5, -.5) / √.5 = (√.5, -√2, 0)."""
    part = Projection(floats([0, 0], [1, 0], [0, 1], [0, 0]), 3)
    part.load_state_dict(part.state_dict() | {"weight": torch.tensor([[1.0, 0], [0, 2], [1, 1]])})
    found, known = part(torch.tensor([[0.0, 0], [1, 0], [0, 1], [0.6, 0.8]]))
    root = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[0, 0, 0], [root, -2 * root, 0], [-root, 2 * root, 0], [0.1 / root, 0.6 / root, 0.4 / root]]))
    assert known.tolist() == [False, True, True, True]


def test_a_number_lies_between_two_levels() -> None:
    """Of 0 and 16 the middle quantiles by eighths are 1, 3, … 15; what lies beyond counts as the last one."""
    part = Levels(floats(NAN, 0, 16), 8)
    assert part.levels.tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    part.load_state_dict(part.state_dict() | {"weight": torch.eye(8)})
    found, known = part(torch.tensor([NAN, 3, 4, 6.5, -9, 99, float("inf")]))
    wanted = torch.zeros(7, 8)
    wanted[1, 1] = wanted[4, 0] = wanted[5, 7] = 1
    wanted[2, 1], wanted[2, 2] = 0.5, 0.5
    wanted[3, 2], wanted[3, 3] = 0.25, 0.75
    torch.testing.assert_close(found, wanted)
    assert known.tolist() == [False, True, True, True, True, True, False]


def test_one_price_for_all_is_a_level() -> None:
    found, _ = Levels(floats(NAN, 5, 5), 4)(torch.tensor([5.0, 4, 6]))
    assert found.isfinite().all()


def test_what_is_not_given_adds_nothing() -> None:
    """Item 3 has neither price nor vector, items 1 and 2 have both; none has a category."""
    items = with_content(catalogue(3, [()] * 3), text=2)
    made = network(items)
    found, no_category = vectors_of(made, items, items), made.category_vector.weight[0].detach()
    assert found.has_content.tolist() == [False, True, True, False]
    assert (found.content != no_category).any(1).tolist() == [False, True, True, False]
    torch.testing.assert_close(found.whole, made.item_vector.weight + found.content)
    by_vector, by_price = (vectors_of(made, items, part).content - no_category for part in (replace(items, numbers={}), replace(items, vectors={})))
    torch.testing.assert_close(no_category + by_vector + by_price, found.content)


def test_of_a_newer_catalogue_counts_what_the_network_knows() -> None:
    """By the name and width that it has learnt; what is there today is taken, and not what was."""
    items = with_content(catalogue(5), **{"a.b": 3, "keys": 2})
    made = network(items)
    newer = with_content(items, seed=1, **{"a.b": 3, "keys": 5, "new": 2})
    found = vectors_of(made, items, newer)
    alone = replace(newer, vectors={"a.b": newer.vectors["a.b"]})
    torch.testing.assert_close(found.content, vectors_of(made, items, alone).content)
    assert not torch.allclose(found.content, vectors_of(made, items, items).content)


def test_a_policy_folder_answers_by_the_content_that_it_learnt_from(tmp_path: Path) -> None:
    items, log = with_content(catalogue(5), **{"a.b": 3, "number": 2}), random_steps(3, 6, 5, seed=2)
    popularity, asked = NO_POPULARITY.repeat(6, 0), (log, np.arange(3), log.offsets[1:])
    save_policy(tmp_path / "p", network(items), items, popularity, {}, {})
    kept = Learnt.load(tmp_path / "p").catalogue
    assert {name: values.shape for name, values in kept.vectors.items()} == {"a.b": (6, 3), "number": (6, 2)}
    for name, values in given_of(items).items():
        np.testing.assert_array_equal(given_of(kept)[name], values)
    policy = Policy("p", network(items), items.item_ids, items.categories, items, EVENT_TYPES, popularity)
    np.testing.assert_array_equal(Policy.load(tmp_path / "p").score(*asked), policy.score(*asked))
    other = Policy.load(tmp_path / "p", with_content(items, seed=1, **{"a.b": 3, "number": 2}))
    assert np.abs(other.score(*asked)[:, 1:] - policy.score(*asked)[:, 1:]).max() > 1e-3


def test_the_items_that_a_batch_looks_at_have_their_own_content() -> None:
    items, log = with_content(catalogue(40), text=3, image=2), random_steps(2, 4, 40, seed=5)
    learner = training._Learner(network(items), training_data(items, log), SMALL.model_copy(update={"exact_items": 39, "negatives": 5}), CPU)
    part, _ = learner._looked_at(batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU))
    assert 1 < len(part.table.ids) < 20
    whole = given_of(items)
    assert [*part.table.given] == [*whole]
    for name, values in part.table.given.items():
        np.testing.assert_array_equal(values.numpy(), whole[name][part.table.ids.numpy()])


EMBEDDINGS = pa.map_(pa.string(), pa.list_(pa.float32()))


def test_vectors_come_at_length_1_by_name() -> None:
    """(3, 4) has length 5. Of `text` three are of width 2 and one of 3; of `image` one each of 1 and 2; `sound` has no number, and `odd` none that can be."""
    rows = pa.array(
        [
            None,
            [("text", [3, 4]), ("image", [-7])],
            [("text", [1, 2, 2]), ("sound", [])],
            [("text", [0, 2]), ("image", [1, 0]), ("sound", None)],
            [],
            [("text", [0, 0]), ("odd", [float("inf")])],
        ],
        EMBEDDINGS,
    )
    wanted: dict[str, list[list[float]]] = {
        "image": [[0], [0], [-1], [0], [0], [0], [0]],
        "odd": [[0]] * 7,
        "text": [[0, 0], [0, 0], [0.6, 0.8], [0, 0], [0, 1], [0, 0], [0, 0]],
    }
    places = np.array([1, 2, 3, 4, 5, 6])
    for chunks in ([rows], [rows.slice(0, 2), rows.slice(2, 3), rows.slice(5)]):
        found = vectors_by_name(pa.chunked_array(chunks), places, 7)
        assert {name: values.dtype for name, values in found.items()} == dict.fromkeys(wanted, np.float32)
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_no_row_has_no_vector() -> None:
    assert vectors_by_name(pa.chunked_array([], EMBEDDINGS), np.zeros(0, dtype=np.int64), 1) == {}


@pytest.mark.parametrize(("back", "price", "text"), [(2, 5.0, [1, 0]), (1, 5.0, [1, 0]), (0, 7.0, [0, -1])])
def test_content_is_that_of_the_evening(lake: Lake, back: int, price: float, text: list[float]) -> None:
    """Item `a` has another price and vector from D on, `b` no vector, and a price that nothing can be reckoned with; what comes on D + 1 is not known."""
    made = [D - timedelta(days=days) for days in range(DAYS)]
    rows: list[dict[str, Any]] = [
        {"item_id": "b", "price": 1e300, "valid_from": made[-1]},
        {"item_id": "a", "price": 5.0, "embeddings": {"text": [2.0, 0.0]}, "valid_from": made[-1], "valid_to": D},
        {"item_id": "a", "price": 7.0, "embeddings": {"text": [0.0, -3.0]}, "valid_from": D, "valid_to": D + timedelta(days=1)},
        {"item_id": "a", "price": 9.0, "embeddings": {"new": [1.0]}, "valid_from": D + timedelta(days=1)},
    ]
    rows = [row | {"embeddings": [*row.get("embeddings", {}).items()] or None} for row in rows]
    lake.replace("silver.items", pa.Table.from_pylist(rows, lake.schema("silver.items")), "silver", made, {})
    found = load_catalogue(lake, D - timedelta(days=back))
    np.testing.assert_array_equal(found.numbers["price"], floats(NAN, price, NAN))
    assert {name: values.tolist() for name, values in found.vectors.items()} == {"text": [[0, 0], text, [0, 0]]}


def test_a_lake_without_content(lake: Lake) -> None:
    rows = [{"item_id": "b", "valid_from": D}]
    lake.replace("silver.items", pa.Table.from_pylist(rows, lake.schema("silver.items")), "silver", [D], {})
    found = load_catalogue(lake, D)
    assert (found.numbers, found.vectors) == ({}, {})
