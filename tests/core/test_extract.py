"""Plain LoRAs out of two models and out of other kinds: beside dense float64, from files of every precision."""

import json
from pathlib import Path

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors, write_tensors
from flux_atelier.core.flux.checkpoint import Checkpoint, read
from flux_atelier.core.flux.layout import to_diffusers
from flux_atelier.core.lora.extract import ExtractOptions, convert, extract, fit
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import to_layout
from flux_atelier.core.lora.kinds import Dense, Hada, Kron, Rotation, delta_over, kind_of
from flux_atelier.core.lora.record import Lora
from flux_atelier.core.lora.tiles import change_over, rows_of, size_of
from flux_atelier.core.tensor_stream import open_tensors
from flux_atelier.trainer.nano import files

# Every kind of layer: a fused projection, linear1 and linear2 scaled down, and one outside of the blocks.
PLANTED = ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "single_blocks.2.linear2", "img_in")


def normal(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def planted(out, width, rank=16, seed=0):
    """A delta of a rank whose singular values fall, of the size that LoRAs of this model have."""
    left, right = (torch.linalg.qr(normal(n, rank, seed=seed + i))[0] for i, n in enumerate((out, width)))
    return (left * torch.arange(1, rank + 1) ** -0.8 * 3) @ right.T


def apart(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.fixture(scope="module")
def base():
    return {k: v.float() for k, v in read_tensors(files.TRANSFORMER)[0].items()}


def write(path: Path, state, dtype=torch.float32) -> Path:
    return write_tensors(path, {k: v.to(dtype) for k, v in state.items()})


def extracted(tuned: Path, base: Path, **options):
    with open_tensors(tuned) as one, open_tensors(base) as other:
        steps = list(extract(Checkpoint(one), Checkpoint(other), ExtractOptions(**options)))
    assert [s.result for s in steps[:-1]] == [None] * (len(steps) - 1)
    return steps[-1].result


def last(steps):
    return list(steps)[-1].result


class Memory:
    """Weights in memory."""

    name, precision = "base", "F32"

    def __init__(self, tensors):
        self.tensors = tensors
        self.shapes = {k: tuple(v.shape) for k, v in tensors.items()}

    def rows(self, name, start, stop):
        return self.tensors[name][start:stop]


def test_a_cut_by_hand():
    delta = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]])  # singular values 2 and 1
    cut, retained = fit(delta, ExtractOptions(rank=1))
    assert torch.allclose(cut.delta(), torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    assert retained.kept == pytest.approx(4 / 5)
    assert (cut.rank, cut.alpha) == (1, 1.0)


def test_no_change_is_a_layer_of_zeros():
    cut, retained = fit(torch.zeros(5, 4), ExtractOptions(rank=3))
    assert not cut.delta().any()
    assert retained.kept == 1.0


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (700, 520), (520, 700)])  # the last two in float32
@pytest.mark.parametrize("rank", [1, 8])
def test_exact_is_the_dense_optimum(shape, rank):
    left, sigma, right = torch.linalg.svd(normal(*shape, seed=3).double(), full_matrices=False)
    sigma = torch.arange(1, len(sigma) + 1).double() ** -0.6
    delta = ((left * sigma) @ right).float()
    best = (left[:, :rank] * sigma[:rank]) @ right[:rank]
    cut, retained = fit(delta, ExtractOptions(rank=rank))
    assert apart(cut.delta(), best) <= 2e-5
    assert retained.kept == pytest.approx((sigma[:rank].square().sum() / sigma.square().sum()).item(), rel=1e-6)
    fast, told = fit(delta, ExtractOptions(rank=rank, method="fast"))
    residual = apart(fast.delta(), delta) / apart(best, delta)
    assert 1 - 1e-6 <= residual <= 1.02
    assert told.kept == pytest.approx(1 - apart(fast.delta(), delta) ** 2, rel=1e-5)


