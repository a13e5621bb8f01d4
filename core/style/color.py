"""Colour transfer: a picture takes the palette of another."""

import torch
from torch import Tensor

from ..errors import AtelierError


def transfer_color(pictures: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """Give pictures the mean and covariance of a reference's colours by the optimal linear map.

    Monge-Kantorovitch map between two Gaussians (Pitie and Kokaram 2007). One map for the whole batch, so a clip does
    not flicker. A flat picture or a flat reference only gets the reference's mean.

    pictures   [B, 3, H, W] in 0..1
    reference  [3, H, W] in 0..1
    strength   0 leaves the pictures as they are, 1 is the full transfer
    ->         [B, 3, H, W] in 0..1
    Raises AtelierError for a strength outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise AtelierError(f"The strength is {strength}. Choose a value from 0 to 1.")
    if strength == 0:
        return pictures
    source = pictures.transpose(0, 1).flatten(1).double()
    target = reference.flatten(1).double()
    mean_s, mean_t = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    matrix = monge_kantorovitch(torch.cov(source), torch.cov(target))
    moved = matrix @ (source - mean_s) + mean_t
    mixed = torch.lerp(source, moved, strength).clamp(0, 1).to(pictures.dtype)
    return mixed.view(3, len(pictures), *pictures.shape[-2:]).transpose(0, 1)


def monge_kantorovitch(source: Tensor, target: Tensor) -> Tensor:
    """The symmetric matrix T with T source T = target, for two [3, 3] covariances."""
    root = _power(source, 0.5)
    back = _power(source, -0.5)
    return back @ _power(root @ target @ root, 0.5) @ back


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive matrix; directions without variance stay zero."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = max(values[-1].item() * 1e-7, 1e-12)
    powered = torch.where(values > floor, values.clamp(min=floor) ** exponent, 0)
    return (vectors * powered) @ vectors.T
