"""The flow-matching objective of Flux: which noise levels, and what the prediction is measured against.

x_t = (1 - sigma) x + sigma noise, and the model predicts the velocity noise - x (Esser et al. 2024, arXiv:2403.03206).
"""

import math

import torch
from torch import Tensor

from .config import ObjectiveOptions


def resolution_shift(tokens: int) -> float:
    """Factor by which Flux moves noise levels up for larger pictures: e^mu, mu = 0.5 at 256 tokens, 1.15 at 4096.

    tokens  image tokens: one for 16 x 16 pixels
    """
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def shift_sigma(sigma: Tensor, factor: float) -> Tensor:
    """Move noise levels in 0..1 towards noise by a factor, leaving both ends."""
    return factor * sigma / (1 + (factor - 1) * sigma)


def draw_sigma(count: int, tokens: int, options: ObjectiveOptions, rng: torch.Generator) -> Tensor:
    """Draw noise levels, [count] float32 in 0..1.

    tokens  image tokens of this batch's bucket, for the shift
    """
    if options.sigma_sampler == "uniform":
        sigma = torch.rand(count, generator=rng)
    else:
        sigma = torch.sigmoid(torch.randn(count, generator=rng))
    return shift_sigma(sigma, resolution_shift(tokens)) if options.shift == "resolution" else sigma


def add_noise(latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mix [B, C, h, w] latents with noise at [B] noise levels."""
    return torch.lerp(latent, noise, sigma.view(-1, 1, 1, 1).to(latent))


def velocity_error(velocity: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity per sample, [B], in float32."""
    return (velocity.float() - (noise - latent).float()).square().flatten(1).mean(1)
