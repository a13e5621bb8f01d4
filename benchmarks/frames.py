"""The frames room: pictures between pictures beside mixing and OpenCV's DIS, cuts, twos, and memory over length.

The pictures are scikit-image's photographs under known motion, so the true middle is known. The peers run in the same
run: plain mixing; and, for memory, ComfyUI core's way, in which all frames of a clip lie in memory as float32 before
and after (comfy_extras/nodes_frame_interpolation.py, comfy_api's get_components), on a tenth of the length and scaled.
Figures of quality are shown as 10 ** (-PSNR / 20), the root of the squared error in 1/255, so that less is better.
"""

import math
import resource
import subprocess
import sys
import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .__main__ import ROOT, Figure

WIDE, HIGH = 320, 256
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")
MOTIONS = ((9, 3, 0, 1), (-16, 7, 0, 1), (0, 0, 0.1, 1), (3, -2, 0, 1.07), (7, -5, 0.06, 0.95))
DISCS = ((22, 8), (-24, 6), (15, -18), (-14, -20))
EDITS = 50
SHORT, LONG, TENTH = 10, 60, 2  # seconds of 720p
ALLOWED = 700  # MiB that a minute of 720p may add


def run() -> list[Figure]:
    from flux_atelier.core.frames.flow import dis_flow, lucas_kanade

    figures = []
    for name, flow in (("torch", lucas_kanade), ("DIS", dis_flow)):
        figures += _quality(name, flow)
    return [*figures, *_cuts(), _twos(), *_memory()]


def _photo(name: str) -> torch.Tensor:
    from flux_atelier.trainer.nano.photos import photograph

    image = photograph(name).resize((2 * WIDE, 2 * HIGH))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


def _moved(photo: torch.Tensor, motion, time: float) -> torch.Tensor:
    """A view of 320 x 256; motion: pixels right and down, radians, zoom, per unit of time."""
    across, down, turn, zoom = motion
    c, s = math.cos(turn * time) * zoom**time, math.sin(turn * time) * zoom**time
    y, x = torch.meshgrid(torch.arange(HIGH) - HIGH / 2 + 0.5, torch.arange(WIDE) - WIDE / 2 + 0.5, indexing="ij")
    places = torch.stack([(c * x - s * y - across * time) / WIDE, (s * x + c * y - down * time) / HIGH], -1)
    return F.grid_sample(photo, places[None] * 1.2, align_corners=False, padding_mode="reflection")[0]


def _affine():
    for name in NAMES:
        photo = _photo(name)
        for motion in MOTIONS:
            yield tuple(_moved(photo, motion, t) for t in (-0.5, 0, 0.5))


def _occluded():
    y, x = torch.meshgrid(torch.arange(HIGH).float(), torch.arange(WIDE).float(), indexing="ij")
    for i, (across, down) in enumerate(DISCS):
        ground, front, frames = _photo(NAMES[i]), _photo(NAMES[i + 1]), []
        for t in (-0.5, 0, 0.5):
            inside = (60.5 - ((x - 160 - across * t) ** 2 + (y - 128 - down * t) ** 2).sqrt()).clamp(0, 1)
            ahead = _moved(front, (across, down, 0, 1), t)
            frames.append(torch.lerp(_moved(ground, (-6, 3, 0, 1), t), ahead, inside))
        yield tuple(frames)


def _hard():
    """What motion explains badly or not at all: far, turning, dissolving, noisy, flickering, behind glass, random."""
    rng = torch.Generator().manual_seed(0)
    photos = [_photo(name) for name in NAMES]
    for i, one in enumerate(photos):
        two = photos[i - 1]
        for motion in ((60, 12, 0, 1), (110, -30, 0, 1), (0, 0, 0.5, 1)):
            yield tuple(_moved(one, motion, t) for t in (-0.5, 0, 0.5))
        slow, back = ([_moved(p, (d, 2, 0, 1), t) for t in (-0.5, 0, 0.5)] for p, d in ((one, 6), (two, -8)))
        yield slow[0], (slow[0] + back[0]) / 2, back[0]
        yield tuple(f + 0.08 * torch.randn(f.shape, generator=rng) for f in slow)
        yield tuple(f * (1 + 0.4 * t) for f, t in zip(slow, (-0.5, 0, 0.5), strict=True))
        yield tuple((a + b) / 2 for a, b in zip(slow, back, strict=True))
    yield tuple(torch.rand(3, 3, HIGH, WIDE, generator=rng))


def _psnr(made: torch.Tensor, true: torch.Tensor) -> float:
    return min(50.0, -10 * (made.clamp(0, 1) - true.clamp(0, 1)).square().mean().clamp(min=1e-9).log10().item())


