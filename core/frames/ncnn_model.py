"""ncnn models as files: the layers of a .param, what each blob looks like, and whether a .bin fits.

The engine reads both without a check and dies, or paints noise, at the first surprise. So every number it will trust is
worked out here first. Formats as in ncnn's own reader (net.cpp, modelbin.cpp).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, prod
from pathlib import Path
from typing import IO

from ..errors import AtelierError

MAGIC = "7767517"
LFS = b"version https://git-lfs"
LONGEST = 4 << 20  # bytes of a .param; the largest of RIFE has 68 kB
ARRAYS = 23300  # ncnn writes an array's key as -(23300 + key)
TO_THE_END = 2147483647
THE_REST = -233

Value = float | tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """One line of a .param."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[int, Value]
    line: int

    def number(self, key: int, default: int = 0) -> int:
        value = self.params.get(key, default)
        return default if isinstance(value, tuple) else int(value)

    def ratio(self, key: int) -> Fraction:
        value = self.params.get(key, 1)
        return Fraction(1 if isinstance(value, tuple) else value).limit_denominator(4096)

    def array(self, key: int) -> tuple[int, ...]:
        value = self.params.get(key, ())
        return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)


@dataclass(frozen=True)
class Blob:
    """What flows between layers: channels, and its width as a share of the frame's (None: a constant of 1 x 1)."""

    channels: int
    scale: Fraction | None


Graph = tuple[Layer, ...]


def read_param(path: Path) -> Graph:
    """Read a .param and check that its layers join up.

    Raises AtelierError that names the line if it is cut short, damaged, or no .param at all.
    """
    data = _start_of(path, LONGEST + 1)
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        lines = []
    if len(data) > LONGEST or not lines or lines[0].strip() != MAGIC:
        raise AtelierError(f"{path} is not an ncnn model. Download the RIFE model again.")
    counts = [int(word) for word in lines[1].split() if word.isdigit()] if len(lines) > 1 else []
    layers = tuple(_layer(path, line, number) for number, line in enumerate(lines[2:], 3) if line.strip())
    blobs = sum(len(layer.outputs) for layer in layers)
    if len(counts) != 2 or counts[0] != len(layers) or counts[1] < blobs:  # the engine has room for the announced blobs
        raise AtelierError(
            f"{path} announces {' layers and '.join(map(str, counts)) or 'no'} blobs; it has {len(layers)} and {blobs}. "
            "It is cut short or damaged: download the RIFE model again."
        )
    _check_wires(path, layers)
    return layers


def _start_of(path: Path, size: int) -> bytes:
    """A file's first bytes; raises AtelierError if it is missing, empty, or stands in for one that was not downloaded."""
    if not path.is_file():
        raise AtelierError(f"{path.parent} has no {path.name}. Choose a folder with a RIFE v4 model for ncnn.")
    with open(path, "rb") as opened:
        data = opened.read(size)
    if data.startswith(LFS):
        raise AtelierError(f"{path} is a Git LFS pointer. Download the RIFE model again.")
    return data


def _layer(path: Path, line: str, number: int) -> Layer:
    words = line.split()
    try:
        kind, name, inputs, outputs = words[0], words[1], int(words[2]), int(words[3])
        names = words[4 : 4 + inputs + outputs]
        if min(inputs, outputs) < 0 or len(names) != inputs + outputs or any("=" in n for n in names):
            raise ValueError
        params = dict(_param(word) for word in words[4 + inputs + outputs :])
    except (ValueError, IndexError, OverflowError):
        raise AtelierError(
            f"Line {number} of {path} is no layer: {line[:60]!r}. It is damaged: download the RIFE model again."
        ) from None
    return Layer(kind, name, tuple(names[:inputs]), tuple(names[inputs:]), params, number)


def _param(word: str) -> tuple[int, Value]:
    key, _, value = word.partition("=")
    number = int(key)
    single = number > -ARRAYS
    count, *values = ("1", value) if single else value.split(",")
    found = tuple(float(v) for v in values)
    if int(count) != len(found) or not all(isfinite(v) for v in found):
        raise ValueError
    return (number, found[0]) if single else (-number - ARRAYS, found)


def _check_wires(path: Path, graph: Graph) -> None:
    """Every blob is made once, before it is used, and used once: ncnn frees it then, and a Split stands for more."""
    waiting: set[str] = set()
    made: set[str] = set()
    for layer in graph:
        for name in layer.inputs:
            if name not in waiting:
                why = "an earlier layer has used up" if name in made else "no earlier layer makes"
                raise _unfit(path, layer, f"reads the blob {name}, which {why}")
            waiting.remove(name)
        for name in layer.outputs:
            if name in made:
                raise _unfit(path, layer, f"makes the blob {name} a second time")
            made.add(name)
            waiting.add(name)


