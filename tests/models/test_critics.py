from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from jobs.contracts.errors import BadSettings
from jobs.settings import PolicySettings, Train
from models import learner as training
from models.data import END_CODES, Catalogue, Floats
from models.learner import fit
from models.loader import pack
from models.losses import all_scores, head_of, lower_bound
from models.network import Network, rows_of, view_of
from models.objective import batch_loss, batch_of
from models.online import Online
from models.policy import Learnt, Policy, device_of_choice, save_policy
from models.popularity import POPULARITY_FEATURES
from tests.models.learner_cases import EVENT_TYPES, SMALL, catalogue, network, random_steps, steps, training_data

CPU = torch.device("cpu")
ITEMS = catalogue(9)
POPULARITY = np.random.default_rng(0).random((10, POPULARITY_FEATURES)).astype(np.float32)


def test_a_lower_bound_by_hand() -> None:
    """Means 2 and 5, standard deviations 1 and 0."""
    assert lower_bound(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 0.5).tolist() == [1.5, 5.0]


def policy_of(made: Network, items: Catalogue = ITEMS, popularity: Floats = POPULARITY) -> Policy:
    return Policy("p", made, items.item_ids, items.categories, items, EVENT_TYPES, popularity)


def critics_of(made: Network) -> list[Network]:
    """Each critic of a network as one of its own."""
    found = []
    for critic in range(made.config.critics):
        own, dim = slice(critic, critic + 1), made.config.dim
        alone = copy.deepcopy(made)
        alone.config = dataclasses.replace(made.config, critics=1, lower=0.0)
        alone.encoders, alone.heads, alone.item_inputs = alone.encoders[own], alone.heads[own], alone.item_inputs[own]
        alone.item_bias.weight = torch.nn.Parameter(alone.item_bias.weight[:, own].detach())
        for table in (alone.item_vector, alone.category_vector, alone.event, alone.response, alone.wait):
            table.weight = torch.nn.Parameter(table.weight[:, critic * dim : (critic + 1) * dim].detach())
        alone.start = torch.nn.Parameter(alone.start[critic * dim : (critic + 1) * dim].detach())
        found.append(alone)
    return found


def test_a_policy_ranks_by_the_lower_bound_of_its_critics() -> None:
    log, users = random_steps(4, 6, 9, seed=3), np.arange(4)
    made = network(ITEMS, critics=3, lower=2.0)
    policy, apart = policy_of(made), [policy_of(critic) for critic in critics_of(made)]
    scores = np.stack([one.score(log, users, log.offsets[1:]) for one in apart])[:, :, 1:]
    found = policy.score(log, users, log.offsets[1:])[:, 1:]
    np.testing.assert_allclose(found, scores.mean(0) - 2 * scores.std(0), atol=1e-5)
    assert (found.argmax(1) != scores.mean(0).argmax(1)).any()

    q = np.stack([one.q(log, users, log.offsets[1:]) for one in apart])[:, :, 1:]
    value = (q - scores).mean(axis=(0, 2))
    np.testing.assert_allclose(policy.q(log, users, log.offsets[1:])[:, 1:], found + value[:, None], atol=1e-4)


def test_the_bootstrap_is_the_lower_bound_at_the_item_that_each_critic_would_choose() -> None:
    """Against the definition, state by state, over all items: one step of reward, then the target net's critics."""
    log = steps([[{"item": 1}, {"item": 2, "reward": 1}, {"item": 5, "reward": 2, "end": "terminated"}]])
    train = SMALL.model_copy(update={"critics": 2, "lower": 0.5, "n_step": 1, "gamma": 0.8, "alpha": 0.0, "supervised": 0.0})
    online, target = (network(ITEMS, critics=2, lower=0.5, seed=seed) for seed in (1, 2))
    learner = training._Learner(online, training_data(ITEMS, log), train, CPU)
    part, batch = learner._whole, batch_of(pack(log, 8, 9, np.random.default_rng(0)), 0, 1.0, CPU)
    found = batch_loss(online.eval(), target, part, batch, train.each(True)).parts["td"]

    def scored(net: Network) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """V [slots] and z [slots, items] of each critic."""
        items, places = net.items(part.table), torch.arange(4)
        rows = rows_of(log, np.array([0]), np.array([3]), CPU)
        seen = net.states(rows, view_of(rows, 8), items)
        heads = [head_of(rows, states, part.table, part.popularity, torch.zeros(4, dtype=torch.int64), places) for states in seen]
        return [(states.value[0, :, 0], all_scores(head)) for states, head in zip(seen, heads, strict=True)]

    errors = []
    with torch.no_grad():
        targets = scored(target)
        for value, z in scored(online):
            for step, (item, reward) in enumerate(((1, 0.0), (2, 1.0), (5, 2.0))):
                best = int(z[step + 1, 1:].argmax()) + 1
                worths = np.array([float(v[step + 1] + zs[step + 1, best]) for v, zs in targets])
                goes_on = log.end[step] != END_CODES["terminated"]
                wanted = reward + 0.8 * (worths.mean() - 0.5 * worths.std()) * goes_on
                errors.append((float(value[step] + z[step, item]) - wanted) ** 2)
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-4)


