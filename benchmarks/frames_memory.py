"""Memory of 10 s and of 60 s of 720p, 24 to 60, with each interpolator, beside ComfyUI core's way on the same clip.

`python -m benchmarks.frames_memory [FOLDER]` takes more than an hour on one core, as every frame is really made; what is
measured lies in FOLDER, and a run that was stopped goes on from there. Every run has a process of its own, in which a
thread looks at the resident memory of that process and its children ten times a second; memory that both share counts
twice, so the figures are upper bounds. Core's way holds all frames as float32 (comfy_api's get_components and
comfy_extras/nodes_frame_interpolation.py): it runs for 10 s, at twice the rate, which is as near as it comes, and
60 s are reckoned from that and the frames' bytes. The networks have the fewest channels that their loaders take, as memory over length is asked for
and not the picture: "rife" runs the analytic model that mixes, "core's model" a RIFE 4.25 of two channels. That network
takes about a second for a frame of 720p on one core, so its 60 s are of 320 x 180, and 720p runs for 2 s.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F

from .__main__ import ROOT, Figure

LARGE, SMALL = (1280, 720), (320, 180)
BRIEF, SHORT, LONG = 2, 10, 60  # seconds
ALLOWED, FLAT = 700, 100  # MiB above the start; MiB that 60 s may take more than 10 s
OURS = {"flow": LARGE, "rife": LARGE, "core's model": SMALL}
CORE, NETWORK = "core's way", "core's model"
PERIOD = 24 * 20  # frames after which the clip's motion comes back
SOUND = 48_000  # samples a second
PLOT = Path(__file__).with_name("frames_memory.png")


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="frames_memory_") as held:
        return measured(Path(held))


def measured(folder: Path) -> list[Figure]:
    """Measure what is not in the folder yet, and draw the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: {s: _kept(folder, name, s, size) for s in (SHORT, LONG)} for name, size in OURS.items()}
    large = _kept(folder, NETWORK, BRIEF, LARGE)
    peer = {size: _kept(folder, CORE, SHORT, size)["peak"] for size in (LARGE, SMALL)}
    _draw({f"{name} {OURS[name][1]}p": runs[LONG]["samples"] for name, runs in found.items()}, peer[LARGE])
    figures = []
    for name, runs in found.items():
        wide, high = size = OURS[name]
        core = (LONG - SHORT) * 3 * 24 * wide * high * 12 / 2**20  # the frames alone, 24 and 48 a second
        more = max(0.0, runs[LONG]["peak"] - runs[SHORT]["peak"])
        figures += [
            Figure(f"{name}: 60 s of {high}p (core's way)", runs[LONG]["peak"], peer[size] + core, "MiB", most=ALLOWED),
            Figure(f"{name}: 60 s over 10 s (core's way)", more, core, "MiB", most=FLAT),
        ]
    return [*figures, Figure(f"{NETWORK}: 2 s of 720p", large["peak"], None, "MiB", most=ALLOWED)]


def _kept(folder: Path, name: str, seconds: int, size: tuple[int, int]) -> dict:
    """One run's start and peak above it in MiB, and its samples: seconds of the film done, MiB above the start."""
    clip = folder / f"{seconds}-{size[1]}.mp4"
    note = folder / f"{_plain(name)}-{clip.stem}.json"
    if not note.is_file():
        if not clip.is_file():
            write_clip(folder / "part.mp4", seconds, size)
            (folder / "part.mp4").rename(clip)
        command = [sys.executable, "-m", "benchmarks.frames_memory", str(clip), name, str(note)]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    told = json.loads(note.read_text())
    print(f"{name}, {clip.stem}: {told['peak']:.0f} MiB above {told['before']:.0f}, {told['took']:.0f} s", flush=True)
    return told


def _plain(name: str) -> str:
    return name.replace("'", "").replace(" ", "-")


