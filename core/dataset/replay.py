"""Operations as records, done to a picture when it is opened: the source file never changes.

A picture is first cut to its row's crop, then its operations follow in order; boxes and sizes go through the same table
without pixels. Masks and control pictures go through the geometric ones: `replay(mask, crop, geometric(ops))`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageEnhance
from pydantic import Field, model_validator

from ..errors import AtelierError
from ..options import Options, parse

LONGEST = 32_768  # pixels of a side that an operation may make
Transpose, Resampling = Image.Transpose, Image.Resampling


class Flip(Options):
    """Mirror left and right (horizontal), or top and bottom (vertical)."""

    axis: Literal["horizontal", "vertical"] = Field("horizontal", description="Which sides change places.")


class Rotate(Options):
    """Turn counter-clockwise, by quarters, or by degrees with the largest upright rectangle inside kept."""

    turns: int | None = Field(None, ge=1, le=3, description="Quarter turns.")
    degrees: float | None = Field(None, ge=-45, le=45, allow_inf_nan=False, description="Degrees.")

    @model_validator(mode="after")
    def _one(self):
        if (self.turns is None) == (self.degrees is None):
            raise ValueError("give turns (1 to 3) or degrees (-45 to 45), one of the two")
        return self


class Crop(Options):
    """Keep a rectangle; what of it lies outside the picture is left away."""

    x: int = Field(0, description="Left edge in pixels.")
    y: int = Field(0, description="Upper edge in pixels.")
    w: int = Field(gt=0, description="Width in pixels.")
    h: int = Field(gt=0, description="Height in pixels.")


class Scale(Options):
    """Resize in proportion, by a factor or to a longest side."""

    factor: float | None = Field(None, ge=0.001, le=64, allow_inf_nan=False, description="Size after / size before.")
    longest: int | None = Field(None, ge=1, le=LONGEST, description="Longest side in pixels.")
    enlarge: bool = Field(False, description="With longest: smaller pictures grow to it.")

    @model_validator(mode="after")
    def _one(self):
        if (self.factor is None) == (self.longest is None):
            raise ValueError("give a factor or a longest side, one of the two")
        return self


class Color(Options):
    """Change colours: brightness, contrast, saturation, hue and gamma, in this order."""

    brightness: float = Field(1.0, ge=0, le=8, allow_inf_nan=False, description="Factor; 0 is black.")
    contrast: float = Field(1.0, ge=0, le=8, allow_inf_nan=False, description="Factor around the mean grey.")
    saturation: float = Field(1.0, ge=0, le=8, allow_inf_nan=False, description="Factor; 0 is grey.")
    hue: float = Field(0.0, ge=-180, le=180, allow_inf_nan=False, description="Degrees around the colour circle.")
    gamma: float = Field(1.0, ge=0.1, le=10, allow_inf_nan=False, description="Exponent; above 1 darkens the middle.")


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


class Box(NamedTuple):
    """Upper left corner, width and height, in pixels, fractions allowed."""

    x: float
    y: float
    w: float
    h: float


def replay(image: Image.Image, crop: Sequence[int] | None = None, ops: Iterable[Mapping] | None = None) -> Image.Image:
    """Cut a picture to its crop, then do its operations in order.

    image  mode RGB or L, after its EXIF turn
    crop   [x, y, w, h] in pixels of the picture, clipped to it
    ops    {"name": flip | rotate | crop | scale | color, then its settings}
    ->     a picture of the same mode; the picture itself where there is nothing to do
    Raises AtelierError for an unknown operation, a bad value, another mode or a crop outside the picture.
    """
    if image.mode not in ("RGB", "L"):
        raise AtelierError(f"The picture has the mode {image.mode}. Convert it to RGB or L first.")
    for kind, settings in _steps(crop, ops):
        image = kind.image(image, settings)
    return image


def replayed_size(
    width: int, height: int, crop: Sequence[int] | None = None, ops: Iterable[Mapping] | None = None
) -> Size:
    """Size that a picture of width x height has after its crop and operations, without its pixels."""
    size = Size(width, height)
    for kind, settings in _steps(crop, ops):
        size = kind.size(size, settings)
    return size


def replay_boxes(
    boxes: Sequence[Mapping] | None,
    width: int,
    height: int,
    crop: Sequence[int] | None = None,
    ops: Iterable[Mapping] | None = None,
) -> tuple[dict, ...] | None:
    """Where boxes of a picture lie after its crop and operations.

    boxes  mappings with x, y, w, h in pixels of the picture and anything else; None stays None
    width, height  of the picture before
    ->     boxes clipped to the picture, those left with no area gone; turned by degrees, a box grows to hold its corners
    """
    if boxes is None:
        return None
    steps, size = [], Size(width, height)
    for kind, settings in _steps(crop, ops):
        after = kind.size(size, settings)
        steps.append((kind.box, settings, size, after))
        size = after
    moved = []
    for found in boxes:
        box: Box | None = _clipped(Box(found["x"], found["y"], found["w"], found["h"]), Size(width, height))
        for move, settings, before, after in steps:
            box = _clipped(move(box, settings, before, after), after) if box else None
        if box:
            moved.append({**found, **box._asdict()})
    return tuple(moved)


def replay_beside(
    image: Image.Image,
    width: int,
    height: int,
    crop: Sequence[int] | None = None,
    ops: Iterable[Mapping] | None = None,
) -> Image.Image:
    """Do to a mask or control picture of any size what geometric operations do to the picture it belongs to.

    image  mode RGB or L, the same scene as the picture
    width, height  of the picture, in whose pixels crops are given
    ->     in its own resolution; of the picture's size afterwards only if it had the picture's size before
    """
    size = Size(width, height)
    for kind, settings in _steps(crop, geometric(ops)):
        own, after = settings, kind.size(size, settings)
        if isinstance(settings, Crop):
            x, y, w, h = scaled_crop((settings.x, settings.y, settings.w, settings.h), size, Size(*image.size))
            own = Crop(x=x, y=y, w=w, h=h)
        elif isinstance(settings, Scale):
            own = Scale.model_construct(factor=max(after) / max(size))
        image, size = kind.image(image, own), after
    return image


def geometric(ops: Iterable[Mapping] | None) -> tuple[Mapping, ...]:
    """Operations that move pixels: those that masks, control pictures and boxes go through as well."""
    return tuple(op for op in ops or () if _kind(op).geometric)


def check_ops(ops: Iterable[Mapping] | None) -> None:
    """Raise AtelierError for the first operation with an unknown name or a bad setting."""
    for _ in _steps(None, ops):
        pass


def scaled_crop(crop: Sequence[int], size: tuple[int, int], other: tuple[int, int]) -> tuple[int, int, int, int]:
    """A crop of a picture as the crop of the same scene in another size; edges to the nearest pixel, never empty.

    crop   [x, y, w, h] in pixels of the picture
    size   (width, height) of the picture
    other  (width, height) of its mask or control picture
    ->     x, y, w, h
    Raises AtelierError if the crop lies wholly outside the picture.
    """
    spans = []
    left, upper, right, lower = _edges(_crop(crop), Size(*size))
    for start, stop, before, after in ((left, right, size[0], other[0]), (upper, lower, size[1], other[1])):
        first = min(round(start * after / before), after - 1)
        spans.append((first, max(first + 1, round(stop * after / before))))
    (x, x_end), (y, y_end) = spans
    return x, y, x_end - x, y_end - y


def _steps(crop: Sequence[int] | None, ops: Iterable[Mapping] | None):
    """The crop and the operations, checked."""
    if crop is not None:
        yield KINDS["crop"], _crop(crop)
    for op in ops or ():
        kind = _kind(op)
        yield kind, parse(kind.settings, {k: v for k, v in op.items() if k != "name"}, f"The operation {op['name']}")


def _crop(crop: Sequence[int]) -> Crop:
    if len(crop) != 4:
        raise AtelierError(f"The crop is {list(crop)}. Give x, y, width and height in pixels.")
    return parse(Crop, dict(zip("xywh", crop, strict=True)), "The crop")


def _edges(crop: Crop, size: Size) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of a crop inside a picture."""
    left, upper = max(0, crop.x), max(0, crop.y)
    right, lower = min(size.width, crop.x + crop.w), min(size.height, crop.y + crop.h)
    if left >= right or upper >= lower:
        told = f"{crop.w} x {crop.h} at {crop.x}, {crop.y}"
        raise AtelierError(
            f"The crop {told} lies outside the picture of {size.width} x {size.height}. Choose a place inside it."
        )
    return left, upper, right, lower


