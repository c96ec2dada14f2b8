"""Trains tonight's policy: conservative Q-learning over packed sequences of steps.

    loss = E[(Q(s, a) - target)²] + alpha · E[logsumexp_a' z(s, a') - z(s, a)] + supervised · E[the same, where the reward was positive]

Double Q-learning with n-step returns (van Hasselt et al. 2016; Sutton and Barto 2018, section 7.1) and the penalty of Kumar et al.
2020, equation 4, CQL(H), on z, which ranks. The action space is the catalogue, so the logsumexp is exact.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.contracts.errors import TooLittleData, TrainingFailed
from jobs.contracts.revision import revision
from jobs.lake import Lake
from jobs.settings import Settings, Train
from jobs.steps import find_step
from jobs.storage import whole_folder
from models.data import Bools, Catalogue, Floats, Ints, Steps, day_number, load_availability, load_catalogue, load_steps, version_as_of
from models.gate import MANIFEST, POLICIES
from models.loader import cut
from models.losses import catalogue_logsumexp, chosen_score, head_of, n_step_targets
from models.network import ItemTable, Network, NetworkConfig, Windows, category_paths, item_table, popularity_by_day, windows_of
from models.policy import device_of_choice, save_policy
from models.progress import training_progress

_WARM_UP = 0.05  # share of the updates over which the learning rate rises; then it falls as a cosine, to a tenth
_LARGEST_GRADIENT = 1.0


def run(lake: Lake, settings: Settings, day: date) -> None:
    """Train on the days [day - window + 1, day - holdout_days], write the policy folder, register it in gold.policies.

    Raises NotReady when the day has no transitions, FutureData when all that is there knows more than `day`, TooLittleData
    when there is nothing to choose between, TrainingFailed when the loss is no number.
    """
    inputs = lake.versions(find_step("train").reads)
    first, last = day - timedelta(days=settings.train.window_days - 1), day - timedelta(days=settings.evaluate.holdout_days)
    inputs["gold.transitions"] = version = version_as_of(lake, first, day)
    catalogue = load_catalogue(lake, day, version)
    steps = load_steps(lake, catalogue, tuple(settings.event_types), first, last, version)
    _check_enough(steps, catalogue, first, last, lake)
    manifest = {
        "day": str(day),
        "trained_from": str(first),
        "trained_to": str(last),
        "inputs": inputs,
        "revision": revision(),
        "seed": settings.train.seed,
        "settings": {name: getattr(settings, name).model_dump() for name in ("train", "evaluate", "episodes")},
        "event_types": {name: event_type.model_dump() for name, event_type in settings.event_types.items()},
    }
    policy_version = f"{day}-{hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:8]}"
    data = TrainingData.build(lake, catalogue, steps, first, last)
    network, scale = fit(data, tuple(settings.event_types), settings.train, settings.evaluate.repeats, device_of_choice())

    lake.ensure("gold.policies")
    with whole_folder(lake.root / POLICIES / policy_version, last=MANIFEST) as folder:
        save_policy(folder, network, catalogue, data.popularity[-1], {"reward_scale": scale, "train": settings.train.model_dump()}, manifest)
    row = {
        "policy_version": policy_version,
        "path": f"{POLICIES}/{policy_version}",
        "trained_from": first,
        "trained_to": last,
        "steps": len(steps),
        "items": len(catalogue) - 1,
        "manifest": json.dumps(manifest, sort_keys=True),
        "day": day,
    }
    lake.replace("gold.policies", pa.Table.from_pylist([row], lake.schema("gold.policies")), "train", [day], inputs)


def _check_enough(steps: Steps, catalogue: Catalogue, first: date, last: date, lake: Lake) -> None:
    items = len(np.unique(steps.item))
    if len(steps) < 2 or items < 2:
        raise TooLittleData(
            f"Training needs at least 2 steps with 2 different items; the days {first}..{last} of gold.transitions in {lake.root} hold {len(steps)} "
            f"steps with {items} items ({len(catalogue) - 1} are known). Land more days, widen train.window_days, or lower evaluate.holdout_days."
        )


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from; days count from `first_day` on, and the last row of `popularity` is for the day after them."""

    catalogue: Catalogue
    steps: Steps
    first_day: int  # days since 1970-01-01
    popularity: Floats  # [days + 1, items, features]
    eligible: Bools  # [days, items]

    @classmethod
    def build(cls, lake: Lake, catalogue: Catalogue, steps: Steps, first: date, last: date) -> TrainingData:
        """Popularity and availability for each day of the steps; what was chosen counts as available."""
        begin = int(steps.day.min(initial=day_number(last)))
        first = first + timedelta(days=begin - day_number(first))
        eligible = load_availability(lake, catalogue, steps, first, last)
        eligible[steps.day - begin, steps.item] = True
        eligible[:, 0] = False
        return cls(catalogue, steps, begin, popularity_by_day(steps, len(catalogue), begin, len(eligible) + 1), eligible)


