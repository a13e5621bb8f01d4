"""The cells of a test bench: axes of what is varied, a key for each picture, and the pictures kept on disk.

A cell's key is a digest of everything that its picture depends on, so what is drawn once is not drawn again: a run
that was stopped goes on where it stopped, and after a change only the changed cells are drawn.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import product
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..errors import AtelierError
from ..files import digest_of, remove_unfinished, write_whole

KINDS = ("none", "lora", "strength", "blocks", "prompt", "seed", "guidance", "steps")
LETTERS = "XYZ"
MOST_CELLS = 400
DRAWING = 1  # raise it when the same settings give another picture
# Lowest and highest value, and whether only whole numbers make sense.
NUMBERS: dict[str, tuple[Decimal, Decimal, bool]] = {
    "strength": (Decimal(-20), Decimal(20), False),
    "seed": (Decimal(0), Decimal(2**63 - 1), True),
    "guidance": (Decimal(0), Decimal(100), False),
    "steps": (Decimal(1), Decimal(1000), True),
}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\s*\.\.\s*({NUMBER})(?:\s+step\s+({NUMBER}))?", re.IGNORECASE)
KEY, PIXELS = "flux_atelier.key", "flux_atelier.pixels"


@dataclass(frozen=True)
class Settings:
    """What a person chooses for one picture.

    lora  names with weights, such as "lora0 + style.safetensors=0.5"; empty for the model alone
    """

    lora: str = ""
    strength: float = 1.0
    blocks: str = ""
    prompt: str = ""
    seed: int = 0
    guidance: float = 3.5
    steps: int = 20


@dataclass(frozen=True)
class Axis:
    """What is varied along one side, and its values."""

    kind: str = "none"
    values: tuple[str | int | float, ...] = (0,)

    def labels(self) -> list[str]:
        """What stands beside each value."""
        return [self._label(value) for value in self.values]

    def _label(self, value: str | int | float) -> str:
        if self.kind == "none":
            return ""
        if self.kind in NUMBERS:
            return f"{self.kind} {value}" if isinstance(value, int) else f"{self.kind} {value:g}"
        if self.kind == "lora":
            return re.sub(r"\.safetensors\b", "", str(value)) or "no LoRA"
        return str(value) or {"blocks": "all blocks", "prompt": "(empty prompt)"}[self.kind]


@dataclass(frozen=True)
class Cell:
    """One place of the grid: its column, row and page, and what is drawn there."""

    x: int
    y: int
    z: int
    settings: Settings


@dataclass(frozen=True)
class Patch:
    """One LoRA as it is laid on the model: a digest of its file or tensors, its strength, its block weights."""

    digest: str
    strength: float
    blocks: str


def read_axes(kinds: Sequence[str], texts: Sequence[str], defaults: Mapping[str, Sequence[str]]) -> tuple[Axis, ...]:
    """Read the axes of a grid from what a person wrote.

    kinds     one of KINDS for each axis
    texts     the values of each: one a line; numbers also by commas and as ranges like 0..1 step 0.25
    defaults  values of a kind whose text is empty, where it has some
    Raises AtelierError for an axis without values, a kind twice, what is no number, or more than MOST_CELLS cells.
    """
    used = [kind for kind in kinds if kind != "none"]
    for kind in used:
        if used.count(kind) > 1:
            raise AtelierError(f"Two axes are {kind}. Choose another kind for one of them, or none.")
    axes = tuple(
        read_axis(LETTERS[i], kind, text, defaults.get(kind, ()))
        for i, (kind, text) in enumerate(zip(kinds, texts, strict=True))
    )
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_CELLS:
        sides = " x ".join(str(len(axis.values)) for axis in axes)
        raise AtelierError(
            f"The grid has {sides} = {count} cells, and more than {MOST_CELLS} are not drawn at once. "
            "Take fewer values, or make several grids: cells they share are drawn once."
        )
    return axes


def read_axis(letter: str, kind: str, text: str, defaults: Sequence[str] = ()) -> Axis:
    """Read one axis; see read_axes.

    letter  X, Y or Z, for errors
    """
    if kind not in KINDS:
        raise AtelierError(f"The {letter} axis is {kind!r}. Choose one of {', '.join(KINDS)}.")
    if kind == "none":
        return Axis()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    values: list[str | int | float] = []
    if kind in NUMBERS:
        for word in re.split(r"[,;\n]", "\n".join(lines)):
            values += _numbers(letter, kind, word.strip()) if word.strip() else []
    else:
        values += lines or defaults
        # The model alone and all blocks need a word: an empty line is no value.
        values = ["" if (kind, str(v).lower()) in (("lora", "none"), ("blocks", "all")) else v for v in values]
    if not values:
        raise AtelierError(f"The {letter} axis is {kind}, but it has no values. Write some, or set the axis to none.")
    return Axis(kind, tuple(values))


def _numbers(letter: str, kind: str, word: str) -> list[int | float]:
    """A number or a range as numbers of an axis' kind."""
    spanned = RANGE.fullmatch(word)
    try:
        parts = [Decimal(p) for p in spanned.groups(default="1")] if spanned else [Decimal(word)]
    except InvalidOperation:
        raise AtelierError(
            f"The {letter} axis has {word!r}, which is no number. "
            "Write numbers by commas, or a range like 0..1 step 0.25."
        ) from None
    numbers = _spread(letter, word, *parts) if spanned else parts
    low, high, whole = NUMBERS[kind]
    for number in numbers:
        if not number.is_finite() or not low <= number <= high or (whole and number != int(number)):
            sort = "a whole number" if whole else "a number"
            raise AtelierError(f"The {letter} axis has {word!r}, but {kind} is {sort} from {low} to {high}. Change it.")
    return [int(n) if whole else float(n) for n in numbers]


