"""The losses beside those of another library, over the same Q: states without a history, and no term but query·key and bias."""

from __future__ import annotations

from typing import Any

import d3rlpy
import torch
from d3rlpy.torch_utility import TorchMiniBatch
from torch import Tensor

from models.data import END_CODES
from models.losses import Head, catalogue_logsumexp, chosen_score, n_step_targets

STATES, ITEMS, DIM, GAMMA, ALPHA = 40, 7, 5, 0.9, 0.3


def head(query: Tensor, keys: Tensor, bias: Tensor) -> Head:
    """The items from 1 on; 0 is none."""
    none, count = torch.zeros(len(query), 1), len(keys) + 1
    keys, bias = torch.cat([torch.zeros(1, DIM), keys]), torch.cat([torch.zeros(1), bias])
    nowhere = torch.zeros(len(query), 1, dtype=torch.int64)
    return Head(query, keys, bias, none, torch.zeros(1, count, 1), nowhere[:, 0], torch.zeros(count, dtype=torch.int64), none, nowhere, none)


def test_the_loss_is_that_of_d3rlpys_discrete_cql() -> None:
    """Double Q-learning to the target net, with ends, and the penalty; d3rlpy's Huber loss is half of the square where errors are below 1."""
    torch.manual_seed(0)
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=[DIM])
    algorithm = d3rlpy.algos.DiscreteCQLConfig(gamma=GAMMA, alpha=ALPHA, encoder_factory=encoder).create(device="cpu:0")
    algorithm.create_impl((3,), ITEMS)
    peer: Any = algorithm.impl
    online, target = peer.modules.q_funcs[0], peer.modules.targ_q_funcs[0]
    for parameter in target.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    before, after = torch.randn(2, STATES, 3)
    action, reward, ends = torch.randint(ITEMS, (STATES, 1)), 0.1 * torch.randn(STATES, 1), torch.arange(STATES)[:, None] % 3 == 0
    batch = TorchMiniBatch(before, action, reward, after, action, reward, ends.float(), torch.ones(STATES, 1), "cpu:0")
    expected = peer.compute_loss(batch, peer.compute_target(batch))

    def states(net: Any, observed: Tensor) -> Head:
        return head(net.encoder(observed), net._fc.weight, net._fc.bias)

    now, eligible = states(online, before), torch.arange(ITEMS + 1)[None] > 0
    _, lse, _ = catalogue_logsumexp(now, eligible, torch.ones(STATES))
    _, _, best = catalogue_logsumexp(states(online, after), eligible, torch.ones(STATES))
    bootstrap = torch.cat([torch.zeros(STATES, 1), chosen_score(states(target, after), best)[:, None]], dim=1)
    rewards, acts = torch.cat([reward, torch.zeros(STATES, 1)], dim=1), torch.tensor([[True, False]]).expand(STATES, 2)
    codes = torch.cat([ends * END_CODES["terminated"], torch.zeros(STATES, 1, dtype=torch.int64)], dim=1)
    targets, _ = n_step_targets(rewards, codes, acts, torch.ones(STATES, 2), bootstrap, GAMMA, n_step=1)
    chosen = chosen_score(now, action[:, 0] + 1)
    error = chosen - targets[:, 0].detach()
    assert 0.1 < error.abs().max() < 1
    torch.testing.assert_close((error**2).mean() / 2, expected.td_loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close((lse - chosen).mean(), expected.conservative_loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close((error**2).mean() / 2 + ALPHA * (lse - chosen).mean(), expected.loss, atol=1e-6, rtol=1e-5)
