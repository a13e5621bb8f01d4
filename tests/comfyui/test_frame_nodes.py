"""Interpolate Frames and Interpolate Video in the real ComfyUI: counts, cuts, loops, sound, stopping and going on."""

import io as streams
import threading
from fractions import Fraction as F
from pathlib import Path

import comfy.model_management as memory
import pytest
import torch
from frame_runs import FLOW, cancel_at, made_by, smooth, smooth_video, some_clip, video_of
from test_stream import film, packets, shown

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames.interpolate import blend, method_of
from flux_atelier.core.frames.stream import partial_of
from flux_atelier.core.frames.video import probe, read_frames
from flux_atelier.nodes import frame_models, frames, host, video_files
from flux_atelier.trainer.demo.pictures import moving_clip


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


@pytest.fixture(scope="module")
def clip():
    return some_clip()


# --- frames


@pytest.mark.parametrize(
    ("rate", "source", "loop", "count", "result"),
    [
        ("2x", "24", False, 10, 48.0),
        ("4x", 12, False, 20, 48.0),
        ("60", "24", False, 13, 60.0),  # 5 * 60 / 24 = 12.5: the last frame is begun
        ("59.94", 23.976023976, False, 13, 60000 / 1001),
        ("60000/1001", "30000/1001", False, 10, 60000 / 1001),
        ("12", "24", False, 3, 12.0),
        ("60", "24", True, 12, 60.0),  # a loop is rounded to whole frames
        ("8x", "24", True, 40, 192.0),
    ],
)
def test_counts_and_rates_by_hand(clip, rate, source, loop, count, result):
    images, confidence, told = smooth(clip, rate=rate, source_rate=source, loop=loop)
    assert images.shape == (count, 64, 64, 3)
    assert confidence.shape == (count, 64, 64)
    assert told == result
    assert images.dtype == confidence.dtype == torch.float32


def test_given_frames_stay_and_the_last_one_lasts(clip):
    images, confidence, _ = smooth(clip)
    assert torch.equal(images[::2], clip)
    assert torch.equal(images[9], clip[4])
    assert (confidence[::2] == 1).all()
    assert (confidence[9] == 1).all()
    assert 0.5 < confidence[1::2][:4].mean() < 1


def test_in_between_frames_beat_mixing(clip):
    true = moving_clip(9, side=64).permute(0, 2, 3, 1)[1::2]
    made = smooth(clip)[0][1:8:2]
    mixed = (clip[:-1] + clip[1:]) / 2
    assert (made - true).square().mean() < 0.25 * (mixed - true).square().mean()


def test_a_loop_leads_back_to_its_beginning(clip):
    there_and_back = torch.cat([clip[:3], clip[1:2]])
    open_end, loop = (smooth(there_and_back, loop=loop)[0] for loop in (False, True))
    assert torch.equal(open_end[7], there_and_back[3])
    assert torch.equal(open_end[:7], loop[:7])
    assert (
        loop[7] - loop[1]
    ).abs().mean() < 0.02  # from the second frame to the first, as from the first to the second
    assert (loop[7] - there_and_back[3]).abs().mean() > 0.02


def test_a_cut_is_held_or_mixed(clip):
    colours = torch.zeros(2, 64, 64, 3)
    colours[0, ..., 0], colours[1, ..., 2] = 1, 1
    held, trust, _ = smooth(colours, rate="4x")
    assert all(torch.equal(f, colours[0]) for f in held[:4])
    assert all(torch.equal(f, colours[1]) for f in held[4:])
    assert (trust == 1).all()
    mixed = smooth(colours, rate="4x", hold_cuts=False, fallback=True)[0]
    assert torch.allclose(mixed[2], colours.mean(0), atol=0.02)


def test_repeats_are_moved_or_left(clip):
    twos = clip[:3].repeat_interleave(2, 0)
    moved = smooth(twos, rate="1x", longest_repeat=3)[0]
    left = smooth(twos, rate="1x", longest_repeat=0)[0]
    assert torch.equal(left, twos)
    assert (moved[1] - twos[1]).abs().mean() > 0.01


def test_alpha_goes_along(clip):
    alpha = torch.zeros(64, 64, 1)
    alpha[16:48, 10:30] = 1
    cut_out = torch.cat([clip[0], alpha], -1)
    made = smooth(torch.stack([cut_out, cut_out.roll(8, 1)]))[0]
    assert made.shape == (4, 64, 64, 4)
    true = cut_out.roll(4, 1)
    assert (made[1, ..., 3] - true[..., 3]).abs().mean() < 0.02
    inside = true[..., 3] == 1
    assert (made[1, ..., :3] - true[..., :3])[inside].abs().mean() < 0.05


