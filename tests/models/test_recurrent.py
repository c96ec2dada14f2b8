from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from models.recurrent import Recurrent, recurrence


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("together", [[5, 4, 2, 1], [3], [1, 1, 1, 1, 1, 1]], ids=str)
def test_networks_in_step_are_the_gru_of_torch(layers: int, networks: int, together: list[int]) -> None:
    """In value and gradient, each of its own tokens, over windows of different lengths."""
    torch.manual_seed(0)
    cells, shape = [Recurrent(6, layers).double().cells for _ in range(networks)], (networks, sum(together), 6)
    tokens, weight = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    learnt = [tokens, *(parameter for one in cells for parameter in one.parameters())]
    expected = torch.stack([one(PackedSequence(own, torch.tensor(together)))[0].data for one, own in zip(cells, tokens, strict=True)])
    found = recurrence(cells, tokens, together)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad((weight * states).sum(), learnt) for states in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)
