"""The losses, as functions of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from models.data import END_CODES
from models.network import ItemTable, Rows, States

_NEVER = -1e30  # z of what may not be chosen: no item, and no infinity, whose products are no numbers
_CHUNK_SCORES = {"cpu": 1_000_000, "cuda": 32_000_000}  # scores held at once: what stays in a cache; what keeps a GPU busy
_CHUNK_STATES = 40  # and no fewer states at once, as for each chunk the items are read anew


def by_category(step_category: Tensor, kin: Tensor, categories: int) -> Tensor:
    """Sums of `kin` [states, steps] over the steps of each category int64[states, steps]: [states, categories + 1], 0 for category 0."""
    summed = kin.new_zeros(len(kin), categories + 1).scatter_add(1, step_category, kin)
    return summed * (torch.arange(categories + 1, device=kin.device) > 0)


@dataclass(frozen=True)
class Head:
    """What scores the items in some states: z = query·key + bias + weights·popularity[day] + kin[leaf] + the terms of items met."""

    query: Tensor  # [states, dim]
    keys: Tensor  # [items, dim]
    bias: Tensor  # [items]
    weights: Tensor  # [states, features]
    popularity: Tensor  # [days, items, features]
    day: Tensor  # int64[states] index into days
    leaf: Tensor  # int64[items] category of each item; 0 = none
    kin: Tensor  # [states, categories + 1] term of each category; 0 for none
    met_item: Tensor  # int64[states, met]; 0 = none, else each item at most once
    meeting: Tensor  # [states, met]; -inf = an item that may not be chosen again

    def of(self, states: Tensor) -> Head:
        """Of some states, int64[some]."""
        own = {name: getattr(self, name)[states] for name in ("query", "weights", "day", "kin", "met_item", "meeting")}
        return replace(self, **own)


def head_of(rows: Rows, states: States, table: ItemTable, popularity: Tensor, day: Tensor, places: Tensor) -> Head:
    """The head in some states of rows: `places` is int64[states] in rows · slots, `day` int64[states]."""
    query, weights, kin, met_item, meeting = (
        values.flatten(0, 1).index_select(0, places) for values in (states.query, states.popularity, states.kin, states.met_item, states.meeting)
    )
    step_category = table.leaf[rows.item].index_select(0, places // states.query.shape[1])
    return Head(query, states.keys, states.bias, weights, popularity, day, table.leaf, by_category(step_category, kin, table.leaves), met_item, meeting)


def chosen_score(head: Head, action: Tensor) -> Tensor:
    """z of one item a state: [states], for int64[states] items."""
    met = (head.met_item == action[:, None]) & (action > 0)[:, None]
    return (
        (head.query * _taken(head.keys, action)).sum(1)
        + _taken(head.bias, action)
        + (head.weights * head.popularity[head.day, action]).sum(1)
        + head.kin.gather(1, head.leaf[action][:, None]).squeeze(1)
        + torch.where(met, head.meeting, 0.0).sum(1)
    )


def _taken(values: Tensor, items: Tensor) -> Tensor:
    """What [items] or [items, dim] holds of some items; item 0, which is none, gets no gradient, whose sum over so many would take a GPU long."""
    return embedding(items, values, padding_idx=0) if values.dim() > 1 else embedding(items, values[:, None], padding_idx=0).squeeze(-1)


def catalogue_logsumexp(head: Head, eligible: Tensor, weight: Tensor, seek: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over states of weight · logsumexp of z over the eligible items; that logsumexp, and the best item, of each state.

    `eligible` is bool[days, items], `weight` [states]. Exact; the gradient is formed in the forward pass, chunk by chunk,
    so that no array of states by items is ever held. Returns a scalar, which alone has a gradient, float32[states] and int64[states].
    In a state without any eligible item the logsumexp counts as 0, and the best item is 0; nowhere is it looked for unless it is to `seek`.
    """
    arguments = (head.query, head.keys, head.bias, head.weights, head.popularity, head.day, head.leaf, head.kin, head.met_item, head.meeting)
    total, lse, best = _CatalogueLogsumexp.apply(*arguments, eligible, weight, seek)  # type: ignore[no-untyped-call]
    return total, lse, best