def test_what_is_wrong_is_told(clip, folders):
    for rate in ("", "fast", "0", "5000"):
        with pytest.raises(AtelierError, match="is no frame rate"):
            smooth(clip, rate=rate)
        assert "is no frame rate" in frames.InterpolateFrames.validate_inputs(rate=rate)
    with pytest.raises(AtelierError, match="'x' is no frame rate"):
        smooth(clip, source_rate="x")
    assert frames.InterpolateFrames.validate_inputs(rate=None, source_rate=None) is True
    assert frames.InterpolateVideo.validate_inputs(rate="2x", name=None) is True
    assert "leads out" in frames.InterpolateVideo.validate_inputs(rate="2x", name="../../a")
    assert "Of source_rate" in frames.InterpolateFrames.validate_inputs(rate="2x", source_rate="fast")
    for name in ("a" * 250, "日" * 90, "a\0b"):
        assert "cannot be a file's" in frames.InterpolateVideo.validate_inputs(rate="2x", name=name)
    with pytest.raises(AtelierError, match="There are no frames"):
        smooth(clip[:0])
    with pytest.raises(AtelierError, match=r"needs a model\..* Fetch RIFE Model"):
        smooth(clip, method="rife")
    with pytest.raises(AtelierError, match="no RIFE model 'rife-v9'"):
        smooth(clip, method="rife", rife_model="rife-v9")
    with pytest.raises(AtelierError, match=r"needs an interp_model.*Load Frame Interpolation Model"):
        smooth(clip, method="model")
    with pytest.raises(AtelierError, match="no frame interpolation model"):
        smooth(clip, method="model", interp_model=torch.nn.Linear(1, 1))


def test_a_cancel_stops_a_batch(clip, monkeypatch):
    cancel_at(monkeypatch, 3)
    with pytest.raises(memory.InterruptProcessingException):
        smooth(clip)


def test_comfyui_accepts_the_wires(monkeypatch):
    """A rate from Get Video Components, one to Create Video, a fetched model's name, and mistakes before the queue."""
    import asyncio

    import execution
    from comfy_extras.nodes_video import CreateVideo

    import nodes

    for node in (*frames.NODES, *frame_models.NODES, CreateVideo):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    common = FLOW | {"rife_model": ["fetch", 0]}
    batch = {"images": ["picture", 0], "rate": "2x", "source_rate": ["video", 2]}
    prompt = {
        "picture": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0}),
        "made": ("CreateVideo", {"images": ["picture", 0], "fps": 24.0}),
        "fetch": ("FluxAtelierFetchRifeModel", {"model": "rife-v4.26"}),
        "batch": ("FluxAtelierInterpolateFrames", batch | common | {"source_rate": ["other", 2]}),
        "other": ("FluxAtelierInterpolateFrames", batch | common | {"source_rate": 23.976}),
        "again": ("CreateVideo", {"images": ["batch", 0], "fps": ["batch", 2]}),
        "video": ("FluxAtelierInterpolateVideo", {"video": ["again", 0], "rate": "60"} | common),
    }
    prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in prompt.items()}
    assert asyncio.run(execution.validate_prompt("id", prompt, None))[:2] == (True, None)
    prompt["video"]["inputs"]["rate"] = prompt["other"]["inputs"]["rate"] = "fast"
    errors = asyncio.run(execution.validate_prompt("id", prompt, None))[3]
    assert "'fast' is no frame rate" in str(errors["video"]["errors"])
    assert "'fast' is no frame rate" in str(errors["other"]["errors"])


def test_a_cancel_does_not_wait_for_a_slow_flow(clip, monkeypatch):
    """Frames of a film may take seconds each; the cancel comes while the first one is made."""
    go_on, inside = threading.Event(), []

    def slow(first, second, time):
        inside.append(torch.is_inference_mode_enabled())
        memory.interrupt_current_processing()
        go_on.wait(20)
        return blend(first, second, time)

    monkeypatch.setattr(frames, "flow_method", lambda: method_of(slow))
    with pytest.raises(memory.InterruptProcessingException):
        smooth(clip)
    assert not go_on.is_set()
    go_on.set()
    assert inside == [True]


# --- video


@pytest.fixture
def source(folders, tmp_path):
    return film(tmp_path / "holiday.mp4", frames=30)


def test_a_long_name_of_a_film_is_cut(source, folders):
    film = source.rename(source.with_name("日" * 80 + ".mp4"))
    made = smooth_video(video_of(film), rate="48").args[0].get_stream_source()
    assert Path(made).stem.startswith("日" * 60) and len(Path(made).name.encode()) < 255


def test_a_video_has_its_rate_and_its_sound_as_it_was(source, folders):
    result = smooth_video(video_of(source), quality=10)
    out = made_by(result)
    assert out.parent == folders / "output" / "flux_atelier" / "video"
    assert out.name.startswith("holiday-")
    assert len(out.name) == len("holiday-12345678.mp4")
    assert shown(out) == [k / F(60) for k in range(75)]
    assert packets(source) == packets(out)
    assert result.ui.as_dict()["text"][0].splitlines() == ["75 frames, 60 a second", str(out)]
    assert [p.name for p in out.parent.iterdir() if "holiday" in p.name and p != out] == []


