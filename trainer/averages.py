"""Moving average of the weights (EMA), and whichever weights stand for the run at a moment."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of parameters, its memory growing with the steps as in diffusers' EMAModel."""

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.decay, self.steps = decay, 0
        self.values: list[Tensor] = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: list[nn.Parameter]) -> None:
        """Move towards the parameters: by 1 - min(decay, (1 + n) / (10 + n)) at step n."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, parameters, 1 - decay)

    @contextmanager
    def in_place_of(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """The average as the parameters' values for the length of a block, undone bit for bit after."""
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
