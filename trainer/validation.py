"""A validation loss that does not wander: the same pictures, noise and noise levels every time.

On fixed triples the repeat variance is zero, so a falling curve means learning and not luck.
"""

from dataclasses import dataclass

import torch

from . import batches, objective
from .cache import Sample
from .config import TrainOptions

LEVELS = 4  # noise levels per picture, in the middle of as many equal parts of 0..1


@dataclass(frozen=True)
class Validation:
    """The fixed triples, made anew from their seed each time they are needed."""

    samples: tuple[Sample, ...]
    shifted: bool

    @classmethod
    def of(cls, samples: list[Sample], options: TrainOptions) -> "Validation":
        return cls(tuple(samples), options.objective.shift == "resolution")

    @torch.no_grad()
    def loss(self, session) -> float:
        """Mean velocity error over pictures and noise levels; draws from no random state but its own."""
        total = 0.0
        for index, sample in enumerate(self.samples):
            latent = session.cache.get(sample.latent)[0]
            states, pooled = session.cache.get(sample.texts[0])
            sigma = (torch.arange(LEVELS) + 0.5) / LEVELS
            if self.shifted:
                sigma = objective.shift_sigma(sigma, objective.resolution_shift(sample.tokens))
            noise = torch.randn(LEVELS, *latent.shape, generator=batches.generator("validation", index))
            latent, states, pooled = (t[None].to(session.device) for t in (latent, states.float(), pooled))
            for level in range(LEVELS):  # one at a time: what trains at batch 1 must validate too
                here, other = sigma[level : level + 1].to(session.device), noise[level : level + 1].to(session.device)
                velocity = session.velocity(objective.add_noise(latent, other, here), here, states, pooled)
                total += objective.velocity_error(velocity, latent, other).item() / LEVELS
        return total / len(self.samples)
