"""Our conversions in ComfyUI's own loaders and diffusers', and its adapters beside our dense formulas."""

import comfy.lora
import comfy.lora_convert
import comfy.model_base
import comfy.utils
import pytest
import torch
from test_host import batch, comfy_velocity, float32_model, some_lora, trainer_velocity
from test_lora import factors
from test_lora_layouts import REAL, kinds, lora_of

from flux_atelier.core.lora.formats import module_name, parse_lora, to_layout
from flux_atelier.core.lora.formats.layouts import SCHEMES
from flux_atelier.core.lora.formats.tables import pieces_of
from flux_atelier.core.lora.inspection import inspect_lora
from flux_atelier.core.lora.kinds import delta_over
from flux_atelier.core.lora.record import Lora

LOADED = [layout for layout, scheme in SCHEMES.items() if scheme.comfy]
NOT_LOADED = [layout for layout, scheme in SCHEMES.items() if not scheme.comfy]
DEV = {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072, "image_model": "flux"}


@pytest.mark.parametrize("layout", LOADED)
def test_comfyui_loads_every_key_to_the_same_velocity(layout, caplog):
    from flux_atelier.nodes import host

    lora, given, model = some_lora(), batch(), float32_model()
    with torch.inference_mode():
        theirs = comfy_velocity(host.with_lora(model, to_layout(lora, layout, torch.float32), 1.0), *given)
    ours, plain = trainer_velocity(lora, given), trainer_velocity(Lora({}, "kohya"), given)
    assert "not loaded" not in caplog.text
    assert (ours - plain).norm() > 0.01 * plain.norm()
    assert (ours - theirs).norm() <= 1e-3 * ours.norm()


@pytest.mark.parametrize("layout", NOT_LOADED)
def test_what_comfyui_does_not_load_it_loads_after_conversion(layout, caplog):
    """And those layouts it indeed does not load, which is what we say of them."""
    import comfy.sd

    lora = some_lora()
    if layout == "xlabs":
        lora = Lora({n: f for n, f in lora.modules.items() if "_attn." in n or "linear2" in n}, "kohya")
    state, model = to_layout(lora, layout, torch.float32), float32_model()
    with torch.inference_mode():
        comfy.sd.load_lora_for_models(model, None, dict(state), 1.0, 0)
    assert "not loaded" in caplog.text
    caplog.clear()
    converted = to_layout(parse_lora(state, {}, "a"), "kohya", torch.float32)
    with torch.inference_mode():
        theirs = comfy_velocity(comfy.sd.load_lora_for_models(model, None, converted, 1.0, 0)[0], *batch())
    assert "not loaded" not in caplog.text
    ours = trainer_velocity(lora, batch())
    assert (ours - theirs).norm() <= 1e-3 * ours.norm()


def in_diffusers(layout):
    """The deltas that FluxPipeline's own reader makes of two layers in a layout, at the size its converters are made for."""
    from diffusers import FluxPipeline

    sizes = {"double_blocks.0.img_attn.qkv": (9216, 3072), "double_blocks.0.img_attn.proj": (3072, 3072)}
    sizes |= {} if layout == "xlabs" else {"double_blocks.0.img_mlp.2": (3072, 12288)}
    lora = lora_of(sizes, rank=2, alpha=1.0)
    state = to_layout(lora, layout, torch.float32)
    read, alphas = FluxPipeline.lora_state_dict(dict(state), return_alphas=True)[:2]
    dense = {}
    for key in (k for k in read if k.endswith("lora_A.weight") and k.startswith("transformer.")):
        down, up = read[key], read[key.replace("lora_A", "lora_B")]
        alpha = float((alphas or {}).get(key.replace("lora_A.weight", "alpha"), len(down)))
        dense[key.removesuffix(".lora_A.weight")] = alpha / len(down) * up @ down
    q, k, v, out = (dense[f"transformer.transformer_blocks.0.attn.{n}"] for n in ("to_q", "to_k", "to_v", "to_out.0"))
    joined = {"double_blocks.0.img_attn.qkv": torch.cat([q, k, v]), "double_blocks.0.img_attn.proj": out}
    if layout != "xlabs":
        joined["double_blocks.0.img_mlp.2"] = dense["transformer.transformer_blocks.0.ff.net.2"]
    return lora, joined


