from __future__ import annotations

import numpy as np
import pytest
import torch

from models import losses
from models.learner import _Learner, fit
from models.losses import all_scores, head_of, likeliest
from models.network import item_table, rows_of, view_of
from models.objective import Batch, Part, _best_of_likely, _Choices
from models.popularity import POPULARITY_FEATURES
from tests.models.learner_cases import EVENT_TYPES, SMALL, catalogue, steps, training_data
from tests.models.test_losses import ITEMS, STATES, dense, eligible, head

CPU = torch.device("cpu")


@pytest.mark.parametrize("scores_at_once", [ITEMS, 5 * ITEMS, 10**6])
def test_the_likeliest_are_the_best_of_the_eligible(monkeypatch: pytest.MonkeyPatch, scores_at_once: int) -> None:
    monkeypatch.setitem(losses._CHUNK_SCORES, "cpu", scores_at_once)
    monkeypatch.setattr(losses, "_CHUNK_STATES", 1)
    states = head()
    scores = dense(states).masked_fill(~eligible()[states.day], -torch.inf)
    order = np.argsort(-scores.detach().numpy(), axis=1)
    assert likeliest(states, eligible(), 3).tolist() == order[:, :3].tolist()
    every = likeliest(states, eligible(), 10 * ITEMS)
    assert every.shape == (STATES, ITEMS)
    assert [row.tolist() for row in (every > 0).sum(1)] == eligible()[states.day].sum(1).tolist()


def test_the_best_is_among_the_likely_or_what_was_chosen() -> None:
    """Against a search through them; where candidates are told, the best of these stays."""
    behaviour, own = head(seed=1), head(seed=2)
    action = torch.arange(STATES) % (ITEMS - 1) + 1
    told = (torch.arange(STATES) % 3 == 0).long()
    share = torch.full((STATES,), 1 / STATES, dtype=torch.float64)
    log, mine = (_Choices(states, states, None, told, action, share, share) for states in (behaviour, own))
    part = Part(None, None, eligible(), None)  # type: ignore[arg-type]
    found = _best_of_likely(log, mine, part, 2, torch.full((STATES,), 7))
    z, likely = dense(own).detach(), likeliest(behaviour, eligible(), 2)
    for state in range(STATES):
        among = {*likely[state].tolist(), int(action[state])} - {0}
        assert found[state] == (7 if told[state] else max(among, key=lambda item: float(z[state, item])))


def test_the_behaviour_is_learnt_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that chooses among three of six items: of ten users who met item 5 first 6, 3 and 1 these, and of those who met item 6 1, 2 and 7."""
    chosen = {5: [1] * 6 + [2] * 3 + [3], 6: [1] + [2] * 2 + [3] * 7}
    log = steps([[{"item": first}, {"item": item, "reward": 1.0}] for first in (5, 6) for item in chosen[first] * 40])
    items = catalogue(6)
    parts: list[dict[str, float]] = []
    update = _Learner._update

    def told(learner: _Learner, batch: Batch, rate: float) -> dict[str, float]:
        parts.append(update(learner, batch, rate))
        return parts[-1]

    monkeypatch.setattr(_Learner, "_update", told)
    train = SMALL.model_copy(update={"support": 2, "epochs": 20, "batch_steps": 128, "learning_rate": 0.01})
    fitted = fit(training_data(items, log), EVENT_TYPES, train, True, CPU)
    assert fitted is not None
    learnt, table = fitted[0], item_table(items.item_ids, items.categories, items, CPU)
    rows = rows_of(log, np.array([0, 800]), np.array([1, 801]), CPU, np.array([3600, 3600]))
    vectors, last = learnt.items(table), torch.ones(2, 1, dtype=torch.int64)
    with torch.no_grad():
        states = learnt.states(rows, view_of(rows, 8, last), vectors)[-1]
        day, nothing = torch.zeros(2, dtype=torch.int64), torch.zeros(1, 7, POPULARITY_FEATURES)
        z = all_scores(head_of(rows, states, table, nothing, day, torch.arange(2)))
    assert parts[-1]["behaviour"] < parts[0]["behaviour"]
    assert abs(np.mean([some["overconfidence"] for some in parts[-25:]])) < 0.05
    found = z[:, 1:].softmax(1)
    torch.testing.assert_close(found[:, :3], torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]), atol=0.05, rtol=0)
