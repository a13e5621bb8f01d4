"""The flow-matching objective of Flux: which noise levels, and what the prediction is measured against.

x_t = (1 - sigma) x + sigma noise, and the model predicts the velocity noise - x (Esser et al. 2024, arXiv:2403.03206).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ObjectiveOptions, Weighting


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
    if options.sigma_sampler == "logit_normal":
        sigma = torch.sigmoid(options.sigma_mean + options.sigma_std * torch.randn(count, generator=rng))
    else:
        sigma = torch.rand(count, generator=rng)
    if options.sigma_sampler == "mode":
        # Section 3.1 of the paper, with its u running from noise to data.
        turned = torch.cos(math.pi / 2 * sigma).square()
        sigma = (1 - sigma - options.mode_scale * (turned - 1 + sigma)).clamp(0, 1)
    factor = {"resolution": resolution_shift(tokens), "constant": options.shift_factor, "none": 1.0}[options.shift]
    return shift_sigma(sigma, factor)


def add_noise(latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mix [B, C, h, w] latents with noise at [B] noise levels."""
    return torch.lerp(latent, noise, sigma.view(-1, 1, 1, 1).to(latent))


def velocity_error(velocity: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity per sample, [B], in float32."""
    return (velocity.float() - (noise - latent).float()).square().flatten(1).mean(1)


def loss_weight(sigma: Tensor, weighting: Weighting) -> Tensor:
    """Weight of the squared velocity error at noise levels, [B]; the paper's names, as diffusers has them.

    sigma_squared is the squared error of the picture itself, because x - (x_t - sigma v) = sigma (v - v_true).
    """
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    if weighting == "sigma_sqrt":
        return sigma.clamp(min=1e-3) ** -2.0
    return sigma**2 if weighting == "sigma_squared" else torch.ones_like(sigma)


def training_error(
    velocity: Tensor, target: Tensor, sigma: Tensor, options: ObjectiveOptions, mask: Tensor | None = None
) -> Tensor:
    """What a sample is trained on, [B] in float32: the weighted mean error of its velocity.

    velocity, target  [B, C, h, w]
    sigma             [B]
    mask              [B, h, w] in 0..1 or None; the mean counts the pixels by it, so a small subject weighs no less
    """
    wrong = velocity.float() - target.float()
    if options.loss == "l1":
        error = wrong.abs()
    elif options.loss == "huber":  # the squared error up to delta, a line of the same slope beyond
        error = 2 * F.huber_loss(wrong, torch.zeros_like(wrong), reduction="none", delta=options.huber_delta)
    else:
        error = wrong.square()
    weight = loss_weight(sigma.float(), options.weighting)
    if mask is None:
        return weight * error.flatten(1).mean(1)
    counted = options.unmasked_weight + (1 - options.unmasked_weight) * mask.float()
    total = counted.flatten(1).sum(1).clamp(min=1e-6)
    return weight * (error.mean(1) * counted).flatten(1).sum(1) / total
