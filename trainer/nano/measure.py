"""What nano-flux can do, in figures: prompts it has never seen, and the VAE's round trip on what it has never seen."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from ...core.images import fit_to, to_tensor
from ...core.lora.record import Lora
from ..draw import Painter
from ..encoders import FileEncoder
from ..models import nano
from . import judge, photos, scenes

STEPS = 24


@cache
def encoder() -> FileEncoder:
    return FileEncoder(nano(), torch.device("cpu"))


def draw_held_out(
    count: int, seed: int, lora: Lora | None = None, sizes: tuple[str, ...] = tuple(scenes.SIZES), subject: bool = False
) -> tuple[list[scenes.Scene], Tensor]:
    """Draw prompts that were held out of training, [count, 3, 64, 64].

    subject  the prompts ask for the shape that nano-flux does not know
    """
    chosen = scenes.draw_prompts(count, seed, held_out=True, sizes=sizes)
    if subject:
        chosen = [replace(scene, shape=scenes.SUBJECT) for scene in chosen]
    painter = Painter(nano(), encoder(), lora)
    seeds = [seed * 100_003 + i for i in range(count)]
    return chosen, painter.draw([s.caption for s in chosen], seeds, (scenes.SIDE, scenes.SIDE), STEPS, 3.5)


def content_share(chosen: list[scenes.Scene], pictures: Tensor) -> float:
    """Share of pictures that show the prompt's shape in the prompt's colour."""
    right = [judge.content_right(p, s) for p, s in zip(pictures, chosen, strict=True)]
    return sum(right) / len(right)


def round_trip(pictures: Tensor) -> Tensor:
    """PSNR in dB of each picture through the VAE and back; [B, 3, H, W] in 0..1 -> [B]."""
    back = encoder().decode(encoder().encode_pixels(pictures * 2 - 1))
    return -10 * torch.log10((back - pictures).square().flatten(1).mean(1))


def held_out_photographs(side: int = 256) -> Tensor:
    """The photographs that no training has seen, cut to squares."""
    return torch.stack([to_tensor(fit_to(photos.photograph(n), side, side)) for n in photos.HELD_OUT])


def measure(count: int = 60, seed: int = 1) -> dict[str, float]:
    """Every figure of nano-flux's page."""
    chosen, pictures = draw_held_out(count, seed)
    drawn = scenes.draw(scenes.draw_prompts(64, seed, held_out=True), seed)
    photographs = round_trip(held_out_photographs())
    return {
        "prompts with the right shape and colour": content_share(chosen, pictures),
        "round trip of held-out scenes, dB": round_trip(drawn).mean().item(),
        "round trip of held-out photographs, dB": photographs.mean().item(),
        **{f"  {name}, dB": value.item() for name, value in zip(photos.HELD_OUT, photographs, strict=True)},
    }
