"""What a layer of any kind adds to a weight, some rows at a time, so that a wide layer needs no second dense matrix."""

from dataclasses import replace

from torch import Tensor

from .factors import Factors
from .kinds import Dense, Hada, Kron, Layer, Rotation, delta_over

VALUES = 1 << 21  # of a weight at a time


def size_of(layer: Layer) -> tuple[int, int | None]:
    """The out and in sizes of the weight a layer fits; in is None where any fits (rotations)."""
    if isinstance(layer, Factors):
        return layer.up.shape[0], layer.down.shape[1]
    if isinstance(layer, Kron):
        second = layer.w2[0].shape[0], layer.w2[-1].shape[1]
        return layer.w1.shape[0] * second[0], layer.w1.shape[1] * second[1]
    if isinstance(layer, Hada):
        return layer.first[0].shape[0], layer.first[1].shape[1]
    if isinstance(layer, Dense):
        return layer.value.shape[0], layer.value[0].numel()
    return layer.blocks.shape[-3] * layer.blocks.shape[-1], None


def rows_of(layer: Layer, start: int, stop: int) -> Layer:
    """What a layer says of some of its rows; a rotation, which mixes rows, needs `change_over`."""
    if isinstance(layer, Factors):
        norms = {n: None if (v := getattr(layer, n)) is None else v[start:stop] for n in ("magnitude", "dora_scale")}
        return replace(layer, up=layer.up[start:stop], **norms)
    if isinstance(layer, Hada):
        first, second = ((a[start:stop], b) for a, b in (layer.first, layer.second))
        return replace(layer, first=first, second=second)
    if isinstance(layer, Kron):
        step = layer.w2[0].shape[0]
        low, high = start // step, -(-stop // step)
        delta = replace(layer, w1=layer.w1[low:high]).delta()
        return Dense(delta[start - low * step : stop - low * step], layer.kernel)
    if isinstance(layer, Dense):
        return replace(layer, value=layer.value[start:stop].flatten(1))
    raise TypeError("a rotation mixes rows")


def change_over(layer: Layer, weight: Tensor) -> Tensor:
    """What a layer adds to a whole weight, worked out some rows, or of a rotation some columns, at a time.

    weight  [out, in] float32, which is used up: the change takes its place
    ->      [out, in] float32
    """
    turned = isinstance(layer, Rotation)
    length = weight.shape[1] if turned else len(weight)
    step = max(1, VALUES * length // max(1, weight.numel()))
    for start in range(0, length, step):
        part = weight[:, start : start + step] if turned else weight[start : start + step]
        part.copy_(delta_over(layer if turned else rows_of(layer, start, start + len(part)), part))
    return weight
