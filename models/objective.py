"""What training minimises: conservative Q-learning over packed sequences of steps.

    loss = E[(Q(s, a) - target)²] + alpha · E[logsumexp_a' z(s, a') - z(s, a)] + supervised · E[the same, where the reward was positive]
         + Σ over shorter horizons of E[(V(s) - return)²] [+ E[-log π_b(a|s)]]

Q is that of the logging policy: V learns its λ-returns, and z how much better than what was logged an item is, of which the ranking takes
the best. With train.backup = "best" it is double Q-learning with n-step returns (van Hasselt et al. 2016; Sutton and Barto 2018, section
7.1). Of several critics its bootstrap is a lower bound (An et al. 2021, Uncertainty-based offline reinforcement learning), and with
train.support its best item is that of the items that the log most likely chooses (Fujimoto et al. 2019, Benchmarking batch deep
reinforcement learning algorithms), which a head for the behaviour π_b of the log learns.

The penalty is that of Kumar et al. 2020, equation 4, CQL(H), on z, which ranks. The values to shorter horizons rank nothing: they
teach the encoder what a state holds, from returns with less noise (Fedus et al. 2019, Hyperbolic discounting and learning over multiple
horizons). The action space is the catalogue: up to train.exact_items items the logsumexp is exact, and beyond that each batch looks at
the items of its own rows and at train.negatives drawn ones, and nothing else of the catalogue. Where the log tells what a step was chosen
from, the maximum and the logsumexp are over these items, all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from jobs.settings import Train
from models.augment import Reading, reading
from models.loader import PER_SLOT, Packed
from models.losses import (
    Drawn,
    Head,
    catalogue_logsumexp,
    chosen_score,
    content_of,
    drawn_logsumexp,
    head_of,
    lambda_returns,
    likeliest,
    listed_logsumexp,
    lower_bound,
    n_step_targets,
)
from models.network import NEARER, ItemTable, Network, Rows, States, view_of

_LEAST_ELAPSED = 1e-3  # 0 to the power of 0 is 1, and a discount of 0 looks no step ahead


@dataclass(frozen=True)
class Batch:
    """Rows with what follows each state in its window; [rows, slots] as in Rows."""

    rows: Rows
    acts: Tensor  # bool: a step follows
    learnt: Tensor  # bool: and it is learnt here; the others are context alone and are learnt in another window
    action: Tensor  # int64 its item; 0 = unknown, or none follows
    kind: Tensor  # int64 type of its response, or, where it has none, its own; 0 = none
    reward: Tensor  # float32, in units of the scale
    end: Tensor  # int64 END_CODES
    candidates: Tensor  # int64 the set that it was chosen from, a number of the training data's, or, once counted, of the part's; 0 = all available
    elapsed: Tensor  # float32 what passes from it to the next step of the window: 1, or a time in units of train.gamma_hours
    day: Tensor  # int64 its day, or, where none follows, that of the step before; index into the days of the training data
    known: Tensor  # float32[rows, slots, features] of the user, as of the eve of the state's moment; nan = not known


def batch_of(packed: Packed, first_day: int, scale: float, device: torch.device, gamma_hours: float | None = None) -> Batch:
    """A batch of the loader, on a device; days count from `first_day` on, and rewards in units of `scale`.

    Time passes by `gamma_hours`, where given, else by steps; after the last step of a window one unit.
    """
    known = packed.features[packed.known.long()].to(device, non_blocking=True)
    packed = Packed(**{name: getattr(packed, name).to(device, non_blocking=True) for name in PER_SLOT}, features=packed.features)
    rows = Rows(*(getattr(packed, field.name).long() for field in fields(Rows)))
    acts = pad((rows.segment[:, 1:] == rows.segment[:, :-1]) & (rows.segment[:, 1:] > 0), (0, 1))

    def following(values: Tensor) -> Tensor:
        return torch.where(acts, values.roll(-1, 1), 0)

    day = torch.where(acts, packed.day.roll(-1, 1), packed.day).long() - first_day
    reward = following(packed.reward) * (1 / scale)
    elapsed = torch.ones_like(reward)
    if gamma_hours is not None:
        waited = rows.wait.roll(-1, 1) / (3600 * gamma_hours)
        elapsed = torch.where(acts & acts.roll(-1, 1), waited.clamp(min=_LEAST_ELAPSED), elapsed)
    kind = following(torch.where(rows.response > 0, rows.response, rows.event))
    return Batch(
        rows,
        acts,
        acts & packed.fresh.roll(-1, 1),
        following(rows.item),
        kind,
        reward,
        following(packed.end.long()),
        following(packed.candidates.long()),
        elapsed,
        day,
        known,
    )


@dataclass(frozen=True)
class Part:
    """What a batch looks at of the catalogue, all of it or less; its items are counted in the order of the table, the first of which is none."""

    table: ItemTable
    popularity: Tensor  # [days, items, features]
    eligible: Tensor  # bool[days, items]
    drawn: Drawn | None  # None = all are looked at
    listed: Tensor | None = None  # int64[sets + 1, longest] items of the candidate sets of the batch, and in row 0 none; 0 = no more


@dataclass(frozen=True)
class Seen:
    """A batch as a network sees it, with one of its heads, and of it the states looked at."""

    states: States
    part: Part
    batch: Batch
    places: Tensor  # int64 of the states, in the slots of the batch, flat, by day

    @cached_property
    def head(self) -> Head:
        """What scores the items in these states."""
        return head_of(self.batch.rows, self.states, self.part.table, self.part.popularity, self.there(self.batch.day), self.places)

    def there(self, values: Tensor) -> Tensor:
        """[rows, slots, ...] → [places, ...]."""
        return values.flatten(0, 1).index_select(0, self.places)

    def worth(self, item: Tensor) -> Tensor:
        """Q of an item in each of these states; V where it is none."""
        return self.there(self.states.value).squeeze(1) + torch.where(item > 0, chosen_score(self.head, item), 0.0)


@dataclass(frozen=True)
class Loss:
    """What is minimised, and its parts before their weights, those that have one; scalars. All are means over so many steps."""

    total: Tensor
    parts: dict[str, Tensor]
    steps: Tensor  # learnt


def batch_loss(online: Network, target: Network, part: Part, batch: Batch, policies: Mapping[str, Train], own: tuple[Tensor, Tensor] | None = None) -> Loss:
    """The loss of a batch; see the head of this file. Means are over its learnt steps with a known item. `own` as in `Network.items`.

    `policies`, by name, are as of `Train.for_log`. The best item of a state is the online net's, its value the target net's.
    What policies have in common learns from all alike: each counts by the weights within its loss, so that no alpha drowns the others.
    """
    rows, view = batch.rows, view_of(batch.rows, online.config.context)
    items = online.items(part.table, own)
    with torch.no_grad():
        target_states = target.states(rows, view, target.items(part.table), batch.known)
    read = reading(rows, view, next(iter(policies.values()))) if online.training else Reading.whole(rows, view)
    states = online.states(rows, view, items, batch.known, (read.rows, read.view))
    batch = replace(batch, action=torch.where(read.is_ahead, 0, batch.action))  # looked at still, as what comes before them bootstraps from there

    # The state after the last step too: the bootstrap needs it. In the order of the days, each of which has a popularity of its own.
    places = (batch.learnt | (rows.segment > 0) & ~batch.acts).flatten().nonzero().squeeze(1)
    places = places[torch.argsort(batch.day.flatten()[places], stable=True)]
    least = min(map(_weight, policies.values()))
    total = torch.zeros((), device=rows.item.device)
    parts: dict[str, Tensor] = {}
    repeats, critics, log = online.config.repeats, online.config.critics, None
    if online.config.behaviour:
        behaviour, log = _behaviour(repeats, Seen(states[-1], part, batch, places))
        total, parts = behaviour.total, behaviour.parts
    for number, (name, train) in enumerate(policies.items()):
        mine = slice(number * critics, (number + 1) * critics)
        valued = replace(batch, reward=_valued(batch, train, online.config.event_types))
        targets = [Seen(seen, part, valued, places) for seen in target_states[mine]]
        for critic, seen in enumerate(states[mine]):
            loss = _policy_loss(repeats, train, Seen(seen, part, valued, places), targets, critic, log)
            total = total + least / (critics * _weight(train)) * loss.total
            for kind, value in loss.parts.items():
                known = f"{name} {kind}".strip()
                parts[known] = parts.get(known, 0) + value / critics
    return Loss(total, parts, loss.steps)


def _weight(train: Train) -> float:
    """Of all parts of a policy's loss together."""
    return 1 + (train.alpha or 0) + train.supervised


