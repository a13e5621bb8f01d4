"""Exact algebra on factors, beside dense float64; files in three layouts, beside peft and diffusers."""

import json

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import write_tensors
from flux_atelier.core.lora.factors import Factors, singular_factors, truncate, weighted_sum
from flux_atelier.core.lora.formats import module_name, parse_lora, read_lora, to_layout, write_lora
from flux_atelier.core.lora.merge import merge
from flux_atelier.core.lora.record import Lora


def factors(out, width, rank, alpha, seed):
    rng = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(out, rank, generator=rng), torch.randn(rank, width, generator=rng), alpha)


def test_a_sum_by_hand():
    a = Factors(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 2.0]]), 2.0)  # delta [[2, 4], [0, 0]]
    b = Factors(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0, 1.0]]), 1.0)  # delta [[0, 0], [3, 1]]
    assert torch.equal(weighted_sum([(1.0, a), (-2.0, b)]).delta(), torch.tensor([[2.0, 4.0], [-6.0, -2.0]]))


@pytest.mark.parametrize("weights", [(1, 1), (0.5, 0.5), (0.7, 0.3), (1, -1)])
def test_merge_equals_the_sum_of_dense_deltas(weights):
    a, b = factors(96, 64, 16, 8.0, 0), factors(96, 64, 8, 16.0, 1)
    dense = weights[0] * a.delta().double() + weights[1] * b.delta().double()
    summed = weighted_sum(list(zip(weights, (a, b), strict=True)))
    assert summed.rank == 24
    assert (summed.delta() - dense).norm() / dense.norm() <= 1e-6


@pytest.mark.parametrize("rank", [1, 4, 15])
def test_truncation_is_the_dense_optimum(rank):
    full = factors(96, 64, 16, 8.0, 2)
    left, sigma, right = torch.linalg.svd(full.scale * full.up.double() @ full.down.double(), full_matrices=False)
    best = (left[:, :rank] * sigma[:rank]) @ right[:rank]
    cut, kept = truncate(full, rank)
    assert (cut.delta() - best).norm() / best.norm() <= 1e-6
    assert kept == pytest.approx((sigma[:rank].square().sum() / sigma.square().sum()).item(), rel=1e-9)
    assert torch.allclose(singular_factors(full)[1], sigma[:16], rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: [(1, a), (1, a)],  # twice the same: half of the directions are at rounding
        lambda a: [(1, a), (-1, a)],  # nothing is left
        lambda a: [(0, a)],
    ],
)
def test_rank_deficient_sums_stay_finite_and_right(make):
    parts = make(factors(40, 30, 6, 6.0, 3))
    dense = sum(w * p.delta().double() for w, p in parts)
    cut, kept = truncate(weighted_sum(parts), 6) if len(parts) > 1 else truncate(weighted_sum(parts), 3)
    assert torch.isfinite(cut.up).all()
    assert torch.isfinite(cut.down).all()
    assert (cut.delta() - dense).norm() <= 1e-5 * max(1.0, dense.norm())
    assert 0 <= kept <= 1.0 + 1e-9


def test_merge_with_itself_is_itself():
    lora = some_lora()
    merged = merge([("a", 0.5, lora), ("b", 0.5, lora)], rank=4).lora
    for name, f in lora.modules.items():
        assert (merged.modules[name].delta() - f.delta()).norm() / f.delta().norm() <= 1e-6


def test_a_layer_that_one_lacks_gets_the_other_alone():
    both, one = some_lora(), Lora({"img_in": factors(128, 64, 4, 4.0, 7)}, "kohya")
    merged = merge([("a", 1.0, both), ("b", 0.5, one)])
    assert torch.allclose(merged.lora.modules["img_in"].delta(), 0.5 * one.modules["img_in"].delta())
    assert len(merged.lora.modules) == len(both.modules) + 1


def test_a_merge_carries_triggers_and_its_recipe():
    a, b = some_lora(), some_lora(1)
    a.metadata["modelspec.trigger_phrase"], b.metadata["modelspec.trigger_phrase"] = "ohwx", "sks"
    metadata = merge([("one", 0.8, a), ("two", 0.2, b)], 4).lora.metadata
    assert metadata["modelspec.trigger_phrase"] == "ohwx, sks"
    assert json.loads(metadata["flux_atelier.recipe"])["merge"][0] == {"name": "one", "weight": 0.8}