def _unfit(path: Path, layer: Layer, problem: str) -> AtelierError:
    return AtelierError(
        f"Line {layer.line} of {path} ({layer.kind} {layer.name}) {problem}. "
        "The model does not fit the RIFE engine: download it again, or choose another."
    )


# --- weights


def weights_of(layer: Layer) -> list[tuple[int, bool]]:
    """The runs of numbers that a layer reads from the .bin: how many, and whether a mark of their format stands before."""
    if layer.kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution"):
        bias = [(layer.number(0), False)] if layer.number(5) else []
        return [(layer.number(6), True), *bias]
    if layer.kind == "PReLU":
        return [(layer.number(0), False)]
    if layer.kind == "MemoryData":
        sides = [side for side in (layer.number(key) for key in (0, 1, 11, 2)) if side]
        return [(prod(sides), layer.number(21, 1) == 0)]
    return []


# Bytes of n numbers by the mark before them; each run is filled up to whole words.
FORMATS: dict[int, Callable[[int], int]] = {
    0: lambda n: 4 * n,  # float32
    0x0002C056: lambda n: 4 * n,  # float32, made for another layout
    0x01306B47: lambda n: -(-2 * n // 4) * 4,  # float16
}


def check_weights(graph: Graph, path: Path) -> int:
    """Compare a .bin's length, byte for byte, with what a graph reads from it.

    -> the length
    Raises AtelierError if it is missing, cut short, too long, or in a format that RIFE models do not have.
    """
    _start_of(path, len(LFS))
    length, at = path.stat().st_size, 0
    with open(path, "rb") as opened:
        for layer in graph:
            for count, marked in weights_of(layer):
                at += _length_of_run(opened, at, count, marked, layer)
                if at > length:
                    raise AtelierError(
                        f"{path} ends after {length} bytes; its .param reads at least {at}, up to {layer.name}. "
                        "The file is cut short or belongs to another .param: download the RIFE model again."
                    )
    if at != length:
        raise AtelierError(
            f"{path} has {length} bytes, and its .param reads {at}. "
            "The two belong to different models: download the RIFE model again."
        )
    return length


def _length_of_run(opened: IO[bytes], at: int, count: int, marked: bool, layer: Layer) -> int:
    if not marked:
        return 4 * count
    opened.seek(at)
    word = opened.read(4)
    if len(word) < 4:
        return 4 + 4 * count
    mark = int.from_bytes(word, "little")
    if mark not in FORMATS:
        raise AtelierError(
            f"{opened.name} has weights of an unknown format ({mark:#010x}) at {layer.name}. "
            "It is damaged or 8-bit: download the RIFE model again."
        )
    return 4 + FORMATS[mark](count)


# --- shapes


def shapes(graph: Graph, inputs: Mapping[str, int], path: Path) -> dict[str, Blob]:
    """Follow channels and sizes through a graph.

    inputs  channels of each Input
    path    where the graph is from, for the messages
    ->      every blob by its name
    Raises AtelierError at the first layer that the engine lacks, or whose sizes do not fit what it is given.
    """
    blobs: dict[str, Blob] = {}
    for layer in graph:
        given = [blobs[name] for name in layer.inputs]
        if layer.kind == "Input":
            made: Sequence[Blob] = [Blob(inputs[layer.outputs[0]], Fraction(1))]
        elif layer.kind not in RULES:
            raise _unfit(path, layer, "is of a kind that no RIFE v4 model has and at which the engine stopped")
        else:
            try:
                made = RULES[layer.kind](layer, given)
            except (ValueError, IndexError, ZeroDivisionError) as error:
                raise _unfit(path, layer, f"does not fit its inputs ({error})") from None
        if len(made) != len(layer.outputs):
            raise _unfit(path, layer, f"has {len(layer.outputs)} outputs where {len(made)} were expected")
        blobs |= dict(zip(layer.outputs, made, strict=True))
    return blobs


def _same(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    return [given[0]] * len(layer.outputs)


def _slopes(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    if layer.number(0) not in (1, given[0].channels):
        raise ValueError(f"{layer.number(0)} slopes for {given[0].channels} channels")
    return [given[0]]


def _joined(scales: Iterator[Fraction | None]) -> Fraction | None:
    """The one size that blobs have in common."""
    found = {scale for scale in scales if scale is not None}
    if len(found) > 1:
        raise ValueError(f"sizes {' and '.join(str(s) for s in sorted(found))} of the frame's meet")
    return found.pop() if found else None


def _convolved(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    source, made, groups, growing = given[0], layer.number(0), 1, layer.kind == "Deconvolution"
    if layer.kind == "ConvolutionDepthWise":
        groups = layer.number(7, 1)
    side, stride = layer.number(1), layer.number(3, 1)
    if layer.number(8) or layer.number(28 if growing else 19):
        raise ValueError("8-bit or changing weights")
    if min(made, side, stride, groups) < 1 or source.channels % groups or made % groups:
        raise ValueError(f"{source.channels} channels to {made} in {groups} groups")
    wanted = made * source.channels * side * side // groups
    if layer.number(6) != wanted:
        raise ValueError(f"{layer.number(6)} weights where {wanted} are needed")
    if source.scale is None or not _keeps_whole(layer, side, stride, growing):
        raise ValueError("a result of another size than the step says")
    return [Blob(made, source.scale * (Fraction(stride) if growing else Fraction(1, stride)))]


def _keeps_whole(layer: Layer, side: int, stride: int, growing: bool) -> bool:
    """Whether kernel and borders make the size exactly 1 / stride, or stride times, what it was."""
    dilation, border = layer.number(2, 1), layer.number(4)
    square = all(layer.number(key, value) == value for key, value in ((11, side), (12, dilation), (13, stride)))
    even = all(layer.number(key, border) == border for key in (14, 15, 16))
    spare = 2 * border - (dilation * (side - 1) + 1 - stride)
    extra = growing and any(layer.number(key) for key in (18, 19, 20, 21))
    return square and even and not extra and border >= 0 and (spare == 0 if growing else 0 <= spare < stride)


def _shuffled(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    side = layer.number(0, 1)
    if side < 1 or given[0].scale is None or given[0].channels % (side * side):
        raise ValueError(f"{given[0].channels} channels cannot become {side} x {side} pixels")
    return [Blob(given[0].channels // (side * side), given[0].scale * side)]


def _resized(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    if layer.number(3) or layer.number(4) or len(given) != 1 or layer.ratio(1) != layer.ratio(2):
        raise ValueError("a fixed or uneven size")
    if given[0].scale is None or layer.ratio(1) <= 0:
        raise ValueError("no size to change")
    return [Blob(given[0].channels, given[0].scale * layer.ratio(1))]


def _stacked(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    if layer.number(0):
        raise ValueError("not along the channels")
    return [Blob(sum(b.channels for b in given), _joined(b.scale for b in given))]


def _cropped(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    starts, ends, axes = (layer.array(key) for key in (9, 10, 11))
    if axes != (0,) or len(given) != 1:
        raise ValueError("not along the channels")
    have = given[0].channels
    end = have if ends[0] == TO_THE_END else ends[0] + have * (ends[0] < 0)
    if not 0 <= starts[0] < end <= have:
        raise ValueError(f"channels {starts[0]} to {end} of {have}")
    return [Blob(end - starts[0], given[0].scale)]


def _sliced(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    sizes, have = layer.array(0), given[0].channels
    if layer.number(1):
        raise ValueError("not along the channels")
    rest = [s for s in sizes if s == THE_REST]
    left = have - sum(s for s in sizes if s != THE_REST)
    if (left != 0 and not rest) or (rest and (left < len(rest) or left % len(rest))):
        raise ValueError(f"{have} channels do not part so")
    return [Blob(left // len(rest) if s == THE_REST else s, given[0].scale) for s in sizes]


def _combined(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    """Arithmetic of one blob and a number, or of blobs; one of a single channel serves all."""
    channels = {b.channels for b in given} - {1}
    if len(channels) > 1 or len(given) != (1 if layer.kind == "BinaryOp" and layer.number(1) else 2):
        raise ValueError(f"{' and '.join(str(b.channels) for b in given)} channels meet")
    return [Blob(max(b.channels for b in given), _joined(b.scale for b in given))]


def _warped(layer: Layer, given: Sequence[Blob]) -> list[Blob]:
    picture, flow = given
    if flow.channels != 2:
        raise ValueError(f"a flow of {flow.channels} channels")
    return [Blob(picture.channels, _joined(b.scale for b in given))]


def _constant(layer: Layer, _: Sequence[Blob]) -> list[Blob]:
    if [layer.number(key) for key in (0, 1, 11)] != [1, 1, 0] or layer.number(2) < 1:
        raise ValueError("a constant larger than a pixel")
    return [Blob(layer.number(2), None)]


RULES: dict[str, Callable[[Layer, Sequence[Blob]], Sequence[Blob]]] = {
    "Split": _same, "ReLU": _same, "Sigmoid": _same, "Clip": _same, "UnaryOp": _same, "PReLU": _slopes,
    "Convolution": _convolved, "ConvolutionDepthWise": _convolved, "Deconvolution": _convolved,
    "PixelShuffle": _shuffled, "Interp": _resized, "Concat": _stacked, "Crop": _cropped, "Slice": _sliced,
    "BinaryOp": _combined, "Eltwise": _combined, "rife.Warp": _warped, "MemoryData": _constant,
}  # fmt: skip
