"""Every shipped workflow, queued in a real ComfyUI as an API user would, on nano-flux and a few steps, to its end."""

import asyncio
import copy
import json
from pathlib import Path

import pytest
import torch
from comfy_process import Client, Server

from flux_atelier.core.images import save_picture, to_picture
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.trainer.nano import scenes
from flux_atelier.trainer.run import Run
from flux_atelier.trainer.state import state_folders

ROOT = Path(__file__).resolve().parents[2]
TWINS = {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "workflows" / "api").glob("*.json"))}
STEPS = 4
SHORT = {  # what is cut short, by kind of node; what is off, linked or shorter stays so
    "FluxAtelierTrainLora": {"steps": STEPS, "batch_size": 2, "sample_every": 2},
    "FluxAtelierTrainingOptions": {"save_every": 2, "validate_every": 2},
    "FluxAtelierTrainingPlan": {"steps": STEPS, "batch_size": 2},
    "FluxAtelierCompareLora": {"steps": 2},
    "FluxAtelierStylise": {"steps": 2},
    "FluxAtelierDirectionStrip": {"steps": 2},
    "FluxAtelierLoraGrid": {"steps": 2},
    "FluxAtelierLoraImportance": {"steps": 2},
    "KSampler": {"steps": 2},
}
COUNT = 6  # pictures in a folder
LORA_ROOM = {  # what each leaves in output: LoRAs by name, and other files
    "merge-styles": (["painted-diamonds"], ["flux_atelier/analysis/merge-styles"]),
    "block-weights": (["painted-in-single-blocks"], []),
    "shrink-lora": (["painted-small", "painted-small-fp8"], []),
    "dissect-lora": ([], ["flux_atelier/analysis/painted/index.html"]),
    "lora-grid": ([], ["flux_atelier/grids/lora-grid.png", "flux_atelier/grids/lora-grid.json"]),
    "extract-lora": (["extracted"], ["flux_atelier/analysis/extract-lora"]),
}


DATASET_ROOM = (
    "curate-folder",
    "caption-ensemble",
    "wikiart-impressionism",
    "portrait-set",
)  # test_dataset_workflows.py
CORE_NODES = (
    "controlnet-lora",
    "inpaint-lora",
    "outpaint-lora",
    "redux-lora",
    "upscale-lora",
)  # test_core_workflows.py
STYLE_ROOM = (
    "flow-edit",
    "style-reference",
    "regional-styles",
    "restyle-photo",
    "restyle-video",
    "smooth-video",
    "deflicker",
)  # test_style_workflows.py


def write_pictures(folder: Path, captions: bool = False, controls: bool = False, masks: int = 0) -> None:
    """Painted scenes; plain ones beside them as what they were before the edit, and masks for the first few."""
    chosen = scenes.draw_prompts(COUNT, 2)
    for i, plain in enumerate(scenes.draw(chosen, 2)):
        save_picture(folder / f"{i}.png", to_picture(scenes.paint(plain, i)))
        if captions:
            (folder / f"{i}.txt").write_text(chosen[i].caption)
        if controls:
            save_picture(folder / f"{i}.control.png", to_picture(plain))
        if i < masks:
            middle = torch.zeros(3, scenes.SIDE, scenes.SIDE)
            middle[:, 16:48, 16:48] = 1
            save_picture(folder / f"{i}.mask.png", to_picture(middle))


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    """ComfyUI with the folders that the workflows name."""
    made = Server(comfyui, ROOT, tmp_path_factory.mktemp("workflows") / "base")
    pictures = made.base / "input"
    write_pictures(pictures / "my-style", captions=True)
    write_pictures(pictures / "my-subject", masks=3)
    write_pictures(pictures / "my-pictures")
    write_pictures(pictures / "my-pairs", controls=True)
    with made as running:
        yield running


def shortened(name: str) -> dict:
    prompt = copy.deepcopy(TWINS[name])
    for node in prompt.values():
        for key, value in SHORT.get(node["class_type"], {}).items():
            if node["inputs"][key] and not isinstance(node["inputs"][key], list):
                node["inputs"][key] = min(value, node["inputs"][key])
    return prompt


def queue(server: Server, prompt: dict) -> dict:
    """Queue a prompt, wait for its end, and return what the history says; fails unless it ended well."""

    async def go():
        async with Client(server) as client:
            status, answer = await client.queue(prompt)
            assert status == 200, answer
            assert not answer["node_errors"]
            events = await client.follow(answer["prompt_id"])
            assert events[-1][0] == "execution_success", events[-1]
            return await client.outputs(answer["prompt_id"])

    history = asyncio.run(go())
    assert history["status"]["status_str"] == "success"
    return history


