"""Measure Clip, Compare Pictures and Compare Videos in the real ComfyUI: figures, files, what is shown, what is refused."""

import csv
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_nodes import run

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metrics import judge
from flux_atelier.core.frames.video import probe, read_frames, stamped_frames, write_video


def moving(count=4, noise=0.0, size=(32, 48), seed=0):
    """Frames of a picture that runs to the right, [B, H, W, 3]."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 12, generator=rng)
    whole = torch.nn.functional.interpolate(small, (size[0], size[1] + count), mode="bicubic")[0].clamp(0, 1)
    frames = torch.stack([whole[:, :, n : n + size[1]] for n in range(count)]).permute(0, 2, 3, 1)
    return (frames + noise * torch.randn(count, 1, 1, 3, generator=rng)).clamp(0, 1)


def measure(**inputs):
    from flux_atelier.nodes.metrics import MeasureClip

    given = dict(source=moving(), clips={"clip0": moving(noise=0.05)}, labels="drawn", name="test")
    return run(MeasureClip, **given | inputs)


def planes(images):
    return [image.permute(2, 0, 1) for image in images]


class Stop(BaseException):
    """As ComfyUI's interrupt: no Exception."""


@pytest.fixture
def cancel_at(monkeypatch):
    """Cancel at the n-th look, as a person does."""
    from flux_atelier.nodes.host import progress

    def arm(number):
        looks = itertools.count(1)

        def look():
            if next(looks) >= number:
                raise Stop

        monkeypatch.setattr(progress, "check_cancel", look)

    return arm


def test_figures_files_plot_and_table(folders):
    source, clips = moving(), {"clip0": moving(noise=0.05), "clip1": moving(noise=0.01)}
    out = measure(source=source, clips=clips, labels="per frame, held", name="first")
    table, plot, folder = out.args
    assert Path(folder) == folders / "output" / "flux_atelier" / "metrics" / "first"
    assert sorted(p.name for p in Path(folder).iterdir()) == ["held.csv", "per frame.csv", "plot.png"]
    known = judge(planes(source), planes(clips["clip1"]))
    rows = list(csv.DictReader((Path(folder) / "held.csv").open()))
    assert float(rows[2]["warping"]) == pytest.approx(known.frames[2].warping, rel=1e-4)
    assert float(rows[-1]["flicker"]) == pytest.approx(known.flicker, rel=1e-4)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["per frame", "held"]
    drawn = torch.from_numpy(np.array(Image.open(Path(folder) / "plot.png"))) / 255
    assert torch.allclose(plot[0], drawn.float(), atol=1e-6)
    told = out.ui["text"][0].splitlines()
    assert (told[0].split(), told[-1]) == (["per", "frame", "held"], folder)
    assert told[2].split() == ["SSIM", *(line.split("|")[3].strip() for line in table.splitlines()[2:])]
    assert (folders / "temp" / out.ui["images"][0]["filename"]).is_file()


def test_a_reference_gives_the_palette_and_alpha_does_not_count(folders):
    source = moving()
    own = measure(source=source, clips={"clip0": torch.cat([source, torch.zeros(4, 32, 48, 1)], -1)}, name="own")
    other = measure(source=source, clips={"clip0": source}, reference=moving(2, seed=9, size=(20, 20)), name="other")
    colours = [float(out.args[0].splitlines()[2].split("|")[8]) for out in (own, other)]
    assert colours[0] == 0 < colours[1]
    assert "inf" in own.args[0]


