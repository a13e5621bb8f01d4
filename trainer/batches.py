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

    Every epoch shows each sample at least as often as its repeats say: a bucket's last batch is filled up from its own beginning, so that no
    picture is dropped and a batch never mixes sizes.
    """

    buckets: tuple[tuple[int, ...], ...]
    batch_size: int
    seed: int

    @classmethod
    def of(cls, samples: list[Sample], batch_size: int, seed: int, regularisation: bool = False) -> "Plan":
        """Deal out training samples, or those of the regularisation set; a batch mixes no sizes and no kinds."""
        groups = defaultdict(list)
        for index, sample in enumerate(samples):
            if (sample.split == "regularisation") == regularisation:
                groups[sample.height, sample.width, bool(sample.control)] += [index] * sample.repeats
        return cls(tuple(tuple(groups[k]) for k in sorted(groups)), batch_size, seed)

    @property
    def batches_per_epoch(self) -> int:
        return sum(-(-len(b) // self.batch_size) for b in self.buckets)

    def batch(self, number: int) -> tuple[int, ...]:
        """Indices of the samples in batch `number`, counted from the start of the run."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return _epoch(self, epoch)[place]


@dataclass(frozen=True)
class Mixture:
    """Training batches, and among them evenly a share of regularisation batches."""

    training: Plan
    regularisation: Plan | None
    share: float

    @classmethod
    def of(cls, samples: list[Sample], batch_size: int, seed: int, share: float) -> "Mixture":
        second = Plan.of(samples, batch_size, seed, regularisation=True)
        return cls(Plan.of(samples, batch_size, seed), second if second.buckets and share else None, share)

    def batch(self, number: int) -> tuple[int, ...]:
        """Indices of the samples in batch `number`, counted from the start of the run."""
        if self.regularisation is None:
            return self.training.batch(number)
        before, after = int(number * self.share), int((number + 1) * self.share)
        return self.regularisation.batch(before) if after > before else self.training.batch(number - before)


@lru_cache(maxsize=8)
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
