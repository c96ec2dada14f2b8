"""A training that has been interrupted: all that the rest of it depends on, in one file without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from jobs.storage import Location, write_whole

_PROGRESS = "progress"


def save_checkpoint(
    path: Location, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, random: Sequence[Sequence[Tensor]], progress: Mapping[str, Any]
) -> None:
    """Write modules, optimiser, the random states of each rank, and `progress`, which is JSON; the file appears whole."""
    tensors = {f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}
    tensors |= {f"optimiser.{place}.{key}": tensor for place, state in optimiser.state_dict()["state"].items() for key, tensor in state.items()}
    tensors |= {f"random.{rank}.{place}": state for rank, states in enumerate(random) for place, state in enumerate(states)}
    tensors[_PROGRESS] = torch.frombuffer(bytearray(json.dumps(progress).encode()), dtype=torch.uint8)
    write_whole(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def load_checkpoint(path: Location, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, rank: int) -> dict[str, Any] | None:
    """Put everything back as it was in that rank, and return `progress`; None where there is no file, or none that can be read."""
    if not path.is_file():
        return None
    try:
        tensors = load(path.read_bytes())
    except SafetensorError:
        return None
    for name, module in modules.items():
        module.load_state_dict(_below(name, tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below("optimiser", tensors).items():
        place, _, name = key.partition(".")
        state.setdefault(int(place), {})[name] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    cpu, *others = (tensor for _, tensor in sorted(_below(f"random.{rank}", tensors).items(), key=lambda item: int(item[0])))
    torch.set_rng_state(cpu)
    if others:
        torch.cuda.set_rng_state_all(others)
    progress: dict[str, Any] = json.loads(bytes(tensors[_PROGRESS].tolist()))
    return progress


def random_states() -> list[Tensor]:
    """Of torch, on the CPU and on each GPU."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