def test_fast_is_the_same_every_time_and_leaves_the_seed_alone():
    delta = normal(80, 60)
    state = torch.get_rng_state()
    one, two = (fit(delta, ExtractOptions(rank=4, method="fast"))[0] for _ in range(2))
    assert torch.equal(one.up, two.up)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_energy_takes_the_fewest_directions(method):
    left, right = (torch.linalg.qr(normal(n, 4, seed=n))[0] for n in (60, 40))
    delta = (left * torch.tensor([4.0, 3.0, 2.0, 1.0])) @ right.T  # energies 16, 9, 4, 1 of 30
    for energy, rank in ((0.5, 1), (0.54, 2), (0.83, 2), (0.9, 3), (1.0, 4)):
        cut, retained = fit(delta, ExtractOptions(rank=8, energy=energy, method=method))
        assert cut.rank == rank
        assert retained.kept >= energy - 1e-6
    assert fit(delta, ExtractOptions(rank=2, energy=1.0, method=method))[0].rank == 2


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_planted_change_is_recovered(tmp_path, base, dtype, most):
    deltas = {name: planted(*base[f"{name}.weight"].shape, seed=i) for i, name in enumerate(PLANTED)}
    tuned = base | {f"{name}.weight": base[f"{name}.weight"].to(dtype).float() + d for name, d in deltas.items()}
    made = extracted(
        write(tmp_path / "t.safetensors", tuned, dtype), write(tmp_path / "b.safetensors", base, dtype), rank=16
    )
    assert set(made.lora.modules) == set(PLANTED)
    for name, delta in deltas.items():
        factors = made.lora.modules[name]
        assert (factors.rank, factors.alpha) == (16, 16.0)
        assert apart(factors.delta(), delta) <= most
    assert made.same == len(base) - len(PLANTED)
    assert made.kept == pytest.approx(1.0, abs=1e-3 if dtype == torch.bfloat16 else 1e-7)


def test_bfloat16_gives_the_optimum_of_what_is_there(tmp_path, base):
    name = "double_blocks.0.img_attn.qkv.weight"
    low = base[name].bfloat16()
    high = (low.float() + planted(*low.shape)).bfloat16()
    made = extracted(
        write(tmp_path / "t.safetensors", base | {name: high.float()}, torch.bfloat16),
        write(tmp_path / "b.safetensors", base, torch.bfloat16), rank=16,
    )  # fmt: skip
    left, sigma, right = torch.linalg.svd(high.double() - low.double(), full_matrices=False)
    best = (left[:, :16] * sigma[:16]) @ right[:16]
    assert apart(made.lora.modules[name.removesuffix(".weight")].delta(), best) <= 1e-5


def test_biases_and_norms_are_taken_as_they_are(tmp_path, base):
    norm, bias = "double_blocks.0.img_attn.norm.query_norm.scale", "img_in.bias"
    tuned = base | {bias: base[bias] + 0.5, norm: base[norm] * 2}
    theirs = norm.replace(".scale", ".weight")  # as ComfyUI saves it, and as LoRAs name it
    tuned[theirs] = tuned.pop(norm)
    made = extracted(write(tmp_path / "t.safetensors", tuned), write(tmp_path / "b.safetensors", base))
    assert not made.lora.modules
    assert set(made.lora.vectors) == {theirs, bias}
    assert torch.allclose(made.lora.vectors[bias], torch.full((256,), 0.5))
    assert torch.equal(made.lora.vectors[theirs], base[norm])
    assert "2 biases and norms" in made.report()


