"""The frames room: pictures between pictures beside mixing, cuts, and clips on twos; memory is frames_memory.py.

The pictures are scikit-image's photographs and drawn scenes under known motion, so the true middle and the true cuts
are known. Plain mixing runs in the same run. Figures of quality are shown as 10 ** (-PSNR / 20), the root of the squared
error in 1/255, so that less is better.
"""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from .__main__ import Figure

WIDE, HIGH = 320, 256
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")
OTHERS = ("hubble_deep_field", "retina", "ihc", "camera", "coins", "brick", "grass", "gravel", "moon", "color")
MOTIONS = ((9, 3, 0, 1), (-16, 7, 0, 1), (0, 0, 0.1, 1), (3, -2, 0, 1.07), (7, -5, 0.06, 0.95))
DISCS = ((22, 8), (-24, 6), (15, -18), (-14, -20))
SHOTS = 17  # frames of a film
EDITS = 50


def run() -> list[Figure]:
    from flux_atelier.core.frames.flow import dis_flow, lucas_kanade

    figures = []
    for name, flow in (("torch", lucas_kanade), ("DIS", dis_flow)):
        figures += _quality(name, flow)
    return [*figures, *_cuts(), _twos()]


def photo(name: str) -> torch.Tensor:
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
        picture = photo(name)
        for motion in MOTIONS:
            yield tuple(_moved(picture, motion, t) for t in (-0.5, 0, 0.5))


def _occluded():
    y, x = torch.meshgrid(torch.arange(HIGH).float(), torch.arange(WIDE).float(), indexing="ij")
    for i, (across, down) in enumerate(DISCS):
        ground, front, frames = photo(NAMES[i]), photo(NAMES[i + 1]), []
        for t in (-0.5, 0, 0.5):
            inside = (60.5 - ((x - 160 - across * t) ** 2 + (y - 128 - down * t) ** 2).sqrt()).clamp(0, 1)
            ahead = _moved(front, (across, down, 0, 1), t)
            frames.append(torch.lerp(_moved(ground, (-6, 3, 0, 1), t), ahead, inside))
        yield tuple(frames)


def _clips():
    """Every other frame of films: a camera that swings, breathes and shakes, things that turn round, noise, a lamp."""
    rng = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(HIGH).float(), torch.arange(WIDE).float(), indexing="ij")
    for i, name in enumerate(NAMES):
        ground, front, frames = photo(name), photo(NAMES[i - 1]), []
        for t in range(SHOTS):
            shake = torch.randn(3, generator=rng) * torch.tensor([0.4, 0.4, 0.001])
            sway = 12 * math.sin(0.2 * t + i) + shake[0], 5 * math.cos(0.3 * t) + shake[1], 0.03 * math.sin(0.15 * t)
            frame = _moved(ground, (sway[0], sway[1], sway[2] + shake[2], 1.05 + 0.1 * math.sin(0.2 * t)), 1)
            for side, speed in ((45, 0.08), (28, -0.12)):
                at_x, at_y = 160 + 90 * math.sin(speed * t + i), 128 + 60 * math.cos(0.7 * speed * t)
                inside = (side + 0.5 - ((x - at_x) ** 2 + (y - at_y) ** 2).sqrt()).clamp(0, 1)
                frame = torch.lerp(frame, _moved(front, (at_x - 160, at_y - 128, 0.02 * t, 1), 1), inside)
            noise = 0.01 * torch.randn(frame.shape, generator=rng)
            frames.append(frame * (0.92 + 0.05 * math.sin(0.8 * t)) + noise)
        yield from (tuple(frames[t - 1 : t + 2]) for t in range(1, SHOTS - 1, 2))


def _hard():
    """What motion explains badly or not at all: far, turning, dissolving, noisy, flickering, behind glass, random."""
    rng = torch.Generator().manual_seed(0)
    photos = [photo(name) for name in NAMES]
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
    sets = {"affine": (_affine, 33), "occlusion": (_occluded, 29), "films": (_clips, None), "hard": (_hard, None)}
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
        ours, peer = (255 * 10 ** (-value / 20) for value in (plain, mixed))
        if wanted:
            figures.append(Figure(f"{name}: error on {title}", ours, peer, "/255", most=255 * 10 ** (-wanted / 20)))
        elif title == "films":
            figures.append(Figure(f"{name}: error on {title}", ours, peer, "/255", least=10 ** (2.5 / 20)))
    worst = max(0.0, -min(least.values()))
    return [*figures, Figure(f"{name}: most lost to mixing, fallback", worst, None, "dB", most=0.3)]


