"""Practice pictures on disk: scenes with captions, in one of three hands, and a short clip of a moving shape."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ...core.files import write_text
from ...core.images import save_picture, to_picture
from . import scenes

Hand = Literal["painted", "dusk", "plain", "subject"]
HANDS = get_args(Hand)


def write_scenes(folder: Path, hand: Hand, count: int, seed: int, faults: bool = False) -> Path:
    """Write scenes with their captions beside them; files that are there already stay.

    hand    painted: brush strokes; dusk: evening light; plain: as nano-flux knows them; subject: every other one shows
            a shape that it does not know
    faults  add a copy, a blurred and a tiny picture, for curation to find
    """
    chosen = scenes.draw_prompts(count, seed)
    if hand == "subject":
        chosen[::2] = [replace(scene, shape=scenes.SUBJECT) for scene in chosen[::2]]
    for i, plain in enumerate(scenes.draw(chosen, seed)):
        path = folder / f"{hand}-{i:03d}.png"
        if not path.is_file():
            save_picture(path, to_picture(in_hand(plain, hand, seed + i)))
            write_text(path.with_suffix(".txt"), chosen[i].caption + "\n")
    if faults:
        first = Image.open(folder / f"{hand}-000.png")
        save_picture(folder / "copy of the first.png", first)
        save_picture(folder / "blurred.png", Image.open(folder / f"{hand}-001.png").filter(ImageFilter.GaussianBlur(5)))
        save_picture(folder / "tiny.png", first.resize((24, 24)))
    return folder


def in_hand(plain: Tensor, hand: Hand, seed: int) -> Tensor:
    """A scene in one of the hands, [3, H, W] in 0..1."""
    if hand == "painted":
        return scenes.paint(plain, seed)
    return dusk(plain) if hand == "dusk" else plain


def dusk(plain: Tensor) -> Tensor:
    """Evening light: darker towards the bottom, bluer shadows. [3, H, W] in 0..1."""
    fall = torch.linspace(1.0, 0.45, plain.shape[-2]).view(1, -1, 1)
    tint = torch.tensor([0.80, 0.84, 1.0]).view(3, 1, 1)
    return (plain * fall * tint + torch.tensor([0.02, 0.03, 0.10]).view(3, 1, 1)).clamp(0, 1)


def moving_shape(frames: int) -> Tensor:
    """A yellow circle that crosses a blue ground, [frames, 3, 64, 64] in 0..1."""
    axis = torch.arange(scenes.SIDE) + 0.5 - scenes.SIDE / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    front, ground = (torch.tensor(scenes.COLORS[c]).view(3, 1, 1) / 255 for c in ("yellow", "blue"))
    out = []
    for i in range(frames):
        centre = 30.0 * (i / max(1, frames - 1) - 0.5)
        inside = (0.5 - scenes.shape_distance("circle", x - centre, y, torch.tensor(14.0))).clamp(0, 1)
        out.append(torch.lerp(ground, front, inside))
    return torch.stack(out)
