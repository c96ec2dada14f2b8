"""Several processes that train one policy, started by torchrun: each learns from buckets of its own, and all make the same steps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among them. All of them have to call the same methods in the same order; a process that is alone waits for nobody."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.rank == 0

    def summed(self, *numbers: float) -> Sequence[float]:
        """Each number, summed over the ranks."""
        if self.count == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(sums)
        return sums.tolist()

    def average(self, tensors: Sequence[Tensor], weight: Tensor) -> None:
        """Put into each float32 tensor its mean over the ranks by `weight`, a scalar; where all weights are 0, so is the mean."""
        if self.count == 1:
            return
        flat = torch.cat([*(tensor.flatten() for tensor in tensors), torch.ones_like(tensors[0].flatten()[:1])]) * weight
        dist.all_reduce(flat)
        means = torch.split(flat[:-1] / flat[-1:].clamp(min=1), [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def gathered(self, thing: Any) -> list[Any]:
        """What each rank has, in their order."""
        if self.count == 1:
            return [thing]
        things = [None] * self.count
        dist.all_gather_object(things, thing)
        return things


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun has started, each with a GPU of its own where there is any, as long as the block lasts."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
