"""RIFE-layout models for ncnn whose every weight is worked out here, none learned.

They have what the engine asks of RIFE v4 (in0, in1, in2 -> out0, rife.Warp, a coarse-to-fine motion), so the engine runs
for real with nothing downloaded. "motion" is a whole interpolator of 103 kB: a search over +-48 pixels, then symmetric
Lucas-Kanade (Lucas and Kanade 1981, coarse to fine as in Bouguet 2001). "shift" and "blend" have answers known by hand.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AtelierError
from ..files import write_text, write_whole
from .flow import LUMA
from .ncnn_model import MAGIC

Kind = Literal["motion", "shift", "blend"]
SHIFT = (8.0, -4.0)  # pixels (x, y) from the first frame to the second that "shift" knows
SEARCH_SIZE, LEVELS = 8, ((8, 4), (4, 3), (2, 3))  # the search's share of the frame; (share, rounds of Lucas-Kanade)
REACH = 3  # pixels of the search at its size; both frames move, so twice that: 48 pixels of the frame
STEEPNESS = 80.0  # of the soft minimum over the search's costs
MOST = 2.0  # pixels of one round
DAMPING = 2e-4  # of the normal equations, for flat places
BOOST = 64.0  # products of gradients are near 1e-4, too small for half precision

OPERATIONS = {"add": 0, "sub": 1, "mul": 2, "div": 3, "max": 4, "min": 5, "from": 7}
FUNCTIONS = {"abs": 0, "square": 4, "exp": 7}


class Network:
    """A graph in the making. Names of blobs go in and out; a blob may be used any number of times."""

    def __init__(self) -> None:
        self.layers: list[tuple[str, str, tuple[str, ...], tuple[str, ...], str]] = []
        self.weights = bytearray()

    def layer(self, kind: str, inputs: Sequence[str], params: str = "", out: str = "") -> str:
        """Add a layer with one output and give the output's name."""
        number = len(self.layers)
        out = out or f"b{number}"
        self.layers.append((kind, f"{kind.removeprefix('rife.').lower()}_{number}", tuple(inputs), (out,), params))
        return out

    def frames(self) -> tuple[str, str, str]:
        """Both frames and the time, under the names that the engine knows."""
        first, second, time = (self.layer("Input", (), out=f"in{i}") for i in range(3))
        return first, second, time

    def binary(self, operation: str, a: str, b: str | float, out: str = "") -> str:
        code = OPERATIONS[operation]
        if isinstance(b, str):
            return self.layer("BinaryOp", (a, b), f"0={code}", out)
        return self.layer("BinaryOp", (a,), f"0={code} 1=1 2={b:e}", out)

    def unary(self, function: str, a: str) -> str:
        return self.layer("UnaryOp", (a,), f"0={FUNCTIONS[function]}")

    def channels(self, a: str, start: int, end: int) -> str:
        return self.layer("Crop", (a,), f"-23309=1,{start} -23310=1,{end} -23311=1,0")

    def resize(self, a: str, scale: float) -> str:
        return self.layer("Interp", (a,), f"0=2 1={scale:e} 2={scale:e}")

    def concat(self, *blobs: str) -> str:
        return self.layer("Concat", blobs, "0=0")

    def warp(self, frame: str, flow: str) -> str:
        return self.layer("rife.Warp", (frame, flow))

    def clip(self, a: str, low: float, high: float, out: str = "") -> str:
        return self.layer("Clip", (a,), f"0={low:e} 1={high:e}", out)

    def convolve(self, a: str, kernels: ArrayLike, bias: Sequence[float] = ()) -> str:
        """Convolve with kernels [out, in, side, side]."""
        kernels = np.asarray(kernels, np.float32)
        if kernels.shape[-1] == 1:  # the engine's Vulkan code dies on 1 x 1, which no RIFE has
            kernels = np.pad(kernels, ((0, 0), (0, 0), (1, 1), (1, 1)))
        out, _, side, _ = kernels.shape
        self._keep(kernels, bias)
        return self.layer("Convolution", (a,), f"0={out} 1={side} 4={side // 2} 5={int(bool(bias))} 6={kernels.size}")

    def smooth(self, a: str, kernel: np.ndarray, channels: int) -> str:
        """Convolve each channel with one kernel [side, side]."""
        side = len(kernel)
        kernels = np.repeat(kernel[None].astype(np.float32), channels, 0)
        self._keep(kernels, ())
        params = f"0={channels} 1={side} 4={side // 2} 5=0 6={kernels.size} 7={channels}"
        return self.layer("ConvolutionDepthWise", (a,), params)

    def _keep(self, kernels: np.ndarray, bias: Sequence[float]) -> None:
        self.weights += struct.pack("<I", 0) + kernels.tobytes() + np.asarray(bias, np.float32).tobytes()

    def text(self) -> str:
        """The .param, with a Split wherever a blob is used more than once."""
        uses: dict[str, int] = {}
        for _, _, inputs, _, _ in self.layers:
            for name in inputs:
                uses[name] = uses.get(name, 0) + 1
        taken: dict[str, int] = {}
        lines, blobs = [], 0
        for kind, layer, inputs, outputs, params in self.layers:
            names = []
            for name in inputs:
                names.append(f"{name}_{taken.get(name, 0)}" if uses[name] > 1 else name)
                taken[name] = taken.get(name, 0) + 1
            lines.append(_line(kind, layer, names, outputs, params))
            blobs += len(outputs)
            for name in outputs:
                if (count := uses.get(name, 0)) > 1:
                    lines.append(_line("Split", f"split_{name}", [name], [f"{name}_{i}" for i in range(count)], ""))
                    blobs += count
        return "\n".join([MAGIC, f"{len(lines)} {blobs}", *lines]) + "\n"


