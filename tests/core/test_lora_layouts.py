"""Every layout, kind of layer and base model: written and read back, and names beside diffusers' own models."""

import json

import pytest
import torch
from test_lora import MODULES, factors, some_lora

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import parse_lora, read_lora, to_layout, write_lora
from flux_atelier.core.lora.formats.layouts import SCHEMES
from flux_atelier.core.lora.formats.names import BASES, module_name
from flux_atelier.core.lora.formats.tables import pieces_of, text_pieces
from flux_atelier.core.lora.kinds import Dense, Hada, Kron, Rotation, delta_over, kind_of
from flux_atelier.core.lora.record import Lora

REAL = {  # Flux.1 dev: every shape of its layers once
    "double_blocks.18.img_mod.lin": (18432, 3072),
    "double_blocks.0.img_attn.qkv": (9216, 3072),
    "double_blocks.0.txt_attn.proj": (3072, 3072),
    "double_blocks.0.txt_mlp.0": (12288, 3072),
    "double_blocks.0.img_mlp.2": (3072, 12288),
    "single_blocks.37.linear1": (21504, 3072),
    "single_blocks.37.linear2": (3072, 15360),
    "single_blocks.37.modulation.lin": (9216, 3072),
}
ATTENTION_ONLY = {"double_blocks.0.img_attn.qkv": (384, 128), "double_blocks.11.txt_attn.proj": (128, 128)}
ALL = tuple(SCHEMES)
SPLIT = [n for n, s in SCHEMES.items() if s.names == "diffusers"]


def lora_of(sizes, rank=4, alpha=6.0, base="flux1") -> Lora:
    layers = {n: factors(o, i, rank, alpha, k) for k, (n, (o, i)) in enumerate(sizes.items())}
    return Lora(layers, "kohya", base=base)


def sizes_for(layout, sizes):
    return {n: s for n, s in sizes.items() if "_attn." in n or "linear2" in n} if layout == "xlabs" else sizes


def same(a: Lora, b: Lora, within=1e-6):
    assert a.modules.keys() == b.modules.keys()
    for name in a.modules:
        one, other = a.modules[name].delta(), b.modules[name].delta()
        assert (one - other).norm() <= within * one.norm(), name


def test_there_are_more_than_ten():
    assert len(ALL) >= 10


@pytest.mark.parametrize("layout", ALL)
def test_written_and_read_back(tmp_path, layout):
    lora = lora_of(sizes_for(layout, MODULES))
    back = read_lora(write_lora(tmp_path / "a.safetensors", lora, layout, torch.float32))
    assert (back.layout, back.base, back.unknown) == (layout, "flux1", ())
    same(lora, back)


