"""The singular value decomposition of a product of thin factors, without the product.

The Gram matrices of the two factors, in float64, and the SVD of a small core give all of it exactly; the tall factors
are cast a piece at a time, so that what is held beside them is a few hundred kilobytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 1 << 16  # values of a factor in float64 at a time: half a megabyte stays in the cache


@dataclass(frozen=True)
class Svd:
    """The SVD of scale * up @ down as maps of its factors: left = up @ to_left, right = to_right @ down.

    sigma     [k], falling; k is the number of directions that stand above rounding, at least 1
    to_left   [R, k] float64
    to_right  [k, R] float64
    """

    sigma: Tensor
    to_left: Tensor
    to_right: Tensor

    def balanced(self, rank: int) -> "Svd":
        """The first directions, with the roots of their singular values in both maps."""
        root = self.sigma[:rank].sqrt()
        return Svd(self.sigma[:rank], self.to_left[:, :rank] * root, root[:, None] * self.to_right[:rank])

    def left(self, up: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """up @ to_left, [out, k], computed in float64."""
        made = torch.empty(len(up), self.to_left.shape[1], dtype=dtype)
        for rows in pieces(up, 0):
            made[rows] = (up[rows].double() @ self.to_left).to(dtype)
        return made

    def right(self, down: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """to_right @ down, [k, in], computed in float64."""
        made = torch.empty(len(self.to_right), down.shape[1], dtype=dtype)
        for columns in pieces(down, 1):
            made[:, columns] = (self.to_right @ down[:, columns].double()).to(dtype)
        return made


def svd_of(up: Tensor, down: Tensor, scale: float = 1.0) -> Svd:
    """Decompose scale * up @ down from Gram matrices of its factors.

    up    [out, R], any float dtype
    down  [R, in]
    """
    from_up, root_up = orthonormal(gram(up))
    from_down, root_down = orthonormal(gram(down.T))
    core = scale * (root_up[:, None] * (from_up.T @ from_down)) * root_down
    p, sigma, q = torch.linalg.svd(core, full_matrices=False)
    return Svd(sigma, (from_up / root_up) @ p, q @ (from_down / root_down).T)


def gram(tall: Tensor, other: Tensor | None = None) -> Tensor:
    """tall^T @ other of two [n, R] and [n, S] in float64; of one with itself where there is no other."""
    total = torch.zeros(tall.shape[1], (tall if other is None else other).shape[1], dtype=torch.float64)
    for rows in pieces(tall, 0):
        part = tall[rows].double()
        total.addmm_(part.T, part if other is None else other[rows].double())
    return total


def energy_of(up: Tensor, down: Tensor, scale: float = 1.0) -> float:
    """The sum of squares of scale * up @ down, in float64."""
    return scale * scale * (gram(up) * gram(down.T)).sum().item()


def pieces(factor: Tensor, dim: int) -> Iterator[slice]:
    """Slices of a factor's long side that hold about PIECE values each."""
    length = factor.shape[dim]
    step = max(64, PIECE // max(1, factor.shape[1 - dim]))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def orthonormal(square: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors [R, k] of a Gram matrix and the roots [k] of its eigenvalues, those at rounding left out."""
    values, vectors = torch.linalg.eigh(square)
    floor = max(values[-1].item() * len(values) * torch.finfo(torch.float64).eps, torch.finfo(torch.float64).tiny)
    solid = values > floor
    solid[-1] = True
    return vectors[:, solid], values[solid].clamp(min=floor).sqrt()
