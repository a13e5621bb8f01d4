"""Merges that stay in the span of the deltas: weighted sums, SLERP, orthogonalised addition, and a shared basis.

They need inner products and bases only, which Gram matrices of the factors give in float64, so no dense matrix is made
and nothing is lost: the result has at most the sum of the ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .elementwise import Part
from .factors import Factors, singular_factors, truncate, weighted_sum

LINEAR = ("linear", "average", "interpolate", "difference", "negate")
NEARLY_COLLINEAR = 1e-3  # sine of the angle below which a straight line is the arc to 1e-7
NOISE = 1e-7  # of the largest singular value: what float32 factors say below it is rounding


def coefficients(method: str, weights: Sequence[float], t: float) -> list[float]:
    """What each LoRA is multiplied by in a weighted sum.

    method   linear: the weights; average: divided by their sum; interpolate: times 1 - t and t; difference: all but
             the first negated; negate: all negated
    weights  one for each LoRA; for average their sum is not 0
    t        0..1
    """
    match method:
        case "average":
            return [w / math.fsum(weights) for w in weights]
        case "interpolate":
            return [weights[0] * (1 - t), weights[1] * t]
        case "difference":
            return [weights[0], *(-w for w in weights[1:])]
        case "negate":
            return [-w for w in weights]
    return list(weights)


def inner(a: Factors, b: Factors) -> float:
    """Inner product of two deltas, the sum of the products of their values, from the factors in float64."""
    ups, downs = a.up.double().T @ b.up.double(), a.down.double() @ b.down.double().T
    return a.scale * b.scale * (ups * downs).sum().item()


def slerp(parts: Sequence[Part], t: float) -> Factors:
    """Turn one delta into another along the arc between them, its norm going evenly from the one's to the other's.

    A delta that is missing or zero, and two on one line, are joined by the straight line, so that opposite deltas pass
    through zero.

    parts  those of place 0 and 1, or one of them
    t      0..1; 0 gives the first
    Source: Shoemake 1985, on deltas as vectors.
    """
    ends = {part.place: part for part in parts}
    straight = [(part.weight * (t if part.place else 1 - t), part.factors) for part in parts]
    if len(ends) < 2:
        return weighted_sum(straight)
    a, b = ends[0], ends[1]
    norm_a, norm_b = (abs(p.weight) * math.sqrt(max(0.0, inner(p.factors, p.factors))) for p in (a, b))
    if min(norm_a, norm_b) == 0:
        return weighted_sum(straight)
    cosine = a.weight * b.weight * inner(a.factors, b.factors) / (norm_a * norm_b)
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < NEARLY_COLLINEAR:
        return weighted_sum(straight)
    norm = (1 - t) * norm_a + t * norm_b
    share_a = norm * math.sin((1 - t) * angle) / (math.sin(angle) * norm_a)
    share_b = norm * math.sin(t * angle) / (math.sin(angle) * norm_b)
    return weighted_sum([(share_a * a.weight, a.factors), (share_b * b.weight, b.factors)])


def orthogonal_sum(parts: Sequence[Part]) -> Factors:
    """Add each delta without what it does inside the span of those before it: the first one's work stays its own.

    A span is all matrices with the columns and the rows that the deltas before use: B - P B Q is added, with the
    projections P on those columns and Q on those rows.
    """
    terms = [(part.weight, part.factors) for part in parts[:1]]
    for i, part in enumerate(parts[1:], 1):
        before = [p.factors for p in parts[:i]]
        columns = _columns([(f.up, f.down) for f in before])
        rows = _columns([(f.down.T, f.up.T) for f in before])
        up = columns @ (columns.T @ part.factors.up.double())
        down = (part.factors.down.double() @ rows) @ rows.T
        terms += [(part.weight, part.factors), (-part.weight, replace(part.factors, up=up.float(), down=down.float()))]
    # The projections bring no direction that is not there already, so the sum of the ranks holds it all.
    return truncate(weighted_sum(terms), sum(part.factors.rank for part in parts))[0]


def shared_basis(parts: Sequence[Part]) -> tuple[Tensor, list[Part]]:
    """The left singular vectors of all deltas side by side, and each delta in that basis.

    ->  basis [out, k] float32 with orthonormal columns, k at most the sum of the ranks, and parts of [k, in]
    Source: KnOTS, arXiv:2410.19735, section 4.
    """
    basis = _columns([(part.factors.up, part.factors.down) for part in parts])
    inside = [
        replace(part, factors=replace(part.factors, up=(basis.T @ part.factors.up.double()).float())) for part in parts
    ]
    return basis.float(), inside


def _columns(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Left singular vectors [out, k] of the products up @ down side by side, float64, those at rounding left out.

    They are those of up_i root_i with root_i root_i^T = down_i down_i^T, which are only as wide as the ranks.
    """
    stack = torch.cat([up.double() @ _root(down) for up, down in pairs], 1)
    rank = stack.shape[1]
    vectors, sigma, _ = singular_factors(Factors(stack, torch.eye(rank, dtype=torch.float64), float(rank)))
    return vectors[:, sigma > NOISE * sigma[0]] if sigma[0] > 0 else vectors[:, :1]


def _root(down: Tensor) -> Tensor:
    """A square root [R, R] of down's Gram matrix: root root^T = down down^T, float64."""
    values, vectors = torch.linalg.eigh(down.double() @ down.double().T)
    return vectors * values.clamp(min=0).sqrt()
