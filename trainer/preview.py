"""Sample pictures during training, which touch nothing that the training draws."""

import torch
from torch import Tensor

from . import batches
from .loop import Session
from .sampling import euler

STEPS = 20


@torch.no_grad()
def draw_sample(session: Session, text_key: str, steps: int = STEPS) -> Tensor:
    """Draw one latent with the LoRA as it stands, [1, 16, h, w] in the model's own scale.

    The size is the first sample's; the noise is the same at every call.
    """
    first = session.samples[0]
    rng = batches.generator("sample", session.options.seed)
    noise = torch.randn(1, 16, first.height, first.width, generator=rng).to(session.device)
    states, pooled = (t[None].float().to(session.device) for t in session.cache.get(text_key))
    return euler(session.velocity, noise, states, pooled, steps)
