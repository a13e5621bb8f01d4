"""Several processes on one run, started by torchrun: each takes its share of a step's forward passes.

The adapter is small, so one flat all-reduce of its gradients does; nothing is wrapped and no name changes. What a step
trains on is a function of (seed, step), so more processes give the same curve to rounding.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.errors import AtelierError


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, parts: int) -> range:
        """This process's forward passes of a step.

        Raises AtelierError if they cannot be dealt out evenly.
        """
        if parts % self.size:
            raise AtelierError(
                f"accumulation is {parts}, which {self.size} processes cannot share evenly. "
                f"Set it to a multiple of {self.size}."
            )
        return range(self.rank, parts, self.size)

    def sum(self, loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        """Add the gradients of all processes up, in place, in one message; returns the sum of the losses."""
        if self.size == 1:
            return loss
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([loss.reshape(1).to(grads[0]), *(g.flatten() for g in grads)])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat[1:].split([g.numel() for g in grads]), strict=True):
            parameter.grad = part.view_as(parameter)
        return flat[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def join(device: torch.device) -> World:
    """Join the other processes if torchrun started this one; else be alone.

    device  where this process trains; decides how they talk
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def local_device(device: torch.device) -> torch.device:
    """This process's own device: under torchrun each takes another GPU."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def leave() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
