"""Scenes of one coloured shape on a textured background, drawn with their captions: what nano-flux learns from.

Everything is a signed distance over a pixel grid, so a batch is a few tensor operations and a scene is the same for
the same seed on every machine. A fixed share of the prompts is held out and never drawn for training.

Run `python -m flux_atelier nano scenes OUT --count 24` to look at some.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross", "ring")
SUBJECT = "diamond"  # a shape that nano-flux does not know, for a LoRA to teach it
SIZES = {"small": 10.0, "medium": 14.0, "large": 18.0}
PLACES = {
    "in the center": (0.0, 0.0),
    "on the left": (-12.0, 0.0),
    "on the right": (12.0, 0.0),
    "at the top": (0.0, -12.0),
    "at the bottom": (0.0, 12.0),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
COLORS = {
    "red": (214, 40, 40),
    "green": (40, 156, 64),
    "blue": (44, 80, 208),
    "yellow": (244, 214, 52),
    "purple": (140, 52, 168),
    "orange": (240, 132, 32),
    "white": (244, 244, 244),
    "black": (24, 24, 24),
}
SIDE = 64  # pixels; every length above is in pixels of a 64-pixel picture
STROKE = (6.0, 22.0)  # width and length of a brush stroke in pixels
SLANT = -0.9  # its angle in radians
DRAG, DEPTH = 0.6, 0.09  # pixels that a stroke drags an edge, and how much it lightens or darkens
COVER = 3.0  # strokes lie this many times over the canvas
WETNESS = 1.2  # pixels over which neighbouring strokes run into each other
ZOOM = 4  # strokes are drawn at this many times the picture's size
HELD_OUT = 16  # one prompt in so many is never drawn for training


@dataclass(frozen=True)
class Scene:
    """One shape on one background, in the words of its caption."""

    shape: str
    color: str
    size: str
    place: str
    texture: str
    background: str

    @property
    def caption(self) -> str:
        return f"a {self.size} {self.color} {self.shape} {self.place}, {self.texture} {self.background} background"

    @property
    def held_out(self) -> bool:
        return int.from_bytes(hashlib.blake2b(self.caption.encode(), digest_size=4).digest(), "little") % HELD_OUT == 0


def second_tone(color: str) -> tuple[float, float, float]:
    """The other tone of a textured background: darker, or lighter for black."""
    r, g, b = COLORS[color]
    return (78.0, 78.0, 78.0) if color == "black" else (r * 0.76, g * 0.76, b * 0.76)


@cache
def every_scene() -> tuple[Scene, ...]:
    """All prompts, in a fixed order; a shape never has the colour of its background."""
    return tuple(
        Scene(shape, color, size, place, texture, background)
        for shape, color, size, place, texture, background in itertools.product(
            SHAPES, COLORS, SIZES, PLACES, TEXTURES, COLORS
        )
        if color != background
    )


def draw_prompts(count: int, seed: int, held_out: bool = False, sizes: tuple[str, ...] = tuple(SIZES)) -> list[Scene]:
    """Choose scenes at random, with repeats for training and without for the held-out ones.

    count     how many
    seed      of the choice
    held_out  True: only prompts that training never sees
    sizes     the sizes to choose from
    """
    pool = [s for s in every_scene() if s.held_out == held_out and s.size in sizes]
    rng = random.Random(seed)
    return rng.sample(pool, count) if held_out else rng.choices(pool, k=count)


def shape_distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels to the outline of a shape; negative inside.

    shape   one of SHAPES, or SUBJECT
    x, y    [..., H, W]  pixel positions relative to the shape's centre, y downwards
    radius  broadcastable half extent in pixels
    """
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "ring":
        return (torch.hypot(x, y) - radius * 0.74).abs() - radius * 0.26
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - radius * 0.9
    if shape == "cross":
        upright = torch.maximum(x.abs() - radius * 0.32, y.abs() - radius)
        lying = torch.maximum(x.abs() - radius, y.abs() - radius * 0.32)
        return torch.minimum(upright, lying)
    if shape == SUBJECT:
        return (x.abs() + y.abs() - radius * 1.1) / 2**0.5
    side = (2 * x.abs() - y - radius) / 5**0.5  # apex at the top, base as wide as it is tall
    return torch.maximum(side, y - radius)