def test_other_base_models_do_not_mix():
    a = Lora({"img_in": factors(128, 64, 4, 4.0, 0)}, "kohya")
    b = Lora({"img_in": factors(256, 64, 4, 4.0, 0)}, "kohya")
    with pytest.raises(AtelierError, match="128 x 64 and 256 x 64"):
        merge([("a", 1, a), ("b", 1, b)])


MODULES = {  # name -> (rows, columns) in a model of hidden size 128
    "double_blocks.0.img_attn.qkv": (384, 128),
    "double_blocks.11.txt_attn.proj": (128, 128),
    "double_blocks.0.img_mlp.0": (512, 128),
    "double_blocks.0.txt_mlp.2": (128, 512),
    "double_blocks.3.img_mod.lin": (768, 128),
    "single_blocks.37.linear1": (896, 128),
    "single_blocks.1.linear2": (128, 640),
    "single_blocks.1.modulation.lin": (384, 128),
    "final_layer.adaLN_modulation.1": (256, 128),
}


def some_lora(seed: int = 0) -> Lora:
    """Rank 4, alpha 6, one layer of every kind."""
    return Lora({n: factors(o, i, 4, 6.0, seed + k) for k, (n, (o, i)) in enumerate(MODULES.items())}, "kohya")


@pytest.mark.parametrize("layout", ["kohya", "comfy", "diffusers"])
def test_every_layout_reads_back_exactly(tmp_path, layout):
    lora = some_lora()
    back = read_lora(write_lora(tmp_path / "a.safetensors", lora, layout, torch.float32))
    assert back.layout == layout
    assert not back.unknown
    assert back.modules.keys() == lora.modules.keys()
    for name, f in lora.modules.items():
        assert (back.modules[name].delta() - f.delta()).abs().max() <= 1e-6 * f.delta().abs().max()
        assert back.modules[name].rank == 4  # split parts that share `down` are fused without growing


@pytest.mark.parametrize("layout", ["kohya", "comfy", "diffusers"])
def test_deltas_are_exact_at_the_real_width(layout):
    """Hidden size 3072, as in Flux.1 dev, q, k and v of one layer and linear1 of another."""
    lora = Lora(
        {
            "double_blocks.18.img_attn.qkv": factors(9216, 3072, 2, 4.0, 1),
            "single_blocks.37.linear1": factors(21504, 3072, 2, 1.0, 2),
        },
        "kohya",
    )
    back = parse_lora(to_layout(lora, layout, torch.float32), {}, "a")
    for name, f in lora.modules.items():
        assert torch.allclose(back.modules[name].delta(), f.delta(), rtol=1e-6, atol=1e-6)


def split_state(alphas):
    """A diffusers file whose q, k and v have factors of their own."""
    state, parts = {}, {}
    for k, name in enumerate("qkv"):
        f = factors(128, 128, 2 + k, float(alphas[k]), 10 + k)
        parts[name] = f
        key = f"transformer.transformer_blocks.5.attn.to_{name}"
        state |= {f"{key}.lora_A.weight": f.down, f"{key}.lora_B.weight": f.up, f"{key}.alpha": torch.tensor(f.alpha)}
    return state, parts


def test_split_parts_with_their_own_ranks_and_alphas_fuse_exactly():
    state, parts = split_state((2, 8, 1))
    fused = parse_lora(state, {}, "a").modules["double_blocks.5.img_attn.qkv"]
    assert fused.rank == 9
    assert torch.allclose(fused.delta(), torch.cat([parts[n].delta() for n in "qkv"]), atol=1e-5)