def _valued(batch: Batch, train: Train, event_types: Sequence[str]) -> Tensor:
    """The reward of each step, as the policy weighs it."""
    if not train.rewards:
        return batch.reward
    return batch.reward * batch.reward.new_tensor([1.0, *(train.rewards.get(name, 1.0) for name in event_types)])[batch.kind]


@dataclass(frozen=True)
class _Choices:
    """What a head says of the states looked at, [places], in the order of their days, and what was chosen there."""

    head: Head
    choosable: Head  # in which what may not be chosen again scores -inf
    content: Tensor | None  # of `content_of`, where items are drawn
    candidates: Tensor  # int64 as in Batch
    action: Tensor  # int64; 0 = none that is learnt
    share: Tensor  # of each step that is learnt in a mean over them
    z: Tensor  # of the action; 0 where there is none

    @classmethod
    def of(cls, repeats: bool, seen: Seen) -> _Choices:
        """Of the states that are seen."""
        head, batch, action = seen.head, seen.batch, seen.there(seen.batch.action)
        choosable = head
        if not repeats:
            action = torch.where((head.met_item == action[:, None]).any(1), 0, action)
            choosable = replace(head, meeting=head.meeting.masked_fill(head.met_item > 0, -torch.inf))
        content = content_of(batch.rows, seen.states, seen.places) if seen.part.drawn else None
        learnt = action > 0
        share = learnt / learnt.sum().clamp(min=1)
        return cls(head, choosable, content, seen.there(batch.candidates), action, share, torch.where(learnt, chosen_score(head, action), 0.0))

    def gap(self, part: Part, weight: Tensor, seek: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of weight · (logsumexp of z - z of the action); that gap, and the best item if sought, of each state. Only the sum has a gradient."""
        summed, lse, best = _summed(self.choosable, part, self.content, self.candidates, self.action, weight, seek)
        return summed - (weight * self.z).sum(), torch.where(self.action > 0, lse - self.z.detach(), 0.0), best


def _behaviour(repeats: bool, seen: Seen) -> tuple[Loss, _Choices]:
    """Cross-entropy of what the log chose, and how much surer the head is of its first choice than it ought to be."""
    log = _Choices.of(repeats, seen)
    loss, gap, best = log.gap(seen.part, log.share, seek=True)
    learnt = log.action > 0
    confidence = torch.where(learnt, chosen_score(log.head, best) - log.z - gap, 0.0).detach().exp()
    overconfidence = (log.share * (confidence - (best == log.action).float())).sum()
    return Loss(loss, {"behaviour": loss.detach(), "overconfidence": overconfidence}, learnt.sum()), log


@torch.no_grad()
def _best_of_likely(log: _Choices, own: _Choices, part: Part, count: int, best: Tensor) -> Tensor:
    """In place of the `best` item of each state that of the log's likeliest, the chosen one among them; where its candidates are told, it stays."""
    of_likely = listed_logsumexp(own.choosable, likeliest(log.choosable, part.eligible, count), own.action, own.share)[2]
    return torch.where(own.candidates > 0, best, of_likely)


def _policy_loss(repeats: bool, train: Train, online: Seen, targets: Sequence[Seen], critic: int, log: _Choices | None) -> Loss:
    """The loss of one critic of a policy; `targets` are those of all its critics, and `log` is the behaviour in the same states."""
    assert train.alpha is not None
    part, batch, states, there, own = online.part, online.batch, online.states, online.there, _Choices.of(repeats, online)
    learnt, share, z = own.action > 0, own.share, own.z

    best, conservative, parts = own.action, torch.zeros(()), {}
    if train.alpha or train.supervised or train.backup == "best":
        is_positive = there(batch.reward) > 0
        conservative, gap, best = own.gap(part, share * (train.alpha + train.supervised * is_positive), train.backup == "best")
        parts = {"penalty": (share * gap).sum(), "supervised": (share * is_positive * gap).sum()}

    def error(worth: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Mean square over the steps that count, of values [places, discounts], summed over the discounts."""
        wrong = torch.where((there(counts) & learnt)[:, None], worth - there(targets), 0.0)
        return (share[:, None] * wrong**2).sum()

    logged = batch.reward, batch.end, batch.acts, batch.elapsed
    target = targets[critic].states
    gammas, mixings = [*NEARER, train.gamma, train.gamma], [train.mixing] * len(NEARER) + [train.mixing, 0.0]
    returns, counts = lambda_returns(*logged, torch.cat([target.nearer, target.value, target.value], 2), gammas, mixings)
    of_nearer, of_state, of_choice = returns[:, :, :-2], returns[:, :, -2:-1], returns[:, :, -1:]
    nearer = error(there(states.nearer), of_nearer, counts)
    if train.backup == "logged":
        # V learns the return, which has the noise of all that follows, and Q what follows from one step, as V sees it.
        td = error(there(states.value), of_state, counts) + error(there(states.value).detach() + z[:, None], of_choice, counts)
    else:
        if log and train.support:
            best = _best_of_likely(log, own, part, train.support, best)
        best_values = torch.zeros_like(batch.reward).flatten()
        best_values[online.places] = lower_bound(torch.stack([seen.worth(best) for seen in targets]), train.lower)
        best_returns, counts = n_step_targets(*logged, best_values.view_as(batch.reward), train.gamma, train.n_step)
        td = error(there(states.value) + z[:, None], best_returns[:, :, None], counts)
    return Loss(td + conservative + nearer, {"td": td.detach(), **parts, "nearer": nearer.detach()}, learnt.sum())


def _summed(head: Head, part: Part, content: Tensor | None, candidates: Tensor, action: Tensor, weight: Tensor, seek: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `catalogue_logsumexp`, over the candidates of each state where they are told, else over the catalogue, or what is looked at of it."""

    def of_all(head: Head, some: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        if part.drawn is None or content is None:
            return catalogue_logsumexp(head, part.eligible, weight[some], seek)
        return drawn_logsumexp(head, content[some], part.eligible, part.drawn, action[some], weight[some])

    if part.listed is None:
        return of_all(head, slice(None))
    told, untold = candidates.nonzero().squeeze(1), (candidates == 0).nonzero().squeeze(1)
    listed = listed_logsumexp(head.of(told), part.listed[candidates[told]], action[told], weight[told])
    if not len(untold):
        return listed
    others = of_all(head.of(untold), untold)
    order = torch.argsort(torch.cat([told, untold]))
    return listed[0] + others[0], torch.cat([listed[1], others[1]])[order], torch.cat([listed[2], others[2]])[order]
