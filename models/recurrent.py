"""A GRU over windows of different lengths, of several networks at once.

On a CPU the windows go on side by side, all networks in step: a step of few windows takes as long as its calls do, not its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from models.encoders import View


class Recurrent(nn.Module):
    """A GRU (Cho et al. 2014) over each window: it counts, which attention has to learn from far more steps."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.cells = nn.GRU(dim, dim, layers)
        self.norm = nn.LayerNorm(dim)


def side_by_side(encoders: Sequence[Recurrent], tokens: Sequence[Tensor], view: View) -> list[Tensor]:
    """What each of the encoders makes of its own tokens, as those of `models.encoders` do: [rows, length, dim] → [rows, slots, dim]."""
    slots, together = view.in_turn
    flat = torch.stack([part.flatten(0, 1) for part in tokens])
    if flat.is_cuda:
        states = torch.stack([encoder.cells(PackedSequence(part[slots], together))[0].data for encoder, part in zip(encoders, flat, strict=True)])
    else:
        states = recurrence([encoder.cells for encoder in encoders], flat.index_select(1, slots), together.tolist())
    spread = torch.zeros_like(flat).index_copy(1, slots, states)
    return [encoder.norm(view.of_slots(part.view_as(own))) for encoder, part, own in zip(encoders, spread, tokens, strict=True)]


def recurrence(cells: Sequence[nn.GRU], tokens: Tensor, together: Sequence[int]) -> Tensor:
    """As `cells` do, each of its own tokens, [networks, slots, dim]: `together` first slots of windows, then so many second ones, never more."""
    states = tokens
    for layer in zip(*(one.all_weights for one in cells), strict=True):
        of_input, of_state, input_bias, state_bias = (torch.stack(weights) for weights in zip(*layer, strict=True))
        states = _Recurrence.apply(torch.baddbmm(input_bias[:, None], states, of_input.mT), of_state, state_bias, together)  # type: ignore[no-untyped-call]
    return states


class _Recurrence(torch.autograd.Function):
    """The states, [networks, slots, dim], from what the inputs add to reset, update and candidate, in this order: `given` [networks, slots, 3 · dim].

    `of_state` [networks, 3 · dim, dim] and `state_bias` [networks, 3 · dim] are as of nn.GRU. The gradient is written out, as recorded call by call
    it takes most of the time of a training step.
    """

    @staticmethod
    def forward(saved: Any, given: Tensor, of_state: Tensor, state_bias: Tensor, together: Sequence[int]) -> Tensor:
        networks, slots, width = given.shape
        dim = width // 3
        own, gates, new, states = (given.new_empty(networks, slots, size) for size in (width, 2 * dim, dim, dim))
        of_given, of_own = (given[..., : 2 * dim], given[..., 2 * dim :]), (own, own[..., : 2 * dim], own[..., 2 * dim :])
        columns = (*of_given, *of_own, gates, gates[..., :dim], gates[..., dim:], new, states)
        before, bias, to_gates = given.new_zeros(networks, together[0], dim), state_bias[:, None], of_state.mT.contiguous()
        for place in zip(*(values.split_with_sizes(together, 1) for values in columns), strict=True):
            given_gates, given_new, all_own, own_gates, own_new, both, reset, update, candidate, state = place
            before = before[:, : state.shape[1]]
            torch.baddbmm(bias, before, to_gates, out=all_own)
            torch.add(given_gates, own_gates, out=both).sigmoid_()
            torch.addcmul(given_new, reset, own_new, out=candidate).tanh_()
            before = torch.lerp(candidate, before, update, out=state)
        saved.save_for_backward(of_state, own[..., 2 * dim :], gates, new, states)
        saved.together = together
        return states

    @staticmethod
    def backward(saved: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        of_state, own_new, gates, new, states = saved.saved_tensors
        together, (networks, _, dim) = saved.together, states.shape
        (reset, update), grad = gates.chunk(2, 2), grad_outputs[0].clone(memory_format=torch.contiguous_format)
        earlier = [state[:, :count] for state, count in zip(states.split_with_sizes(together, 1), together[1:], strict=False)]
        before = torch.cat([states.new_zeros(networks, together[0], dim), *earlier], 1)
        to_candidate = (1 - update) * (1 - new * new)
        # What a change of a state does to the parts of the gates that come from the state before it.
        change = torch.stack([to_candidate * own_new * reset * (1 - reset), (before - new) * update * (1 - update), to_candidate * reset], 2)
        moved = torch.empty_like(change)
        columns = (grad, grad[:, :, None], change, moved, moved.flatten(2), update)
        later = None
        for ours, ours_of_parts, changes, moves, flat, kept in reversed([*zip(*(values.split_with_sizes(together, 1) for values in columns), strict=True)]):
            if later is not None:
                ours[:, : later.shape[1]] += later
            torch.mul(ours_of_parts, changes, out=moves)
            later = torch.baddbmm(ours * kept, flat, of_state)
        whole = moved.flatten(2)
        grad_of_state, grad_bias = whole.mT @ before, whole.sum(1)
        moved[:, :, 2] = grad * to_candidate
        return whole, grad_of_state, grad_bias, None


class OneWindow(nn.Module):
    """A `Recurrent` for rows that are a window each, from their first slot on: torch.export takes no packed sequence."""

    def __init__(self, recurrent: Recurrent) -> None:
        super().__init__()
        self.cells, self.norm = recurrent.cells, recurrent.norm

    def forward(self, tokens: Tensor, view: View) -> Tensor:
        begin = tokens.new_zeros(self.cells.num_layers, tokens.shape[0], tokens.shape[2])
        weights = tuple(weight for layer in self.cells.all_weights for weight in layer)  # nn.GRU would set attributes, of which torch.export warns
        states, _ = torch.gru(tokens, begin, weights, True, self.cells.num_layers, 0.0, False, False, True)
        normed: Tensor = self.norm(view.of_slots(states))
        return normed
