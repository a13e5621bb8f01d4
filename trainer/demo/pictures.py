"""The pictures that the demo starts from: real photographs with planted faults, and a moving clip."""

from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ...core.files import write_text
from ...core.images import fit_to, save_picture, to_tensor
from ..nano import photos

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "ihc", "motorcycle_left")


def write_photographs(folder: Path) -> Path:
    """Real photographs, with what a folder from life has: a copy, a near-copy, a blur, a thumbnail, a broken file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        photo = photos.photograph(name)
        photo.thumbnail((768, 768))
        save_picture(folder / f"{name}.jpg", photo)
        write_text(folder / f"{name}.txt", f"a photo of {name.replace('_', ' ')}\n")
    astronaut = Image.open(folder / "astronaut.jpg")
    (folder / "astronaut copy.jpg").write_bytes((folder / "astronaut.jpg").read_bytes())
    save_picture(folder / "cat smaller.jpg", Image.open(folder / "chelsea.jpg").resize((400, 266)))
    save_picture(folder / "coffee blurred.jpg", Image.open(folder / "coffee.jpg").filter(ImageFilter.GaussianBlur(7)))
    save_picture(folder / "thumbnail.jpg", astronaut.resize((96, 96)))
    whole = (folder / "rocket.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 3])
    return folder


def moving_clip(frames: int, side: int = 256) -> Tensor:
    """A photograph under a slow pan and turn, [frames, 3, side, side]: motion whose true in-betweens are known."""
    photo = to_tensor(fit_to(photos.photograph("astronaut"), side * 3 // 2, side * 3 // 2))[None]
    out = []
    for i in range(frames):
        t = torch.tensor(i / max(1, frames - 1) - 0.5)
        angle, zoom = 0.35 * t, 0.62 + 0.04 * t
        shift = torch.stack([0.22 * t, -0.12 * t])
        matrix = torch.stack(
            [
                torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift[0]]),
                torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift[1]]),
            ]
        )
        grid = torch.nn.functional.affine_grid(matrix[None], (1, 3, side, side), align_corners=False)
        out.append(torch.nn.functional.grid_sample(photo, grid, padding_mode="border", align_corners=False)[0])
    return torch.stack(out)
