from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.settings import Train
from models import learner as training
from models import objective
from models.augment import Reading, cropped, masked, reading, reordered
from models.encoders import View
from models.learner import fit
from models.loader import pack
from models.network import Rows, item_table, view_of
from models.objective import Loss, batch_loss, batch_of
from tests.models.learner_cases import EVENT_TYPES, SMALL, catalogue, network, random_steps, steps, training_data
from tests.models.test_learner import interrupt, trained, weights

CPU = torch.device("cpu")
WINDOWS = (3, 5, 1, 8)  # slots of each in a row, of which the first one is that before its first step; then 3 of padding


def row(rows: int) -> Rows:
    """Rows alike: slot q holds item q, of type 1 + q % 3, with response q % 3."""
    segment = torch.repeat_interleave(torch.tensor([1, 2, 3, 4, 0]), torch.tensor([*WINDOWS, 3]))
    slot = torch.arange(len(segment))
    is_step = (segment > 0) & (torch.cat([torch.zeros(1, dtype=torch.int64), segment[:-1]]) == segment)
    columns = (segment, slot * is_step, (1 + slot % 3) * is_step, (slot % 3) * is_step, 60 * slot, torch.full_like(slot, 60) * (segment > 0))
    return Rows(*(column.repeat(rows, 1) for column in columns))


def same(one: Rows | View, other: Rows | View) -> bool:
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return all(first is second or torch.equal(first, second) for first, second in pairs)


def windows(values: Tensor) -> list[Tensor]:
    """By window, in the last dimension."""
    return list(torch.split(values, [*WINDOWS, 3], -1)[:4])


def test_nothing_is_drawn_or_changed_without_a_share() -> None:
    rows = row(2)
    view, before = view_of(rows, 8), torch.get_rng_state()
    read = reading(rows, view, Train())
    assert read.rows is rows
    assert read.view is view
    assert not read.is_ahead.any()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_masked_step_is_read_as_unknown() -> None:
    torch.manual_seed(0)
    rows = row(500)
    found = masked(rows, 0.3)
    gone = (found.item == 0) & (rows.item > 0)
    assert gone.sum() / (rows.item > 0).sum() == pytest.approx(0.3, abs=0.02)
    for name in ("item", "event", "response"):
        assert torch.equal(getattr(found, name), torch.where(gone, 0, getattr(rows, name)))
    assert same(replace(found, item=rows.item, event=rows.event, response=rows.response), rows)


def test_a_cropped_window_is_two_windows() -> None:
    """Of a window of n steps each is as often the cut; one without a step has none."""
    torch.manual_seed(0)
    view = view_of(row(4000), 8)
    found = cropped(view, 0.5)
    cut = view.follows & ~found.follows
    for size, cuts in zip(WINDOWS, windows(cut), strict=True):
        assert cuts.sum(1).max() == (1 if size > 1 else 0)
        if size > 1:
            torch.testing.assert_close(cuts.float().mean(0), torch.tensor([0.0, *[0.5 / (size - 1)] * (size - 1)]), atol=0.03, rtol=0)
    part = (~found.follows).cumsum(1)
    assert torch.equal(found.every, view.every & (part[:, :, None] == part[:, None, :]))
    assert same(replace(found, follows=view.follows, every=view.every, seen=view.seen), view)


def test_a_reordered_window_has_the_same_steps() -> None:
    """Up to five in a row, in any order, and nothing is moved from one window to another; a step goes whole."""
    torch.manual_seed(0)
    rows = row(2000)
    found = reordered(Reading.whole(rows, view_of(rows, 8)), 0.5)
    for before, after in zip(windows(rows.item), windows(found.rows.item), strict=True):
        assert torch.equal(after.sort(1).values, before.sort(1).values)
    moved = found.rows.item != rows.item
    last = windows(moved)[3]
    place = torch.arange(8).expand_as(last)
    reach = torch.where(last, place, 0).amax(1) - torch.where(last, place, 8).amin(1)
    assert reach.max() == 4
    assert 0.2 < last.any(1).float().mean() < 0.5
    is_step = found.rows.item > 0
    assert torch.equal(found.rows.event, (1 + found.rows.item % 3) * is_step)
    assert torch.equal(found.rows.response, found.rows.item % 3 * is_step)
    assert same(replace(found.rows, item=rows.item, event=rows.event, response=rows.response), rows)