def check_files(server: Server, prompt: dict, steps: int = STEPS) -> None:
    """Every node that names a LoRA has written it, and every training its metrics."""
    named = {n["inputs"]["name"]: n["class_type"] for n in prompt.values() if "name" in n["inputs"]}
    assert named
    for name, kind in named.items():
        assert read_lora(server.base / "output" / "loras" / f"{name}.safetensors").modules
        if kind == "FluxAtelierTrainLora":
            assert [r["step"] for r in run_of(server, name).metrics()] == list(range(1, steps + 1))


def run_of(server: Server, name: str) -> Run:
    return Run(server.base / "output" / "flux_atelier" / "runs" / name, name)


def trained(server: Server, name: str) -> tuple[dict, dict]:
    """A workflow's shortened prompt and what came of it."""
    prompt = shortened(name)
    history = queue(server, prompt)
    check_files(server, prompt)
    return prompt, history


@pytest.fixture(scope="module")
def quickstart(server) -> list[dict]:
    """The quickstart, and the metrics that its first run left."""
    trained(server, "quickstart")
    return run_of(server, "quickstart").metrics()


def test_every_workflow_is_run_here():
    trainings = {"quickstart", "resume", "train-kontext", "train-low-vram", "train-style", "train-subject"}
    assert set(TWINS) == trainings | set(LORA_ROOM) | set(DATASET_ROOM) | set(CORE_NODES) | set(STYLE_ROOM)


def test_a_style_keeps_the_weights_of_the_best_validation(server):
    _, history = trained(server, "train-style")
    assert run_of(server, "my-style").best_file.is_file()
    assert history["outputs"]["7"]["images"]


def test_a_subject_with_masks_prior_and_regularisation(server):
    trained(server, "train-subject")
    modules = read_lora(server.base / "output" / "loras" / "my-subject.safetensors").modules
    assert all(name.startswith("single_blocks.") for name in modules)
    prompt = shortened("train-subject")
    prompt["20"] = {"class_type": "FluxAtelierLoadDataset", "inputs": {"folder": "my-pictures", "validation": 0}}
    prompt["5"]["inputs"] |= {"regularisation": ["20", 0], "name": "my-subject-regularised"}
    queue(server, prompt)
    check_files(server, prompt)


def test_low_vram_plans_before_it_trains(server):
    _, history = trained(server, "train-low-vram")
    (plan,) = history["outputs"]["8"]["text"]
    assert plan == history["outputs"]["5"]["text"][0]
    assert "batch 1" in plan


def test_an_edit_is_trained_on_pairs_and_used(server):
    _, history = trained(server, "train-kontext")
    assert history["outputs"]["17"]["images"]
    assert len(list(run_of(server, "my-edit").samples.glob("step-*.png"))) == STEPS // 2


def test_resume_goes_on_where_the_quickstart_stopped(server, quickstart):
    assert len(quickstart) == STEPS
    prompt = shortened("resume")
    prompt["6"]["inputs"]["steps"] = STEPS + 2
    queue(server, prompt)
    check_files(server, prompt, STEPS + 2)
    run = run_of(server, "quickstart")
    assert run.metrics()[:STEPS] == quickstart
    assert [p.name for p in state_folders(run.checkpoints)] == ["step-0000006", "step-0000004"]


@pytest.mark.parametrize("name", LORA_ROOM)
def test_the_lora_room(server, name):
    loras, others = LORA_ROOM[name]
    queue(server, shortened(name))
    for lora in loras:
        assert read_lora(server.base / "output" / "loras" / f"{lora}.safetensors").modules
    for other in others:
        assert (server.base / "output" / other).exists(), sorted(p.name for p in (server.base / "output").rglob("*"))


def test_an_extracted_lora_is_the_one_that_was_put_in(server):
    queue(server, shortened("extract-lora"))
    painted = read_lora(ROOT / "trainer" / "nano" / "loras" / "painted.safetensors")
    extracted = read_lora(server.base / "output" / "loras" / "extracted.safetensors")
    for module, layer in painted.modules.items():
        apart = (layer.delta() - extracted.modules[module].delta()).norm() / layer.delta().norm()
        assert apart <= 0.02, (module, apart)  # ComfyUI adds the LoRA to float16 weights, which rounds it
