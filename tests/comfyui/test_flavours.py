"""Every way ComfyUI may hold a model's weights: the view computes with what ComfyUI computes with."""

import pytest
import torch
from test_host import batch, comfy_velocity, float32_model, some_lora

from flux_atelier.core.files import read_tensors, write_tensors
from flux_atelier.core.lora.formats import to_layout
from flux_atelier.trainer import adapter
from flux_atelier.trainer.config import AdapterOptions
from flux_atelier.trainer.nano import files


def view_velocity(model, given):
    from flux_atelier.nodes import host

    with host.training(model) as view, torch.no_grad():
        return view(*given)


def gradients(model, given) -> torch.Tensor:
    from flux_atelier.nodes import host

    with torch.inference_mode(), host.training(model) as view:
        parameters = adapter.inject(view, AdapterOptions(rank=2), 0)
        view(*(t.clone() for t in given)).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in parameters]).clone()


def test_a_patched_model_is_trained_as_patched():
    from flux_atelier.nodes import host

    given, plain = batch(), float32_model()
    with torch.inference_mode():
        patched = host.with_lora(plain, to_layout(some_lora(), "kohya", torch.float32), 1.0)
    theirs = comfy_velocity(patched, *given)
    assert (view_velocity(patched, given) - theirs).abs().max() <= 1e-5
    assert (view_velocity(plain, given) - theirs).abs().max() > 0.01


def test_scaled_fp8_is_computed_as_comfyui_does(tmp_path):
    import comfy.sd

    from flux_atelier.nodes import host

    state, _ = read_tensors(files.TRANSFORMER)
    scaled = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, value in state.items():
        if "blocks" in key and value.dim() == 2:
            scale = value.float().abs().max() / 448
            scaled[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            scaled[key.replace(".weight", ".scale_weight")] = scale
        else:
            scaled[key] = value
    path = write_tensors(tmp_path / "scaled.safetensors", scaled)
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(path))
    given = batch()
    exact = comfy_velocity(float32_model(), *given)
    ours, theirs = view_velocity(model, given), comfy_velocity(model, *given)
    assert (ours - theirs).norm() / theirs.norm() <= 2e-3
    assert (ours - exact).norm() / exact.norm() <= 0.1  # no garbage: the scales are in
    assert gradients(model, given).isfinite().all()
    assert host.fingerprint(model) == host.fingerprint(model) != host.fingerprint(float32_model())


class PackedLinear(torch.nn.Module):
    """A layer with the interface of ComfyUI-GGUF's: packed weights and a cast_bias_weight of its own."""

    def __init__(self, source):
        super().__init__()
        self.in_features, self.out_features, self.bias = source.in_features, source.out_features, source.bias
        weight = source.weight.detach().float()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.packed = (weight / self.scale).round().to(torch.int8)

    def cast_bias_weight(self, like):
        return (self.packed.to(like.dtype) * self.scale.to(like.dtype)), self.bias.to(like.dtype)

    def forward(self, x):
        return torch.nn.functional.linear(x, *self.cast_bias_weight(x))


def test_layers_that_dequantise_themselves_are_asked_to():
    model, given = float32_model(), batch()
    exact = comfy_velocity(model, *given)
    inner = model.model.diffusion_model
    with torch.inference_mode():
        for block in inner.single_blocks:
            block.linear1, block.linear2 = PackedLinear(block.linear1), PackedLinear(block.linear2)
        ours_expected = inner(given[0].clone(), given[1], context=given[2].clone(), y=given[3], guidance=given[4])
    from flux_atelier.nodes import host
    from flux_atelier.trainer.flux.view import TrainView

    with torch.inference_mode(False), torch.no_grad():
        view = TrainView(inner, host.flux_shape(model), host.cast, torch.device("cpu"))
        ours = view(*(t.clone() for t in given))
    assert (ours - ours_expected).abs().max() <= 1e-4
    assert 1e-4 < (ours - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_gradients_in_low_precision_point_where_the_exact_ones_do(dtype):
    given = batch()
    exact, low = gradients(float32_model(), given), gradients(float32_model(dtype), given)
    assert torch.nn.functional.cosine_similarity(exact, low, dim=0) > 0.95