def _spread(letter: str, word: str, first: Decimal, last: Decimal, step: Decimal) -> list[Decimal]:
    """The numbers of a range, its end included where a step reaches it; downwards where it ends below its start."""
    if step <= 0:
        raise AtelierError(f"The {letter} axis has {word!r}, whose step is {step}. Write a step above 0.")
    count = int(abs(last - first) / step) + 1
    if count > MOST_CELLS:
        raise AtelierError(f"The {letter} axis has {word!r}, which are {count} values. Write a wider step.")
    sign = 1 if last >= first else -1
    return [first + sign * i * step for i in range(count)]


def cells_of(axes: Sequence[Axis], base: Settings) -> tuple[Cell, ...]:
    """Every cell of a grid, page by page, line by line.

    axes  X, Y and Z
    base  what is not varied
    """
    cells = []
    for z, y, x in product(*(range(len(axis.values)) for axis in reversed(axes))):
        chosen = {a.kind: a.values[i] for a, i in zip(axes, (x, y, z), strict=True) if a.kind != "none"}
        cells.append(Cell(x, y, z, replace(base, **chosen)))
    return tuple(cells)


def read_loras(text: str) -> list[tuple[str, float]]:
    """Names and weights out of "lora0 + style.safetensors=0.5"; an empty text is none.

    Raises AtelierError for an empty name between two signs.
    """
    found = []
    for word in re.split(r"\s\+\s", text.strip()) if text.strip() else ():
        name, sign, weight = word.strip().rpartition("=")
        numbered = bool(sign) and re.fullmatch(NUMBER, weight.strip(), re.IGNORECASE)
        name, number = (name.strip(), float(weight)) if numbered else (word.strip(), 1.0)
        if not name:
            raise AtelierError(f"{text!r} has a LoRA without a name. Write names like lora0 + style.safetensors=0.5.")
        found.append((name, number))
    return found


def patches_of(settings: Settings, digests: Mapping[str, str]) -> tuple[Patch, ...]:
    """What is laid on the model for a picture; a LoRA of strength 0 is left out, because it does nothing.

    digests  of the LoRAs by name
    """
    weighed = [(digests[name], weight * settings.strength) for name, weight in read_loras(settings.lora)]
    return tuple(Patch(digest, strength, settings.blocks.strip()) for digest, strength in weighed if strength)


def cell_key(settings: Settings, patches: Sequence[Patch], common: Mapping[str, str | int]) -> str:
    """A digest of all that a picture depends on.

    common  what all cells share: digests of model, text encoders and VAE, size, sampler, scheduler
    """
    told = asdict(settings)
    for name in ("lora", "strength", "blocks"):  # they count as what they do
        del told[name]
    return digest_of(DRAWING, dict(common), told, [asdict(patch) for patch in patches])


class CellStore:
    """Pictures by key in a folder, as PNG; it may be deleted at any time, which costs only the drawing anew."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"

    def get(self, key: str) -> Image.Image | None:
        """The picture of a key; None where there is none, or it is damaged, so that it is drawn again."""
        try:
            with Image.open(self.file(key)) as opened:
                facts = dict(getattr(opened, "text", {}))
                picture = opened.convert("RGB")
        except (
            OSError,
            SyntaxError,
            ValueError,
        ):  # what PIL raises for files that are missing, cut short or no picture
            return None
        sound = facts.get(KEY) == key and facts.get(PIXELS) == _pixels(picture)
        return picture if sound else None

    def put(self, key: str, picture: Image.Image) -> Path:
        """Keep a picture, whole or not at all."""
        path, picture = self.file(key), picture.convert("RGB")
        remove_unfinished(path)
        facts = PngImagePlugin.PngInfo()
        facts.add_text(KEY, key)
        facts.add_text(PIXELS, _pixels(picture))
        return write_whole(path, lambda part: picture.save(part, "PNG", pnginfo=facts))


def _pixels(picture: Image.Image) -> str:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest()
