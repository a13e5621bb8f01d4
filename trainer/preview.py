"""Sample pictures during training, base beside LoRA, which touch nothing that the training draws."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..core.evaluation.grid import picture_grid
from ..core.images import save_picture, to_picture
from . import adapter, batches
from .sampling import euler
from .session import Session

STEPS = 20
MOST = 6  # prompts in a grid


@torch.no_grad()
def draw_sample(session: Session, text_key: str, number: int = 0, steps: int = STEPS) -> Tensor:
    """Draw one latent with the LoRA as it stands, [1, 16, h, w] in the model's own scale.

    number  of the sample: its noise is the same at every call
    The size is the first sample's; on Kontext its picture is edited.
    """
    first = session.samples[0]
    rng = batches.generator("sample", session.options.seed, number)
    noise = torch.randn(1, 16, first.height, first.width, generator=rng).to(session.device)
    states, pooled = (t[None].float().to(session.device) for t in session.cache.get(text_key))
    control = session.cache.get(first.control)[0][None].to(session.device) if first.control else None

    def velocity(latent: Tensor, sigma: Tensor, text: Tensor, vector: Tensor) -> Tensor:
        return session.velocity(latent, sigma, text, vector, control).float()

    with session.standing():
        return euler(velocity, noise, states, pooled, steps)


def sample_grid(
    session: Session, prompts: Sequence[tuple[str, str]], decode: Callable[[Tensor], Tensor], steps: int = STEPS
) -> Image.Image:
    """Draw every prompt without and with the LoRA as a labelled grid, and save it in the run's folder.

    prompts  (text, its key in the cache) of each
    decode   latents -> pixels, see cache.Encoder
    """
    base, now = [], []
    tree, assistant = session.tree, session.assistant
    tree.assist({})  # what lies under the training is not there when the LoRA is used
    try:
        for number, (_, key) in enumerate(prompts[:MOST]):
            kept = session.run.samples / f"base-{number}.png"
            if not kept.is_file():
                with adapter.disabled(tree):
                    save_picture(kept, to_picture(decode(draw_sample(session, key, number, steps))[0]))
            with Image.open(kept) as opened:
                base.append(opened.convert("RGB"))
            now.append(to_picture(decode(draw_sample(session, key, number, steps))[0]))
    finally:
        tree.assist(assistant)
    labels = [text for text, _ in prompts[:MOST]]
    cell = min(512, max(base[0].size))
    grid = picture_grid([base, now], ["base", f"step {session.step}"], labels, max(128, cell))
    save_picture(session.run.sample_file(session.step), grid)
    return grid
