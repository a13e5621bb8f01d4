"""Every way ComfyUI may hold a model's weights: the view computes with what ComfyUI computes with.

ComfyUI-GGUF's ways are in test_gguf.py. What decides is ComfyUI's own forward on the same MODEL: 1e-5 of its length is
float32 rounding in another order, and 0.01 is far below what any LoRA or scale here changes.
"""

import hashlib
import json

import pytest
import torch
from test_host import batch, comfy_velocity, float32_model, some_lora

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors, write_tensors
from flux_atelier.core.lora.formats import to_layout
from flux_atelier.trainer import adapter
from flux_atelier.trainer.config import AdapterOptions
from flux_atelier.trainer.nano import files

EXACT = 1e-5


def view_velocity(model, given):
    from flux_atelier.nodes import host

    with torch.inference_mode(), host.training(model) as view, torch.no_grad():
        return view(*(t.clone() for t in given))


def gradients(model, given, steps=0) -> torch.Tensor:
    """The gradients of a fresh adapter, after so many steps of training."""
    from flux_atelier.nodes import host

    with torch.inference_mode(), host.training(model) as view:
        parameters = adapter.inject(view, AdapterOptions(rank=2), 0)
        optimizer = torch.optim.AdamW(parameters, 1e-2)
        given = [t.clone() for t in given]
        for step in range(steps + 1):
            optimizer.zero_grad()
            view(*given).square().mean().backward()
            if step < steps:
                optimizer.step()
        return torch.cat([p.grad.flatten() for p in parameters]).clone()


def apart(ours, theirs) -> float:
    """How far two velocities are apart, of the second one's length."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def aligned(ours, theirs) -> float:
    assert ours.isfinite().all()
    return torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item()


def held_bytes(model) -> str:
    """A digest of every byte that a MODEL's parameters and buffers hold, packed data and scales of quantised ones too."""
    total, inner = hashlib.sha256(), model.model.diffusion_model
    for name, value in [*inner.named_parameters(), *inner.named_buffers()]:
        for part in value.state_dict().values() if hasattr(value, "layout_cls") else [value]:
            plain = part.detach().as_subclass(torch.Tensor).contiguous().flatten()
            total.update(name.encode() + plain.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def load(state):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(dict(state))


def with_loras(model, *seeds):
    from flux_atelier.nodes import host

    with torch.inference_mode():
        for seed in seeds:
            model = host.with_lora(model, to_layout(some_lora(seed), "kohya", torch.float32), 0.8)
    return model


def test_a_patched_model_is_trained_as_patched():
    given, plain = batch(), float32_model()
    patched = with_loras(plain, 0)
    theirs = comfy_velocity(patched, *given)
    assert apart(view_velocity(patched, given), theirs) <= EXACT
    assert apart(view_velocity(plain, given), theirs) > 0.01


def test_a_lora_in_bypass_mode_is_refused_because_it_cannot_be_seen():
    import comfy.sd

    from flux_atelier.nodes import host

    with torch.inference_mode():
        state = to_layout(some_lora(), "kohya", torch.float32)
        bypassed = comfy.sd.load_bypass_lora_for_models(float32_model(), None, state, 1.0, 0)[0]
    with pytest.raises(AtelierError, match="bypass"), torch.inference_mode(), host.training(bypassed):
        pass


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
    assert apart(ours, theirs) <= EXACT
    assert apart(ours, exact) <= 0.1  # no garbage: the scales are in
    assert gradients(model, given).isfinite().all()
    assert host.fingerprint(model) == host.fingerprint(model) != host.fingerprint(float32_model())


def quantised(kind: str, smooth: bool = False, **options):
    """nano-flux's blocks in one of ComfyUI's layouts, as a file holds them, and the same weights in float32.

    smooth   divide columns and let the file say by what, as calibration does: `pre_quant_scale`
    options  for ComfyUI's quantiser of the layout
    """
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    state, _ = read_tensors(files.TRANSFORMER)
    packed, plain = dict(state), {key: value.float() for key, value in state.items()}
    note = {"format": kind} | ({"convrot": True} if options.get("convrot") else {})
    for key, value in plain.items():
        if "blocks" not in key or value.dim() != 2:
            continue
        name = key.removesuffix("weight")
        columns = torch.ones(value.shape[1])
        if smooth:
            columns = torch.rand(value.shape[1]) + 0.5
            packed[name + "pre_quant_scale"] = columns
        layout = QUANT_ALGOS[kind]["comfy_tensor_layout"]
        held = QuantizedTensor.from_float(value / columns, layout, **options)
        packed |= held.state_dict(key) | {name + "comfy_quant": torch.tensor(list(json.dumps(note).encode())).byte()}
        plain[key] = held.dequantize() * columns
    return packed, plain


def case(kind, near, close, **options):
    """near: bound to ComfyUI's own forward; close: bound of the gradients' cosine to the exact model's."""
    return pytest.param(kind, near, close, options, id="-".join([kind, *options]))


OPTIONS = {"float8_e4m3fn": {"scale": "recalculate"}, "float8_e5m2": {"scale": "recalculate"}}  # or the scale is 1


# ComfyUI computes fp8, nvfp4 and mxfp8 on a CPU with dequantised weights, so its forward is the exact one. The int8 and
# 4-bit kinds round the activations too: twice what was measured is allowed there (0.030, 0.014, 0.24, 0.013). How far
# the gradients may turn from the unquantised model's is one and a half times what was measured, for int8 twice.
@pytest.mark.parametrize(
    ("kind", "near", "close", "options"),
    [
        case("float8_e4m3fn", EXACT, 0.996, **OPTIONS["float8_e4m3fn"]),
        case("float8_e5m2", EXACT, 0.976, **OPTIONS["float8_e5m2"]),
        case("mxfp8", EXACT, 0.996),
        case("nvfp4", EXACT, 0.94),
        case("nvfp4", EXACT, 0.91, smooth=True),
        case("int8_tensorwise", 0.06, 0.998),
        case("int8_tensorwise", 0.06, 0.999, per_channel=True),
        case("int8_tensorwise", 0.03, 0.999, per_channel=True, convrot=True),
        case("convrot_w4a4", 0.5, 0.89),
        case("asym_w4a8_int8", 0.03, 0.97),
    ],
)
def test_a_quantised_layout_is_trained_with_the_weights_it_stands_for(kind, near, close, options):
    from comfy.quant_ops import QUANT_ALGOS

    if kind not in QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {kind}")
    packed, plain = quantised(kind, **options)
    model, reference, given = load(packed), load(plain), batch()
    before = held_bytes(model)
    assert apart(view_velocity(model, given), comfy_velocity(model, *given)) <= near
    assert apart(view_velocity(model, given), comfy_velocity(reference, *given)) <= EXACT
    found = gradients(model, given)
    assert aligned(found, gradients(reference, given)) >= 1 - EXACT
    assert aligned(found, gradients(float32_model(), given)) >= close
    gradients(model, given, steps=3)
    assert held_bytes(model) == before


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "nvfp4", "mxfp8"])
def test_two_loras_over_a_quantised_base_are_trained_on_and_taken_off(kind):
    import comfy.model_management

    given, plain = batch(), load(quantised(kind, **OPTIONS.get(kind, {}))[0])
    before, patched = held_bytes(plain), with_loras(plain, 0, 5)
    theirs = comfy_velocity(patched, *given)
    assert apart(view_velocity(patched, given), theirs) <= EXACT
    gradients(patched, given, steps=1)
    assert apart(view_velocity(plain, given), theirs) > 0.01
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
    assert held_bytes(plain) == before