def write_clip(path: Path, seconds: int, size: tuple[int, int]) -> None:
    """Encode a film with sound, frame by frame: a pan to and fro over a photograph, before which a disc runs."""
    import av
    import numpy as np

    from flux_atelier.core.frames.video import add_h264, to_video_frame

    from .frames import photo

    (wide, high), disc = size, size[1] // 2
    ground, front = (
        F.interpolate(photo("coffee"), (high, 2 * wide))[0],
        F.interpolate(photo("astronaut"), (disc, disc))[0],
    )
    y, x = torch.meshgrid(torch.arange(disc) - disc / 2, torch.arange(disc) - disc / 2, indexing="ij")
    inside = (disc / 2 - (x**2 + y**2).sqrt()).clamp(0, 1)
    with av.open(str(path), "w", format="mp4") as out:
        stream = add_h264(out, ground[:, :, :wide], Fraction(24), prompt=True)
        sound = out.add_stream("aac", rate=SOUND, layout="mono")
        for i in range(24 * seconds):
            turn = 2 * math.pi * i / PERIOD
            left, at = round(wide / 2 * (1 - math.cos(turn))), round((wide - disc) / 2 * (1 + math.sin(3 * turn)))
            pixels = ground[:, :, left : left + wide].clone()
            covered = pixels[:, disc // 2 : disc // 2 + disc, at : at + disc]
            covered.copy_(torch.lerp(covered, front, inside))
            out.mux(stream.encode(to_video_frame(pixels, i, Fraction(24))))
            times = (np.arange(SOUND // 24) + i * (SOUND // 24)) / SOUND
            wave = av.AudioFrame.from_ndarray(
                (0.2 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)[None], "fltp", "mono"
            )
            wave.sample_rate, wave.pts = SOUND, i * (SOUND // 24)
            out.mux(sound.encode(wave))
        for track in (stream, sound):
            out.mux(track.encode(None))


def _draw(curves: dict, core: float) -> None:
    from flux_atelier.core.evaluation.grid import curve_plot

    rising = {CORE: [(0.0, 0.0), (SHORT * 1000 / core, 1000.0)]}  # a line to its peak, as far as 1000 MiB
    peaks = {name: _peaks(samples) for name, samples in curves.items()}
    sheet = curve_plot(peaks | rising, "MiB above the start, over seconds of film", (860, 320))
    sheet.quantize(32).save(PLOT, optimize=True)


def _peaks(samples: list) -> list[tuple[float, float]]:
    """The most in each second of the film."""
    most: dict[int, float] = {}
    for at, memory in samples:
        most[int(at)] = max(most.get(int(at), 0.0), memory)
    return [(float(at), memory) for at, memory in sorted(most.items())]


# --- one run in a process of its own


class Watch:
    """Samples of the memory of this process and its children, as a context."""

    def __init__(self):
        self.done, self.before, self.samples = 0.0, resident(), []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.samples.append((self.done, resident() - self.before))

    @property
    def peak(self) -> float:
        """MiB above the start: the most of the samples, or what the system saw of this process between them."""
        # Not getrusage, which would tell the parent's where that was higher.
        line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM"))
        return max(int(line.split()[1]) / 1024 - self.before, *(memory for _, memory in self.samples))


def resident() -> float:
    """Memory in MiB of this process and all below it."""
    pages, left = 0, [os.getpid()]
    while left:
        place = Path("/proc") / str(left.pop())
        try:
            pages += int((place / "statm").read_text().split()[1])
            for task in (place / "task").iterdir():
                left += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def _child(clip: Path, name: str, note: Path) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    if name in (CORE, NETWORK):
        _start_core()
    with Watch() as watch:
        if name == CORE:
            _buffered(clip)
        else:
            _streamed(clip, name, watch)
    every = max(1, len(watch.samples) // 600)
    curve = [max(watch.samples[i : i + every], key=lambda s: s[1]) for i in range(0, len(watch.samples), every)]
    told = {"before": watch.before, "peak": watch.peak, "samples": curve, "took": time.monotonic() - began}
    note.write_text(json.dumps(told))


def _streamed(clip: Path, name: str, watch: Watch) -> None:
    from flux_atelier.core.frames.stream import retime_file

    out = clip.with_name(f"{_plain(name)}-{clip.stem}-60.mp4")
    with torch.inference_mode(), _opened(name) as between:
        for step in retime_file(clip, out, Fraction(60), between):
            watch.done = step.done / 60


@contextmanager
def _opened(name: str):
    """The interpolator of a name, as a context."""
    from flux_atelier.core.frames.analytic_rife import write_analytic_model
    from flux_atelier.core.frames.interpolate import flow_between
    from flux_atelier.core.frames.rife import Rife

    if name == "flow":
        yield flow_between()
    elif name == "rife":
        with (
            tempfile.TemporaryDirectory() as held,
            Rife(write_analytic_model(Path(held) / "blend", "blend")) as between,
        ):
            yield between
    else:
        from flux_atelier.nodes.host.interp import InterpolationModel

        with InterpolationModel(_patcher()) as between:
            yield between


def _start_core() -> None:
    comfyui = os.environ.get("COMFYUI_PATH") or str(Path.home() / "ComfyUI")
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py"]
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import flux_atelier.nodes.host.interp  # noqa: F401 - what ComfyUI loads anyway is not the clip's


def _patcher():
    """Core's RIFE 4.25 with two channels a block and random weights, as its loader gives it."""
    import comfy.model_patcher
    from comfy_extras.frame_interpolation_models.ifnet import IFNet

    torch.manual_seed(0)
    net = IFNet(1, (2,) * 5).eval().to(torch.float32)
    for weights in net.parameters():
        weights.data.normal_(0, 0.05)
    device = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(net, load_device=device, offload_device=device)


def _buffered(clip: Path) -> None:
    from comfy_api.latest import InputImpl
    from comfy_extras.nodes_frame_interpolation import FrameInterpolate

    with torch.inference_mode():
        images = InputImpl.VideoFromFile(str(clip)).get_components().images
        FrameInterpolate.execute(_patcher(), images, 2)


if __name__ == "__main__":
    from benchmarks.__main__ import load_package

    load_package()
    if len(sys.argv) > 3:
        _child(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    else:
        for figure in measured(Path(sys.argv[1])) if sys.argv[1:] else run():
            beside = "" if figure.peer is None else f", {figure.peer:.0f} there"
            print(f"{figure.name}: {figure.ours:.0f} MiB{beside}, {'met' if figure.met else 'MISSED'}")