def listed_logsumexp(head: Head, listed: Tensor, action: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `catalogue_logsumexp`, over the items `listed` int64[states, candidates] for each state (0 = none) and its `action` int64[states]."""
    listed = torch.cat([listed, torch.where((listed == action[:, None]).any(1), 0, action)[:, None]], dim=1)
    met = head.met_item[:, :, None] == listed[:, None, :]
    z = torch.bmm(_taken(head.keys, listed), head.query[:, :, None]).squeeze(2) + _taken(head.bias, listed) + head.kin.gather(1, head.leaf[listed])
    z = z + torch.bmm(head.popularity[head.day[:, None], listed], head.weights[:, :, None]).squeeze(2)
    z = (z + torch.where(met, head.meeting[:, :, None], 0.0).sum(1)).masked_fill(listed == 0, -torch.inf)
    highest, at = z.max(1)
    some = highest.isfinite()
    lse = torch.where(some[:, None], z, 0.0).logsumexp(1)
    lse = torch.where(some, lse, 0.0)
    return (weight * lse).sum(), lse.detach(), torch.where(some, listed.gather(1, at[:, None]).squeeze(1), 0)


@dataclass(frozen=True)
class Drawn:
    """Different items that stand for all: what is summed over the catalogue is estimated by them without bias."""

    items: Tensor  # int64[drawn]
    offset: Tensor  # [drawn]: log(times drawn / (draws · chance of the item)), added to z in a sum over the catalogue


def content_of(rows: Rows, states: States, places: Tensor) -> Tensor:
    """query·key of the item of each slot of its row, in some states of rows, as in `head_of`: [states, length]."""
    keys = embedding(rows.item, states.keys)
    return torch.bmm(states.query, keys.transpose(1, 2)).flatten(0, 1).index_select(0, places)


def drawn_logsumexp(head: Head, content: Tensor, eligible: Tensor, drawn: Drawn, action: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `catalogue_logsumexp`, of states in the order of their days; the sums are estimated, and the best item is the best among those looked at.

    The items met in the state, and its `action` int64[states] (0 = none), count exactly; the others by those of them that were drawn
    (Bengio and Senécal 2008, section 3, with what is known to matter apart). So the estimate of a sum has no bias, and that of its
    logarithm one that goes with 1 / drawn. `content` is as of `content_of`.
    """
    exact = torch.cat([head.met_item, torch.where((head.met_item == action[:, None]).any(1), 0, action)[:, None]], dim=1)
    scores = torch.cat([_met_scores(head, content), chosen_score(head, exact[:, -1])[:, None]], dim=1)
    scores = scores.masked_fill(~(eligible[head.day[:, None], exact] & (exact > 0)), -torch.inf)

    number = len(drawn.items)
    place = torch.full((len(head.keys),), number, device=action.device)
    place[drawn.items] = torch.arange(number, device=action.device)
    apart = torch.zeros(len(action), number + 1, dtype=torch.bool, device=action.device).scatter_(1, place[exact], True)
    keys, bias, leaf = head.keys[drawn.items], head.bias[drawn.items], head.leaf[drawn.items]
    arguments = (head.query, keys, bias, head.weights, head.popularity[:, drawn.items], head.day, leaf, head.kin, scores)
    total, lse, highest, best = _DrawnLogsumexp.apply(*arguments, drawn.offset, eligible[:, drawn.items], apart[:, :-1], weight)  # type: ignore[no-untyped-call]
    of_exact, at = scores.detach().max(1)
    found = torch.where(of_exact > highest, exact.gather(1, at[:, None]).squeeze(1), drawn.items[best] if number else 0)
    return total, lse, torch.where(torch.maximum(of_exact, highest) > -torch.inf, found, 0)


def _met_scores(head: Head, content: Tensor) -> Tensor:
    """z of the items met in each state: [states, met]."""
    items = head.met_item
    scores = content + _taken(head.bias, items) + head.meeting
    return scores + head.kin.gather(1, head.leaf[items]) + torch.bmm(head.popularity[head.day[:, None], items], head.weights[:, :, None]).squeeze(2)


@torch.no_grad()
def likeliest(head: Head, eligible: Tensor, count: int) -> Tensor:
    """The `count` eligible items that score best in each state, or all where there are no more: int64[states, count]; 0 = no more."""
    found, barred = torch.zeros(len(head.day), min(count, len(head.keys)), dtype=torch.int64, device=head.day.device), _barred(eligible)
    for rows, days in _chunks(head.day, len(head.keys)):
        scores = _scores(head.of(rows), days, barred)
        best, items = scores.topk(found.shape[1], dim=1)
        found[rows] = torch.where(best > _NEVER / 2, items, 0)
    return found


def lower_bound(values: Tensor, deviations: float) -> Tensor:
    """So many standard deviations below the mean over the critics, [critics, ...] → [...]."""
    return values.mean(0) - deviations * values.std(0, correction=0)


class _DrawnLogsumexp(torch.autograd.Function):
    """Over drawn items, whose z is made here, and others, whose `scores` [states, others] come from outside."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        keys: Tensor,
        bias: Tensor,
        weights: Tensor,
        popularity: Tensor,
        day: Tensor,
        leaf: Tensor,
        kin: Tensor,
        scores: Tensor,
        offset: Tensor,
        eligible: Tensor,
        apart: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        days = _days(day)
        z = torch.addmm(bias, query, keys.T)
        if kin.shape[1] > 1:
            z += kin.index_select(1, leaf)
        for today, begin, end in days:
            z[begin:end].addmm_(weights[begin:end], popularity[today].T)
        z.masked_fill_(apart | ~eligible[day] if not eligible.all() else apart, -torch.inf)
        highest, best = z.max(1) if len(keys) else (query.new_full(day.shape, -torch.inf), torch.zeros_like(day))
        z += offset
        top = torch.maximum(z.amax(1) if len(keys) else highest, scores.amax(1))
        top = torch.where(top.isfinite(), top, 0.0)
        z.sub_(top[:, None]).exp_()
        others = (scores - top[:, None]).exp_()
        summed = z.sum(1) + others.sum(1)
        some = summed > 0
        summed = summed.where(some, 1.0)
        lse = summed.log() + top
        lse = torch.where(some, lse, 0.0)
        share = torch.where(some, weight, 0.0) / summed
        z *= share[:, None]  # now weight · chance
        others *= share[:, None]
        grad_weights = torch.empty_like(weights)
        for today, begin, end in days:
            torch.mm(z[begin:end], popularity[today], out=grad_weights[begin:end])
        grad_kin = torch.zeros_like(kin)
        if kin.shape[1] > 1:
            grad_kin.index_add_(1, leaf, z)
        context.save_for_backward(z @ keys, z.T @ query, z.sum(0), grad_weights, grad_kin, others)
        context.mark_non_differentiable(lse, highest, best)
        return (weight * lse).sum(), lse, highest, best

    @staticmethod
    def backward(context: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        query, keys, bias, weights, kin, scores = (grad_outputs[0] * gradient for gradient in context.saved_tensors)
        return query, keys, bias, weights, None, None, None, kin, scores, None, None, None, None


@torch.no_grad()
def all_scores(head: Head) -> Tensor:
    """z of every item in every state, all of the first day: [states, items]."""
    return _scores(head, [(0, 0, len(head.day))])


def _scores(head: Head, days: Sequence[tuple[int, int, int]], barred: Sequence[Tensor | None] = (), room: Tensor | None = None) -> Tensor:
    """z of every item in states in the order of their days, which are told as by `_days`: [states, items]; at most _NEVER for those `barred` on
    the day, as by `_barred`, if any are, and for item 0 then. They are put into `room` [states, items], where it is given.
    """
    scores = torch.addmm(head.bias, head.query, head.keys.T, out=room)
    for today, begin, end in days:
        todays = scores[begin:end].addmm_(head.weights[begin:end], head.popularity[today].T)
        if barred and (of_today := barred[today]) is not None:
            todays.masked_fill_(of_today, _NEVER)
    if barred:
        scores[:, 0] = _NEVER
    if head.kin.shape[1] > 1:
        scores += head.kin.index_select(1, head.leaf)
    return scores.scatter_add_(1, head.met_item, head.meeting)


def _barred(eligible: Tensor) -> list[Tensor | None]:
    """What may not be chosen on each day, bool[items]; None where that is item 0 alone, which spares a pass over the scores."""
    is_some = (~eligible[:, 1:]).any(1).tolist()
    return [~today if some else None for today, some in zip(eligible, is_some, strict=True)]


class _CatalogueLogsumexp(torch.autograd.Function):
    """The scores of a chunk are passed over as seldom as can be: that is what its time goes by."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        keys: Tensor,
        bias: Tensor,
        weights: Tensor,
        popularity: Tensor,
        day: Tensor,
        leaf: Tensor,
        kin: Tensor,
        met_item: Tensor,
        meeting: Tensor,
        eligible: Tensor,
        weight: Tensor,
        seek: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = Head(query, keys, bias, weights, popularity, day, leaf, kin, met_item, meeting.clamp(min=_NEVER))
        lse, best = torch.zeros_like(weight), torch.zeros_like(day)
        grad_query, grad_keys, grad_bias, grad_weights, grad_kin, grad_meeting = map(torch.zeros_like, (query, keys, bias, weights, kin, meeting))
        room, barred = None, _barred(eligible)
        for rows, days in _chunks(day, len(keys)):
            room = query.new_empty(2, len(rows), len(keys)) if room is None else room
            z, chance = room[:, : len(rows)]
            _scores(head.of(rows), days, barred, z)
            if seek:
                highest, best[rows] = z.max(1)
            else:
                highest = z.amax(1)  # five times as fast
            some = highest > _NEVER / 2
            torch.softmax(z, 1, out=chance)
            lse[rows] = torch.where(some, highest - chance.amax(1).log(), 0.0)
            share = torch.where(some, weight[rows], 0.0)[:, None]
            grad_keys.addmm_(chance.T, query[rows] * share)
            grad_bias.addmv_(chance.T, share.squeeze(1))
            grad_query[rows] = chance @ keys * share
            for today, begin, end in days:
                grad_weights[rows[begin:end]] = chance[begin:end] @ popularity[today] * share[begin:end]
            if kin.shape[1] > 1:
                grad_kin[rows] = torch.zeros_like(kin[rows]).index_add_(1, leaf, chance) * share
            grad_meeting[rows] = chance.gather(1, met_item[rows]) * share
        context.save_for_backward(grad_query, grad_keys, grad_bias, grad_weights, grad_kin, grad_meeting)
        context.mark_non_differentiable(lse, best)
        return (weight * lse).sum(), lse, best

    @staticmethod
    def backward(context: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        grad_query, grad_keys, grad_bias, grad_weights, grad_kin, grad_meeting = (grad_outputs[0] * gradient for gradient in context.saved_tensors)
        return grad_query, grad_keys, grad_bias, grad_weights, None, None, None, grad_kin, None, grad_meeting, None, None, None


def _chunks(day: Tensor, items: int) -> Iterator[tuple[Tensor, list[tuple[int, int, int]]]]:
    """Indices of the states in the order of their days, as many at once as may be held; and of each day among them: day, begin, end."""
    order, size = torch.argsort(day, stable=True), max(_CHUNK_STATES, _CHUNK_SCORES[day.device.type] // items)
    days = _days(day[order])
    for place, rows in enumerate(torch.split(order, size)):
        first, last = place * size, place * size + len(rows)
        yield rows, [(today, max(begin, first) - first, min(end, last) - first) for today, begin, end in days if begin < last and end > first]


def _days(day: Tensor) -> list[tuple[int, int, int]]:
    """Of each day among states in the order of their days: day, begin, end."""
    days, counts = torch.unique_consecutive(day, return_counts=True)
    ends = counts.cumsum(0).tolist()
    return list(zip(days.tolist(), [0, *ends], ends, strict=False))


def n_step_targets(reward: Tensor, end: Tensor, acts: Tensor, elapsed: Tensor, bootstrap: Tensor, gamma: float, n_step: int) -> tuple[Tensor, Tensor]:
    """Targets of Q and which of them count, in the slots of rows.

    target_t = Σ_{j<m} gamma^j r_{t+j} + gamma^m · bootstrap_{t+m}, where m is `n_step`, or less where the episode or the window ends:
    a `terminated` step adds no bootstrap; after a truncated one, and at the window's edge, the state after the step is the
    last that is looked at, so no return crosses into the next episode; an `immature` step's reward is not known, so its own target
    does not count and those before it bootstrap from the state before it.
    All [rows, slots]: `reward` and `end` (END_CODES) of the step that follows a slot's state in its window, `acts` where there is one,
    which is never in the last slot of a row; `elapsed` what passes from that step to the next one, in the unit of `gamma`, of which a power
    of j stands above for j steps that are one unit apart; `bootstrap` the value of the slot's state.
    """
    width = reward.shape[1]
    place = torch.arange(width, device=reward.device).expand_as(end)
    immature = end == END_CODES["immature"]
    stops = (end != 0) | ~pad(acts[:, 1:], (0, 1))
    passed = elapsed.cumsum(1) - elapsed
    target = torch.zeros_like(reward)
    running = acts & ~immature
    valid = running
    for ahead in range(n_step):
        at = (place + ahead).clamp(max=width - 1)
        is_immature = immature.gather(1, at)
        discount = gamma ** (passed.gather(1, at) - passed)
        target = target + torch.where(running & is_immature, discount * bootstrap.gather(1, at), 0.0)
        running = running & ~is_immature
        target = target + torch.where(running, discount * reward.gather(1, at), 0.0)
        cut = stops.gather(1, at) | (ahead == n_step - 1)
        known = running & cut & (end.gather(1, at) != END_CODES["terminated"])
        target = target + torch.where(known, discount * gamma ** elapsed.gather(1, at) * bootstrap.gather(1, (at + 1).clamp(max=width - 1)), 0.0)
        running = running & ~cut
    return target, valid


def lambda_returns(
    reward: Tensor, end: Tensor, acts: Tensor, elapsed: Tensor, values: Tensor, gammas: Sequence[float], mixings: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Returns of what was logged, by discount and mixing, and which of them count, in the slots of rows, as in `n_step_targets`.

    G_t = r_t + gamma · ((1 - mixing) · value_{t+1} + mixing · G_{t+1}), with `mixing` = λ (Sutton and Barto 2018, section 12.1), where the episode
    goes on to a step whose reward is known; else G_t = r_t + gamma · value_{t+1}, and r_t alone where it has `terminated`.
    `values` and the returns are [rows, slots, gammas], and each of `gammas` has one of `mixings`; for gamma stands its power of `elapsed`.
    """
    immature, terminated = end == END_CODES["immature"], end == END_CODES["terminated"]
    goes_on = (pad(acts[:, 1:] & ~immature[:, 1:], (0, 1)) & (end == 0))[:, :, None]
    after = pad(values[:, 1:], (0, 0, 0, 1)).masked_fill(terminated[:, :, None], 0.0)
    discount = values.new_tensor(gammas) ** elapsed[:, :, None]
    # G_t = known_t + share_t · G_{t+1}, all at once: each round lets it see twice as many steps ahead (Blelloch 1990, Prefix sums and their applications).
    share = torch.where(goes_on, values.new_tensor(mixings) * discount, 0.0)
    known = reward[:, :, None] + (discount - share) * after
    ahead = 1
    while any(mixings) and ahead < reward.shape[1]:
        known = torch.addcmul(known, share, pad(known[:, ahead:], (0, 0, 0, ahead)))
        share = share * pad(share[:, ahead:], (0, 0, 0, ahead))
        ahead *= 2
    return known, acts & ~immature