@pytest.mark.parametrize(
    "kind",
    [
        None,
        pytest.param("int8_tensorwise"),
    ],
)
def test_a_fingerprint_does_not_change_when_patches_are_loaded(kind):
    from flux_atelier.nodes import host

    plain = load(quantised(kind)[0]) if kind else float32_model()
    patched = with_loras(plain, 0)
    before = host.fingerprint(plain), host.fingerprint(patched)
    comfy_velocity(patched, *batch())
    assert (host.fingerprint(plain), host.fingerprint(patched)) == before
    assert before[0] != before[1]


def partly_loaded(patched, given, room: int):
    """ComfyUI's velocity and ours while ComfyUI keeps all but `room` bytes of weights as they are, and patches them
    whenever they are used; and how many layers it keeps so. On a CPU ComfyUI does so only when told."""
    from flux_atelier.nodes import host
    from flux_atelier.trainer.flux.view import TrainView

    cpu, inner = torch.device("cpu"), patched.model.diffusion_model
    with torch.inference_mode():
        patched.patch_model(cpu, lowvram_model_memory=room)
        latent, sigma, text, pooled, guidance = (t.clone() for t in given)
        theirs = inner(latent, sigma, context=text, y=pooled, guidance=guidance).clone()
        kept = sum(bool(getattr(m, "weight_function", None)) for m in inner.modules())
    with torch.inference_mode(False), torch.no_grad():
        ours = TrainView(inner, host.flux_shape(patched), host.cast, cpu)(*given)
    with torch.inference_mode():
        patched.unpatch_model(cpu)
    return ours, theirs, kept


