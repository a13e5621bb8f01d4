"""The whole road in a real ComfyUI: the quickstart, a cancel in the middle, and ten mistakes."""

import asyncio
import copy
import json
import re
import time
from io import BytesIO
from pathlib import Path

import pytest
from comfy_process import Client, Server
from PIL import Image

from flux_atelier.core.frames.video import probe
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.trainer.state import newest_state

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = json.loads((ROOT / "workflows" / "api" / "quickstart.json").read_text())
FACES = json.loads((ROOT / "tests" / "node_faces.json").read_text())


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    with Server(comfyui, ROOT, tmp_path_factory.mktemp("server") / "base") as running:
        yield running


def in_client(server, action):
    async def go():
        async with Client(server) as client:
            return await action(client)

    return asyncio.run(go())


def test_every_node_is_listed_and_nothing_failed(server):
    known = in_client(server, lambda client: client.get("/object_info"))
    assert set(FACES) <= set(known)
    log = server.text()
    assert "IMPORT FAILED" not in log
    assert "Error while calling comfy_entrypoint" not in log


def test_quickstart_runs_the_whole_road(server):
    async def road(client):
        began = time.monotonic()
        status, answer = await client.queue(QUICKSTART)
        assert status == 200, answer
        assert not answer["node_errors"]
        events = await client.follow(answer["prompt_id"])
        history = await client.outputs(answer["prompt_id"])
        picture = history["outputs"]["8"]["images"][0]
        grid = await client.get_bytes(
            f"/view?filename={picture['filename']}&type={picture['type']}&subfolder={picture['subfolder']}"
        )
        return events, history, grid, time.monotonic() - began

    events, history, grid, seconds = in_client(server, road)
    assert events[-1][0] == "execution_success", events[-1]
    steps = [data for kind, data in events if kind == "flux_atelier.step" and data.get("phase") == "train"]
    assert steps
    assert {"node", "run", "loss", "step", "total"} <= steps[-1].keys()
    assert any(data.get("file", "").startswith("step-") for data in steps)
    assert Image.open(BytesIO(grid)).size[0] > 200
    output = server.base / "output"
    for name in ("quickstart", "quickstart-dusk", "quickstart-merged"):
        assert read_lora(output / "loras" / f"{name}.safetensors").modules
    clip = next((output / "flux_atelier").glob("quickstart*.mp4"))
    assert probe(clip).frames == 40  # 5 frames, 4x, then 2x
    run = output / "flux_atelier" / "runs" / "quickstart"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 300
    assert {"3", "4", "6", "7", "8", "10", "11", "18"} <= history["outputs"].keys()
    print(f"quickstart: {seconds:.0f} s")


def training_prompt(name: str, **changes) -> dict:
    """The quickstart's graph up to its first training."""
    prompt = {k: copy.deepcopy(QUICKSTART[k]) for k in ("1", "2", "5", "6")}
    prompt["2"]["inputs"]["faults"] = False
    prompt["6"]["inputs"] |= {"name": name, "dataset": ["2", 0], "sample_every": 0} | changes
    return prompt


def test_cancel_in_the_middle_keeps_the_lora_and_the_run(server):
    async def stop(client):
        status, answer = await client.queue(training_prompt("cancelled", steps=2000))
        assert status == 200, answer

        async def cancel(kind, data):
            if kind == "flux_atelier.step" and data.get("step", 0) >= 5 and data.get("phase") == "train":
                await client.post("/interrupt", {"prompt_id": answer["prompt_id"]})

        return await client.follow(answer["prompt_id"], cancel)

    events = in_client(server, stop)
    assert events[-1][0] == "execution_interrupted", events[-1]
    output = server.base / "output"
    assert read_lora(output / "loras" / "cancelled.safetensors").rank == 16
    saved = newest_state(output / "flux_atelier" / "runs" / "cancelled" / "checkpoints")
    assert saved.step >= 5

    async def go_on(client):
        status, answer = await client.queue(training_prompt("cancelled", steps=saved.step + 3))
        assert status == 200, answer
        return await client.follow(answer["prompt_id"])

    events = in_client(server, go_on)
    assert events[-1][0] == "execution_success"
    assert newest_state(output / "flux_atelier" / "runs" / "cancelled" / "checkpoints").step == saved.step + 3


def lora_graph(**merge) -> dict:
    prompt = training_prompt("quickstart-short", steps=2)
    prompt["11"] = copy.deepcopy(QUICKSTART["11"])
    prompt["11"]["inputs"] = {"loras.lora0": ["6", 0], "weights": "1.0", "rank": 4, "name": "m"} | merge
    return prompt


def changed(prompt: dict, node: str, **inputs) -> dict:
    prompt = copy.deepcopy(prompt)
    prompt[node]["inputs"] |= inputs
    return prompt


LOADER = {
    "1": {
        "class_type": "FluxAtelierLoadDataset",
        "inputs": {"folder": "", "validation": 0},
        "_meta": {"title": "Load"},
    },
    "2": {
        "class_type": "FluxAtelierCurateDataset",
        "inputs": {
            "dataset": ["1", 0],
            "min_side": 0,
            "min_sharpness": 0.0,
            "duplicates": "fast",
        },
        "_meta": {"title": "Curate"},
    },
}
MISTAKES = {
    "no folder": (LOADER, "The folder is empty"),
    "unknown folder": (changed(LOADER, "1", folder="nowhere"), "There is no folder nowhere"),
    "folder outside": (changed(LOADER, "1", folder="/etc"), "There is no folder /etc"),
    "name outside": (training_prompt("../../evil"), "leads out of"),
    "no name": (training_prompt(""), "Give the LoRA a name"),
    "rank above the limit": (training_prompt("a", rank=5000), "bigger than max"),
    "resolution off the step": (training_prompt("b", resolution=100), "multiple of 16"),
    "unknown choice": (changed(training_prompt("c"), "5", schedule="wobbly"), "not in list"),
    "wrong weights": (lora_graph(weights="1.0, high"), "no number"),
    "more weights than LoRAs": (lora_graph(weights="1, 2, 3"), r"3 weights for 1 LoRA\."),
    "template": (
        {
            "2": QUICKSTART["2"],
            "4": {**QUICKSTART["4"], "inputs": {**QUICKSTART["4"]["inputs"], "dataset": ["2", 0], "template": "{who}"}},
            "3": {**LOADER["2"], "inputs": {**LOADER["2"]["inputs"], "dataset": ["4", 0]}},
        },
        r"{who}, which is not known",
    ),
    "everything rejected": (
        {
            **training_prompt("d"),
            "3": {**LOADER["2"], "inputs": {**LOADER["2"]["inputs"], "dataset": ["2", 0], "min_side": 4096}},
            "6": changed(training_prompt("d"), "6", dataset=["3", 0])["6"],
        },
        "None of the .* is kept",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_clearly(server, name):
    prompt, words = MISTAKES[name]

    async def ask(client):
        status, answer = await client.queue(prompt)
        if status == 400 or answer.get("node_errors"):
            return json.dumps(answer)
        events = await client.follow(answer["prompt_id"])
        assert events[-1][0] == "execution_error"
        return events[-1][1]["exception_message"]

    message = in_client(server, ask)
    assert re.search(words, message), message