def _clipped(box: Box, size: Size) -> Box | None:
    left, upper = max(0, box.x), max(0, box.y)
    right, lower = min(size.width, box.x + box.w), min(size.height, box.y + box.h)
    return Box(left, upper, right - left, lower - upper) if right > left and lower > upper else None


def _flip_image(image: Image.Image, flip: Flip) -> Image.Image:
    way = Transpose.FLIP_LEFT_RIGHT if flip.axis == "horizontal" else Transpose.FLIP_TOP_BOTTOM
    return image.transpose(way)


def _flip_box(box: Box, flip: Flip, before: Size, after: Size) -> Box:
    if flip.axis == "horizontal":
        return box._replace(x=before.width - box.x - box.w)
    return box._replace(y=before.height - box.y - box.h)


def inner_rectangle(width: int, height: int, degrees: float) -> Size:
    """Largest upright rectangle inside a picture turned about its centre, in whole pixels.

    degrees  -45..45
    ->       two of its corners touch the long sides in a thin picture, otherwise each touches a side
    """
    sin, cos = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    longer, shorter = max(width, height), min(width, height)
    if shorter <= 2 * sin * cos * longer or cos - sin < 1e-9:
        along, across = shorter / 2 / sin, shorter / 2 / cos
        w, h = (along, across) if width >= height else (across, along)
    else:
        spread = cos * cos - sin * sin
        w, h = (width * cos - height * sin) / spread, (height * cos - width * sin) / spread
    # A millionth of a pixel more, so that rounding errors do not cost a whole one.
    return Size(max(1, int(w + 1e-6)), max(1, int(h + 1e-6)))


