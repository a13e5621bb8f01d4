"""The style room: colour transfer's time, and how steady stabilised clips are, each beside plain methods in the same run.

The peers run on the same pictures: kornia's Lab with mean and deviation, scikit-image's histogram matching, and for
clips the running mean without motion and the frames as they are. The clips are made here: windows that wander and grow
over scikit-image's photographs, then posterised with a field of colour, strokes and brightness of each frame's own.
"""

import time

import torch
import torch.nn.functional as F

from .__main__ import Figure

SIDE, RUNS = 1024, 7
SIZE, FRAMES = (160, 208), 14
CLIPS = (("astronaut", (2.3, -1.1), 1.0), ("coffee", (0.6, 0.4), 1.01), ("chelsea", (-3.0, 1.0), 1.0))  # pixels a frame
RUNNING = 0.8  # of the running mean


def run() -> list[Figure]:
    return [*_colors(), *_clips(), *_noise()]


def _photograph(name: str) -> torch.Tensor:
    import skimage.data

    return torch.from_numpy(getattr(skimage.data, name)()[..., :3].copy()).permute(2, 0, 1).float() / 255


def _milliseconds(*works) -> list[float]:
    """The best of some runs of each, taken in turns."""
    best = [float("inf")] * len(works)
    for _ in range(RUNS):
        for i, work in enumerate(works):
            began = time.perf_counter()
            work()
            best[i] = min(best[i], 1e3 * (time.perf_counter() - began))
    return best


def _colors() -> list[Figure]:
    import kornia
    from skimage import exposure

    from flux_atelier.core.style.color import transfer_color

    picture = F.interpolate(_photograph("astronaut")[None], (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    reference = _photograph("coffee")

    def plain() -> torch.Tensor:
        a, b = kornia.color.rgb_to_lab(picture), kornia.color.rgb_to_lab(reference[None])
        across = {"dim": (2, 3), "keepdim": True}
        gain = b.std(**across) / a.std(**across)
        return kornia.color.lab_to_rgb((a - a.mean(**across)) * gain + b.mean(**across)).clamp(0, 1)

    own, other = (p.permute(1, 2, 0).contiguous().numpy() for p in (picture[0], reference))
    mkl, lab, kornias, tones, skimages = _milliseconds(
        lambda: transfer_color(picture, reference),
        lambda: transfer_color(picture, reference, 1.0, "reinhard"),
        plain,
        lambda: transfer_color(picture, reference, 1.0, "histogram"),
        lambda: exposure.match_histograms(own, other, channel_axis=-1),
    )
    return [
        Figure("MKL of a frame (kornia's Lab)", mkl, kornias, "ms", most=20),
        Figure("Reinhard of a frame (kornia's Lab)", lab, kornias, "ms"),
        Figure("histogram of a frame (scikit-image)", tones, skimages, "ms", least=1),
    ]


def _wander(name: str, step: tuple[float, float], grows: float) -> list[torch.Tensor]:
    whole = F.avg_pool2d(F.pad(_photograph(name)[None], (0, 1, 0, 1), mode="replicate"), 2, 1)
    height, width = whole.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(s).float() - s / 2 for s in SIZE), indexing="ij")
    frames = []
    for t in range(FRAMES):
        at_x = 1.4 * (x / grows**t + step[0] * t) + width / 2
        at_y = 1.4 * (y / grows**t + step[1] * t) + height / 2
        grid = torch.stack([at_x * 2 / (width - 1) - 1, at_y * 2 / (height - 1) - 1], -1)[None]
        frames.append(F.grid_sample(whole, grid, align_corners=True)[0])
    return frames


def _restyled(frames: list[torch.Tensor]) -> list[torch.Tensor]:
    from flux_atelier.core.frames.stabilise import blurred

    rng, out = torch.Generator().manual_seed(0), []
    for frame in frames:
        flat = (blurred(frame, 1.5) * 6).round() / 6
        field = F.interpolate(torch.randn(1, 3, 5, 8, generator=rng), SIZE, mode="bicubic")[0] * 0.05
        strokes = F.avg_pool2d(torch.randn(1, 1, *SIZE, generator=rng), (1, 9), 1, (0, 4))[0] * 0.12
        bright = torch.randn(1, 1, 1, generator=rng) * 0.03
        out.append((flat * 0.8 + frame * 0.2 + field + strokes + bright).clamp(0, 1))
    return out


