from __future__ import annotations

import dataclasses
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.lake import Lake
from jobs.settings import Settings
from models import learner as training
from models.candidates import CandidateSets
from models.data import load_catalogue, version_as_of
from models.loader import Loader, Packing, Position, pack
from models.losses import Drawn
from models.objective import batch_of
from models.training_data import TrainingData
from tests.models.learner_cases import SMALL, assert_same, catalogue, loss_and_gradients, network, random_steps, training_data
from tests.models.learner_lake import DAYS, D, land, transitions

CPU = torch.device("cpu")
FIRST = D - timedelta(days=DAYS - 1)
ITEM_IDS = ("", "i0", "i1", "i2")


def put_sets(lake: Lake, sets: list[tuple[int, list[str], date]]) -> None:
    rows = [{"candidate_set": key, "items": items, "day": day} for key, items, day in sets]
    lake.replace("gold.candidate_sets", pa.Table.from_pylist(rows, lake.schema("gold.candidate_sets")), "transitions", sorted({day for _, _, day in sets}), {})


def test_sets_are_read_once_each(lake: Lake) -> None:
    """One of two days, one with an item that is gone, one of a day that is not asked for."""
    assert len(CandidateSets.load(lake, ITEM_IDS, FIRST, D)) == 0
    put_sets(lake, [(70, ["i0", "i2"], FIRST), (70, ["i0", "i2"], D), (5, ["gone", "i0", "i1"], D), (9, ["i1"], FIRST - timedelta(days=1))])
    found = CandidateSets.load(lake, ITEM_IDS, FIRST, D)
    assert found.keys.tolist() == [5, 70]
    assert found.listed(np.array([0, 1, 2])).tolist() == [[0, 0, 0], [0, 1, 2], [1, 3, 0]]
    assert found.listed(np.array([0])).shape == (1, 0)
    assert found.places(pa.chunked_array([pa.array([70, None, 9, 5], pa.int64())])).tolist() == [2, 0, 0, 1]


def test_a_step_keeps_its_set_from_the_lake_to_the_batch(lake: Lake, settings: Settings) -> None:
    land(lake, users=6, items=7)
    rows = [row | {"candidate_set": int(row["user_id"][1:]) or None} for row in transitions(lake, 6, 7).to_pylist()]
    lake.replace(
        "gold.transitions",
        pa.Table.from_pylist(rows, lake.schema("gold.transitions")),
        "transitions",
        [FIRST + timedelta(days=place) for place in range(DAYS)],
        {},
    )
    put_sets(lake, [(user, [f"i{item}" for item in range(7) if item != user], D) for user in range(1, 6)])
    items = load_catalogue(lake, D)
    data = TrainingData.load(lake, items, version_as_of(lake, FIRST, D), FIRST, D, 0, 8)
    (batch, _), *rest = Loader(data.buckets, Packing(8, 9, 50), 0).batches(Position())
    assert rest == []
    learnt = batch_of(batch, 0, 1.0, CPU)
    of_user = {
        tuple(row[row > 0].tolist()): set(chosen[acts].tolist()) for row, chosen, acts in zip(learnt.rows.item, learnt.candidates, learnt.acts, strict=True)
    }
    assert sorted(of_user.values(), key=min) == [{number} for number in range(6)]
    learner = training._Learner(network(items), data, SMALL.model_copy(update={"context": 8}), CPU)
    part, counted = learner._looked_at(learnt)
    assert part.listed is not None
    for row, acts in zip(counted.candidates, counted.acts, strict=True):
        (number,) = set(row[acts].tolist())
        listed = [items.item_ids[item] for item in part.listed[number].tolist() if item]
        assert listed == ([] if number == 0 else [f"i{item}" for item in range(7) if item != number])


@pytest.mark.parametrize("exact_items", [9, 8], ids=["exact", "drawn"])
@pytest.mark.parametrize("backup", ["best", "logged"])
def test_a_set_of_all_items_is_no_set(backup: str, exact_items: int) -> None:
    """The half of the steps that tell of all items as their candidates have the loss and the gradients of steps that tell nothing."""
    items, log = catalogue(9), random_steps(4, 7, 9, seed=8)
    told = dataclasses.replace(log, candidates=(np.arange(len(log)) % 2).astype(np.int32))
    sets = CandidateSets(np.array([7]), np.array([0, 9]), np.arange(1, 10, dtype=np.int32))
    train = SMALL.model_copy(update={"exact_items": exact_items, "alpha": 0.5, "backup": backup})
    found = []
    for steps in (log, told):
        data, online = dataclasses.replace(training_data(items, steps), sets=sets), network(items, seed=1)
        learner = training._Learner(online, data, train, CPU)
        torch.manual_seed(0)
        part, batch = learner._looked_at(batch_of(pack(steps, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU))
        assert (part.listed is None) == (steps is log)
        if part.drawn:
            assert len(part.table.ids) == 10
            part = dataclasses.replace(part, drawn=Drawn(torch.arange(1, 10), torch.zeros(9)))
        found.append(loss_and_gradients(online, network(items, seed=2), part, batch, train))
    assert_same(*found)