def _rotate_size(size: Size, rotate: Rotate) -> Size:
    if rotate.turns:
        return Size(size.height, size.width) if rotate.turns % 2 else size
    return inner_rectangle(size.width, size.height, rotate.degrees) if rotate.degrees else size


def _rotate_image(image: Image.Image, rotate: Rotate) -> Image.Image:
    if rotate.turns:
        return image.transpose((Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.ROTATE_270)[rotate.turns - 1])
    if not rotate.degrees:
        return image
    after = inner_rectangle(image.width, image.height, rotate.degrees)
    sin, cos = math.sin(math.radians(rotate.degrees)), math.cos(math.radians(rotate.degrees))
    x, y, own_x, own_y = image.width / 2, image.height / 2, after.width / 2, after.height / 2
    # From a place in the result to its place in the picture, about both centres.
    back = (cos, -sin, x - cos * own_x + sin * own_y, sin, cos, y - sin * own_x - cos * own_y)
    return image.transform(after, Image.Transform.AFFINE, back, _filter(image, Resampling.BICUBIC))


def _rotate_box(box: Box, rotate: Rotate, before: Size, after: Size) -> Box:
    angle = math.radians(90 * rotate.turns if rotate.turns else rotate.degrees or 0.0)
    sin, cos = math.sin(angle), math.cos(angle)
    if rotate.turns:
        sin, cos = round(sin), round(cos)
    xs, ys = [], []
    for x in (box.x - before.width / 2, box.x + box.w - before.width / 2):
        for y in (box.y - before.height / 2, box.y + box.h - before.height / 2):
            xs.append(cos * x + sin * y + after.width / 2)
            ys.append(cos * y - sin * x + after.height / 2)
    return Box(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))


def _crop_size(size: Size, crop: Crop) -> Size:
    left, upper, right, lower = _edges(crop, size)
    return Size(right - left, lower - upper)