def _cuts() -> list[Figure]:
    """Two sets of edits, between photographs and between others and drawn scenes; then shots without any cut.

    The peer is the plain way, mean difference of brightness over 0.1 as in VapourSynth's SCDetect.
    """
    from flux_atelier.core.frames.cuts import thumbnail

    sets = {"photographs": (7, [photo(n)[0] for n in NAMES]), "others": (23, [*_other_pictures()])}
    figures = []
    for title, (seed, pictures) in sets.items():
        missed, false = np.zeros(2, int), np.zeros(2, int)
        for frames in _edits(seed, pictures):
            told = np.array([_told(a, b) for a, b in pairwise(map(thumbnail, frames))])
            missed, false = missed + ~told[2], false + np.delete(told, 2, 0).sum(0)
        figures += [
            Figure(f"{title}: cuts missed of {EDITS}", *missed.tolist(), "", most=EDITS * 0.02),
            Figure(f"{title}: false cuts in {4 * EDITS} pairs", *false.tolist(), "", most=EDITS * 0.02),
        ]
    pairs = [pair for _, pictures in sets.values() for one in pictures for pair in _uncut(one)]
    false = np.array([_told(*map(thumbnail, pair)) for pair in pairs]).sum(0).tolist()
    return [*figures, Figure(f"false cuts in {len(pairs)} lights and motions", *false, "", most=0.02 * len(pairs))]


def _told(first: torch.Tensor, second: torch.Tensor) -> tuple[bool, bool]:
    """Whether two thumbnails are told as a cut, by ours and by the plain way."""
    from flux_atelier.core.frames.cuts import Change, change_between

    return change_between(first, second) is Change.CUT, (first - second).mean(0).abs().mean().item() > 0.1


def _other_pictures():
    from flux_atelier.trainer.nano.scenes import draw, draw_prompts

    yield from (photo(name)[0] for name in OTHERS)
    for scene in draw(draw_prompts(8, 23), 23, side=512):
        yield F.interpolate(scene[None], (2 * HIGH, 2 * WIDE))[0]


def _edits(seed: int, pictures: list[torch.Tensor]):
    """Six frames with a cut in their middle; every fifth cut is within one photograph, or between equal palettes."""
    rng = np.random.default_rng(seed)
    for edit in range(EDITS):
        a, b = rng.choice(len(pictures), 2, replace=False)
        after = pictures[b]
        if not edit % 5 and len(pictures) == len(NAMES):
            after = pictures[a].roll((150, 150), (1, 2))
        elif not edit % 5:
            after = _with_palette(after, pictures[a])
        frames = []
        for picture, speed in zip((pictures[a], after), rng.choice((0, 4, 12, 25), 2), strict=True):
            for t in range(3):
                frame = _moved(picture[None], (speed, speed / 3, 0.02, 1), t)
                noise = torch.from_numpy(rng.normal(0, 0.02, frame.shape)).float()
                frames.append((frame * rng.uniform(0.93, 1.07) + noise).clamp(0, 1))
        yield frames


def _with_palette(picture: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A picture in the mean colour and contrast of another."""
    (deviation, mean), (wanted, middle) = (torch.std_mean(p, (1, 2), keepdim=True) for p in (picture, other))
    return ((picture - mean) / deviation.clamp(min=0.01) * wanted + middle).clamp(0, 1)


def _uncut(picture: torch.Tensor):
    """Neighbouring frames of one shot under a fast motion or another light."""
    one = picture[None]
    still, near = _moved(one, (0, 0, 0, 1), 0), _moved(one, (3, 1, 0, 1), 1)
    for motion in ((40, 10, 0, 1), (0, 0, 0.1, 1), (2, 1, 0, 1.15), (2, 1, 0, 0.87)):
        yield still, _moved(one, motion, 1)
    whip = [sum(_moved(one, (40, 0, 0, 1), i + t / 8) for t in range(8)) / 8 for i in (0, 1)]
    yield whip[0], whip[1]
    for gain, light in ((1, 0.35), (1, 0.15), (0.6, 0), (1.5, 0), (0.88, 0)):
        yield still, (near * gain + light).clamp(0, 1)
    yield still * 0.4, near * 0.28  # late in a fade to black


def _twos() -> Figure:
    from flux_atelier.core.frames.interpolate import RetimeOptions, flow_between, retime

    picture, errors = photo("astronaut"), []
    true = [_moved(picture, (4, 1, 0.01, 1), t) for t in range(-6, 7)]
    for longest in (3, 0):
        twos = [true[i - i % 2] for i in range(13)]
        rate, options = Fraction(24), RetimeOptions(longest_repeat=longest)
        made = list(retime(twos, (rate, rate), flow_between(), options))
        errors.append(255 * (torch.stack(made) - torch.stack(true)).square().mean().sqrt().item())
    return Figure("error of a clip on twos, 24 to 24", *errors, "/255", least=10**0.15)