@dataclass(frozen=True)
class Batch:
    """Windows with what happened in them; [windows, length] as in Windows."""

    windows: Windows
    fresh: Tensor  # int64[windows]: steps before it are context alone and are learnt in another window
    reward: Tensor  # float32
    end: Tensor  # int64
    day: Tensor  # int64 index into the days of the training data


def fit(data: TrainingData, event_types: tuple[str, ...], train: Train, repeats: bool, device: torch.device) -> tuple[Network, float]:
    """Train a network from `train.seed`; return it with the scale of its rewards (Q · scale is in units of the reward).

    The same arguments give the same weights, bit for bit, on a CPU with the same number of threads.
    """
    config = NetworkConfig(event_types, train.dim, train.layers, train.heads, train.context, train.dropout, train.id_dropout, repeats)
    positive = data.steps.reward[data.steps.reward > 0]
    scale = float(positive.mean()) if len(positive) else 1.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _reproducible(device):
        torch.manual_seed(train.seed)
        network = Network(config, len(data.catalogue) - 1, len(category_paths(data.catalogue.categories))).to(device)
        with training_progress(train.epochs, len(data.steps)) as progress:
            _Learner(network, data, train, scale, device).learn(progress)
    return network.eval(), scale


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """On a CPU, sums in an order that does not depend on which thread comes first, as those of gradients of indexed tensors do otherwise."""
    net: Any = torch.utils.deterministic  # its switch is a property that mypy can't see
    before, filled = torch.are_deterministic_algorithms_enabled(), net.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        net.fill_uninitialized_memory = False  # it would cost a pass over every new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        net.fill_uninitialized_memory = filled


class _Learner:
    """The online and the target network, and the optimiser of the first."""

    def __init__(self, network: Network, data: TrainingData, train: Train, scale: float, device: torch.device) -> None:
        self._online, self._target = network.train(), copy.deepcopy(network).eval()
        self._data, self._train, self._scale, self._device = data, train, scale, device
        self._table = item_table(data.catalogue.item_ids, data.catalogue.categories, data.catalogue, device)
        self._popularity = torch.from_numpy(data.popularity).to(device)
        self._eligible = torch.from_numpy(data.eligible).to(device)
        self._optimiser = torch.optim.AdamW(network.parameters(), lr=train.learning_rate, fused=True)
        self._pairs = list(zip(self._target.parameters(), self._online.parameters(), strict=True))

    def learn(self, progress: Callable[[int, dict[str, float]], None]) -> None:
        """All epochs; `progress` is told, after each batch, how many steps it had and the parts of the loss."""
        rng = np.random.default_rng(self._train.seed)
        plan = [list(plan_epoch(self._data.steps.offsets, self._train, rng)) for _ in range(self._train.epochs)]
        updates, done = sum(map(len, plan)), 0
        for epoch in plan:
            for begins, ends, fresh in epoch:
                self._optimiser.param_groups[0]["lr"] = self._train.learning_rate * _schedule(done / updates)
                progress(int((ends - fresh).sum()), self._update(self._batch(begins, ends, fresh)))
                done += 1

    def _batch(self, begins: Ints, ends: Ints, fresh: Ints) -> Batch:
        steps = self._data.steps
        windows = windows_of(steps, begins, ends, self._device)
        rows = np.minimum(begins[:, None] + np.arange(windows.item.shape[1]), np.maximum(ends, 1)[:, None] - 1)
        reward = torch.from_numpy(steps.reward[rows] * np.float32(1 / self._scale))
        end, day = (torch.from_numpy(values[rows].astype(np.int64)) for values in (steps.end, steps.day - self._data.first_day))
        return Batch(windows, *(tensor.to(self._device) for tensor in (torch.from_numpy(fresh - begins), reward, end, day)))

    def _update(self, batch: Batch) -> dict[str, float]:
        loss = batch_loss(self._online, self._target, self._table, self._popularity, self._eligible, batch, self._train)
        total = float(loss.total.detach())
        if not math.isfinite(total):
            raise TrainingFailed(f"The loss became {total}: lower train.learning_rate (now {self._train.learning_rate}), or the size of the rewards.")
        self._optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._online.parameters(), _LARGEST_GRADIENT)
        self._optimiser.step()
        with torch.no_grad():
            for target, online in self._pairs:
                target.lerp_(online, self._train.target_rate)
        return {"loss": total, "td": float(loss.td), "penalty": float(loss.penalty), "supervised": float(loss.supervised)}