def _line(kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], params: str) -> str:
    return " ".join([kind, name, str(len(inputs)), str(len(outputs)), *inputs, *outputs, params]).rstrip()


def write_analytic_model(folder: Path, kind: Kind = "motion") -> Path:
    """Write a model's flownet.param and flownet.bin.

    folder  made if it is not there
    kind    motion: finds the motion; shift: knows it (SHIFT); blend: mixes the frames
    ->      the folder
    Raises AtelierError for another kind.
    """
    if kind not in MAKERS:
        raise AtelierError(f"There is no analytic model {kind!r}. Choose {', '.join(MAKERS)}.")
    network = MAKERS[kind]()
    write_whole(folder / "flownet.bin", lambda part: part.write_bytes(network.weights))
    write_text(folder / "flownet.param", network.text())
    return folder


def blend() -> Network:
    """first (1 - t) + second t."""
    net = Network()
    _mix(net, *net.frames())
    return net


def shift() -> Network:
    """Warp by a constant motion; exact for a pure translation by SHIFT."""
    net = Network()
    first, second, time = net.frames()
    motion = net.convolve(first, np.zeros((2, 3, 1, 1)), SHIFT)
    _warp_and_mix(net, (first, second, time), motion)
    return net


def motion() -> Network:
    """Find the motion at the middle of both frames, coarse to fine, then warp."""
    net = Network()
    first, second, time = net.frames()
    luma = np.reshape(LUMA, (1, 3, 1, 1))
    pyramid, share = {1: (net.convolve(first, luma), net.convolve(second, luma))}, 1
    row = np.array([1, 4, 6, 4, 1]) / 16
    binomial = np.outer(row, row)[None, None]
    while share < SEARCH_SIZE:
        a, b = (net.resize(net.convolve(level, binomial), 0.5) for level in pyramid[share])
        pyramid[share * 2] = a, b
        share *= 2
    flow = _search(net, *pyramid[SEARCH_SIZE])
    for level, rounds in LEVELS:
        flow = _grown(net, flow, share // level)
        share = level
        flow = _refined(net, *pyramid[level], flow, rounds)
    _warp_and_mix(net, (first, second, time), _grown(net, flow, share))
    return net


MAKERS = {"motion": motion, "shift": shift, "blend": blend}


def _mix(net: Network, first: str, second: str, time: str) -> None:
    weighed = net.binary("mul", first, net.binary("from", time, 1.0))
    net.clip(net.binary("add", weighed, net.binary("mul", second, time)), 0, 1, out="out0")


def _warp_and_mix(net: Network, frames: tuple[str, str, str], flow: str) -> None:
    """Sample the first frame at x - t F and the second at x + (1 - t) F."""
    first, second, time = frames
    behind = net.warp(first, net.binary("mul", flow, net.binary("mul", time, -1.0)))
    ahead = net.warp(second, net.binary("mul", flow, net.binary("from", time, 1.0)))
    _mix(net, behind, ahead, time)


def _grown(net: Network, flow: str, times: int) -> str:
    return net.binary("mul", net.resize(flow, float(times)), float(times)) if times > 1 else flow


def _gauss(side: int, sigma: float) -> np.ndarray:
    """A bell [side, side] of sum 1."""
    x = np.arange(side) - side // 2
    bell = np.exp(-x * x / (2 * sigma * sigma))
    return np.outer(bell, bell) / bell.sum() ** 2


def _search(net: Network, first: str, second: str) -> str:
    """Try every whole motion within REACH, first(x - j) against second(x + j), and take a soft minimum of the costs.

    The engine has no Softmax or Reduction, so the mean is a convolution and a division.
    """
    steps = [(x, y) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    count, side = len(steps), 2 * REACH + 1
    pick_first, pick_second = np.zeros((2, count, 1, side, side))
    for i, (x, y) in enumerate(steps):
        pick_first[i, 0, REACH - y, REACH - x] = pick_second[i, 0, REACH + y, REACH + x] = 1
    change = net.binary("sub", net.convolve(first, pick_first), net.convolve(second, pick_second))
    cost = net.smooth(net.unary("abs", change), _gauss(5, 1.2), count)
    still = count // 2
    gain = net.binary("mul", net.binary("sub", cost, net.channels(cost, still, still + 1)), -STEEPNESS)
    weight = net.unary("exp", net.clip(gain, -9, 9))  # e^9 and the 1e-3 below stay within half precision
    sums = np.zeros((3, count, 1, 1))
    for i, (x, y) in enumerate(steps):
        calm = np.exp(-0.05 * np.hypot(x, y)) * 1e-3  # of equal costs the smaller motion
        sums[:, i, 0, 0] = 2 * x * calm, 2 * y * calm, calm
    total = net.convolve(weight, sums)
    flow = net.binary("div", net.channels(total, 0, 2), net.channels(total, 2, 3))
    for _ in range(4):
        flow = net.smooth(flow, _gauss(7, 1.8), 2)
    return flow


def _refined(net: Network, first: str, second: str, flow: str, rounds: int) -> str:
    """Lucas-Kanade at one size, both frames warped half way; flat places then take their neighbours' motion."""
    difference, scharr = np.array([-1, 0, 1]) / 2, np.array([3, 10, 3]) / 16
    slopes = np.stack([np.outer(scharr, difference), np.outer(difference, scharr)])[:, None]
    certainty = ""
    for _ in range(rounds):
        a = net.warp(first, net.binary("mul", flow, -0.5))
        b = net.warp(second, net.binary("mul", flow, 0.5))
        slope = net.convolve(net.binary("mul", net.binary("add", a, b), 0.5), slopes)
        step, certainty = _solved(net, slope, net.binary("sub", b, a))
        flow = net.binary("add", flow, step)
    certainty = net.binary("add", certainty, 1e-4)
    weighed = net.concat(net.binary("mul", flow, certainty), certainty)
    around = net.smooth(weighed, _gauss(7, 1.8), 3)
    mean = net.binary("div", net.channels(around, 0, 2), net.binary("add", net.channels(around, 2, 3), 1e-6))
    trust = net.binary("div", certainty, net.binary("add", certainty, 2e-2))
    flow = net.binary("add", mean, net.binary("mul", net.binary("sub", flow, mean), trust))
    return net.smooth(flow, _gauss(5, 1.0), 2)


def _solved(net: Network, slope: str, change: str) -> tuple[str, str]:
    """The normal equations over a soft window, by Cramer's rule: the step, and how sure it is."""
    x, y = net.channels(slope, 0, 1), net.channels(slope, 1, 2)
    terms = (net.unary("square", x), net.binary("mul", x, y), net.unary("square", y))
    products = net.concat(*terms, net.binary("mul", x, change), net.binary("mul", y, change))
    sums = net.smooth(net.binary("mul", products, BOOST), _gauss(7, 2.0), 5)
    xx, xy, yy, xt, yt = (net.channels(sums, i, i + 1) for i in range(5))
    xx, yy = net.binary("add", xx, DAMPING * BOOST), net.binary("add", yy, DAMPING * BOOST)
    determinant = net.binary("sub", net.binary("mul", xx, yy), net.binary("mul", xy, xy))
    determinant = net.binary("max", determinant, 1e-6)
    u = net.binary("sub", net.binary("mul", xy, yt), net.binary("mul", yy, xt))
    v = net.binary("sub", net.binary("mul", xy, xt), net.binary("mul", xx, yt))
    step = net.concat(net.binary("div", u, determinant), net.binary("div", v, determinant))
    return net.clip(step, -MOST, MOST), net.binary("div", determinant, net.binary("add", xx, yy))
