"""A picture of clips' figures over time, one pair of axes for each figure, and the folder of files about them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import AtelierError
from ..images import save_picture
from .grid import COLORS, INK, PAPER, curve_plot, fit_text
from .metrics import ClipScores, write_scores

SHOWN = {
    "warping": "change along the motion x 1000 (lower is steadier)",
    "brightness": "brightness",
    "sharpness": "sharpness x 1000",
    "structure": "lost structure (0 is none)",
    "color": "distance of the palette, Delta E",
    "ssim": "SSIM to the source",
}
SIZE = (640, 240)  # pixels of one pair of axes
COLUMNS, MARGIN, LINE = 2, 12, 18
MOST_CLIPS = len(COLORS)  # whose curves can be told apart
NO_FILE = '/\\:*?"<>|'  # letters that some systems have in no file name
LONGEST = 100  # bytes of a clip's name: file systems take 143 to 255, its ending and that of a part included


def metric_plot(clips: Mapping[str, ClipScores]) -> Image.Image:
    """Draw each figure of SHOWN frame by frame, a curve for each clip, and their names and flicker below.

    clips  by name, at most MOST_CLIPS
    """
    rows = math.ceil(len(SHOWN) / COLUMNS)
    top = rows * SIZE[1] + MARGIN
    sheet = Image.new("RGB", (COLUMNS * SIZE[0], top + len(clips) * LINE + MARGIN), PAPER)
    for i, (name, title) in enumerate(SHOWN.items()):
        # Curves are called by spaces, which nobody sees: the names stand below, where long ones have room.
        courses = (_course(scores, name) for scores in clips.values())
        curves = {" " * n: course for n, course in enumerate(courses)}
        sheet.paste(curve_plot(curves, title, SIZE), (i % COLUMNS * SIZE[0], i // COLUMNS * SIZE[1]))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for n, (clip, scores) in enumerate(clips.items()):
        y, color = top + n * LINE, COLORS[n % len(COLORS)]
        told = "" if math.isnan(scores.flicker) else f", flicker of brightness x 1000: {scores.flicker:.2f}"
        pen.rectangle([MARGIN, y + 6, MARGIN + 20, y + 9], color)
        pen.text((MARGIN + 28, y), fit_text(clip, SIZE[0], font) + told, INK, font)
    return sheet


def check_names(names: Sequence[str]) -> None:
    """Raise AtelierError for clips' names that cannot be names of files beside each other."""
    for i, name in enumerate(names):
        if not name.strip(" .") or set(name) & set(NO_FILE) or not name.isprintable():
            raise AtelierError(
                f"A clip is called {name!r}, which is no name of a file. Use letters, digits and spaces."
            )
        if len(name.encode()) > LONGEST:
            raise AtelierError(
                f"A clip's name has {len(name)} letters, {name[:20]!r}... Give one of at most {LONGEST} bytes."
            )
        if name.casefold() in (other.casefold() for other in names[:i]):
            raise AtelierError(f"Two clips are called {name!r}. Give each a name of its own.")


def write_measured(folder: Path, clips: Mapping[str, ClipScores]) -> Image.Image:
    """Write NAME.csv for every clip and plot.png into a folder, each file whole; gives the plot."""
    plot = metric_plot(clips)
    for name, scores in clips.items():
        write_scores(folder / f"{name}.csv", scores)
    save_picture(folder / "plot.png", plot)
    return plot


def _course(scores: ClipScores, name: str) -> Sequence[tuple[float, float]]:
    points = [(f.frame, getattr(f, name)) for f in scores.frames]
    return [(n, v) for n, v in points if v is not None and math.isfinite(v)]