def test_layers_are_chosen_and_the_header_says_how(tmp_path, base):
    tuned = {k: v + planted(*v.shape, seed=1) if v.dim() == 2 else v for k, v in base.items()}
    paths = write(tmp_path / "t.safetensors", tuned), write(tmp_path / "b.safetensors", base)
    made = extracted(*paths, rank=4, layers="double.0.qkv, single.2.linear1")
    assert set(made.lora.modules) == {
        "double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.qkv", "single_blocks.2.linear1",
    }  # fmt: skip
    recipe = json.loads(made.lora.metadata["flux_atelier.recipe"])["extract"]
    assert recipe == {
        "tuned": "t.safetensors", "base": "b.safetensors", "rank": 4, "method": "exact",
        "layers": "double.0.qkv, single.2.linear1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"img_in.weight": (8, 4), "guidance_in.in_layer.weight": (8, 4)}, "flux-1-dev/lora"),
        ({"img_in.weight": (8, 4)}, "flux-1-schnell/lora"),
        ({}, None),  # a part of a model does not tell
        ({"img_in.weight": (6144, 4), "double_stream_modulation_img.lin.weight": (8, 4)}, "flux-2-dev/lora"),
        ({"img_in.weight": (4096, 4), "double_stream_modulation_img.lin.weight": (8, 4)}, "flux-2-klein-9b/lora"),
        ({"img_in.weight": (7, 4), "double_stream_modulation_img.lin.weight": (8, 4)}, None),
    ],
)
def test_an_extracted_lora_says_for_which_model_it_is(shapes, told):
    layer = "single_blocks.0.linear2.weight"
    same = {name: torch.zeros(1, 1).expand(shape) for name, shape in shapes.items()}
    models = [Memory({layer: normal(6, 24, seed=seed)} | same) for seed in (1, 2)]
    lora = last(extract(*models, ExtractOptions(rank=2, layers="single"))).lora
    assert lora.metadata.get("modelspec.architecture") == told


def test_the_same_weights_in_diffusers_layout_do_not_differ(tmp_path, base):
    theirs = write(tmp_path / "d.safetensors", to_diffusers(base), torch.float16)
    with pytest.raises(AtelierError, match="do not differ"):
        extracted(theirs, files.TRANSFORMER)
    bundled = {f"model.diffusion_model.{k}": v for k, v in base.items()} | {"vae.decoder.weight": torch.ones(2, 2)}
    with pytest.raises(AtelierError, match="do not differ"):
        extracted(write(tmp_path / "c.safetensors", bundled, torch.float16), files.TRANSFORMER)


@pytest.mark.parametrize("style", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_fp8_counts_its_scales(tmp_path, base, style, rows):
    name = "single_blocks.0.linear1"
    weight = base[f"{name}.weight"]
    scale = (weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()) / 448
    packed = (weight / scale).to(torch.float8_e4m3fn)
    state = {k: v.half() for k, v in base.items()} | {f"{name}.weight": packed, f"{name}.{style}": scale}
    if style == "scale_weight":
        state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    else:
        state[f"{name}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    with open_tensors(write_tensors(tmp_path / "f.safetensors", state)) as opened:
        checkpoint = Checkpoint(opened)
        assert set(checkpoint.shapes) == {k.replace("_norm.scale", "_norm.weight") for k in base}
        assert torch.equal(read(checkpoint, f"{name}.weight"), packed.float() * scale)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_gguf_is_what_its_own_package_says(tmp_path, base, kind):
    gguf = pytest.importorskip("gguf")
    name, kind = "single_blocks.0.linear2.weight", gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(base[name].numpy(), kind)
    path = write_gguf(tmp_path / "q.gguf", base, {name: (packed, kind)})
    with open_tensors(path) as opened:
        checkpoint = Checkpoint(opened)
        whole = read(checkpoint, name)
        assert torch.equal(whole, torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()))
        assert torch.equal(checkpoint.rows(name, 7, 9), whole[7:9])
        assert torch.equal(read(checkpoint, "img_in.bias"), base["img_in.bias"])


def write_gguf(path, state, packed):
    import gguf

    writer = gguf.GGUFWriter(path, "flux")
    for key, value in state.items():
        data, kind = packed.get(key, (value.numpy(), None))
        writer.add_tensor(key, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_of_two_precisions_are_told(tmp_path, base):
    made = extracted(write(tmp_path / "t.safetensors", base, torch.bfloat16), files.TRANSFORMER, rank=1)
    assert "t.safetensors is in BF16 and nano-flux.safetensors in F16" in made.report()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"txt_in.weight": torch.ones(256, 64)}, "txt_in.weight is 256 x 64 in .* and is 256 x 128"),
        (lambda s: {k: v for k, v in s.items() if "guidance" not in k}, "has guidance_in"),
        (lambda s: s | {"extra.weight": torch.ones(2, 2)}, "is missing in"),
        (lambda s: s | {"img_in.weight": s["img_in.weight"] * float("nan")}, "no finite numbers"),
        (lambda s: {"joint_blocks.0.x_block.attn.qkv.weight": torch.ones(2, 2)}, "Stable Diffusion 3"),
        (lambda s: s | {"img_in.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}, "nvfp4"),
    ],
)
def test_models_that_do_not_fit_are_named(tmp_path, base, change, words):
    tuned = write_tensors(tmp_path / "t.safetensors", change(base))
    with pytest.raises(AtelierError, match=words):
        extracted(tuned, write(tmp_path / "b.safetensors", base))