def test_single_pictures_have_no_motion(folders):
    table = measure(source=moving(1), clips={"clip0": moving(1, noise=0.1)}, name="single").args[0]
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert [not cell for cell in cells] == [False, False, False, True, True, False, False, False]


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"clips": {"clip0": moving(3)}}, "'drawn' has 3 frames, the source 4"),
        ({"clips": {"clip0": moving(size=(32, 40))}}, "has 40 x 32 pixels, the source's 48 x 32"),
        ({"clips": {"clip0": moving(), "clip1": moving()}, "labels": "a, A"}, "Two clips are called 'A'"),
        ({"labels": "../x"}, "no name of a file"),
        ({"name": "../../x"}, "leads out of"),
        ({"name": " "}, "Give the folder a name"),
        ({"name": "a/" + "x" * 260}, "at most 100 bytes"),
        ({"name": "a\0b"}, "no name of a folder"),
        ({"labels": "x" * 260}, "at most 100 bytes"),
        ({"labels": "a\0b"}, "no name of a file"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(folders, inputs, words):
    with pytest.raises(AtelierError, match=words):
        measure(**{"name": "refused"} | inputs)
    assert not (folders / "output" / "flux_atelier" / "metrics" / "refused").exists()


def test_images_of_half_precision_are_measured_in_single(folders):
    """As with ComfyUI's --fp16-intermediates."""
    source, drawn = moving().half(), moving(noise=0.05).half()
    half = measure(source=source, clips={"clip0": drawn}, reference=source[:1], name="half").args[0]
    single = measure(source=source.float(), clips={"clip0": drawn.float()}, reference=source[:1].float(), name="single")
    assert half == single.args[0]
    assert measure(source=source.float(), clips={"clip0": drawn}, reference=source[:1], name="mixed").args[0] == half


def test_names_are_checked_before_the_queue_with_the_grown_input():
    from flux_atelier.nodes.metrics import MeasureClip

    check = MeasureClip.validate_inputs
    assert check(name="clip", labels="drawn", clips=None) is True
    assert check(name=None, labels=None, clips={"clip0": None}) is True
    assert check(name="clip", labels="a, b", clips={"clip0": None, "clip1": None}) is True
    assert "Two clips" in check(name="clip", labels="a, a", clips={"clip0": None, "clip1": None})
    assert check(name="clip", labels="a, a", clips={"clip0": None}) is True  # a second one is not there
    assert "leads out of" in check(name="a/../../x", labels="a")


def test_a_cancelled_measurement_leaves_nothing(folders, cancel_at):
    cancel_at(3)
    with pytest.raises(Stop):
        measure(name="cancelled")
    assert not (folders / "output" / "flux_atelier" / "metrics" / "cancelled").exists()


def compare(before, after):
    from flux_atelier.nodes.metrics import ComparePictures

    return run(ComparePictures, before=before, after=after).ui


def picture_of(folders, saved):
    return torch.from_numpy(np.array(Image.open(folders / saved["type"] / saved["subfolder"] / saved["filename"])))


def test_pictures_lie_in_the_temp_folder(folders):
    before, after = moving(3), moving(3, size=(40, 40), seed=1)
    shown = compare(before, after)
    assert set(shown) == {"atelier_before", "atelier_after"}  # "images" would be shown by ComfyUI as well
    for images, saved in ((before, shown["atelier_before"]), (after, shown["atelier_after"])):
        assert [one["type"] for one in saved] == ["temp"] * 3
        for image, one in zip(images, saved, strict=True):
            assert (picture_of(folders, one).float() / 255 - image).abs().max() <= 1 / 255


def test_one_picture_stands_for_all_and_odd_kinds_are_shown(folders):
    shown = compare(moving(1), moving(3))
    assert [len(shown[key]) for key in ("atelier_before", "atelier_after")] == [1, 3]
    grey, alpha = torch.full((1, 8, 8, 1), 0.5), torch.full((1, 8, 8, 4), float("nan"))
    shown = compare(grey, alpha)
    assert picture_of(folders, shown["atelier_before"][0]).shape == (8, 8, 3)
    assert picture_of(folders, shown["atelier_after"][0]).sum() == 0


def test_unlike_counts_are_refused_and_a_cancel_is_noticed(folders, cancel_at):
    with pytest.raises(AtelierError, match="2 pictures before and 3 after"):
        compare(moving(2), moving(3))
    cancel_at(2)
    with pytest.raises(Stop):
        compare(moving(2), moving(2))


def film(path, codec="libx264", sound="aac", frames=8, pixels="yuv420p", every=lambda n: n, late=0):
    """A moving pattern with a tone, 48 x 32 at 8 frames a second; `every` says when each frame is shown, `late` is
    the second at which all begins."""
    import av

    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=8)
        video.width, video.height, video.pix_fmt = 48, 32, pixels
        video.codec_context.time_base = Fraction(1, 8)
        audio = out.add_stream(sound, rate=44100, layout="mono") if sound else None
        for number, image in enumerate(moving(frames)):
            frame = av.VideoFrame.from_ndarray((image.numpy() * 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = every(number) + 8 * late, Fraction(1, 8)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio:
            kind = audio.codec_context.format.name
            tone = np.sin(np.arange(44100) * 0.06)[None] * 0.5
            values = tone.astype(np.float32) if kind.startswith("flt") else (tone * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(values, kind, "mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, 44100 * late, Fraction(1, 44100)
            out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
    return path


def show(video):
    from flux_atelier.nodes.metrics import CompareVideos

    shown = run(CompareVideos, before=video, after=video).ui
    assert set(shown) == {"atelier_before", "atelier_after"}
    return shown["atelier_before"][0]


def from_file(path, **more):
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path), **more)


def sound_of(path):
    import av

    with av.open(str(path)) as opened:
        return np.concatenate([frame.to_ndarray().mean(0) for frame in opened.decode(audio=0)])


def test_a_file_that_browsers_play_is_linked_and_stays(folders, tmp_path):
    source = film(tmp_path / "a.mp4")
    bytes_before = source.read_bytes()
    shown = show(from_file(source))
    out = folders / "temp" / shown["filename"]
    assert out.samefile(source) or out.read_bytes() == bytes_before
    assert shown == {"filename": out.name, "subfolder": "", "type": "temp", "rate": 8.0, "sound": True}
    out.unlink()
    assert source.read_bytes() == bytes_before
    assert show(from_file(film(tmp_path / "b.webm", "libvpx-vp9", None)))["filename"].endswith(".webm")


def test_where_files_cannot_be_linked_they_are_copied(folders, tmp_path, monkeypatch):
    import os

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    source = film(tmp_path / "a.mp4")
    out = folders / "temp" / show(from_file(source))["filename"]
    assert not out.samefile(source)
    assert out.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    "ending, codec, sound, pixels",
    [
        ("mp4", "mpeg4", "aac", "yuv420p"), ("mov", "libx264", "pcm_s16le", "yuv420p"),
        ("mkv", "libx264", "flac", "yuv420p"), ("mp4", "libx264", None, "yuv444p"),
    ],
)  # fmt: skip
def test_what_browsers_do_not_play_is_made_anew(folders, tmp_path, ending, codec, sound, pixels):
    from flux_atelier.core.frames.playable import played_as

    source = film(tmp_path / f"a.{ending}", codec, sound, pixels=pixels)
    assert played_as(source) is None
    shown = show(from_file(source))
    out = folders / "temp" / shown["filename"]
    assert played_as(out) == "mp4"
    pairs = list(zip(read_frames(source), read_frames(out), strict=True))
    assert len(pairs) == 8
    assert max((a - b).mean(0).abs().mean() for a, b in pairs) < 0.03
    assert shown["sound"] == bool(sound)
    if sound:
        tone = sound_of(out)[4000:36000]
        assert len(tone) == 32000 and np.sqrt((tone**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert not list((folders / "temp").glob("*.part"))


def test_uneven_times_are_kept(folders, tmp_path):
    from flux_atelier.core.frames.playable import evenly

    def when(times, rate=8):
        stamped = ((Fraction(t), n) for n, t in enumerate(times))
        return list(evenly(stamped, Fraction(rate)))

    assert when([]) == []
    assert when([0, Fraction(1, 8), Fraction(2, 8)]) == [0, 1, 2]
    assert when([0, Fraction(3, 8), Fraction(4, 8)]) == [0, 0, 0, 1, 2]
    assert when([0, Fraction(1, 20), Fraction(1, 8)]) == [1, 2]  # of two in one turn the later one stays
    assert when([0, Fraction(135, 1000), Fraction(240, 1000), Fraction(3, 8)]) == [0, 1, 2, 3]  # a little off the grid
    source = film(tmp_path / "a.mkv", every=lambda n: n if n < 4 else n + 4)  # stands still for half a second
    out = folders / "temp" / show(from_file(source))["filename"]
    old, new = ([t for t, _ in stamped_frames(path)] for path in (source, out))
    assert old[-1] == Fraction(11, 8)
    assert abs(new[-1] - old[-1]) <= 1 / probe(out).rate


def test_sound_and_picture_begin_together_wherever_a_file_begins(folders, tmp_path):
    import av

    source = film(tmp_path / "a.mkv", late=2)
    assert probe(source).start == 2
    out = folders / "temp" / show(from_file(source))["filename"]
    with av.open(str(out)) as opened:
        starts = [stream.start_time * stream.time_base for stream in opened.streams]
    assert len(starts) == 2 and max(abs(start) for start in starts) < 0.1


def test_a_video_of_frames_and_a_part_of_a_file(folders, tmp_path):
    from comfy_api.latest import InputImpl, Types

    tone = 0.5 * torch.sin(torch.arange(22050) * 0.06)
    audio = {"waveform": tone.expand(1, 2, -1), "sample_rate": 22050}
    parts = Types.VideoComponents(images=moving(8, size=(33, 47)), audio=audio, frame_rate=Fraction(24000, 1001))
    shown = show(InputImpl.VideoFromComponents(parts))
    out = folders / "temp" / shown["filename"]
    assert (probe(out).rate, probe(out).frames, shown["sound"]) == (Fraction(24000, 1001), 8, True)
    heard = sound_of(out)[4000:40000]
    assert len(heard) == 36000 and np.sqrt((heard**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    none = Types.VideoComponents(images=moving(1)[:0], audio=None, frame_rate=Fraction(10))
    with pytest.raises(AtelierError, match="no frames to show"):
        show(InputImpl.VideoFromComponents(none))
    silent = Types.VideoComponents(images=moving(2), audio=None, frame_rate=Fraction(10))
    assert show(InputImpl.VideoFromComponents(silent))["sound"] is False
    source = film(tmp_path / "a.mp4", frames=16)
    part = folders / "temp" / show(from_file(source, start_time=0.5, duration=0.5))["filename"]
    assert probe(part).frames == 4
    assert not [p for p in (folders / "temp").iterdir() if p.suffix == ".mp4" and p.stat().st_size == 0]


def test_a_cancel_while_a_video_is_made_leaves_nothing(folders, tmp_path, cancel_at):
    source = film(tmp_path / "a.mov", sound="pcm_s16le")
    there = set((folders / "temp").iterdir())
    cancel_at(4)
    with pytest.raises(Stop):
        show(from_file(source))
    assert set((folders / "temp").iterdir()) == there


def test_a_video_that_is_none_is_told(folders, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no film")
    with pytest.raises(AtelierError, match=r"a\.mp4 cannot be opened as a video"):
        show(from_file(tmp_path / "a.mp4"))
    write_video(tmp_path / "b.mp4", [torch.rand(3, 32, 32)], Fraction(8))
    assert show(from_file(tmp_path / "b.mp4"))["sound"] is False
