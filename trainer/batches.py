"""What every step trains on, as a pure function of the seed and the step: nothing to save, nothing to lose."""

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..core.files import digest_of
from .cache import Sample


@dataclass(frozen=True)
class Plan:
    """The samples' buckets, and how they are dealt out.

    Every epoch shows each sample at least once: a bucket's last batch is filled up from its own beginning, so that no
    picture is dropped and a batch never mixes sizes.
    """

    buckets: tuple[tuple[int, ...], ...]
    batch_size: int
    seed: int

    @classmethod
    def of(cls, samples: list[Sample], batch_size: int, seed: int) -> "Plan":
        groups = defaultdict(list)
        for index, sample in enumerate(samples):
            groups[sample.height, sample.width].append(index)
        return cls(tuple(tuple(groups[k]) for k in sorted(groups)), batch_size, seed)

    @property
    def batches_per_epoch(self) -> int:
        return sum(-(-len(b) // self.batch_size) for b in self.buckets)

    def batch(self, number: int) -> tuple[int, ...]:
        """Indices of the samples in batch `number`, counted from the start of the run."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return _epoch(self, epoch)[place]


@lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> tuple[tuple[int, ...], ...]:
    rng = random.Random(digest_of("order", plan.seed, epoch))
    batches = []
    for bucket in plan.buckets:
        order = rng.sample(bucket, len(bucket))
        missing = -len(order) % plan.batch_size
        order += [order[i % len(order)] for i in range(missing)]
        batches += [tuple(order[i : i + plan.batch_size]) for i in range(0, len(order), plan.batch_size)]
    return tuple(rng.sample(batches, len(batches)))


def generator(*what: object) -> torch.Generator:
    """A CPU generator seeded by plain values: the same noise for the same (seed, step) on every machine."""
    return torch.Generator().manual_seed(int(digest_of(*what, size=8), 16) % 2**63)