@pytest.mark.parametrize("layout", [layout for layout, scheme in SCHEMES.items() if scheme.diffusers])
def test_diffusers_reads_the_same_change(layout):
    lora, dense = in_diffusers(layout)
    for name, layer in lora.modules.items():
        assert torch.allclose(dense[name], layer.delta(), atol=1e-5)


@pytest.mark.parametrize("layout", [layout for layout, scheme in SCHEMES.items() if not scheme.diffusers])
def test_what_we_say_diffusers_does_not_read_it_does_not(layout):
    with pytest.raises((KeyError, ValueError)):
        in_diffusers(layout)


class DevNames(comfy.model_base.Flux):
    """Flux.1 dev's names without its weights."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.model_config = type("Config", (), {"unet_config": DEV})()

    def state_dict(self):
        names = []
        for piece in pieces_of("flux1"):
            blocks = {"double": 19, "single": 38}.get(piece.original.split("_")[0], 1) if "#" in piece.original else 1
            names += [piece.original.replace("#", str(i)) for i in range(blocks)]
        return {f"diffusion_model.{n}.weight": None for n in names}


def whole_dev_lora():
    names = [n.removeprefix("diffusion_model.").removesuffix(".weight") for n in DevNames().state_dict()]
    kept = [n for n in names if ("double" in n or "single" in n) and "norm" not in n]
    sizes = {n.split(".", 2)[2]: s for n, s in REAL.items()}
    shapes = {n: sizes.get(n.split(".", 2)[2].replace("txt_mod", "img_mod")) or next(s for k, s in sizes.items() if k.split("_")[-1] == n.split(".", 2)[2].split("_")[-1]) for n in kept}  # fmt: skip
    return lora_of(shapes, rank=1, alpha=1.0)


@pytest.mark.parametrize(("layout", "modules"), [("kohya", 304), ("comfy", 304), ("core", 304), ("diffusers", 494), ("diffusers_alpha", 494), ("onetrainer", 494), ("lycoris", 494), ("bare", 494)])  # fmt: skip
def test_every_module_of_flux_dev_is_mapped(layout, modules, caplog):
    lora = whole_dev_lora()
    state = to_layout(lora, layout, torch.float16)
    assert len([k for k in state if k.endswith(SCHEMES[layout].down)]) == modules
    patches = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(state), comfy.lora.model_lora_keys_unet(DevNames(), {})
    )
    assert "not loaded" not in caplog.text
    assert len(patches) == modules
    assert len({p if isinstance(p, str) else p[0] for p in patches}) == 304


def test_every_name_of_flux_that_comfyui_knows_is_known_here():
    known = comfy.lora.model_lora_keys_unet(DevNames(), {})
    here = {k for k in known if ".norm." not in k and "_norm_" not in k and "controlnet" not in k}
    missing = [
        k
        for k in here
        if module_name(k, "flux1") is None and not k.startswith("lora_unet_") and "vector_in.out" not in k
    ]
    assert not [k for k in missing if "ff.linear_" not in k and "ff_context_linear" not in k and "ff_linear" not in k and "to_qkv_mlp" not in k and "attn.to_out" not in k and "ff_context.linear" not in k and "attn_to_out" not in k], missing  # fmt: skip


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_is_what_comfyui_makes_of_it(kind):
    layer, weight = kinds()[kind], torch.randn(128, 128)
    lora = Lora({"double_blocks.0.img_attn.proj": layer}, "kohya")
    state = to_layout(lora, "kohya", torch.float32)
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    patches = comfy.lora.load_lora(state, {"lora_unet_double_blocks_0_img_attn_proj": key})
    theirs = comfy.lora.calculate_weight([(1.0, patches[key], 1.0, None, lambda x: x)], weight.clone(), key)
    ours = weight + delta_over(parse_lora(state, {}, "a").modules["double_blocks.0.img_attn.proj"], weight)
    if kind == "OFT":  # ComfyUI forgets the rescale of a diagonal rotation; LyCORIS, whose format it is, has it
        ours = ours / layer.rescale[:, None]
    assert (ours - weight).norm() > 0.01 * weight.norm()
    assert (ours - theirs).norm() <= 1e-4 * (ours - weight).norm()


def test_text_encoders_names_are_comfyuis(nano, caplog):
    clip = nano[1].cond_stage_model
    known = comfy.lora.model_lora_keys_clip(clip, {})
    names = [k.removesuffix(".weight") for k in clip.state_dict() if k.endswith(("q_proj.weight", "SelfAttention.k.weight", "wi_0.weight", "fc2.weight"))]  # fmt: skip
    modules = {n.replace(".transformer.", ".", 1): factors(4, 4, 1, 1.0, i) for i, n in enumerate(names)}
    assert len(modules) > 4
    for layout in ("kohya", "comfy"):
        comfy.lora.load_lora(to_layout(Lora(modules, "kohya"), layout, torch.float32), known)
        assert "not loaded" not in caplog.text


def test_sdxl_names_are_comfyuis():
    config = {
        "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    }  # fmt: skip
    for theirs, ours in comfy.utils.unet_to_diffusers(config).items():
        # ComfyUI lists a class embedding, which SDXL has as an added one, and resamplers beyond the last size.
        real = not any(odd in theirs for odd in ("class_embedding", "blocks.2.downsamplers", "blocks.2.upsamplers"))
        if theirs.endswith(".weight") and real:
            found = module_name(f"unet.{theirs.removesuffix('.weight')}", "sdxl")
            assert found, theirs
            assert found.module == ours.removesuffix(".weight")


def test_sd3_and_flux2_names_are_comfyuis():
    sd3 = comfy.utils.mmdit_to_diffusers({"depth": 24})
    flux2 = comfy.utils.flux_to_diffusers({"depth": 8, "depth_single_blocks": 24, "hidden_size": 4096})
    for base, table in (("sd3", sd3), ("flux2", flux2)):
        seen = 0
        for theirs, ours in table.items():
            found = module_name(f"transformer.{theirs.removesuffix('.weight')}", base)
            if not theirs.endswith(".weight") or found is None:
                continue
            name = ours if isinstance(ours, str) else ours[0]
            seen += 1
            assert found.module == name.removesuffix(".weight")
        assert seen > 200


@pytest.mark.parametrize(
    "key",
    [
        "transformer.transformer_blocks.0.attn.to_out.0.lora_{}.default_0.weight",
        "lycoris_double_blocks_0_img_attn_proj.lora_{}.weight",
        "unet.transformer_blocks.0.attn.to_out.0.lora_{}.weight",
        "transformer.base_model.model.transformer_blocks.0.attn.to_out.0.lora_{}.weight",
        "transformer.transformer_blocks.0.attn.to_out.0.lora_{}.weight",
        "transformer_blocks.0.attn.to_out.0.lora_{}.weight",
        "double_blocks.0.img_attn.proj.lora_{}.weight",
        "diffusion_model.double_blocks.0.img_attn.proj.lora_{}.default.weight",
        "lora_transformer_transformer_blocks_0_attn_to_out_0.lora_{}.weight",
    ],
)
def test_what_we_say_comfyui_reads_it_reads(key, caplog):
    """Key by key: what is said of it here, and whether ComfyUI's loader takes it."""
    f = factors(128, 128, 2, 2.0, 0)
    state = {key.format("A"): f.down, key.format("B"): f.up}
    seen = inspect_lora(state, {}, "a")
    taken = comfy.lora.load_lora(dict(state), comfy.lora.model_lora_keys_unet(DevNames(), {}))
    assert seen.right_in_comfyui == (len(taken) == 1)
    wire = to_layout(seen.lora, "kohya", torch.float32)
    assert len(comfy.lora.load_lora(wire, comfy.lora.model_lora_keys_unet(DevNames(), {}))) == 1