@pytest.mark.parametrize("layout", ALL)
def test_the_real_sizes_are_written_and_read_back(layout):
    lora = lora_of(sizes_for(layout, REAL), rank=2, alpha=1.0)
    back = parse_lora(to_layout(lora, layout, torch.float32), {}, "a")
    assert (back.layout, back.unknown) == (layout, ())
    assert back.modules.keys() == lora.modules.keys()
    for name, f in lora.modules.items():  # a few rows and columns of the delta, exactly where they belong
        rows = torch.linspace(0, f.up.shape[0] - 1, 97).long()
        read = back.modules[name]
        assert torch.allclose(
            read.scale * read.up[rows] @ read.down, f.scale * f.up[rows] @ f.down, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("between", ALL)
def test_there_and_back_gives_the_same_bytes(between):
    """Through layouts with alpha in bf16, bit for bit; where the scale is folded in, because it is a power of two."""
    lora = lora_of(sizes_for(between, MODULES), rank=4, alpha=6.0 if SCHEMES[between].alpha else 8.0)
    first = to_layout(lora, between, torch.bfloat16)
    kohya = to_layout(parse_lora(first, {}, "a"), "kohya", torch.bfloat16)
    again = to_layout(parse_lora(kohya, {}, "b"), between, torch.bfloat16)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize("layout", SPLIT)
def test_split_parts_of_their_own_keep_their_ranks_there_and_back(layout):
    """q, k and v of ranks 2, 3 and 4 become one of 9, and three of 2, 3 and 4 again."""
    scheme, state = SCHEMES[layout], {}
    for k, name in enumerate("qkv"):
        f = factors(128, 128, 2 + k, 2.0 + k, k)
        key = scheme.key(f"transformer_blocks.5.attn.to_{name}")
        state |= {key + scheme.down: f.down, key + scheme.up: f.up}
        if scheme.alpha:
            state[f"{key}.alpha"] = torch.tensor(f.alpha)
    kohya = to_layout(parse_lora(state, {}, "a"), "kohya", torch.float32)
    assert kohya["lora_unet_double_blocks_5_img_attn_qkv.lora_down.weight"].shape == (9, 128)
    again = to_layout(parse_lora(kohya, {}, "b"), layout, torch.float32)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_a_part_alone_changes_its_rows_alone():
    f = factors(512, 128, 3, 3.0, 0)
    key = "transformer.single_transformer_blocks.2.proj_mlp"
    lora = parse_lora({f"{key}.lora_A.weight": f.down, f"{key}.lora_B.weight": f.up}, {}, "a")
    with pytest.raises(AtelierError, match="rows"):
        parse_lora(
            {f"{key}.lora_A.weight": f.down, f"{key}.lora_B.weight": f.up, **_part("to_q", 127)}, {}, "a"
        ).modules["single_blocks.2.linear1"]
    delta = lora.modules["single_blocks.2.linear1"].delta()
    assert delta.shape == (896, 128)
    assert not delta[:384].any()
    assert torch.equal(delta[384:], f.delta())


def _part(name, rows):
    f = factors(rows, 128, 2, 2.0, 9)
    key = f"transformer.single_transformer_blocks.2.attn.{name}"
    return {f"{key}.lora_A.weight": f.down, f"{key}.lora_B.weight": f.up}


def test_layers_are_made_when_asked_for_and_not_kept(tmp_path):
    lora = read_lora(write_lora(tmp_path / "a.safetensors", some_lora()))
    name = next(iter(lora.modules))
    assert lora.modules[name] is not lora.modules[name]
    assert len(lora.modules) == len(list(lora.modules))


# What a kind is, by its dense formula; see tests/comfyui/test_layouts.py for the same beside ComfyUI's adapters.
def kinds(out=128, width=128):
    rng = torch.Generator().manual_seed(5)

    def some(*shape):
        return torch.randn(*shape, generator=rng) * 0.5

    rotation = some(out // 16, 16, 16)
    return {
        "LoRA": Factors(some(out, 4), some(4, width), 2.0),
        "DoRA": Factors(some(out, 4), some(4, width), 2.0, torch.rand(out, generator=rng) + 1, torch.rand(out, generator=rng) + 1),
        "LoKr": Kron(some(4, 4), (some(out // 4, 2), some(2, width // 4)), 0.5),
        "LoKr whole": Kron(some(4, 4), (some(out // 4, width // 4),), 0.5),
        "LoHa": Hada((some(out, 3), some(3, width)), (some(out, 3), some(3, width)), 0.5),
        "difference": Dense(some(out, width)),
        "OFT": Rotation(rotation, 0.0, torch.rand(out, generator=rng) + 0.5),
        "OFT bounded": Rotation(rotation, 0.5),
        "BOFT": Rotation(some(2, out // 8, 8, 8)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("layout", ["kohya", "comfy"])
def test_every_kind_is_written_and_read_back(kind, layout):
    layer, weight = kinds()[kind], torch.randn(128, 128)
    state = to_layout(Lora({"double_blocks.0.img_attn.proj": layer}, "kohya"), layout, torch.float32)
    back = parse_lora(state, {}, "a").modules["double_blocks.0.img_attn.proj"]
    assert kind_of(back) == kind.split()[0]
    if kind == "DoRA":
        layer = Factors(layer.up, layer.down, layer.alpha, dora_scale=layer.dora_scale)
    assert torch.allclose(delta_over(back, weight), delta_over(layer, weight), atol=1e-5)


@pytest.mark.parametrize("kind", ["LoKr", "LoKr whole", "LoHa", "difference", "OFT", "DoRA"])
def test_kinds_survive_names_that_split(kind):
    """SimpleTuner writes LyCORIS' kinds for q, k and v apart; the three are one layer, and the same change."""
    whole, weight = kinds(384, 128)[kind], torch.randn(384, 128)
    state = to_layout(Lora({"double_blocks.3.img_attn.qkv": whole}, "kohya"), "lycoris", torch.float32)
    assert all("attn_to_" in k for k in state)
    back = parse_lora(state, {}, "a").modules["double_blocks.3.img_attn.qkv"]
    if kind == "DoRA":
        whole = Factors(whole.up, whole.down, whole.alpha, dora_scale=whole.dora_scale)
    assert torch.allclose(delta_over(back, weight), delta_over(whole, weight), atol=1e-5)


def test_a_rotation_by_hand():
    """A block [[0, a], [0, 0]] turns by 2 atan(a): with a = 1 by a right angle."""
    layer = Rotation(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]))
    assert torch.allclose(layer.matrices(), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(layer.applied(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.tensor([[-3.0, -4.0], [1.0, 2.0]], dtype=torch.float64), atol=1e-12)  # fmt: skip


def test_a_dora_by_hand():
    """|W + delta| is 5 in the only row: magnitude 10 doubles it."""
    layer = Factors(torch.tensor([[1.0]]), torch.tensor([[3.0, 0.0]]), 1.0, magnitude=torch.tensor([10.0]))
    assert torch.equal(delta_over(layer, torch.tensor([[0.0, 4.0]])), torch.tensor([[6.0, 4.0]]))


def test_tucker_products_become_factors():
    """lora_mid of a LoCon: up . mid . down over a 3 x 3 kernel, as the einsum of the three."""
    rng = torch.Generator().manual_seed(1)
    up, mid, down = (
        torch.randn(8, 4, 1, 1, generator=rng),
        torch.randn(4, 4, 3, 3, generator=rng),
        torch.randn(4, 6, 1, 1, generator=rng),
    )
    key = "lora_unet_input_blocks_1_0_in_layers_2"
    state = {
        f"{key}.lora_up.weight": up,
        f"{key}.lora_down.weight": down,
        f"{key}.lora_mid.weight": mid,
        f"{key}.alpha": torch.tensor(2.0),
    }
    lora = parse_lora(state, {}, "a")
    assert lora.base == "sdxl"
    layer = lora.modules["input_blocks.1.0.in_layers.2"]
    dense = 0.5 * torch.einsum("omxy,mnkl,nixy->oikl", up, mid, down)
    assert layer.kernel == (3, 3)
    assert torch.allclose(layer.delta().reshape(8, 6, 3, 3), dense, atol=1e-5)
    again = parse_lora(to_layout(lora, "kohya", torch.float32), {}, "b").modules["input_blocks.1.0.in_layers.2"]
    assert torch.allclose(again.delta(), layer.delta(), atol=1e-5)


@pytest.mark.parametrize(("rank", "inner"), [(2, 40), (4, 6)], ids=["few directions", "few channels"])
def test_a_convolution_of_a_loha_stays_one(tmp_path, rank, inner):
    """LyCORIS' Tucker form, as the einsum of its parts; then file, wire and file again hold the same."""
    module, rng = "input_blocks.1.0.in_layers.2", torch.Generator().manual_seed(7)
    some = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    parts = {"alpha": torch.tensor(1.0)}
    for i in "12":
        parts |= {
            f"hada_w{i}_a": some(rank, 5),
            f"hada_w{i}_b": some(rank, inner),
            f"hada_t{i}": some(rank, rank, 3, 3),
        }
    tensors = {f"lora_unet_input_blocks_1_0_in_layers_2.{k}": v for k, v in parts.items()}
    one, two = (
        torch.einsum("ijkl,jr,ip->prkl", parts[f"hada_t{i}"], parts[f"hada_w{i}_b"], parts[f"hada_w{i}_a"])
        for i in "12"
    )
    lora = parse_lora(tensors, {}, "it")
    layer = lora.modules[module]
    assert layer.kernel == (3, 3)
    assert torch.allclose(layer.delta(), (one * two).flatten(1) / rank, rtol=1e-4, atol=1e-5)
    wire = to_layout(lora, "kohya", torch.float32)
    again = parse_lora(wire, {}, "it").modules[module]
    assert again.kernel == (3, 3)
    assert torch.equal(again.delta(), layer.delta())
    back = read_lora(write_lora(tmp_path / "a.safetensors", parse_lora(wire, {}, "it"), "kohya", torch.float32))
    stored = to_layout(back, "kohya", torch.float32)
    assert stored.keys() == wire.keys()
    assert all(torch.equal(stored[k], wire[k]) for k in wire)


@pytest.mark.parametrize("layout", ["kohya", "comfy", "core", "diffusers_alpha", "onetrainer", "lycoris", "diffusers"])
def test_changes_of_biases_are_kept(layout):
    lora = Lora(
        {"double_blocks.0.img_attn.qkv": factors(384, 128, 2, 2.0, 0), "img_in": factors(128, 64, 2, 2.0, 3)},
        "kohya",
        vectors={"double_blocks.0.img_attn.qkv.bias": torch.arange(384.0), "img_in.bias": torch.ones(128)},
    )
    back = parse_lora(to_layout(lora, layout, torch.float32), {}, "a")
    for name, value in lora.vectors.items():
        assert torch.equal(back.vectors[name], value)


def test_a_changed_bias_without_its_layer_is_refused_where_it_cannot_be_said():
    lora = Lora({}, "kohya", vectors={"img_in.bias": torch.ones(128)})
    assert parse_lora(to_layout(lora, "kohya", torch.float32), {}, "a").vectors.keys() == lora.vectors.keys()
    with pytest.raises(AtelierError, match="cannot say"):
        to_layout(lora, "diffusers", torch.float32)


def test_changes_of_norms_are_kept_or_refused():
    lora = Lora({}, "kohya", vectors={"double_blocks.0.img_attn.norm.query_norm.weight": torch.ones(128)})
    assert parse_lora(to_layout(lora, "kohya", torch.float32), {}, "a").vectors.keys() == lora.vectors.keys()
    with pytest.raises(AtelierError, match="a norm"):
        to_layout(lora, "diffusers", torch.float32)


TEXT = ("clip_l.text_model.encoder.layers.3.self_attn.q_proj", "clip_g.text_model.encoder.layers.30.mlp.fc1", "t5xxl.encoder.block.7.layer.1.DenseReluDense.wi_0")  # fmt: skip


@pytest.mark.parametrize(
    ("base", "layout"),
    [(b, y) for b in ("sdxl", "sd3", "flux1") for y in ("kohya", "comfy", "diffusers", "onetrainer")],
)
def test_text_encoders_are_kept(base, layout):
    own = {"sdxl": "input_blocks.4.1.proj_in", "sd3": "joint_blocks.0.x_block.attn.proj", "flux1": "img_in"}[base]
    names = [n for n in TEXT if not (base == "sdxl" and "t5xxl" in n) and not (base == "flux1" and "clip_g" in n)]
    lora = Lora({n: factors(64, 64, 2, 2.0, k) for k, n in enumerate((own, *names))}, "kohya", base=base)
    back = parse_lora(to_layout(lora, layout, torch.float32), {}, "a")
    assert back.base == base or not to_layout(lora, layout, torch.float32)
    same(lora, back)


@pytest.mark.parametrize("base", BASES)
def test_every_name_of_every_layout_leads_to_its_module(base):
    for piece in [*pieces_of(base), *text_pieces()]:
        module = piece.original.replace("#", "7")
        for key in (f"diffusion_model.{module}", "lora_unet_" + module.replace(".", "_")):
            found = module_name(key, base)
            assert piece in text_pieces() or (found and found.module == module)
        for name in piece.diffusers if piece not in text_pieces() else ():
            for prefix, separator in (("transformer.", "."), ("lora_transformer_", "_"), ("", ".")):
                found = module_name(prefix + name.replace("#", "7").replace(".", separator), base)
                assert found, name
                assert found.module == module


def diffusers_models():
    from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

    sdxl = dict(
        block_out_channels=(32, 64, 128), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=8, cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=96, norm_num_groups=8,
    )  # fmt: skip
    with torch.device("meta"):
        return {
            "flux1": FluxTransformer2DModel(num_layers=1, num_single_layers=1),
            "flux2": Flux2Transformer2DModel(num_layers=1, num_single_layers=1),
            "sd3": SD3Transformer2DModel(num_layers=2, dual_attention_layers=(0,)),
            "sdxl": UNet2DConditionModel(**sdxl),
        }


def test_every_layer_of_diffusers_models_has_a_name_here():
    for base, model in diffusers_models().items():
        layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
        missing = [n for n in layers if module_name(n, base) is None]
        assert not missing, (base, missing)
        assert len(
            {tuple(module_name(n, base)) and (module_name(n, base).module, module_name(n, base).first) for n in layers}
        ) == len(layers)


SIZES = {
    "flux2": {"double_blocks.0.img_attn.qkv": (384, 128), "single_blocks.9.linear1": (1152, 128), "double_blocks.3.txt_mlp.0": (768, 128), "single_stream_modulation.lin": (384, 128)},
    "sd3": {"joint_blocks.0.x_block.attn.qkv": (384, 128), "joint_blocks.23.context_block.adaLN_modulation.1": (256, 128), "joint_blocks.2.context_block.mlp.fc1": (512, 128)},
    "sdxl": {"input_blocks.4.1.transformer_blocks.1.attn1.to_q": (64, 64), "output_blocks.2.1.transformer_blocks.9.ff.net.2": (64, 256), "middle_block.1.proj_in": (64, 64)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "layout"),
    [(b, y) for b in SIZES for y in ("kohya", "comfy", "core", "diffusers", "diffusers_alpha", "onetrainer", "peft")],
)
def test_other_base_models(base, layout):
    lora = lora_of(SIZES[base], base=base)
    header = {"modelspec.architecture": "stable-diffusion-3-medium/lora"} if base == "sd3" else {}
    back = parse_lora(to_layout(lora, layout, torch.float32), header, "a")
    assert (back.base, back.unknown) == (base, ())
    same(lora, back)


@pytest.mark.parametrize(
    ("modules", "header", "base"),
    [
        ({"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072)}, {}, "flux1"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (18432, 6144)}, {}, "flux2"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072)}, {"modelspec.architecture": "flux-2-klein-4b/lora"}, "flux2"),
        ({"lora_unet_single_blocks_0_linear1": (27648, 3072)}, {}, "flux2"),
        ({"transformer.transformer_blocks.0.attn.to_q": (1536, 1536)}, {}, "sd3"),
        ({"transformer.transformer_blocks.0.attn.to_q": (3072, 3072)}, {}, "flux1"),
        ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (640, 640)}, {}, "sdxl"),
        ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora": (640, 640)}, {}, "sdxl"),
    ],
)  # fmt: skip
def test_the_base_model_is_told_by_names_header_and_sizes(modules, header, base):
    state = {}
    for key, (out, width) in modules.items():
        ends = (".down.weight", ".up.weight") if key.endswith("_lora") else (".lora_down.weight", ".lora_up.weight")
        state |= {key + ends[0]: torch.zeros(1, width), key + ends[1]: torch.zeros(out, 1)}
    assert parse_lora(state, header, "a").base == base


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_blocks_0_cross_attn_k.lora_down.weight", "a LoRA for Wan"),
        ("transformer.transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight", "a LoRA for Qwen-Image"),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", "a LoRA for Z-Image"),
        ("transformer.double_blocks.0.img_attn_qkv.lora_A.weight", "a LoRA for HunyuanVideo"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "a LoRA for LTX-Video"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "a LoRA for a language model"),
        ("double_blocks.0.img_attn.qkv.weight", "a Flux transformer, not a LoRA"),
        ("decoder.conv_in.weight", "a VAE"),
        ("emb_params", "an embedding"),
    ],
)
def test_other_files_are_named(key, words):
    with pytest.raises(AtelierError, match=words):
        parse_lora({key: torch.zeros(2, 2)}, {}, "a")


def test_peft_adapter_names_are_read():
    f = factors(128, 128, 4, 4.0, 0)
    key = "base_model.model.transformer_blocks.0.attn.to_out.0"
    lora = parse_lora({f"{key}.lora_A.style_1.weight": f.down, f"{key}.lora_B.style_1.weight": f.up}, {}, "a")
    assert torch.equal(lora.modules["double_blocks.0.img_attn.proj"].delta(), f.delta())


def test_rank_stabilised_alpha_of_the_header_reaches_the_kohya_file():
    f = factors(128, 128, 4, 1.0, 0)
    key = "transformer.transformer_blocks.0.attn.to_out.0"
    config = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.use_rslora": True})}
    lora = parse_lora({f"{key}.lora_A.weight": f.down, f"{key}.lora_B.weight": f.up}, config, "a")
    assert to_layout(lora, "kohya", torch.float32)["lora_unet_double_blocks_0_img_attn_proj.alpha"] == 16


def test_xlabs_refuses_what_it_has_no_name_for():
    with pytest.raises(AtelierError, match="attention only"):
        to_layout(some_lora(), "xlabs", torch.float32)


def test_one_module_under_two_names_is_refused():
    state = to_layout(some_lora(), "kohya", torch.float32) | to_layout(some_lora(1), "comfy", torch.float32)
    with pytest.raises(AtelierError, match="twice"):
        parse_lora(state, {}, "a")


@pytest.mark.parametrize("layout", ["kohya", "diffusers_alpha", "onetrainer"])
def test_eight_bits_are_read_back_from_split_and_fused_layouts(layout):
    lora = lora_of({"double_blocks.0.img_attn.qkv": (384, 128)})
    state = to_layout(lora, layout, torch.float8_e4m3fn)
    back = parse_lora(state, {}, "a").modules["double_blocks.0.img_attn.qkv"]
    assert back.rank == 4
    assert (back.delta() - lora.modules["double_blocks.0.img_attn.qkv"].delta()).norm() <= 0.1 * back.delta().norm()


def peft_file(modules, config, prefix="transformer."):
    state = {}
    for k, name in enumerate(modules):
        f = factors(128, 128, 4, 4.0, k)
        state |= {f"{prefix}{name}.lora_A.weight": f.down, f"{prefix}{name}.lora_B.weight": f.up}
    return state, {"lora_adapter_metadata": json.dumps(config)}


def test_a_headers_alpha_is_its_own_modules():
    """A pattern ends at a dot, and each of the pipeline's models has its own alpha."""
    names = ("transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.proj_out")
    state, header = peft_file(
        names, {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"transformer_blocks.0.attn.to_out.0": 8}}
    )
    f = factors(64, 64, 4, 4.0, 9)
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    state |= {f"{key}.lora_A.weight": f.down, f"{key}.lora_B.weight": f.up}
    header = {
        "lora_adapter_metadata": json.dumps(
            json.loads(header["lora_adapter_metadata"]) | {"text_encoder.lora_alpha": "2"}
        )
    }
    scales = {m: layer.scale for m, layer in parse_lora(state, header, "a").modules.items()}
    assert scales == {"double_blocks.0.img_attn.proj": 2.0, "single_blocks.0.linear2": 1.0, "clip_l.text_model.encoder.layers.0.self_attn.q_proj": 0.5}  # fmt: skip


def test_sdxls_alpha_of_the_header():
    state, header = peft_file(["down_blocks.1.attentions.0.proj_in"], {"unet.lora_alpha": 8}, "unet.")
    assert parse_lora(state, header, "a").modules["input_blocks.4.1.proj_in"].scale == 2.0


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"lokr_w1": (4, 4), "lokr_w2": (32, 32), "dora_scale": (128, 1)}, "dora_scale beside lokr_w1"),
        ({"lora_up.weight": (128, 2), "lora_down.weight": (2, 128), "diff": (128, 128)}, "diff beside up"),
        ({"lora_up.weight": (0, 4), "lora_down.weight": (4, 8)}, "an empty up"),
        ({"lokr_w1": (4,), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 32)}, "do not fit|damaged"),
        ({"oft_blocks": (0, 4, 4)}, "an empty oft_blocks"),
    ],
)
def test_what_makes_no_layer_is_refused(parts, words):
    key = "lora_unet_double_blocks_0_img_attn_proj"
    with pytest.raises(AtelierError, match=words):
        parse_lora({f"{key}.{n}": torch.ones(s) for n, s in parts.items()}, {}, "a").modules[
            "double_blocks.0.img_attn.proj"
        ].delta()


def test_two_writings_of_one_bias_are_refused():
    state = {"lora_unet_img_in.diff_b": torch.ones(128), "diffusion_model.img_in.diff_b": torch.ones(128)}
    with pytest.raises(AtelierError, match="twice"):
        parse_lora(state, {}, "a")


def test_two_adapters_in_one_file_are_refused():
    key = "base_model.model.transformer_blocks.0.attn.to_out.0"
    state = {f"{key}.lora_{c}.{a}.weight": torch.ones(4, 4) for c in "AB" for a in ("one", "two")}
    with pytest.raises(AtelierError, match="adapters one, two"):
        parse_lora(state, {}, "a")


@pytest.mark.parametrize("layout", ["kohya", "diffusers_alpha"])
def test_values_beyond_a_precision_go_into_alpha(layout):
    layer = Factors(torch.full((128, 2), 1e5), torch.full((2, 128), 1e-3), 2.0)
    lora = Lora({"double_blocks.0.img_attn.proj": layer}, "kohya")
    back = parse_lora(to_layout(lora, layout, torch.float16), {}, "a").modules["double_blocks.0.img_attn.proj"]
    assert torch.allclose(back.delta(), layer.delta(), rtol=2e-3)
    with pytest.raises(AtelierError, match="above 65504"):
        to_layout(lora, "diffusers", torch.float16)


def test_a_base_model_that_its_layers_do_not_tell_is_in_the_header(tmp_path):
    lora = lora_of({"double_blocks.0.img_attn.proj": (3072, 3072)}, base="flux2")
    assert read_lora(write_lora(tmp_path / "a.safetensors", lora)).base == "flux2"


def test_halves_of_sd3s_last_context_block_change_places_with_their_bias():
    name = "joint_blocks.23.context_block.adaLN_modulation.1"
    lora = Lora(
        {name: factors(256, 128, 2, 2.0, 0)}, "kohya", vectors={f"{name}.bias": torch.arange(256.0)}, base="sd3"
    )
    state = to_layout(lora, "diffusers_alpha", torch.float32)
    bias = next(v for k, v in state.items() if k.endswith("diff_b"))
    assert torch.equal(bias, torch.cat([torch.arange(128.0, 256), torch.arange(128.0)]))
    back = parse_lora(state, {"flux_atelier.base": "sd3"}, "a")
    assert torch.equal(back.vectors[f"{name}.bias"], torch.arange(256.0))
    same(lora, back)


@pytest.mark.parametrize("blocks", [(3, 4, 4), (2, 4, 8, 8)])
def test_a_rotation_across_the_halves_is_refused(blocks):
    lora = Lora({"final_layer.adaLN_modulation.1": Rotation(torch.randn(*blocks))}, "kohya")
    with pytest.raises(AtelierError, match="across its halves"):
        to_layout(lora, "lycoris", torch.float32)


@pytest.mark.parametrize(
    "keys",
    [
        ("decoder.conv_in.weight", "decoder.conv_in.bias", "encoder.down_blocks.0.resnets.0.conv1.weight"),
        ("taesd_encoder.0.weight", "taesd_encoder.0.bias", "taesd_decoder.1.weight", "vae_shift"),
        ("decoder.layers.0.weight", "decoder.layers.2.conv.0.weight", "encoder.layers.0.bias"),
        ("1.weight", "1.bias", "3.conv.0.weight", "3.conv.0.bias"),
    ],
    ids=["whole", "taesd of ComfyUI", "taesd of diffusers", "one half of a taesd"],
)
def test_a_vae_is_called_a_vae(keys):
    with pytest.raises(AtelierError, match=r"x\.safetensors is a VAE\. Choose a Flux\.1 LoRA\."):
        parse_lora(
            {key: torch.ones(4, 4, 3, 3) if "weight" in key else torch.ones(4) for key in keys}, {}, "x.safetensors"
        )