def _quality(name: str, flow) -> list[Figure]:
    from flux_atelier.core.frames.interpolate import blend, flow_between

    figures, least = [], {}
    sets = {"affine": (_affine, 33), "occlusion": (_occluded, 29), "hard": (_hard, None)}
    for title, (make, wanted) in sets.items():
        rows = []
        for first, true, second in make():
            first, second = first.clamp(0, 1), second.clamp(0, 1)
            made = [b(first, second, 0.5) for b in (flow_between(flow), flow_between(flow, True), blend)]
            rows.append([_psnr(frame, true) for frame in made])
        plain, safe, mixed = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        least[title] = min(row[1] - row[2] for row in rows)
        print(f"{name:>6} {title:<10} plain {plain:.2f} dB, safe {safe:.2f}, mixing {mixed:.2f}; n {len(rows)}, "
              f"least gain: plain {min(r[0] - r[2] for r in rows):+.2f}, safe {least[title]:+.2f}")  # fmt: skip
        if wanted:
            most = 255 * 10 ** (-wanted / 20)
            ours, peer = (255 * 10 ** (-value / 20) for value in (plain, mixed))
            figures.append(Figure(f"{name}: error on {title}", ours, peer, "/255", most=most))
    worst = max(0.0, -min(least.values()))
    return [*figures, Figure(f"{name}: most lost to mixing, fallback", worst, None, "dB", most=0.3)]


def _cuts() -> list[Figure]:
    from flux_atelier.core.frames.cuts import Change, change_between, thumbnail

    rng, photos = np.random.default_rng(7), [_photo(name) for name in NAMES]
    right = found = 0
    for edit in range(EDITS):
        a, b = rng.choice(len(photos), 2, replace=False)
        speeds, thumbs = rng.choice((0, 4, 12, 25), 2), []
        for which, speed in ((a, speeds[0]), (b if edit % 5 else a, speeds[1])):
            jump = 150 if thumbs and not edit % 5 else 0
            for t in range(3):
                frame = _moved(photos[which].roll((jump, jump), (2, 3)), (speed, speed / 3, 0.02, 1), t)
                noisy = frame * rng.uniform(0.93, 1.07) + torch.from_numpy(rng.normal(0, 0.02, frame.shape)).float()
                thumbs.append(thumbnail(noisy.clamp(0, 1)))
        cuts = [change_between(x, y) is Change.CUT for x, y in pairwise(thumbs)]
        found, right = found + sum(cuts), right + cuts[2]
    return [
        Figure(f"cuts missed of {EDITS}", EDITS - right, None, "", most=EDITS * 0.02),
        Figure(f"false cuts in {5 * EDITS} pairs", found - right, None, "", most=EDITS * 0.02),
    ]


def _twos() -> Figure:
    from flux_atelier.core.frames.interpolate import RetimeOptions, flow_between, retime

    photo, errors = _photo("astronaut"), []
    true = [_moved(photo, (4, 1, 0.01, 1), t) for t in range(-6, 7)]
    for longest in (3, 0):
        twos = [true[i - i % 2] for i in range(13)]
        rate, options = Fraction(24), RetimeOptions(longest_repeat=longest)
        made = list(retime(twos, (rate, rate), flow_between(), options))
        errors.append(255 * (torch.stack(made) - torch.stack(true)).square().mean().sqrt().item())
    return Figure("error of a clip on twos, 24 to 24", *errors, "/255", least=10**0.15)


def _memory() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for seconds in (SHORT, LONG, TENTH):
            command = [sys.executable, "-m", "benchmarks.frames", folder, str(seconds)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            before, peaks[seconds] = (float(v) for v in done.stdout.split())
            peaks[seconds] -= before
            print(f"{seconds} s of 720p 24 -> 60: {peaks[seconds]:.0f} MiB above {before:.0f}")
    core = peaks[TENTH] * LONG / TENTH
    return [
        Figure("memory of 60 s of 720p, 24 to 60", peaks[LONG], core, "MiB", most=ALLOWED),
        Figure("60 s over 10 s", max(0.0, peaks[LONG] - peaks[SHORT]), core * (LONG - SHORT) / LONG, "MiB", most=100),
    ]


def _clip(path: Path, seconds: int) -> None:
    """A pan over a photograph in 720p, encoded frame by frame."""
    from flux_atelier.core.frames.video import write_video

    wide = F.interpolate(_photo("coffee"), (720, 2560))[0]
    write_video(path, (wide[:, :, i % 1280 : i % 1280 + 1280] for i in range(24 * seconds)), Fraction(24))


def _child(folder: Path, seconds: int) -> None:
    """Print this process's memory before and its peak after: ours for a whole clip, core's way for the short one."""
    from flux_atelier.core.frames.interpolate import blend, flow_between, interpolate
    from flux_atelier.core.frames.stream import StreamOptions, retime_file
    from flux_atelier.core.frames.video import read_frames

    torch.set_num_threads(1)
    source, out, flow, left = folder / f"{seconds}.mp4", folder / f"{seconds}_60.mp4", flow_between(), [4]
    subprocess.run([sys.executable, "-m", "benchmarks.frames", str(folder), str(seconds), "clip"], cwd=ROOT, check=True)

    def between(first, second, time):  # flow for a few frames, as memory is asked for and not time
        left[0] -= 1
        return (flow if left[0] >= 0 else blend)(first, second, time)

    before = _resident()
    if seconds == TENTH:
        given = torch.stack(list(read_frames(source)))
        made = torch.stack(list(interpolate(given, 2, blend)))
        del given, made
    else:
        for _ in retime_file(source, out, Fraction(60), between, StreamOptions()):
            pass
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _resident() -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    from benchmarks.__main__ import load_package

    load_package()
    if sys.argv[3:]:
        _clip(Path(sys.argv[1]) / f"{sys.argv[2]}.mp4", int(sys.argv[2]))
    else:
        _child(Path(sys.argv[1]), int(sys.argv[2]))
