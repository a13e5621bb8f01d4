"""Bringing a LoRA to a lower rank: factored, beside the full SVD of the dense delta and torch's randomised one.

One layer of Flux.1 dev's attention projection (3072 x 3072), rank 32 to 8.
"""

import time

import torch

from .__main__ import Figure


def run() -> list[Figure]:
    from flux_atelier.core.lora.factors import Factors, truncate

    rng = torch.Generator().manual_seed(0)
    lora = Factors(torch.randn(3072, 32, generator=rng), torch.randn(32, 3072, generator=rng), 16.0)
    ours = min(_seconds(lambda: truncate(lora, 8)) for _ in range(5))
    dense = lora.delta()
    full = _seconds(lambda: torch.linalg.svd(dense, full_matrices=False))
    random = min(_seconds(lambda: torch.svd_lowrank(lora.delta(), q=16, niter=2)) for _ in range(3))
    return [
        Figure("rank 32 to 8, full SVD", ours, full, "s", least=100),
        Figure("rank 32 to 8, randomised SVD", ours, random, "s", least=3),
    ]


def _seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