def test_what_is_there_is_taken_again(source, monkeypatch):
    out = made_by(smooth_video(video_of(source), name="again"))
    assert out.name.startswith("again-")
    before = out.stat().st_mtime_ns
    monkeypatch.setattr(frames, "retime_file", None)
    result = smooth_video(video_of(source), name="again")
    assert made_by(result) == out
    assert out.stat().st_mtime_ns == before
    assert "The file was there already" in result.ui.as_dict()["text"][0]


def test_another_task_is_another_file(source, monkeypatch):
    places = []

    def begun(source, out, *rest):
        places.append(out)
        raise KeyboardInterrupt

    monkeypatch.setattr(frames, "retime_file", begun)
    tasks = [{}, {"rate": "2x"}, {"fallback": True}, {"quality": 30}, {"hold_cuts": False}, {"longest_repeat": 0}, {}]
    for task in tasks:
        with pytest.raises(KeyboardInterrupt):
            smooth_video(video_of(source), **task)
    assert len(set(places)) == 6
    assert places[0] == places[6]


def test_a_cancelled_film_plays_and_goes_on_as_if_never_stopped(source, monkeypatch, caplog, tmp_path):
    whole = made_by(smooth_video(video_of(source), name="whole"))
    cancel_at(monkeypatch, 40)
    caplog.set_level("INFO", "flux_atelier")
    with pytest.raises(memory.InterruptProcessingException):
        smooth_video(video_of(source), name="stopped")
    out = whole.with_name(whole.name.replace("whole", "stopped"))
    assert not out.exists()
    assert shown(partial_of(out)) == [k / F(60) for k in range(40)]
    assert str(partial_of(out)) in caplog.text
    assert packets(partial_of(out)) == packets(source)[: len(packets(partial_of(out)))]
    bar = []
    monkeypatch.setattr(host.Progress, "at", lambda self, value, picture=None: bar.append(value))
    assert made_by(smooth_video(video_of(source), name="stopped")) == out
    assert bar == [*range(40, 76), 75]
    assert shown(out) == shown(whole)
    assert packets(out) == packets(whole)
    pairs = zip(read_frames(out), read_frames(whole), strict=True)
    assert max((a - b).abs().mean().item() for a, b in pairs) < 0.01
    assert not partial_of(out).exists()


def test_previews_are_small_and_few(source, monkeypatch):
    seen = []
    monkeypatch.setattr(host.Progress, "at", lambda self, value, picture=None: seen.append(picture))
    monkeypatch.setattr(video_files, "monotonic", lambda: len(seen) / 10)  # ten frames a second
    monkeypatch.setattr(video_files, "PREVIEW", 24)
    smooth_video(video_of(source), name="seen")
    shown = [i for i, picture in enumerate(seen) if picture]
    assert shown[:3] == [0, 5, 10]
    assert seen[0].size == (24, 16)


@pytest.mark.parametrize("kind", ["memory", "trimmed", "frames"])
def test_videos_without_a_file_of_their_own_go_on_too(source, kind, monkeypatch, folders):
    from comfy_api.latest import InputImpl, Types

    def video():
        if kind == "memory":
            return video_of_bytes(source)
        if kind == "trimmed":
            return video_of(source, start_time=0.25, duration=0.5)
        images = torch.stack(list(read_frames(source))).permute(0, 2, 3, 1)
        return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=None, frame_rate=F(24)))

    cancel_at(monkeypatch, 20)
    with pytest.raises(memory.InterruptProcessingException):
        smooth_video(video(), rate="48", name=kind)
    bar, at = [], host.Progress.at
    monkeypatch.setattr(host.Progress, "at", lambda self, value, picture=None: (bar.append(value), at(self, value)))
    out = made_by(smooth_video(video(), rate="48", name=kind))
    assert bar[0] == 20
    seconds = F(1, 2) if kind == "trimmed" else F(30, 24)
    assert abs(probe(out).frames / F(48) - seconds) <= F(2, 24)
    if kind == "memory":
        assert packets(out) == packets(source)
    stem = made_by(smooth_video(video(), rate="48")).name.rsplit("-", 1)[0]
    assert stem == ("holiday" if kind == "trimmed" else "video")
    assert not [p for p in (folders / "temp").iterdir() if p.name.startswith("flux_atelier_")]


def video_of_bytes(path):
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(streams.BytesIO(path.read_bytes()))


def test_sound_that_mp4_cannot_hold_goes_to_matroska(tmp_path):
    raw = film(tmp_path / "raw.mkv", codec="pcm_u8")
    result = smooth_video(video_of(raw), rate="48")
    assert made_by(result).suffix == ".mkv"
    assert [p[0] for p in packets(made_by(result))] == [p[0] for p in packets(raw)]
    assert "was there already" in smooth_video(video_of(raw), rate="48").ui.as_dict()["text"][0]


def test_what_is_left_out_is_told(tmp_path):
    from test_stream import with_subtitles

    given = with_subtitles(film(tmp_path / "a.mp4"), tmp_path)
    said = smooth_video(video_of(given), rate="48").ui.as_dict()["text"][0]
    assert "left out, since .mp4 cannot hold it: subtitle (subrip)" in said