def test_a_missing_part_stays_zero():
    state, parts = split_state((2, 3, 4))
    state = {k: v for k, v in state.items() if "to_k" not in k}
    delta = parse_lora(state, {}, "a").modules["double_blocks.5.img_attn.qkv"].delta()
    assert delta[128:256].abs().max() == 0
    assert torch.allclose(delta[256:], parts["v"].delta(), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"lora_alpha": 8}, 8.0),
        ({"lora_alpha": 8, "use_rslora": True}, 16.0),
        ({"lora_alpha": 8, "alpha_pattern": {"attn.to_out.0": 2}}, 2.0),
        ({}, 4.0),
    ],
)
def test_alpha_in_pefts_header_counts(config, alpha):
    f = factors(128, 128, 4, 1.0, 0)
    key = "transformer.transformer_blocks.0.attn.to_out.0"
    state = {f"{key}.lora_A.weight": f.down, f"{key}.lora_B.weight": f.up}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    assert parse_lora(state, metadata, "a").modules["double_blocks.0.img_attn.proj"].alpha == alpha


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("lora_unet_double_blocks_18_txt_mlp_2", "double_blocks.18.txt_mlp.2"),
        ("diffusion_model.single_blocks.0.linear2", "single_blocks.0.linear2"),
        ("transformer.single_transformer_blocks.7.proj_mlp", "single_blocks.7.linear1"),
        ("single_transformer_blocks.7.norm.linear", "single_blocks.7.modulation.lin"),
        ("lora_transformer_transformer_blocks_2_ff_context_net_0_proj", "double_blocks.2.txt_mlp.0"),
        ("transformer.norm_out.linear", "final_layer.adaLN_modulation.1"),
        ("lora_unet_guidance_in_in_layer", "guidance_in.in_layer"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "clip_l.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc9", None),
        ("transformer.transformer_blocks.0.attn.to_x", None),
    ],
)
def test_names_of_every_layout(key, module):
    found = module_name(key)
    assert (found[0] if found else None) == module


def test_unknown_keys_are_told(tmp_path):
    state = to_layout(some_lora(), "kohya", torch.float32) | {
        "lora_te1_x.lora_down.weight": torch.zeros(2, 2),
        "odd": torch.zeros(1),
    }
    assert set(parse_lora(state, {}, "a").unknown) == {"lora_te1_x.lora_down.weight", "odd"}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"x": torch.zeros(1)}, "no LoRA layer"),
        ({"lora_unet_img_in.lora_down.weight": torch.zeros(2, 64)}, "only one of its two factors"),
        (
            {
                "lora_unet_img_in.lora_down.weight": torch.zeros(2, 64),
                "lora_unet_img_in.lora_up.weight": torch.zeros(8, 3),
            },
            "do not fit together",
        ),
    ],
)
def test_a_damaged_lora_is_told(state, words):
    with pytest.raises(AtelierError, match=words.replace(".", r"\.")):
        parse_lora(state, {}, "a")


@pytest.mark.parametrize("cut", [0, 4, 200, -50])
def test_a_cut_file_is_told(tmp_path, cut):
    path = write_tensors(tmp_path / "a.safetensors", to_layout(some_lora(), "kohya", torch.float32))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AtelierError, match="not a whole safetensors file"):
        read_lora(path)


def test_diffusers_reads_our_kohya_and_diffusers_files_alike():
    """At the real width, where diffusers' own converter works."""
    from diffusers import FluxPipeline

    lora = Lora(
        {
            "double_blocks.0.img_attn.qkv": factors(9216, 3072, 2, 1.0, 1),
            "double_blocks.0.img_mlp.2": factors(3072, 12288, 2, 4.0, 3),
        },
        "kohya",
    )
    for layout in ("kohya", "diffusers"):
        read = FluxPipeline.lora_state_dict(to_layout(lora, layout, torch.float32), return_alphas=True)
        state, alphas = read[0], read[1] or {}
        q, k, v = (dense(state, alphas, f"transformer.transformer_blocks.0.attn.to_{n}") for n in "qkv")
        assert torch.allclose(torch.cat([q, k, v]), lora.modules["double_blocks.0.img_attn.qkv"].delta(), atol=1e-5)
        down = dense(state, alphas, "transformer.transformer_blocks.0.ff.net.2")
        assert torch.allclose(down, lora.modules["double_blocks.0.img_mlp.2"].delta(), atol=1e-5)


def dense(state, alphas, key):
    up, down = state[f"{key}.lora_B.weight"], state[f"{key}.lora_A.weight"]
    alpha = alphas.get(f"{key}.alpha", down.shape[0])
    return float(alpha) / down.shape[0] * up @ down


def test_a_merge_refuses_what_is_no_sum_and_tells_what_it_leaves_out(caplog):
    state = to_layout(some_lora(), "kohya", torch.float32)
    odd = parse_lora(state | {"lora_unet_double_blocks_0_img_mlp_0.dora_scale": torch.ones(512, 1)}, {}, "a")
    with pytest.raises(AtelierError, match="is a DoRA"):
        merge([("a", 1.0, odd)])
    text = parse_lora(state | {"lora_te1_text_model_x.lora_down.weight": torch.ones(2, 2)}, {}, "a")
    merge([("a", 1.0, text)])
    assert "1 tensors are left out" in caplog.text