def _crop_box(box: Box, crop: Crop, before: Size, after: Size) -> Box:
    left, upper, _, _ = _edges(crop, before)
    return box._replace(x=box.x - left, y=box.y - upper)


def _scale_size(size: Size, scale: Scale) -> Size:
    factor = scale.factor or (scale.longest or 0) / max(size)
    if scale.longest and factor > 1 and not scale.enlarge:
        return size
    after = Size(max(1, round(size.width * factor)), max(1, round(size.height * factor)))
    if max(after) > LONGEST:
        raise AtelierError(
            f"Scaled by {factor:g}, the picture is {after.width} x {after.height}. Keep its sides below {LONGEST}."
        )
    return after


def _scale_image(image: Image.Image, scale: Scale) -> Image.Image:
    after = _scale_size(Size(*image.size), scale)
    if after == image.size:
        return image
    return image.resize(after, _filter(image, Resampling.LANCZOS), reducing_gap=3)


def _scale_box(box: Box, scale: Scale, before: Size, after: Size) -> Box:
    x, y = after.width / before.width, after.height / before.height
    return Box(box.x * x, box.y * y, box.w * x, box.h * y)


def _filter(image: Image.Image, sharp: Image.Resampling) -> Image.Resampling:
    """A mask is not sharpened: the filters for pictures make light and dark seams at its edges."""
    return Resampling.BILINEAR if image.mode == "L" else sharp


def _color_image(image: Image.Image, color: Color) -> Image.Image:
    for enhance, factor in (
        (ImageEnhance.Brightness, color.brightness),
        (ImageEnhance.Contrast, color.contrast),
        (ImageEnhance.Color, color.saturation),
    ):
        if factor != 1:
            image = enhance(image).enhance(factor)
    if color.hue and image.mode == "RGB":
        image = image.convert("RGB", _hue_matrix(color.hue))
    if color.gamma != 1:
        image = image.point([round(255 * (v / 255) ** color.gamma) for v in range(256)] * len(image.getbands()))
    return image


def _hue_matrix(degrees: float) -> tuple[float, ...]:
    """Matrix that turns hues and leaves greys and luminance (Filter Effects Module Level 1, hueRotate)."""
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    red, green, blue = 0.213, 0.715, 0.072
    rows = (
        (red + cos * (1 - red) - sin * red, green * (1 - cos - sin), blue - cos * blue + sin * (1 - blue)),
        (red - cos * red + sin * 0.143, green + cos * (1 - green) + sin * 0.140, blue - cos * blue - sin * 0.283),
        (red - cos * red - sin * (1 - red), green * (1 - cos + sin), blue + cos * (1 - blue) + sin * blue),
    )
    return tuple(value for row in rows for value in (*row, 0.0))


def _same_size(size: Size, settings: Any) -> Size:
    return size


def _same_box(box: Box, settings: Any, before: Size, after: Size) -> Box:
    return box


class Kind(NamedTuple):
    """What an operation does to pixels, to a size and to a box; whether masks go through it."""

    settings: type[Options]
    image: Callable[[Image.Image, Any], Image.Image]
    size: Callable[[Size, Any], Size]
    box: Callable[[Box, Any, Size, Size], Box]
    geometric: bool = True


def _crop_image(image: Image.Image, crop: Crop) -> Image.Image:
    return image.crop(_edges(crop, Size(*image.size)))


KINDS = {
    "flip": Kind(Flip, _flip_image, _same_size, _flip_box),
    "rotate": Kind(Rotate, _rotate_image, _rotate_size, _rotate_box),
    "crop": Kind(Crop, _crop_image, _crop_size, _crop_box),
    "scale": Kind(Scale, _scale_image, _scale_size, _scale_box),
    "color": Kind(Color, _color_image, _same_size, _same_box, geometric=False),
}


def _kind(op: Mapping) -> Kind:
    name = op.get("name")
    if name not in KINDS:
        near = get_close_matches(str(name), KINDS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(KINDS)}."
        raise AtelierError(f"A picture has the operation {name!r}, which is not known. {hint}")
    return KINDS[name]