def _clips() -> list[Figure]:
    from flux_atelier.core.evaluation.metrics import judge
    from flux_atelier.core.frames.stabilise import stabilise

    figures = []
    for name, step, grows in CLIPS:
        source = _wander(name, step, grows)
        drawn = _restyled(source)
        mean = [drawn[0]]
        for frame in drawn[1:]:
            mean.append(torch.lerp(frame, mean[-1], RUNNING))
        held = list(stabilise(source, drawn))
        plain, raw, averaged, ours = (judge(source, clip) for clip in (source, drawn, mean, held))
        steady, sharp = ours.mean("warping"), ours.mean("sharpness")
        figures += [
            Figure(f"{name}: change along motion (as it comes)", steady, raw.mean("warping"), "e-3", least=10),
            Figure(f"{name}: change along motion (running mean)", steady, averaged.mean("warping"), "e-3", least=2),
            Figure(f"{name}: flicker (as it comes)", ours.flicker, raw.flicker, "e-3", least=5),
            # The ratio is our sharpness over the peer's; most of a frame's as it comes is noise.
            Figure(f"{name}: blur (the source's)", 1 / sharp, 1 / plain.mean("sharpness"), "1/e-3", least=1),
            Figure(f"{name}: blur (as it comes)", 1 / sharp, 1 / raw.mean("sharpness"), "1/e-3", least=0.45),
        ]
    return figures


def _noise() -> list[Figure]:
    """Noise for a clip's latents beside the plain way, noise sampled between its cells, and beside new noise."""
    from flux_atelier.core.frames.warped_noise import warped_noise

    source, size = _wander(*CLIPS[1]), (16, 20, 26)
    field = torch.stack(list(warped_noise(source, size, 0)))
    new = torch.randn(field.shape, generator=torch.Generator().manual_seed(1))
    _, step, grows = CLIPS[1]
    plain, lost, strange = [new[0]], [], []
    for t in range(1, FRAMES):
        motion = _latent_motion(size, step, grows, t)
        plain.append(_sampled(plain[-1], motion))
        lost.append(1 - _correlation(field[t], _likeliest(field[t], field[t - 1], motion)))
        strange.append(1 - _correlation(new[t], _likeliest(new[t], new[t - 1], motion)))
    ours, theirs = ((abs(f.std().item() - 1), abs(_kurtosis(f) - 3)) for f in (field, torch.stack(plain)))
    beside = [abs(_correlation(f[..., 1:], f[..., :-1])) for f in (field, torch.stack(plain))]
    return [
        Figure("warped noise: deviation off 1 (sampled)", ours[0], theirs[0], "", most=0.01),
        Figure("warped noise: kurtosis off 3 (sampled)", ours[1], theirs[1], "", most=0.1),
        Figure("warped noise: like its neighbours (sampled)", *beside, "", most=0.02),
        Figure(
            "warped noise: lost along the motion (new)", sum(lost) / len(lost), sum(strange) / len(lost), "", most=0.3
        ),
    ]


def _latent_motion(size, step: tuple[float, float], grows: float, t: int) -> torch.Tensor:
    """The true motion of _wander's frame t to the one before it, in cells."""
    y, x = torch.meshgrid(*(torch.arange(s) - s / 2 + 0.5 for s in size[1:]), indexing="ij")
    cells = size[2] / SIZE[1]
    return torch.stack([p / grows - p + s * grows ** (t - 1) * cells for p, s in ((x, step[0]), (y, step[1]))])


def _sampled(noise: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    from flux_atelier.core.frames.flow import warp

    return warp(noise[None], motion[None])[0]


def _likeliest(now: torch.Tensor, before: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """The noise before at the likeliest of the four cells around a motion's end; a value cannot sit between."""
    height, width = now.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    left, top = ((p + m).floor().long() for p, m in ((x, motion[0]), (y, motion[1])))
    four = [
        before[:, (top + down).clamp(0, height - 1), (left + right).clamp(0, width - 1)]
        for right in (0, 1) for down in (0, 1)
    ]  # fmt: skip
    choice = torch.stack([(now * f).sum(0) for f in four]).argmax(0)
    return torch.stack(four).gather(0, choice.expand(1, *now.shape))[0]


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a * b).mean() / (a.std() * b.std())).item()


def _kurtosis(field: torch.Tensor) -> float:
    return ((field - field.mean()) / field.std()).pow(4).mean().item()
