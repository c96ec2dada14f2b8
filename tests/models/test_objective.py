from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from models import learner as training
from models.loader import pack
from models.losses import Drawn
from models.objective import Loss, batch_loss, batch_of
from tests.models.learner_cases import HOUR, SMALL, assert_same, catalogue, loss_and_gradients, network, random_steps, steps, training_data, with_content

CPU = torch.device("cpu")


def loss_of(log: Any, repeats: bool = True, **changes: Any) -> Loss:
    items = catalogue(6)
    data = training_data(items, log)
    online, target = network(items, repeats=repeats, seed=1), network(items, repeats=repeats, seed=2)
    learner = training._Learner(online, data, SMALL.model_copy(update=changes), CPU)
    batch = batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU)
    return batch_loss(online.eval(), target, learner._whole, batch, SMALL.model_copy(update=changes).each(True))


def history(last_end: str, last_reward: float = 1.0) -> list[dict[str, Any]]:
    return [{"item": 1}, {"item": 2, "reward": 1}, {"item": 3, "reward": last_reward, "end": last_end}]


def test_a_part_of_the_catalogue_that_holds_all_of_it_gives_the_same_loss_and_gradients() -> None:
    """Every item is in the rows, or drawn; as each is looked at exactly once the estimate is no estimate."""
    items, log = with_content(catalogue(9), text=3), random_steps(4, 7, 9, seed=8)
    data, batch = training_data(items, log), batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU)
    found = []
    for exact_items in (9, 8):
        train, online = SMALL.model_copy(update={"exact_items": exact_items, "alpha": 0.5}), network(items, seed=1)
        learner = training._Learner(online, data, train, CPU)
        if exact_items == 9:
            part, counted = learner._whole, batch
        else:
            torch.manual_seed(0)
            part, counted = learner._looked_at(batch)
            assert len(part.table.ids) == 10
            part = dataclasses.replace(part, drawn=Drawn(torch.arange(1, 10), torch.zeros(9)))
        found.append(loss_and_gradients(online, network(items, seed=2), part, counted, train))
    assert_same(*found)


def test_an_immature_step_has_no_td_error() -> None:
    one, other = (loss_of(steps([history("immature", reward)])) for reward in (1.0, 50.0))
    assert one.parts["td"] == other.parts["td"]
    assert one.parts["nearer"] == other.parts["nearer"]
    ended, otherwise = (loss_of(steps([history("terminated", reward)])) for reward in (1.0, 50.0))
    assert ended.parts["td"] != otherwise.parts["td"]


def test_time_passes_by_hours_where_they_are_given() -> None:
    """Steps at 0, 12, 36 and 36 hours, in units of a day; no less than the least passes, and after the last one a unit."""
    log = steps([[{"item": 1, "time": hour * HOUR} for hour in (0, 12, 36, 36)]])
    by_time, by_step = (batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU, hours).elapsed[0, :4] for hours in (24.0, None))
    torch.testing.assert_close(by_time, torch.tensor([0.5, 1.0, 1e-3, 1.0]))
    assert by_step.tolist() == [1, 1, 1, 1]


def test_a_terminated_step_looks_at_nothing_after_it() -> None:
    """With one step a history, gamma does not matter to the loss where it ends, and does where it was cut."""
    ends = {end: [float(loss_of(steps([history(end)[2:]]), gamma=gamma).parts["td"]) for gamma in (0.0, 0.9)] for end in ("terminated", "truncated_gap")}
    assert ends["terminated"][0] == ends["terminated"][1]
    assert ends["truncated_gap"][0] != ends["truncated_gap"][1]


def test_an_unknown_item_is_context_alone() -> None:
    found = loss_of(steps([[{"item": 0, "reward": 9.0}, {"item": 0, "reward": 9.0}]]))
    assert {name: part.item() for name, part in found.parts.items()} == {"td": 0, "penalty": 0, "supervised": 0, "nearer": 0}
    assert found.total.item() == 0


def test_the_parts_add_up() -> None:
    found = loss_of(steps([history("truncated_gap")]), alpha=0.3, supervised=0.7)
    parts = {name: float(part) for name, part in found.parts.items()}
    assert found.total.item() == pytest.approx(parts["td"] + 0.3 * parts["penalty"] + 0.7 * parts["supervised"] + parts["nearer"], rel=1e-5)


def test_where_nothing_is_penalised_nothing_is_summed_over_the_catalogue() -> None:
    """The form without a maximum has no other use for it."""
    parts = {
        weights: {*loss_of(steps([history("truncated_gap")]), backup="logged", alpha=weights[0], supervised=weights[1]).parts}
        for weights in ((0, 0), (1, 0), (0, 1))
    }
    assert parts == {(0, 0): {"td", "nearer"}, (1, 0): {"td", "penalty", "supervised", "nearer"}, (0, 1): {"td", "penalty", "supervised", "nearer"}}


def test_what_may_not_come_again_is_no_target() -> None:
    """Without repeats the second step with item 1 counts for nothing, so its reward does not matter."""
    one, other = (float(loss_of(steps([[{"item": 1}, {"item": 1, "reward": reward}]]), repeats=False, gamma=0.0).parts["td"]) for reward in (1.0, 7.0))
    assert one == other > 0