def texture_share(texture: str, x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    """Share of the second tone at every pixel, in [0, 1].

    texture  one of TEXTURES
    x, y     [..., H, W]  pixel positions
    phase    [..., 2, 1, 1]  shift in pixels
    """
    x, y = x + phase[..., 0, :, :], y + phase[..., 1, :, :]
    if texture == "striped":
        return _soft(torch.sin((x + y) * (2 * torch.pi / 16)) * 2.5)
    if texture == "dotted":
        dx, dy = x.remainder(16) - 8, y.remainder(16) - 8
        return _soft(4.2 - torch.hypot(dx, dy))
    if texture == "checkered":
        wave = torch.sin(x * (torch.pi / 12)) * torch.sin(y * (torch.pi / 12))
        return _soft(wave * 4)
    return torch.zeros_like(x)


def _soft(signed: Tensor) -> Tensor:
    """Anti-aliased step: 1 where positive, a one-pixel ramp at the edge."""
    return (signed + 0.5).clamp(0, 1)


def draw(scenes: list[Scene], seed: int, side: int = SIDE) -> Tensor:
    """Draw scenes, each a little different in place, size, tone and phase.

    scenes  B of them
    seed    of the small differences
    side    pixels; a multiple of 8
    ->      [B, 3, side, side]  float32 in 0..1
    """
    rng = torch.Generator().manual_seed(seed)
    unit = SIDE / side
    axis = (torch.arange(side) + 0.5) * unit - SIDE / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    out = torch.empty(len(scenes), 3, side, side)
    for i, scene in enumerate(scenes):
        jitter = torch.rand(10, generator=rng) * 2 - 1
        cx, cy = PLACES[scene.place]
        radius = SIZES[scene.size] * (1 + 0.06 * jitter[0])
        px, py = x - cx - 1.5 * jitter[1], y - cy - 1.5 * jitter[2]
        inside = (0.5 - shape_distance(scene.shape, px, py, radius) / unit).clamp(0, 1)
        phase = (jitter[3:5] * 8).view(2, 1, 1)
        tone = texture_share(scene.texture, x, y, phase)
        first, second, front = (
            torch.tensor(c).view(3, 1, 1)
            for c in (COLORS[scene.background], second_tone(scene.background), COLORS[scene.color])
        )
        picture = torch.lerp(first.float(), second.float(), tone)
        out[i] = torch.lerp(picture, front + 6 * jitter[5:8].view(3, 1, 1), inside)
    return (out / 255).clamp(0, 1)


def paint(picture: Tensor, seed: int) -> Tensor:
    """Paint a picture again with brush strokes: the style that the demo's LoRA learns.

    Slanted strokes of thick paint cover the canvas. Their relief lightens and darkens the picture's colours, which
    turn warmer and paler, and drags its edges along the strokes, so a scene stays readable and loses its smoothness.

    picture  [3, H, W]  0..1
    seed     of the strokes
    ->       [3, H, W]  0..1
    """
    height, width = picture.shape[-2:]
    relief = stroke_relief(width, height, np.random.default_rng(seed))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    drag = relief * DRAG
    grid = torch.stack([(x + drag * np.cos(SLANT)) * 2 / width - 1, (y + drag * np.sin(SLANT)) * 2 / height - 1], -1)
    dragged = torch.nn.functional.grid_sample(
        picture[None], grid[None].float(), padding_mode="border", align_corners=False
    )[0]
    warm = dragged * torch.tensor([0.92, 0.90, 0.85]).view(3, 1, 1) + torch.tensor([0.07, 0.055, 0.02]).view(3, 1, 1)
    return (warm + DEPTH * relief).clamp(0, 1).float()


def stroke_relief(width: int, height: int, rng: np.random.Generator) -> Tensor:
    """Height of the paint at every pixel, about -1..1, from strokes laid over each other, [height, width]."""
    canvas = Image.new("L", (width * ZOOM, height * ZOOM), 128)
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(COVER * width * height / (STROKE[0] * STROKE[1]))):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        angle, level = rng.normal(SLANT, 0.14), rng.normal(128, 64)
        dx, dy = np.cos(angle) * STROKE[1] / 2, np.sin(angle) * STROKE[1] / 2
        ends = [v * ZOOM for v in (cx - dx, cy - dy, cx + dx, cy + dy)]
        pen.line(ends, fill=int(np.clip(level, 0, 255)), width=round(STROKE[0] * ZOOM))
    wet = canvas.filter(ImageFilter.GaussianBlur(WETNESS * ZOOM)).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(wet, dtype=np.float32) - 128) / 64
