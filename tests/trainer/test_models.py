"""Opening files without ComfyUI: precisions that work, and wrong files that are named."""

import pytest
import torch
from tiny import SHAPE, tiny_batch, tiny_tree

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import write_tensors
from flux_atelier.core.flux.layout import to_diffusers
from flux_atelier.trainer.models import from_folder, load_transformer, load_tree, load_vae
from flux_atelier.trainer.nano import files

CPU = torch.device("cpu")


def velocity(path):
    latent, _, sigma, text, pooled, guidance = tiny_batch()
    with torch.no_grad():
        return load_transformer(path, CPU)(latent, sigma, text, pooled, guidance)


@pytest.fixture
def state():
    return tiny_tree().state_dict()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 0), (torch.bfloat16, 0.03), (torch.float16, 0.003)])
def test_precisions(tmp_path, state, dtype, error):
    exact = velocity(write_tensors(tmp_path / "a.safetensors", state))
    found = velocity(write_tensors(tmp_path / "b.safetensors", {k: v.to(dtype) for k, v in state.items()}))
    assert (found - exact).norm() / exact.norm() <= error


def test_scaled_fp8_is_scaled(tmp_path, state):
    exact = velocity(write_tensors(tmp_path / "a.safetensors", state))
    scaled = {}
    for key, value in state.items():
        if value.dim() == 2:
            scale = value.abs().max() / 448
            scaled[key] = (value / scale).to(torch.float8_e4m3fn)
            scaled[key.replace(".weight", ".scale_weight")] = scale
        else:
            scaled[key] = value
    scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    found = velocity(write_tensors(tmp_path / "b.safetensors", scaled))
    assert (found - exact).norm() / exact.norm() <= 0.06


@pytest.mark.parametrize(
    "rename",
    [
        lambda s: {f"model.diffusion_model.{k}": v for k, v in s.items()},
        lambda s: {k.replace("_norm.scale", "_norm.weight"): v for k, v in s.items()},
        to_diffusers,
    ],
    ids=["checkpoint prefix", "saved by ComfyUI", "diffusers keys"],
)
def test_other_names_of_the_same_file(tmp_path, state, rename):
    exact = velocity(write_tensors(tmp_path / "a.safetensors", state))
    assert torch.equal(velocity(write_tensors(tmp_path / "b.safetensors", rename(state))), exact)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"decoder.conv_in.weight": 1}, "a VAE"),
        ({"input_blocks.0.0.weight": 1}, "a Stable Diffusion UNet"),
        ({"double_stream_modulation_img.lin.weight": 1}, "a Flux.2 transformer"),
        ({"lora_unet_img_in.lora_down.weight": 1}, "is a LoRA"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": 1}, "a CLIP text encoder"),
        ({"something": 1}, "not a whole Flux.1 transformer"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, tensors, words):
    path = write_tensors(tmp_path / "a.safetensors", {k: torch.zeros(2, 2) for k in tensors})
    with pytest.raises(AtelierError, match=words):
        load_tree(path)


def test_a_missing_tensor_is_named(tmp_path, state):
    del state["single_blocks.1.linear2.weight"]
    path = write_tensors(tmp_path / "a.safetensors", state)
    with pytest.raises(AtelierError, match=r"a.safetensors has no single_blocks.1.linear2.weight"):
        load_tree(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(AtelierError, match="There is no file"):
        load_tree(tmp_path / "no.safetensors")
    with pytest.raises(AtelierError, match="has no transformer"):
        from_folder(tmp_path)
    with pytest.raises(AtelierError, match="is not a VAE"):
        load_vae(write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}))
    assert SHAPE.heads == 2


def test_the_tiny_vae_is_read():
    vae = load_vae(files.VAE)
    assert vae.decode(vae.encode(torch.zeros(1, 3, 32, 32)).latents).sample.shape == (1, 3, 32, 32)