def test_critics_differ_where_the_log_says_nothing() -> None:
    """Of eight items four are never chosen."""
    rng = np.random.default_rng(0)
    items = catalogue(8, [(f"c{number}",) for number in range(8)])
    log = steps([[{"item": (item := int(rng.integers(1, 5))), "reward": item / 4} for _ in range(8)] for _ in range(20)])
    train = SMALL.model_copy(update={"critics": 4, "epochs": 40, "gamma": 0.0, "alpha": 0.0, "supervised": 0.0, "learning_rate": 0.01})
    fitted = fit(training_data(items, log), EVENT_TYPES, train, True, CPU)
    assert fitted is not None
    critics = [policy_of(critic, items, POPULARITY[:9] * 0) for critic in critics_of(fitted[0])]
    spread = np.stack([critic.score(log, np.arange(20), log.offsets[1:])[:, 1:] for critic in critics]).std(0).mean(0)
    assert spread[4:].min() > 2 * spread[:4].max()


def test_a_warm_start_goes_on_with_each_critic(tmp_path: Path) -> None:
    before, log = network(ITEMS, critics=2, lower=0.5), random_steps(4, 6, 9, seed=3)
    save_policy(tmp_path / "p", before, ITEMS, POPULARITY, {}, {})
    shape = {name: getattr(before.config, name) for name in ("layers", "heads", "context", "encoder", "dim", "critics", "lower")}
    both = {"one": PolicySettings(gamma=0.5), "other": PolicySettings(gamma=0.9)}
    train = SMALL.model_copy(update={**shape, "learning_rate": 1e-12, "warm_epochs": 1, "policies": both, "support": 3})
    fitted = fit(training_data(ITEMS, log), EVENT_TYPES, train, True, CPU, learnt=Learnt.load(tmp_path / "p"))
    assert fitted is not None
    served, learnt = Policy.load(tmp_path / "p", popularity=POPULARITY), fitted[0].to(device_of_choice())
    for policy in range(2):
        warm = policy_of(learnt.alone(policy))
        np.testing.assert_allclose(warm.q(log, np.arange(4), log.offsets[1:])[:, 1:], served.q(log, np.arange(4), log.offsets[1:])[:, 1:], atol=1e-5)


def test_what_ranks_by_a_lower_bound_has_no_item_matrix(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", network(ITEMS, critics=2, lower=0.5), ITEMS, POPULARITY, {}, {})
    with pytest.raises(BadSettings, match=r"p ranks by a lower bound over 2 critics \(train.lower = 0.5\)"):
        Online.of_policy(Policy.load(tmp_path / "p"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lower": 1.0, "critics": 1}, "lower = 1 is below the mean of several critics, and critics is 1"),
        ({"support": 5}, 'support = 5 bounds the best of backup = "best", which no policy has'),
        ({"support": 5, "policies": {"a": {"backup": "logged"}}}, "which no policy has"),
    ],
)
def test_settings_that_would_do_nothing(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Train.model_validate(given)


def test_support_is_for_the_policies_that_ask_for_the_best() -> None:
    assert Train.model_validate({"support": 5, "policies": {"a": {"backup": "best"}, "b": {}}}).support == 5