@pytest.mark.parametrize("encoder", ["gru", "transformer", "mean"])
def test_no_state_that_is_learnt_sees_what_comes_later(encoder: str) -> None:
    """States by what each was read from: a change of one step moves no state before it but those that are told to be ahead."""
    items, rows = catalogue(25), row(1)
    made = network(items, encoder=encoder).train()
    table, train = item_table(items.item_ids, items.categories, items, CPU), Train(crop=0.5, mask=0.1, reorder=1.0)

    def states(rows: Rows, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        view = view_of(rows, 8)
        read = reading(rows, view, train)
        return made.states(rows, view, made.items(table), read=(read.rows, read.view))[0].query[0], read.is_ahead[0]

    ahead = 0
    for seed in range(20):
        whole, is_ahead = states(rows, seed)
        for slot in rows.item[0].nonzero().squeeze(1).tolist():
            changed = rows.item.clone()
            changed[0, slot] = 25
            moved = (states(replace(rows, item=changed), seed)[0] != whole).any(1)
            early = moved & (torch.arange(len(moved)) < slot)
            assert not (early & ~is_ahead).any()
            ahead += int(early.sum())
    assert ahead > 0


class Blind(nn.Module):
    """An encoder to which all histories are alike."""

    def forward(self, tokens: Tensor, view: View) -> Tensor:
        return torch.ones_like(tokens)


def loss(is_blind: bool, **changes: float) -> Loss:
    items, log, train = catalogue(12), random_steps(9, 7, 12, seed=3), SMALL.model_copy(update=changes)
    online, target = network(items, seed=1).train(), network(items, seed=2)
    if is_blind:
        online.encoders = nn.ModuleList([Blind()])
    learner = training._Learner(online, training_data(items, log), train, CPU)
    batch = batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU)
    torch.manual_seed(0)
    return batch_loss(online, target, learner._whole, batch, train.each(True))


def test_only_what_the_encoder_reads_is_another() -> None:
    """An encoder that doesn't look learns the same from the same targets; one that does, does not."""
    for changes in ({"mask": 0.5}, {"crop": 1.0}, {"mask": 0.5, "crop": 1.0}):
        plain, other = loss(True), loss(True, **changes)
        assert torch.equal(plain.total, other.total)
        assert plain.steps == other.steps
        assert not torch.equal(loss(False).total, loss(False, **changes).total)


def test_a_state_that_is_ahead_is_not_learnt() -> None:
    """Of the windows of eight slots each loses the states within its span, of which at least one is not ahead."""
    whole, other = loss(True).steps, loss(True, reorder=1.0).steps
    assert whole == 9 * 7
    assert 9 * 3 <= other < 9 * 7


def test_interrupted_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_data(catalogue(12), random_steps(9, 20, 12, seed=3))
    train = SMALL.model_copy(update={"crop": 0.3, "mask": 0.3, "reorder": 0.3})
    whole, draft = weights(trained(data, train, CPU)), tmp_path / "p.checkpoint"
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        assert fit(data, EVENT_TYPES, train, True, CPU, draft) is None
    torch.manual_seed(9)
    resumed = weights(trained(data, train, CPU, draft))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_what_is_not_learnt_is_bootstrapped_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three steps left out in turn: the means over the other two add up to three times the mean over all, if no error depends on what is left out."""
    items, log = catalogue(6), steps([[{"item": 1}, {"item": 2, "reward": 1}, {"item": 3, "reward": 2, "end": "terminated"}]])
    train = SMALL.model_copy(update={"n_step": 1, "alpha": 0.0, "supervised": 0.0, "reorder": 1.0})
    online, target = network(items, seed=1).train(), network(items, seed=2)
    learner = training._Learner(online, training_data(items, log), train, CPU)
    batch = batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU)

    def td(left_out: int | None) -> float:
        def told(rows: Rows, view: View, _: Train) -> Reading:
            is_ahead = torch.zeros_like(view.follows)
            if left_out is not None:
                is_ahead[0, left_out] = True
            return Reading(rows, view, is_ahead)

        monkeypatch.setattr(objective, "reading", told)
        return float(batch_loss(online, target, learner._whole, batch, train.each(True)).parts["td"])

    assert sum(td(step) for step in range(3)) == pytest.approx(3 * td(None), rel=1e-5)