# By how much of the eight layers that the LoRA patches ComfyUI keeps away then: all, some, none.
@pytest.mark.parametrize(
    ("kind", "room", "kept"),
    [
        (None, 64, 8),
        (None, 10_000_000, 2),
        (None, 100_000_000, 0),
        ("float8_e4m3fn", 64, 8),
        ("float8_e4m3fn", 100_000_000, 0),
        ("nvfp4", 4_000_000, 7),
    ],
)
def test_patches_that_comfyui_applies_at_each_use_are_seen(kind, room, kept):
    given = batch()
    plain = load(quantised(kind, **OPTIONS.get(kind, {}))[0]) if kind else float32_model()
    ours, theirs, found = partly_loaded(with_loras(plain, 0), given, room)
    assert found == kept
    assert apart(ours, theirs) <= EXACT
    assert apart(comfy_velocity(plain, *given), theirs) > 0.01


def test_a_norm_that_comfyui_patches_at_each_use_is_seen():
    given, name = batch(), "diffusion_model.single_blocks.0.norm.query_norm.weight"
    with torch.inference_mode():
        patched = float32_model().clone()
        assert patched.add_patches({name: ("diff", (torch.full((128,), 0.5),))}) == [name]
    ours, theirs, kept = partly_loaded(patched, given, 64)
    assert kept == 1
    assert apart(ours, theirs) <= EXACT


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
        ours = TrainView(inner, host.flux_shape(model), host.cast, torch.device("cpu"))(*given)
    assert (ours - ours_expected).abs().max() <= 1e-4
    assert 1e-4 < apart(ours, exact) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_gradients_in_low_precision_point_where_the_exact_ones_do(dtype):
    given = batch()
    exact, low = gradients(float32_model(), given), gradients(float32_model(dtype), given)
    assert aligned(low, exact) > 0.95


def test_schnell_has_no_guidance_and_is_trained_without():
    from flux_atelier.nodes import host

    state, _ = read_tensors(files.TRANSFORMER)
    model = load({key: value for key, value in state.items() if not key.startswith("guidance_in.")})
    assert not host.flux_shape(model).guidance
    given = (*batch()[:4],)
    assert apart(view_velocity(model, given), comfy_velocity(model, *given, None)) <= EXACT


# Kontext and Krea have the tensors of dev, and ComfyUI loads them as the same class: there is nothing to tell apart.
BASE = {
    "context_in_dim": 128, "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "vec_in_dim": 64, "out_channels": 16,
}  # fmt: skip
FLUX = BASE | {"image_model": "flux", "guidance_embed": True, "txt_ids_dims": []}
FLUX2 = {"image_model": "flux2", "vec_in_dim": None, "num_heads": 2, "global_modulation": True, "axes_dim": [32] * 4}
CHROMA = {"image_model": "chroma", "txt_ids_dims": [], "in_dim": 64, "out_dim": 256, "hidden_dim": 64, "n_layers": 1}
VIDEO = {
    "image_model": "hunyuan_video", "patch_size": [1, 2, 2], "byt5": False, "meanflow": False, "meanflow_sum": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "guidance_embed": True,
}  # fmt: skip
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1, "num_head_channels": 32, "use_spatial_transformer": True, "context_dim": 128,
    "adm_in_channels": 64, "num_classes": "sequential", "legacy": False, "use_linear_in_transformer": True,
}  # fmt: skip
SD3 = {"in_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "num_patches": 36, "adm_in_channels": 64}


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("Flux", FLUX | {"in_channels": 16}, ""),
        ("FluxInpaint", FLUX | {"in_channels": 96}, r"384 input channels \(Fill"),
        ("Flux", FLUX | {"in_channels": 32}, r"128 input channels \(Fill, Canny or Depth\)"),
        ("Flux2", FLUX | FLUX2 | {"in_channels": 128}, r"Flux\.2 \(Flux2\)"),
        ("LongCatImage", FLUX | {"in_channels": 16, "vec_in_dim": None}, r"variant \(LongCatImage\)"),
        ("Chroma", BASE | CHROMA | {"in_channels": 64}, r"variant \(Chroma\)"),
        pytest.param(
            "HunyuanVideo", BASE | VIDEO | {"in_channels": 16}, "is HunyuanVideo, not Flux",
        ),
        ("SDXL", SDXL, "is SDXL, not Flux"),
        ("SD3", SD3, "is SD3, not Flux"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_flux1_is_named(name, config, sentence):
    import comfy.supported_models

    from flux_atelier.nodes import host

    class Patcher:
        injections = {}
        wrappers = {}

        def __init__(self):
            kind = getattr(comfy.supported_models, name)(config)
            kind.unet_config["dtype"] = torch.float32
            self.model = kind.get_model({}, device=torch.device("meta"))

    if not sentence:
        assert host.flux_shape(Patcher()).hidden == 256
        return
    with pytest.raises(AtelierError, match=sentence):
        host.flux_shape(Patcher())
