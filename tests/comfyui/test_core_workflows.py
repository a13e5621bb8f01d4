"""Workflows around ComfyUI's own nodes and large models: taken node by node by a real ComfyUI, and run where models are ours.

`python tests/comfyui/test_core_workflows.py` writes tests/core_faces.json, by which test_workflows.py knows those nodes.
"""

import asyncio
import copy
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import placeholders
import pytest
import torch
from comfy_process import Client, Server
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TWINS = {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "workflows" / "api").glob("*.json"))}
FACES = ROOT / "tests" / "core_faces.json"
OURS = "FluxAtelier"
NAMES = ("controlnet-lora", "inpaint-lora", "outpaint-lora", "redux-lora", "upscale-lora")
WIDTH, HEIGHT = placeholders.SIZE


def core_kinds() -> set[str]:
    """The nodes of ComfyUI itself that the workflows use."""
    return {n["class_type"] for t in TWINS.values() for n in t.values() if not n["class_type"].startswith(OURS)}


def face(info: dict) -> dict:
    """A node's outputs and the types of its inputs; the choices of a list are a machine's own."""
    given = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    kinds = {name: "COMBO" if isinstance(kind[0], list) else kind[0] for name, kind in given.items()}
    needed = sorted(name for name, kind in info["input"].get("required", {}).items())
    outputs = ["COMBO" if isinstance(kind, list) else kind for kind in info["output"]]
    return {"outputs": outputs, "inputs": kinds, "needed": needed}


async def read_faces(server: Server) -> dict[str, dict]:
    async with Client(server) as client:
        info = await client.get("/object_info")
    return {kind: face(info[kind]) for kind in sorted(core_kinds())}


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    """ComfyUI with a photo, and a file without a word in it for each model that is named."""
    made = Server(comfyui, ROOT, tmp_path_factory.mktemp("core") / "base")
    placeholders.place(made.base, (TWINS[name] for name in NAMES))
    with made as running:
        yield running


def queued(server: Server, prompt: dict) -> tuple[dict, list, dict]:
    """What ComfyUI answers to a prompt, its events, and the history."""

    async def go():
        async with Client(server) as client:
            status, answer = await client.queue(prompt)
            assert status == 200, answer
            events = await client.follow(answer["prompt_id"])
            return answer, events, await client.outputs(answer["prompt_id"])

    return asyncio.run(go())


def test_comfyuis_nodes_are_as_the_workflows_take_them(server):
    assert asyncio.run(read_faces(server)) == json.loads(FACES.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_taken_and_the_first_model_is_missed(server, name):
    """ComfyUI looks at every node, link and value before it runs one; then the first empty model file stops it."""
    answer, events, _ = queued(server, TWINS[name])
    assert not answer["node_errors"]
    kind, told = events[-1]
    assert kind == "execution_error"
    assert "Loader" in told["node_type"], told["exception_message"]


def on_nano(name: str) -> dict:
    """A workflow with nano-flux and its painterly LoRA in the place of the large files."""
    prompt = copy.deepcopy(TWINS[name])
    prompt["101"] = {"class_type": "FluxAtelierLoadNanoFlux", "inputs": {}}
    prompt["102"] = {"class_type": "FluxAtelierPracticeLoras", "inputs": {}}
    prompt["103"] = {
        "class_type": "LoraModelLoader",
        "inputs": {"model": ["101", 0], "lora": ["102", 0], "strength_model": 1.0, "bypass": False},
    }
    loaded = {"UNETLoader": ["101", 0], "DualCLIPLoader": ["101", 1], "VAELoader": ["101", 2]}
    swapped = {number: loaded.get(node["class_type"]) for number, node in prompt.items()}
    swapped |= {n: ["103", 0] for n, node in prompt.items() if node["class_type"] == "LoraLoaderModelOnly"}
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and swapped.get(value[0]):
                node["inputs"][key] = swapped[value[0]]
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 4
    return {number: node for number, node in prompt.items() if not swapped.get(number)}


def picture_of(server: Server, history: dict) -> torch.Tensor:
    """The one saved picture, [H, W, 3] in 0..255."""
    (shown,) = [i for node in history["outputs"].values() for i in node.get("images", [])]
    with Image.open(server.base / "output" / shown["subfolder"] / shown["filename"]) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB")).copy())


def test_what_is_not_painted_stays_pixel_for_pixel(server):
    _, events, history = queued(server, on_nano("inpaint-lora"))
    assert events[-1][0] == "execution_success", events[-1]
    drawn = picture_of(server, history)
    with Image.open(server.base / "input" / "photo.png") as photo:
        before = torch.from_numpy(np.asarray(photo.convert("RGB")).copy())
    assert torch.equal(drawn[:, WIDTH // 3 :], before[:, WIDTH // 3 :])
    assert (drawn[:, : WIDTH // 3].float() - before[:, : WIDTH // 3]).abs().mean() > 5


def test_a_picture_becomes_wider(server):
    prompt = on_nano("outpaint-lora")
    (pad,) = [n for n in prompt.values() if n["class_type"] == "ImagePadForOutpaint"]
    pad["inputs"] |= {"left": 16, "right": 32}
    _, events, history = queued(server, prompt)
    assert events[-1][0] == "execution_success", events[-1]
    assert picture_of(server, history).shape == (HEIGHT, WIDTH + 48, 3)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
        with Server(comfyui, ROOT, Path(folder) / "base") as server:
            found = asyncio.run(read_faces(server))
    lines = [f"{json.dumps(kind)}: {json.dumps(found[kind])}" for kind in found]
    FACES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())
