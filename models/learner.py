"""Trains a network on packed sequences of steps, by the loss of `models.objective`.

Training can be interrupted, begin with an earlier policy, stop early, and be shared by several processes.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from jobs.contracts.errors import TooLittleData, TrainingFailed
from jobs.settings import Train
from jobs.storage import Location, write_whole
from models.checkpoint import load_checkpoint, random_states, save_checkpoint
from models.data import Floats, Ints
from models.factors import item_factors
from models.loader import Loader, Packed, Packing, Position
from models.losses import Drawn
from models.network import NEARER, Network, NetworkConfig, PolicyHead, item_table, network_over
from models.objective import Batch, Part, batch_loss, batch_of
from models.policy import Learnt
from models.popularity import DecayedCounts
from models.progress import training_progress
from models.ranks import ALONE, Ranks
from models.sampling import Proposal, RowAdagrad
from models.training_data import TrainingData
from models.user_features import measure

AfterEpoch = Callable[[int, Network], None]  # told how many epochs have passed, and the network as it is then

_WARM_UP = 0.05  # share of the steps over which the learning rate rises; then it falls as a cosine, to a tenth
_LARGEST_GRADIENT = 1.0
_ROW_RATE = 0.05  # of RowAdagrad
_DUAL_RATE = 0.05  # of the logarithm of alpha, where it is tuned to a gap
_SAVED_EVERY = 300  # seconds
_CONTENT_STEPS = 5  # steps of an item that its content weighs as many as
MANY = 4096  # steps; of fewer, factors know by heart what the few users have in common, and vectors had better begin at random


def fit(
    data: TrainingData,
    event_types: tuple[str, ...],
    train: Train,
    repeats: bool,
    device: torch.device,
    draft: Location | None = None,
    learnt: Learnt | None = None,
    after_epoch: AfterEpoch | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Network, float] | None:
    """Train a network from `train.seed`; return it with the scale of its rewards (Q · scale is in units of the reward).

    Where train.warm_epochs is set, and an earlier policy of the same shape is given, it begins with what that one has `learnt`.

    With `train.patience` it is as it was after the epoch with the lowest loss over `data.validation`, which has to be there then.
    Raises TooLittleData when no reward there is final, and nothing else is learnt. What `after_epoch` raises ends the training.

    The same arguments give the same weights, bit for bit, on a CPU with the same number of threads. Given a `draft`, a file,
    a training that SIGTERM ends returns None, and the next one goes on from there as if nothing had been.

    With several `ranks` each calls this with the same arguments: all get the same weights, those that one would get from their batches together.
    """
    train = train.for_size(data.steps, len(data.catalogue) - 1)
    config = config_of(train, event_types, repeats)
    policies = train.each(data.counts.has_refusals)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _arithmetic_of(device), _term_asked(draft) as is_asked_to_end:
        torch.manual_seed(train.seed)
        network = network_over(data.catalogue, config).to(device)
        if train.warm_epochs and learnt and goes_on(config, learnt.network.config):
            learnt.grown(network, data.catalogue)
            train = train.model_copy(update={"epochs": train.warm_epochs})
        else:
            _levelled(network, data.counts.level, [policy.gamma for policy in policies.values()])
            if network.known:
                measure(network.known, data.buckets)
            if data.steps >= MANY:
                factors = [item_factors(data.buckets, len(data.catalogue), train.dim, train.seed + critic) for critic in range(config.critics)]
                network.item_vector.load_state_dict({"weight": torch.from_numpy(np.concatenate(factors, axis=1))})
        if not ranks.is_first:
            torch.manual_seed(train.seed + ranks.rank)  # so that each drops and draws others
        learner = _Learner(network, data, train, device, draft, ranks)
        done = learner.resumed()
        with training_progress(train.epochs, data.steps, done) if ranks.is_first else nullcontext(_untold) as progress:
            if not learner.learn(progress, is_asked_to_end, after_epoch):
                return None
    return network.eval(), data.counts.mean_reward


def _untold(steps: int, parts: dict[str, float]) -> None:
    """The first rank tells."""


@torch.no_grad()
def _levelled(network: Network, level: float, gammas: Sequence[float]) -> None:
    """Let values begin where they would end were all states alike; a discount for each policy."""
    for head, gamma in zip(network.heads, [gamma for gamma in gammas for _ in range(network.config.critics)], strict=False):
        assert isinstance(head, PolicyHead)
        head.value.bias.fill_(level / (1 - gamma))
        head.nearer.bias.copy_(level / (1 - torch.tensor(NEARER)))


def config_of(train: Train, event_types: tuple[str, ...], repeats: bool) -> NetworkConfig:
    """The shape of the network that the settings ask for, which are as of `for_size`."""
    assert train.critics is not None
    same = ("dim", "layers", "heads", "context", "encoder", "dropout", "id_dropout", "critics", "lower")
    shape: dict[str, Any] = {name: getattr(train, name) for name in same}
    shape |= {"policies": len(train.policies) or 1, "behaviour": train.support is not None, "user_features": tuple(train.user_features)}
    return NetworkConfig(event_types=event_types, repeats=repeats, **shape)


def goes_on(config: NetworkConfig, before: NetworkConfig) -> bool:
    """Whether a network of that shape can begin with what one policy of the shape `before` has learnt."""
    return before == replace(config, policies=1, behaviour=False)


@contextmanager
def _arithmetic_of(device: torch.device) -> Iterator[None]:
    """On a CPU, sums in an order that does not depend on which thread comes first, as those of gradients of indexed tensors do otherwise.

    On a GPU, products of matrices by its units for them, which round the factors to 11 bits.
    """
    net: Any = torch.utils.deterministic  # its switch is a property that mypy can't see
    before, filled, precision = torch.are_deterministic_algorithms_enabled(), net.fill_uninitialized_memory, torch.get_float32_matmul_precision()
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        net.fill_uninitialized_memory = False  # it would cost a pass over every new tensor
    else:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        net.fill_uninitialized_memory = filled
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _term_asked(draft: Location | None) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, which ends nothing meanwhile. Only the main thread hears it, and without a draft it is left to whoever hears it."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        heard.append(number)

    if draft is None or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Learner:
    """The online and the target network, and the optimisers of the first; `train` is as of `for_size`."""

    def __init__(self, network: Network, data: TrainingData, train: Train, device: torch.device, draft: Location | None = None, ranks: Ranks = ALONE) -> None:
        self._online, self._target = network.train(), copy.deepcopy(network).eval()
        for module in self._target.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # a copy's lie apart, and a GPU would collect them each time
        self._data, self._train, self._device, self._draft, self._ranks = data, train, device, draft, ranks
        assert train.batch_steps is not None
        self._policies = train.each(data.counts.has_refusals)
        chosen = np.bincount(data.counts.item, data.counts.steps, len(data.catalogue)).astype(np.int64)
        table = item_table(data.catalogue.item_ids, data.catalogue.categories, data.catalogue, device)
        self._table = replace(table, unread=torch.from_numpy(_unread(chosen, train.for_log(data.counts.has_refusals).step_id_dropout)).to(device))
        self._packing = Packing(train.context, train.context + 1, max(1, train.batch_steps // (train.context + 1) // ranks.count))
        self._loader = Loader(data.buckets, self._packing, train.seed, ranks.rank, ranks.count, workers=2 if device.type == "cuda" else 0)
        self._epoch, self._position, self._done = 0, Position(), 0
        self._modules: dict[str, nn.Module] = {"online": self._online, "target": self._target}
        self._best = copy.deepcopy(network) if train.patience else None
        self._lowest, self._waited = math.inf, 0  # the validation loss of the best, and how many epochs have passed since
        if self._best:
            self._modules["best"] = self._best
        self._decayed = DecayedCounts.of(data.counts, len(data.catalogue), data.first_day, len(data.eligible))
        self._modules["dual"] = self._dual = nn.ParameterList([torch.zeros(len(self._policies))]).requires_grad_(False)  # log alpha, where it is tuned to a gap
        self._by_row: RowAdagrad | None = None
        tables: tuple[Tensor, ...] = ()
        if len(data.catalogue) - 1 > train.exact_items:
            tables = (network.item_vector.weight, network.item_bias.weight)
            self._proposal = Proposal(chosen, np.logical_or.reduce(data.eligible))
            self._modules["by_row"] = self._by_row = RowAdagrad(*tables)
        else:
            popularity, eligible = (torch.from_numpy(values).to(device) for values in (self._decayed.features(), data.eligible))
            self._whole = Part(self._table, popularity, eligible, None)
        pairs = zip(self._target.parameters(), self._online.parameters(), strict=True)
        self._pairs = [(target, online) for target, online in pairs if not any(online is table for table in tables)]
        self._optimiser = torch.optim.AdamW([online for _, online in self._pairs], lr=train.learning_rate, fused=True)

    def resumed(self) -> int:
        """Go on from the draft, if there is one; return how many steps have been learnt already."""
        found = load_checkpoint(self._draft, self._modules, self._optimiser, self._ranks.rank) if self._draft else None
        if found:
            self._epoch, self._position, self._done = found["epoch"], Position(**found["positions"][self._ranks.rank]), found["done"]
            self._lowest, self._waited = found["lowest"], found["waited"]
        return self._done

    def learn(self, progress: Callable[[int, dict[str, float]], None], is_asked_to_end: Callable[[], bool], after_epoch: AfterEpoch | None = None) -> bool:
        """All epochs, or the rest of them, unless asked to end; whether that was all. With patience fewer may be all, and the best one counts.

        `progress` is told, after each batch, how many steps it had and the parts of the loss. What `after_epoch` raises ends it.
        """
        if self._best and self._validation_loss() == 0:
            raise TooLittleData(
                f"All rewards of the validation days can still grow, so nothing is seen by them: raise train.validation_days "
                f"(now {self._train.validation_days}) to more than the longest maturity_days of [event_types] less evaluate.holdout_days."
            )
        steps, saved = self._train.epochs * self._data.steps, time.monotonic()
        while self._epoch < self._train.epochs and self._waited != self._train.patience:
            for packed, behind in self._batches():
                fresh, going_on = self._ranks.summed(int(packed.fresh.sum()), behind.epoch == self._epoch)
                batch = batch_of(packed, self._data.first_day, self._data.counts.mean_reward, self._device, self._train.gamma_hours)
                parts = self._update(batch, _schedule((self._done + fresh) / steps))
                if self._best and not going_on:
                    parts["validation"] = self._validate(self._best)
                progress(int(fresh), parts)
                self._position, self._done = behind, self._done + int(fresh)
                if not going_on:
                    self._epoch += 1
                if after_epoch and not going_on:
                    after_epoch(self._epoch, self._online.eval())
                    self._online.train()
                asked, due = self._ranks.summed(is_asked_to_end(), time.monotonic() - saved > _SAVED_EVERY)
                if asked or due:
                    self._save()
                    saved = time.monotonic()
                if asked:
                    return False
                if not going_on:
                    break
        if self._draft and self._ranks.is_first:
            self._draft.unlink(missing_ok=True)
        if self._best:
            self._online.load_state_dict(self._best.state_dict())
        return True

    def _batches(self) -> Iterator[tuple[Packed, Position]]:
        """The rest of the epoch; then, as other ranks may have more batches, nobody's for as long as is asked."""
        if self._position.epoch == self._epoch:
            yield from self._loader.batches(self._position)
        while True:
            yield Packed.of_nobody(self._packing.length, self._data.first_day, len(self._train.user_features)), self._position

    def _save(self) -> None:
        if self._draft:
            positions, random = zip(*self._ranks.gathered((asdict(self._position), random_states())), strict=True)
            progress = {"epoch": self._epoch, "positions": positions, "done": self._done, "lowest": self._lowest, "waited": self._waited}
            if self._ranks.is_first:
                save_checkpoint(self._draft, self._modules, self._optimiser, random, progress)
            self._ranks.gathered(None)  # none goes on, or ends and is begun again, before it is there

    def _validate(self, best: Network) -> float:
        """The validation loss; the best takes over the weights if it is the lowest so far."""
        loss = self._validation_loss()
        if not math.isfinite(loss):
            raise TrainingFailed(f"The validation loss became {loss}: lower train.learning_rate (now {self._train.learning_rate}), or the size of the rewards.")
        self._waited += 1
        if loss < self._lowest:
            self._lowest, self._waited = loss, 0
            best.load_state_dict(self._online.state_dict())
        return loss

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean over the steps, of the same windows and drawn items each time; the random state stays as it was."""
        assert self._data.validation is not None
        begin, summed, steps = self._data.validation.first_day - self._data.first_day, 0.0, 0
        self._online.eval()
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(self._train.seed)
            loader = Loader(self._data.validation, self._packing, self._train.seed, self._ranks.rank, self._ranks.count)
            for packed, _ in loader.batches(Position()):
                batch = batch_of(packed, self._data.first_day, self._data.counts.mean_reward, self._device, self._train.gamma_hours)
                batch = replace(batch, learnt=batch.learnt & (batch.day >= begin))
                learnt = int(batch.learnt.sum())
                if learnt:
                    summed += learnt * float(batch_loss(self._online, self._target, *self._looked_at(batch), self._policies).total)
                    steps += learnt
        self._online.train()
        total, over = self._ranks.summed(summed, steps)
        return total / over

    def _update(self, batch: Batch, rate: float) -> dict[str, float]:
        """One step of the optimisers, at that share of their rates; the parts of the loss."""
        part, counted = self._looked_at(batch)
        own = self._online.own(part.table)
        if self._by_row:
            own = (own[0].detach().requires_grad_(), own[1].detach().requires_grad_())
        policies = self._tuned()
        loss = batch_loss(self._online, self._target, part, counted, policies, own)
        self._optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        rows, own = self._united(part.table.ids, own)
        moved = [online for _, online in self._pairs] + ([*own] if self._by_row else [])
        gradients = [tensor.grad for tensor in moved if tensor.grad is not None]
        told = {"loss": loss.total.detach(), **loss.parts}
        self._ranks.average([*gradients, *told.values()], loss.steps)
        parts = dict(zip(told, torch.stack([*told.values()]).tolist(), strict=True))
        if not math.isfinite(parts["loss"]):
            raise TrainingFailed(
                f"The loss became {parts['loss']}{self._kept(batch)}: lower train.learning_rate (now {self._train.learning_rate}), or the size of the rewards."
            )
        torch.nn.utils.clip_grad_norm_(moved, _LARGEST_GRADIENT)
        self._optimiser.param_groups[0]["lr"] = self._train.learning_rate * rate
        self._optimiser.step()
        if self._by_row:
            self._by_row.step(rows, (gradients[-2], gradients[-1]), _ROW_RATE * rate)
        with torch.no_grad():
            torch._foreach_lerp_([target for target, _ in self._pairs], [online for _, online in self._pairs], self._train.target_rate)
            if self._by_row:  # of a large table only the rows that were moved
                for table, other in ((self._target.item_vector, self._online.item_vector), (self._target.item_bias, self._online.item_bias)):
                    table.weight[rows] = table.weight[rows].lerp(other.weight[rows], self._train.target_rate)
        for place, (name, policy) in enumerate(policies.items()):
            if policy.gap is not None:  # a Lagrange multiplier: dual ascent (Kumar et al. 2020, section 3.2)
                self._dual[0][place] += _DUAL_RATE * (parts[f"{name} penalty".strip()] - policy.gap)
                parts[f"{name} alpha".strip()] = float(policy.alpha or 0)
        return parts

    def _united(self, rows: Tensor, own: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The rows of the large tables that any rank has looked at, and tensors over them with the gradients of this one."""
        if self._by_row is None or self._ranks.count == 1:
            return rows, own
        united = torch.unique(torch.cat(self._ranks.gathered(rows.cpu()))).to(rows.device)
        place = torch.searchsorted(united, rows)

        def spread(tensor: Tensor) -> Tensor:
            whole = tensor.new_zeros(len(united), *tensor.shape[1:])
            whole.grad = whole.index_copy(0, place, tensor.grad) if tensor.grad is not None else None
            return whole

        return united, (spread(own[0]), spread(own[1]))

    def _tuned(self) -> dict[str, Train]:
        """The policies, with the alpha of now where it is tuned to a gap."""
        alphas = self._dual[0].exp().tolist()
        return {
            name: policy if policy.gap is None else policy.model_copy(update={"alpha": alpha})
            for (name, policy), alpha in zip(self._policies.items(), alphas, strict=True)
        }

    def _looked_at(self, batch: Batch) -> tuple[Part, Batch]:
        """All items; of a large catalogue those of the batch's rows, its candidates and some drawn ones, and the batch in their numbers."""
        listed, batch = self._listed(batch)
        if self._by_row is None:
            return self._whole if listed is None else replace(self._whole, listed=listed.to(self._device)), batch
        drawn, shape = self._proposal.draw(self._train.negatives), batch.rows.item.shape
        parts = [torch.zeros(1, dtype=torch.int64), batch.rows.item.cpu().flatten(), drawn.items]
        parts += [] if listed is None else [listed.flatten()]
        items, place = torch.unique(torch.cat(parts), return_inverse=True)
        popularity = torch.from_numpy(self._decayed.features(items.numpy())).to(self._device)
        eligible = torch.from_numpy(self._data.eligible[:, items.numpy()]).to(self._device)
        items, (_, item, drawn_place, *rest) = items.to(self._device), place.to(self._device).split([len(part) for part in parts])
        rows = replace(batch.rows, item=item.view(shape))
        counted = replace(batch, rows=rows, action=torch.where(batch.acts, rows.item.roll(-1, 1), 0))
        placed = rest[0].view(listed.shape) if listed is not None else None
        return Part(self._table.of(items), popularity, eligible, Drawn(drawn_place, drawn.offset.to(self._device)), placed), counted

    def _listed(self, batch: Batch) -> tuple[Tensor | None, Batch]:
        """`Part.listed`, in the items of the training data, and the batch with its sets counted so; None where it tells of none."""
        if not len(self._data.sets):
            return None, batch
        sets, number = torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), batch.candidates.cpu().flatten()]), return_inverse=True)
        if len(sets) == 1:
            return None, batch
        counted = replace(batch, candidates=number[1:].view_as(batch.candidates).to(self._device))
        return torch.from_numpy(self._data.sets.listed(sets.numpy())), counted

    def _kept(self, batch: Batch) -> str:
        """Keep a batch that went wrong, for whoever looks for the reason; say where."""
        if self._draft is None:
            return ""
        place = self._draft.parent / f"{self._draft.name}.failed{self._ranks.rank or ''}"
        columns = {**vars(batch.rows), **{name: tensor for name, tensor in vars(batch).items() if name != "rows"}}
        write_whole(place, save({name: tensor.cpu().contiguous() for name, tensor in columns.items()}))
        return f" on the batch in {place}"


def _unread(chosen: Ints, share: float | None) -> Floats:
    """How often a step is read by the content of its item alone, by item: a `share`, or, for None, the less the more steps chose it: float32[items]."""
    return np.full(len(chosen), share, dtype=np.float32) if share is not None else (_CONTENT_STEPS / (_CONTENT_STEPS + chosen)).astype(np.float32)


def _schedule(done: float) -> float:
    return done / _WARM_UP if done < _WARM_UP else 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * done))