def test_every_missing_parameter_is_told_not_only_the_first():
    kept = "single_blocks.0.linear1.weight"
    base = Memory({n: torch.zeros(3, 4) for n in ("img_in.weight", "single_blocks.1.linear2.weight", kept)})
    tuned = Memory({kept: torch.ones(3, 4)})
    with pytest.raises(AtelierError, match=r"base has single_blocks\.1\.linear2"):
        last(extract(tuned, base, ExtractOptions(layers="single")))
    assert set(last(extract(tuned, base, ExtractOptions(layers="single.0"))).lora.modules) == {
        "single_blocks.0.linear1"
    }


@pytest.mark.parametrize("layers", ["", "single.40"])
@pytest.mark.parametrize("marked", [("tuned", "base"), ("tuned",), ("base",)])
def test_two_models_of_flux2_give_a_lora_of_flux2(layers, marked):
    mark, name = "double_stream_modulation_img.lin.weight", "single_blocks.40.linear2.weight"
    if len(marked) == 1 and not layers:
        layers = "single"  # the mark itself is in one model alone
    models = {
        who: Memory({name: normal(6, 24, seed=seed)} | ({mark: torch.zeros(36, 6)} if who in marked else {}))
        for seed, who in enumerate(("tuned", "base"))
    }
    lora = last(extract(models["tuned"], models["base"], ExtractOptions(rank=2, layers=layers))).lora
    assert lora.base == "flux2"
    assert any("single_transformer_blocks.40" in key for key in to_layout(lora, "diffusers", torch.float16))


def test_a_file_cut_short_is_told(tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files.TRANSFORMER.read_bytes()[:-1000])
    with pytest.raises(AtelierError, match="not a whole safetensors file"):
        extracted(cut, files.TRANSFORMER)


def layers_of_every_kind(out=64, width=48):
    up, down = normal(out, 4, seed=1, scale=0.1), normal(4, width, seed=2)
    norms = normal(out, seed=3).abs() + 1
    pair = lambda seed: (normal(out, 3, seed=seed), normal(3, width, seed=seed + 1, scale=0.1))  # noqa: E731
    return {
        "LoRA": Factors(up, down, 2.0),
        "DoRA": Factors(up, down, 2.0, magnitude=norms),
        "DoRA of ComfyUI": Factors(up, down, 2.0, dora_scale=norms),
        "LoKr": Kron(normal(8, 4, seed=4), (normal(8, 2, seed=5), normal(2, 12, seed=6)), 0.3),
        "LoKr of whole factors": Kron(normal(8, 4, seed=4), (normal(8, 12, seed=5),), 0.3),
        "LoHa": Hada(pair(7), pair(9), 0.5),
        "difference": Dense(normal(out, width, seed=11)),
        "OFT": Rotation(normal(8, 8, 8, seed=12, scale=0.2)),
        "OFT with limit": Rotation(normal(8, 8, 8, seed=12), 0.5, normal(out, 1, seed=13).abs()),
        "BOFT": Rotation(normal(2, 8, 8, 8, seed=14, scale=0.2)),
    }


