"""The workflows of style and motion, queued in a real ComfyUI as they are shipped, on nano-flux and a small clip."""

import csv
from fractions import Fraction

import av
import placeholders
import pytest
import torch
from comfy_process import Server
from PIL import Image
from test_workflow_runs import ROOT, STYLE_ROOM, TWINS, queue

from flux_atelier.core.frames.video import probe
from flux_atelier.core.images import to_tensor
from flux_atelier.trainer.nano import judge


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    """ComfyUI with the clip that the workflows name."""
    made = Server(comfyui, ROOT, tmp_path_factory.mktemp("style") / "base")
    placeholders.place(made.base, (TWINS[name] for name in STYLE_ROOM))
    with made as running:
        yield running


def opened(server: Server, shown: dict) -> torch.Tensor:
    """A picture that a node shows, [3, H, W] in 0..1."""
    with Image.open(server.base / shown["type"] / shown["subfolder"] / shown["filename"]) as picture:
        return to_tensor(picture.convert("RGB"))


def compared(server: Server, history: dict, number: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a Compare Pictures node shows."""
    (before,), (after,) = (history["outputs"][number][f"atelier_{side}"] for side in ("before", "after"))
    return opened(server, before), opened(server, after)


def result(server: Server, name: str):
    """The video that a workflow has saved."""
    (path,) = (server.base / "output" / "flux_atelier").glob(f"{name}_*.mp4")
    return path


def sound_of(path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(p) for p in file.demux(audio=0) if p.dts is not None]


def scores(server: Server, *names: str) -> dict[str, float]:
    """The means in a CSV file of Measure Clip."""
    with server.base.joinpath("output", "flux_atelier", "metrics", *names).open() as file:
        return {key: float(value or "nan") for key, value in list(csv.DictReader(file))[-1].items() if key != "frame"}


def test_an_edit_changes_the_colour_and_leaves_the_rest(server):
    history = queue(server, TWINS["flow-edit"])
    for number in ("16", "20"):
        before, after = compared(server, history, number)
        assert judge.read_scene(before) == ("circle", "red", "blue")
        assert judge.read_scene(after) == ("circle", "green", "blue")


def test_a_reference_changes_how_it_is_drawn_and_not_what(server):
    before, after = compared(server, queue(server, TWINS["style-reference"]), "16")
    assert judge.read_scene(before)[0] == judge.read_scene(after)[0] == "cross"
    assert (before - after).abs().mean() > 0.02


def test_each_region_has_its_prompt(server):
    (shown,) = queue(server, TWINS["regional-styles"])["outputs"]["12"]["images"]
    left, right = opened(server, shown)[:, 16:48].split(32, 2)
    yellow, red = torch.tensor([240.0, 215, 50]) / 255, torch.tensor([220.0, 40, 40]) / 255
    near = lambda part, color: ((part - color.view(3, 1, 1)).abs().amax(0) < 0.25).float().mean()  # noqa: E731
    assert near(left, yellow) > 0.1 and near(left, red) < 0.05
    assert near(right, red) > 0.1 and near(right, yellow) < 0.05


def test_a_photo_is_restyled_and_coloured(server):
    history = queue(server, TWINS["restyle-photo"])
    (before, drawn), (_, colored) = (compared(server, history, number) for number in ("7", "11"))
    assert before.shape == drawn.shape == colored.shape
    assert (before - drawn).abs().mean() > 0.02 and (drawn - colored).abs().mean() > 0.02


def test_a_video_is_restyled_measured_and_smoothed(server):
    history = queue(server, TWINS["restyle-video"])
    clip = probe(result(server, "restyle-video"))
    assert (clip.frames, clip.rate) == (48, Fraction(48))
    assert scores(server, "restyle-video", "restyled.csv")["warping"] < 2
    assert [len(history["outputs"]["10"][f"atelier_{side}"]) for side in ("before", "after")] == [1, 1]


def test_a_video_is_smoothed_and_keeps_its_sound(server):
    queue(server, TWINS["smooth-video"])
    path = result(server, "smooth-video")
    assert (probe(path).frames, probe(path).rate) == (60, Fraction(60))
    assert sound_of(path) == sound_of(server.base / "input" / "my-clip.mp4")


def test_a_clip_that_flickers_is_evened_out(server):
    queue(server, TWINS["deflicker"])
    before, after = (scores(server, "deflicker", f"{name}.csv")["flicker"] for name in ("before", "after"))
    assert before > 20 and after < before / 10
    assert sound_of(result(server, "deflicker")) == sound_of(server.base / "input" / "my-clip.mp4")
