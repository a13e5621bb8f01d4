"""Distil LoRAs in the real ComfyUI: on the graph's own model, cancelled and gone on with, used by core's loader."""

import json

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.images import to_picture
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.trainer.nano import scenes

VALUES = dict(
    weights="0.8, 0.5", blocks="", rank=2, steps=6, learning_rate=1e-3, resolution=64, batch_size=2, seed=0,
    options={"validate_every": 3, "validation_pictures": 2, "gradient_checkpointing": 0.0, "buckets": False},
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(folders):
    from flux_atelier.nodes import datasets

    folder = folders / "input" / "scenes"
    folder.mkdir()
    chosen = scenes.draw_prompts(4, 6)
    for i, picture in enumerate(scenes.draw(chosen, 6)):
        to_picture(picture).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(chosen[i].caption)
    with torch.inference_mode():
        return datasets.LoadDataset.PREPARE_CLASS_CLONE(None).execute(folder="scenes", validation=0).args[0]


@pytest.fixture(scope="module")
def loras(nano):
    """Two random LoRAs of rank 4, made in inference mode as the executor's are."""
    inner = nano[0].model.diffusion_model
    layers = {
        "double_blocks_0_img_attn_qkv": inner.double_blocks[0].img_attn.qkv,
        "single_blocks_0_linear1": inner.single_blocks[0].linear1,
    }
    made = {}
    with torch.inference_mode():
        for n in (0, 1):
            rng, lora = torch.Generator().manual_seed(n), {}
            for name, layer in layers.items():
                lora[f"lora_unet_{name}.lora_up.weight"] = 0.1 * torch.randn(layer.out_features, 4, generator=rng)
                lora[f"lora_unet_{name}.lora_down.weight"] = 0.1 * torch.randn(4, layer.in_features, generator=rng)
                lora[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
            made[f"lora{n}"] = lora
    return made


def distil(nano, dataset, loras, name, **changes):
    from flux_atelier.nodes import distil as node

    model, clip, vae = nano
    with torch.inference_mode():
        prepared = node.DistilLoras.PREPARE_CLASS_CLONE(None)
        given = VALUES | changes
        return prepared.execute(model=model, clip=clip, vae=vae, dataset=dataset, loras=loras, name=name, **given).args


def test_one_lora_comes_of_two(nano, dataset, loras, folders):
    from flux_atelier.nodes import host

    before = {k: v.clone() for k, v in nano[0].model.diffusion_model.state_dict().items()}
    lora, run, name = distil(nano, dataset, loras, "both")
    assert name == "both.safetensors"
    written = read_lora(folders / "output" / "loras" / name)
    assert written.rank == 2 and len(written.modules) == 2
    assert json.loads(written.metadata["flux_atelier.recipe"])["distil"] == [
        {"name": "lora0", "weight": 0.8}, {"name": "lora1", "weight": 0.5},
    ]  # fmt: skip
    assert lora.metadata["flux_atelier.recipe"] == written.metadata["flux_atelier.recipe"]
    told = json.loads((run.folder / "distil.json").read_text())
    assert 0 < told["truncated"] < told["alone"]
    assert [r["step"] for r in run.metrics() if "validation" in r] == [3, 6]
    after = nano[0].model.diffusion_model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)  # the MODEL is what it was
    assert len(host.with_lora(nano[0], lora, 1.0).patches) == 2  # core's loader takes all of it


def test_cancel_keeps_the_lora_and_the_next_run_goes_on(nano, dataset, loras, folders, monkeypatch):
    import comfy.model_management as memory

    from flux_atelier.nodes import host

    original = host.Progress.at

    def cancel_at_four(self, value, picture=None):
        if self.total == 6 and value == 4:
            memory.interrupt_current_processing()
        original(self, value, picture)

    monkeypatch.setattr(host.Progress, "at", cancel_at_four)
    with pytest.raises(memory.InterruptProcessingException):
        distil(nano, dataset, loras, "stopped")
    written = read_lora(folders / "output" / "loras" / "stopped.safetensors")
    assert "distil" in json.loads(written.metadata["flux_atelier.recipe"])
    monkeypatch.setattr(host.Progress, "at", original)
    lora, run, _ = distil(nano, dataset, loras, "stopped")
    straight, whole, _ = distil(nano, dataset, loras, "straight")
    assert [r["loss"] for r in run.metrics()] == [r["loss"] for r in whole.metrics()]
    assert all(torch.equal(lora[k], straight[k]) for k in straight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(weights="1, 2, 3"), "3 weights for 2"),
        (dict(blocks="lora7: single = 0"), "lora7"),
        (dict(blocks="default = 0"), "weights are 0|nothing"),
        (dict(options={"layer_rules": "img_in: rank=4"}), "layer_rules are set"),
        (dict(name="../x"), "leads out of"),
    ],
)
def test_what_cannot_be_distilled_is_told(nano, dataset, loras, changes, words):
    changes = {"name": "wrong"} | changes
    with pytest.raises(AtelierError, match=words):
        distil(nano, dataset, loras, **changes)


def test_the_same_name_with_other_loras_is_refused(nano, dataset, loras):
    distil(nano, dataset, loras, "named", steps=1)
    with pytest.raises(AtelierError, match="LoRA"):
        distil(nano, dataset, loras, "named", steps=1, weights="1.0")