KINDS = list(layers_of_every_kind())


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_of_any_kind_becomes_plain(kind):
    layer, weight = layers_of_every_kind()[kind], normal(64, 48, seed=20)
    dense = delta_over(layer, weight)
    lora = Lora(
        {"img_in": layer}, "kohya", {"modelspec.trigger_phrase": "ohwx"}, vectors={"img_in.bias": torch.ones(64)}
    )
    made = last(convert(lora, Memory({"img_in.weight": weight}), ExtractOptions(rank=48)))
    assert kind_of(made.lora.modules["img_in"]) == "LoRA"
    assert apart(made.lora.modules["img_in"].delta(), dense) <= 1e-5
    assert torch.equal(made.lora.vectors["img_in.bias"], torch.ones(64))
    assert made.lora.metadata["modelspec.trigger_phrase"] == "ohwx"
    short = last(convert(lora, Memory({"img_in.weight": weight}), ExtractOptions(rank=2)))
    left, sigma, right = torch.linalg.svd(dense.double())
    assert apart(short.lora.modules["img_in"].delta(), (left[:, :2] * sigma[:2]) @ right[:2]) <= 1e-5


@pytest.mark.parametrize("kind", [k for k in KINDS if "DoRA" not in k and "OFT" not in k])
def test_what_does_not_lean_on_the_base_needs_none(kind):
    layer = layers_of_every_kind()[kind]
    made = last(convert(Lora({"img_in": layer}, "kohya"), None, ExtractOptions(rank=48)))
    assert apart(made.lora.modules["img_in"].delta(), layer.delta()) <= 1e-5


def test_a_base_is_asked_only_for_layers_that_lean_on_it():
    kinds = layers_of_every_kind()
    text = "clip_l.text_model.encoder.layers.0.self_attn.q_proj"
    lora = Lora({text: kinds["LoKr of whole factors"], "img_in": kinds["DoRA"]}, "kohya")
    made = last(convert(lora, Memory({"img_in.weight": normal(64, 48, seed=20)}), ExtractOptions(rank=48)))
    assert apart(made.lora.modules[text].delta(), lora.modules[text].delta()) <= 1e-5


@pytest.mark.parametrize("kind", ["DoRA", "OFT", "BOFT"])
def test_what_leans_on_the_base_asks_for_it(kind):
    with pytest.raises(AtelierError, match="base model is needed"):
        last(convert(Lora({"img_in": layers_of_every_kind()[kind]}, "kohya")))
    with pytest.raises(AtelierError, match="img_in is 60 x 48 in base, and 64 x"):
        last(
            convert(
                Lora({"img_in": layers_of_every_kind()[kind]}, "kohya"), Memory({"img_in.weight": torch.ones(60, 48)})
            )
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_in_tiles_is_the_whole_change(kind, monkeypatch):
    from flux_atelier.core.lora import tiles

    monkeypatch.setattr(tiles, "VALUES", 500)  # ten rows or seven columns at a time
    layer, weight = layers_of_every_kind()[kind], normal(64, 48, seed=21)
    whole = delta_over(layer, weight)
    assert size_of(layer) in ((64, 48), (64, None))
    assert torch.allclose(change_over(layer, weight.clone()), whole, atol=1e-6)
    if "OFT" not in kind:
        part = rows_of(layer, 5, 21)
        assert torch.allclose(delta_over(part, weight[5:21]), whole[5:21], atol=1e-6)
