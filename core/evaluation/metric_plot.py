"""A picture of clips' figures over time, one pair of axes for each figure."""

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from .grid import INK, PAPER, curve_plot
from .metrics import ClipScores

SHOWN = {
    "warping": "change along the motion x 1000 (lower is steadier)",
    "brightness": "brightness",
    "sharpness": "sharpness x 1000",
    "structure": "lost structure (0 is none)",
    "color": "distance of the palette, Delta E",
    "ssim": "SSIM to the source",
}
SIZE = (640, 240)  # pixels of one pair of axes
COLUMNS, MARGIN = 2, 12


def metric_plot(clips: Mapping[str, ClipScores]) -> Image.Image:
    """Draw each figure of SHOWN frame by frame, a curve for each clip, and their flicker below.

    clips  by name
    """
    rows = math.ceil(len(SHOWN) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIZE[0], rows * SIZE[1] + 2 * MARGIN + 16), PAPER)
    for i, (name, title) in enumerate(SHOWN.items()):
        curves = {clip: _course(scores, name) for clip, scores in clips.items()}
        axes = curve_plot({k: v for k, v in curves.items() if v}, title, SIZE)
        sheet.paste(axes, (i % COLUMNS * SIZE[0], i // COLUMNS * SIZE[1]))
    told = "flicker of brightness x 1000: " + ", ".join(f"{clip} {s.flicker:.2f}" for clip, s in clips.items())
    ImageDraw.Draw(sheet).text((MARGIN, rows * SIZE[1] + MARGIN), told, INK, ImageFont.load_default(12))
    return sheet


def _course(scores: ClipScores, name: str) -> list[tuple[float, float]]:
    points = [(f.frame, getattr(f, name)) for f in scores.frames]
    return [(n, v) for n, v in points if v is not None and math.isfinite(v)]
