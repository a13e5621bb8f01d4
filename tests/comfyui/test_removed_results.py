"""Files of nodes that a person removes are made again, in a real ComfyUI that keeps the nodes' outputs."""

import asyncio

import placeholders
import pytest
from comfy_process import Client, Server
from test_workflow_runs import ROOT


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    made = Server(comfyui, ROOT, tmp_path_factory.mktemp("removed") / "base")
    placeholders.clip(made.base / "input" / "my-clip.mp4")
    placeholders.photo((64, 48)).save(made.base / "input" / "photo.png")
    with made as running:
        yield running


LOADED = {"class_type": "LoadVideo", "inputs": {"file": "my-clip.mp4"}}
SMOOTH = {"video": ["1", 0], "rate": "48", "method": "flow", "rife_model": "", "gpu": -1, "name": "again"}
EVEN = {"video": ["1", 0], "strength": 1.0, "window": 9, "contrast": True, "name": "again"}
PICTURE = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
MAP = {"images": ["1", 0], "reference": ["1", 0], "method": "mkl", "strength": 1.0, "size": 9, "name": "again"}
SCORES = {"source": ["1", 0], "clips.clip0": ["1", 0], "labels": "same", "name": "again"}
CASES = {
    "interpolated": (LOADED, "FluxAtelierInterpolateVideo", SMOOTH, "video/again-*.mp4"),
    "evened out": (LOADED, "FluxAtelierDeflickerVideo", EVEN, "video/again-*.mp4"),
    "colours": (PICTURE, "FluxAtelierSaveColorMap", MAP, "luts/again.cube"),
    "figures": (PICTURE, "FluxAtelierMeasureClip", SCORES, "metrics/again/same.csv"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_result_that_was_removed_is_made_again(server, case):
    first, kind, inputs, files = CASES[case]
    prompt = {"1": first, "2": {"class_type": kind, "inputs": inputs}}
    folder = server.base / "output" / "flux_atelier"

    async def run() -> bool:
        """Whether the node ran, and was not taken from ComfyUI's cache."""
        async with Client(server) as client:
            status, answer = await client.queue(prompt)
            assert status == 200, answer
            events = await client.follow(answer["prompt_id"])
            assert events[-1][0] == "execution_success", events[-1]
            return ("executing", "2") in [(kind, data.get("node")) for kind, data in events]

    before = set(folder.glob(files))
    assert asyncio.run(run())
    (made,) = set(folder.glob(files)) - before
    assert not asyncio.run(run())
    made.unlink()
    assert asyncio.run(run()) and made.is_file()
    assert not asyncio.run(run())
