"""A validation loss that does not wander: the same pictures, noise and noise levels every time.

On fixed triples the repeat variance is zero, so a falling curve means learning and not luck.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import batches, objective
from .cache import Sample
from .config import TrainOptions

log = logging.getLogger("flux_atelier")
LEVELS = 4  # noise levels per picture, in the middle of as many equal parts of 0..1
PATIENCE, RISE = 3, 1.01  # measures since the lowest, and how far above it, before overfitting is told


@dataclass(frozen=True)
class Validation:
    """The fixed triples, made anew from their seed each time they are needed."""

    samples: tuple[Sample, ...]
    shift: str
    factor: float

    @classmethod
    def of(cls, samples: list[Sample], options: TrainOptions) -> "Validation":
        """Validate on what is set aside, else on training pictures, and say so."""
        held = [s for s in samples if s.split not in ("train", "regularisation")]
        if not held:
            log.warning("no picture is set aside, so the validation loss is that of training pictures")
            held = [s for s in samples if s.split != "regularisation"]
        chosen = options.objective
        return cls(tuple(held[: options.validation_pictures]), chosen.shift, chosen.shift_factor)

    def sigmas(self, sample: Sample) -> torch.Tensor:
        """Noise levels of a picture, [LEVELS], shifted as they are in training."""
        even = (torch.arange(LEVELS) + 0.5) / LEVELS
        factors = {"resolution": objective.resolution_shift(sample.tokens), "constant": self.factor, "none": 1.0}
        return objective.shift_sigma(even, factors[self.shift])

    @torch.no_grad()
    def loss(self, session) -> tuple[float, list[float]]:
        """Mean velocity error over pictures and noise levels, and that of each level from clean to noisy.

        Draws from no random state but its own.
        """
        totals = torch.zeros(LEVELS, dtype=torch.float64)
        for index, sample in enumerate(self.samples):
            latent = session.cache.get(sample.latent)[0]
            states, pooled = session.cache.get(sample.texts[0])
            control = session.cache.get(sample.control)[0][None].to(session.device) if sample.control else None
            sigma = self.sigmas(sample)
            noise = torch.randn(LEVELS, *latent.shape, generator=batches.generator("validation", index))
            latent, states, pooled = (t[None].to(session.device) for t in (latent, states.float(), pooled))
            for level in range(LEVELS):  # one at a time: what trains at batch 1 must validate too
                here, other = sigma[level : level + 1].to(session.device), noise[level : level + 1].to(session.device)
                noisy = objective.add_noise(latent, other, here)
                shown = noisy, here, states, pooled, control
                wanted = session.wanted(other - latent, *shown)
                error = objective.velocity_error(session.velocity(*shown), torch.zeros_like(wanted), wanted)
                totals[level] += error.item()
        levels = (totals / len(self.samples)).tolist()
        return sum(levels) / LEVELS, levels


def overfitting(validation: Sequence[tuple[int, float]], losses: Sequence[float]) -> str | None:
    """Say so when the validation loss has turned up while the training loss still falls, else None.

    validation  (step, loss) of each measure
    losses      training loss of each step
    """
    if len(validation) <= PATIENCE or len(losses) < 2 * PATIENCE:
        return None
    step, lowest = min(validation, key=lambda v: v[1])
    since = [loss for at, loss in validation if at > step]
    half = len(losses) // 2
    falling = sum(losses[half:]) / len(losses[half:]) < sum(losses[:half]) / half
    if len(since) < PATIENCE or min(since[-PATIENCE:]) < RISE * lowest or not falling:
        return None
    return (
        f"the validation loss was lowest at step {step} ({lowest:.4f}) and has risen to {since[-1]:.4f} while the "
        "training loss falls: more steps learn these pictures by heart"
    )