def _schedule(done: float) -> float:
    return done / _WARM_UP if done < _WARM_UP else 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * done))


def plan_epoch(offsets: Ints, train: Train, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Batches of windows: where each begins, where it ends (exclusive), and its first fresh step; each step is fresh once.

    Users are cut as by `cut`. Windows of about the same length share a batch, which has at most `batch_steps` steps with padding.
    """
    begins, ends, fresh = cut(offsets, train.context, rng)
    length = ends - begins
    order = np.argsort(length + rng.uniform(0, 1 + length / 8))
    batches: list[Ints] = []
    rows: list[int] = []
    width = 0
    for window in order.tolist():
        width = max(width, int(length[window]))
        if rows and (len(rows) + 1) * width > train.batch_steps:
            batches.append(np.array(rows))
            rows, width = [], int(length[window])
        rows.append(window)
    if rows:
        batches.append(np.array(rows))
    for batch in rng.permutation(len(batches)).tolist():
        yield begins[batches[batch]], ends[batches[batch]], fresh[batches[batch]]


@dataclass(frozen=True)
class Loss:
    """What is minimised, and its parts before their weights; scalars."""

    total: Tensor
    td: Tensor
    penalty: Tensor
    supervised: Tensor


def batch_loss(online: Network, target: Network, table: ItemTable, popularity: Tensor, eligible: Tensor, batch: Batch, train: Train) -> Loss:
    """The loss of a batch; see the head of this file. Means are over its fresh steps with a known item.

    The best item of a state is the online net's, its value the target net's.
    """
    windows = batch.windows
    vectors, bias = online.items(table)
    with torch.no_grad():
        target_vectors, target_bias = target.items(table)
        target_states = target.states(windows, target_vectors)
    states = online.states(windows, vectors)

    place = torch.arange(windows.item.shape[1] + 1, device=windows.item.device)
    chosen = (place >= batch.fresh[:, None]) & (place <= windows.length[:, None])  # the state after the last step too: the bootstrap needs it
    day = torch.cat([batch.day, batch.day[:, -1:]], dim=1)[chosen]  # a batch's rows repeat the last step behind the end
    head = head_of(online, windows, states, table, vectors, bias, popularity, day, chosen)
    target_head = head_of(target, windows, target_states, table, target_vectors, target_bias, popularity, day, chosen)

    acts = (place < windows.length[:, None])[chosen]
    action = torch.where(acts, torch.nn.functional.pad(windows.item, (0, 1))[chosen], 0)
    reward = torch.where(acts, torch.nn.functional.pad(batch.reward, (0, 1))[chosen], 0.0)
    learnt = action > 0
    choosable = head
    if not online.config.repeats:
        learnt &= ~(head.met_item == action[:, None]).any(1)
        choosable = replace(head, meeting=head.meeting.masked_fill(head.met_item > 0, -torch.inf))
    share = learnt / learnt.sum().clamp(min=1)
    is_positive = reward > 0
    weight = share * (train.alpha + train.supervised * is_positive)

    summed, lse, best = catalogue_logsumexp(choosable, eligible, weight)
    z = chosen_score(head, action)
    z = torch.where(learnt, z, 0.0)
    gap = torch.where(learnt, lse - z.detach(), 0.0)

    bootstrap = torch.zeros_like(target_states.value)
    bootstrap[chosen] = target_states.value[chosen] + torch.where(best > 0, chosen_score(target_head, best), 0.0)
    targets, counts = n_step_targets(batch.reward, batch.end, windows.length, bootstrap, train.gamma, train.n_step)
    pad = (0, 1)
    targets, counts = torch.nn.functional.pad(targets, pad)[chosen], torch.nn.functional.pad(counts, pad)[chosen]
    error = torch.where(counts & learnt, states.value[chosen] + z - targets, 0.0)
    td = (error**2 * share).sum()
    total = td + summed - (weight * z).sum()
    return Loss(total, td.detach(), (share * gap).sum(), (share * is_positive * gap).sum())
