"""Taggers in ONNX of the WD kind: a folder with model.onnx and selected_tags.csv.

The picture goes in as these models were trained: padded to a white square, BGR, 0 to 255. Scores come out raw, so that
thresholds can be moved without looking at a picture again.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import AtelierError
from .options import TaggerOptions
from .prompts import Ask

CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "9": "rating"}
LOWEST = 0.05  # scores below say nothing and are not kept


@dataclass(frozen=True)
class Tag:
    """A tag of a picture with its probability; the category is one of CATEGORIES or "other"."""

    name: str
    category: str
    score: float


class Tagger:
    """A tagger from a folder. `name` is the author of its tags."""

    prompt = ""

    def __init__(self, folder: Path, options: TaggerOptions):
        """Open a tagger; raises AtelierError if a file or onnxruntime is missing, or the two files do not fit."""
        folder = Path(folder)
        self.options, self.name = options, folder.name
        self.tags = read_tags(folder / "selected_tags.csv")
        self.session = _open_session(folder / "model.onnx")
        entry = self.session.get_inputs()[0]
        self.entry, self.batched, self.side = entry.name, entry.shape[0] != 1, entry.shape[1]
        if len(entry.shape) != 4 or entry.shape[3] != 3 or not isinstance(self.side, int):
            raise AtelierError(
                f"{folder.name} takes pictures as {entry.shape}, not as [N, side, side, 3]. Choose a WD tagger."
            )
        count = self.session.get_outputs()[0].shape[-1]
        if isinstance(count, int) and count != len(self.tags):
            raise AtelierError(
                f"{folder.name} gives {count} scores, but selected_tags.csv names {len(self.tags)} tags. "
                "Take both files from the same model."
            )

    @property
    def settings(self) -> dict:
        """What changes the tags."""
        return self.options.settings

    def scores(self, pictures: Sequence[Image.Image]) -> list[tuple[Tag, ...]]:
        """Every tag of each picture above 0.05, likeliest first."""
        pixels = np.stack([_pixels(picture, self.side) for picture in pictures])
        parts = [pixels] if self.batched else list(pixels[:, None])
        rows = np.concatenate([self.session.run(None, {self.entry: part})[0] for part in parts])
        return [self._named(row) for row in rows]

    def caption(self, pictures: Sequence[Image.Image], asks: Sequence[Ask]) -> list[str]:
        """The chosen tags of each picture, by commas; raises AtelierError if something is asked."""
        if any(ask.system or any(ask.turns) for ask in asks):
            raise AtelierError(f"{self.name} is a tagger and takes no text. Leave prompt and system empty.")
        return [", ".join(choose(tags, self.options)) for tags in self.scores(pictures)]

    def _named(self, row: np.ndarray) -> tuple[Tag, ...]:
        order = np.argsort(-row, kind="stable")
        return tuple(Tag(*self.tags[i], float(row[i])) for i in order if row[i] >= LOWEST)


def choose(tags: Sequence[Tag], options: TaggerOptions) -> list[str]:
    """Names of the tags above their category's threshold: characters, series, artists, general ones, then the rating.

    tags  likeliest first, as Tagger.scores gives them
    """
    least = {
        "character": options.character, "copyright": options.copyright, "artist": options.artist,
        "general": options.general, "other": options.general,
    }  # fmt: skip
    left_out = {_plain(name) for name in options.left_out.split(",")}
    found = [
        tag for kind, low in least.items() for tag in tags if tag.category == kind and low < 1 and tag.score >= low
    ]
    if options.rating:
        found += [tag for tag in tags if tag.category == "rating"][:1]
    names = [tag.name for tag in found if _plain(tag.name) not in left_out]
    return [_spaced(name) if options.spaces else name for name in names]


def read_tags(file: Path) -> list[tuple[str, str]]:
    """Names and categories from selected_tags.csv, in the order of the model's scores.

    Raises AtelierError if the file is missing or has no columns name and category.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            return [(row["name"], CATEGORIES.get(row["category"], "other")) for row in csv.DictReader(opened)]
    except FileNotFoundError:
        raise AtelierError(f"There is no file {file}. Copy the tagger's whole folder.") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise AtelierError(f"{file} has no columns name and category. Take it from the tagger's authors.") from None


def _open_session(file: Path) -> Any:
    if not file.is_file():
        raise AtelierError(f"There is no file {file}. Copy the tagger's whole folder.")
    try:
        import onnxruntime
    except ImportError:
        raise AtelierError("Taggers need onnxruntime, which is missing. Install it: pip install onnxruntime") from None
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf

    # Among the others that may be there, one compiles for minutes and one calls a cloud.
    wanted = [
        p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in onnxruntime.get_available_providers()
    ]
    try:
        return onnxruntime.InferenceSession(str(file), providers=wanted)
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise AtelierError(f"{file} is not a whole ONNX model ({reason}). Download it again.") from None


def _pixels(picture: Image.Image, side: int) -> np.ndarray:
    """[side, side, 3] float32, BGR, 0..255."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    small = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(small, dtype=np.float32)[:, :, ::-1])


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _spaced(name: str) -> str:
    """Faces such as ^_^ keep their underscore."""
    return name.replace("_", " ") if any(part.isalnum() and len(part) > 1 for part in name.split("_")) else name
