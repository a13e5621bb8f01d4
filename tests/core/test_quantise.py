"""Fewer bits for a LoRA: what fits is kept exactly, the error told is the file's, and the scale is never lost."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from test_resize import ONE, PROJ, QKV, dense, lora_of, relative, spectral

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import read_lora, to_layout, write_lora
from flux_atelier.core.lora.kinds import Dense, Hada, Kron, Rotation
from flux_atelier.core.lora.quantise import STORAGES, TOP, quantise, stored
from flux_atelier.core.lora.record import Lora

EIGHT = ("float8_e4m3fn", "int8")


def loud():
    """Layers of very different strengths and unbalanced factors, as after merges; alphas that are no powers of two."""
    modules = {}
    for name, strength, alpha in ((QKV, 1e-8, 3.0), (PROJ, 1.0, 0.75), (ONE, 300.0, 16.0)):
        layer = spectral(448 if name == ONE else 192, 64, 12, 0.8, len(modules))
        modules[name] = replace(layer, up=layer.up * strength * 1e3, down=layer.down / 1e3, alpha=alpha)
    return Lora(modules, "kohya")


def test_a_layer_in_int8_by_hand():
    """Both factors fill -127..127, and alpha has the scale: 0.5 / 127 * 2 / 127."""
    layer = stored(Factors(torch.tensor([[0.5], [-0.3]]), torch.tensor([[2.0, 1.1]]), 1.0), "int8")
    assert layer.up.abs().flatten().tolist() == [127, 76]
    assert layer.down.abs().flatten().tolist() == [127, 70]
    assert layer.alpha == pytest.approx(1 / 127**2)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_16_bits_by_hand(storage):
    """Powers of two go into the factors, the rest stays in alpha: 3 * 2^-4 * 2^9."""
    layer = stored(Factors(torch.tensor([[16.0], [-5.0]]), torch.tensor([[0.001953125, 0.0]]), 3.0), storage)
    assert layer.up.flatten().tolist() == [1.0, -0.3125]
    assert layer.down.flatten().tolist() == [1.0, 0.0]
    assert layer.alpha == 3.0 * 16 / 512


@pytest.mark.parametrize(
    ("storage", "layout"),
    [*product(STORAGES, ("kohya", "comfy")), ("int8", "diffusers_alpha"), ("bfloat16", "diffusers_alpha")],
)
def test_the_error_told_is_the_files(tmp_path, storage, layout):
    lora = loud()
    made = quantise(lora, storage, layout)
    path = write_lora(tmp_path / "a.safetensors", made.lora, layout, made.dtype)
    back = read_lora(path)
    lost = total = 0.0
    for told in made.layers:
        before, after = dense(lora.modules[told.name]), dense(back.modules[told.name])
        assert told.error == pytest.approx(relative(after, before), rel=1e-3)
        assert told.energy == pytest.approx(before.square().sum().item(), rel=1e-6)
        lost, total = lost + (before - after).square().sum(), total + before.square().sum()
    assert made.error == pytest.approx((lost / total).sqrt().item(), rel=1e-3)
    limit = {"float16": 5e-4, "bfloat16": 4e-3, "float8_e4m3fn": 0.035, "int8": 0.015}[storage]
    assert max(told.error for told in made.layers) <= limit
    if storage in EIGHT:
        full = write_lora(tmp_path / "b.safetensors", lora, layout)
        assert path.stat().st_size < 0.55 * full.stat().st_size + 2000


def test_plain_casts_are_worse():
    """What a cast of the factors as they are does to a quiet layer in float16 and to every layer in float8."""
    lora = loud()
    for storage, least in (("float16", 10), ("float8_e4m3fn", 1.9)):
        made = quantise(lora, storage)
        cast = {n: replace(m, up=m.up.to(made.dtype), down=m.down.to(made.dtype)) for n, m in lora.modules.items()}
        theirs = max(relative(dense(cast[n]), dense(m)) for n, m in lora.modules.items())
        assert theirs / max(told.error for told in made.layers) >= least


@pytest.mark.parametrize("power", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("rank", [1, 7, 16, 32])
@pytest.mark.parametrize("storage", EIGHT)
def test_mixed_directions_are_never_much_worse_and_mostly_better(storage, rank, power):
    layer = spectral(256, 192, rank, power)
    svd = torch.linalg.svd(dense(layer), full_matrices=False)
    root = svd[1][:rank].sqrt()
    apart = [svd[0][:, :rank] * root, root[:, None] * svd[2][:rank]]
    rounded = []
    for factor in apart:  # each factor as it is, over its whole range
        scale = TOP[storage] / factor.abs().max()
        grid = (factor * scale).round() if storage == "int8" else (factor * scale).to(torch.float8_e4m3fn).double()
        rounded.append(grid / scale)
    theirs = relative(rounded[0] @ rounded[1], dense(layer))
    ours = quantise(Lora({PROJ: layer}, "kohya"), storage).error
    assert ours <= 1.15 * theirs
    if power > 0.5 and rank > 1:
        assert ours <= (0.85 if rank > 7 else 0.95) * theirs


@pytest.mark.parametrize("storage", STORAGES)
def test_storing_again_changes_nothing(tmp_path, storage):
    made = quantise(loud(), storage)
    back = read_lora(write_lora(tmp_path / "a.safetensors", made.lora, "kohya", made.dtype))
    again = quantise(back, storage)
    assert again.error == 0.0
    for name, layer in again.lora.modules.items():
        assert torch.equal(dense(layer), dense(back.modules[name]))


@pytest.mark.parametrize(
    ("held", "storage"), [("float16", "float16"), ("bfloat16", "bfloat16"), ("bfloat16", "float16")]
)
def test_what_fits_is_exact(held, storage):
    dtype = getattr(torch, held)
    layer = spectral(192, 64, 12, 0.8)
    lora = Lora({PROJ: Factors((layer.up).to(dtype), (layer.down).to(dtype), 9.0)}, "kohya")
    made = quantise(lora, storage)
    if held == storage:
        assert made.error == 0.0
        state = to_layout(made.lora, "kohya", made.dtype)
        up, down, alpha = (
            state[f"lora_unet_double_blocks_0_img_attn_proj.{e}"]
            for e in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        assert torch.equal(alpha.double() / 12 * up.double() @ down.double(), dense(lora.modules[PROJ]))
    assert made.error < 1e-4


def test_scales_survive_where_a_converter_loses_them():
    """alpha / rank = 0.75 folded into bfloat16 factors, as converters do, beside a power of two and the rest in alpha."""
    layer = spectral(192, 64, 16, 0.8, alpha=12.0)
    layer = replace(layer, up=layer.up.bfloat16(), down=layer.down.bfloat16())
    folded = replace(layer, up=layer.up, down=(layer.down.float() * 0.75).bfloat16(), alpha=16.0)
    assert relative(dense(folded), dense(layer)) > 1e-3
    assert quantise(Lora({PROJ: layer}, "kohya"), "bfloat16").error == 0.0


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_overflows_or_vanishes(storage):
    zero = Factors(torch.zeros(8, 2), torch.ones(2, 5), 2.0)
    huge = Factors(torch.full((8, 2), 1e30), torch.full((2, 5), 1e-30), 2.0)
    off = Factors(torch.ones(8, 2), torch.ones(2, 5), 0.0)
    lora = Lora({QKV: zero, PROJ: huge, ONE: off}, "kohya")
    made = quantise(lora, storage)
    for name, layer in made.lora.modules.items():
        up, down = layer.up.to(made.dtype).double(), layer.down.to(made.dtype).double()
        assert torch.allclose(layer.scale * up @ down, dense(lora.modules[name]), rtol=1e-2)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-37])
def test_factors_too_small_for_their_power_of_two_are_zero(storage, size):
    tiny = Factors(torch.tensor([[size], [0.0]]), torch.ones(1, 3), 1.0)
    for layer in (tiny, replace(tiny, up=torch.ones(2, 1), down=torch.full((1, 3), size))):
        made = stored(layer, storage)
        dtype = getattr(torch, storage)
        up, down = made.up.to(dtype).double(), made.down.to(dtype).double()
        assert (made.scale * up @ down).abs().max() <= 1e-36


def test_the_header_tells_the_storage():
    metadata = quantise(replace(lora_of(), metadata={"modelspec.trigger_phrase": "ohwx"}), "int8").lora.metadata
    assert metadata["modelspec.trigger_phrase"] == "ohwx"
    assert json.loads(metadata["flux_atelier.recipe"])["quantise"] == {"storage": "int8"}


def odd_layers():
    rng = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, generator=rng)

    return {
        "LoKr": Kron(some(4, 4), (some(16, 2), some(2, 16)), 0.3),
        "whole LoKr": Kron(some(4, 4), (some(16, 16),), 0.3),
        "LoHa": Hada((some(64, 2), some(2, 48)), (some(64, 2), some(2, 48)), 0.3),
        "difference": Dense(some(64, 48)),
    }


@pytest.mark.parametrize("kind", odd_layers())
def test_other_kinds_keep_16_bits_and_are_told_for_8(tmp_path, kind):
    layer = odd_layers()[kind]
    made = quantise(Lora({PROJ: layer}, "kohya"), "bfloat16")
    back = read_lora(write_lora(tmp_path / "a.safetensors", made.lora, "kohya", made.dtype)).modules[PROJ]
    assert made.error == pytest.approx(relative(back.delta(), layer.delta()), rel=1e-2)
    for storage in EIGHT:
        with pytest.raises(AtelierError, match=kind.removeprefix("whole ")):
            quantise(Lora({PROJ: layer}, "kohya"), storage)


def test_a_rotation_has_no_error_to_tell():
    lora = Lora({PROJ: Rotation(torch.randn(4, 4, 4))}, "kohya")
    assert quantise(lora, "float16").error == 0.0


def test_a_dora_keeps_its_norms():
    layer = replace(spectral(64, 64, 8, 0.3), dora_scale=torch.rand(64))
    made = quantise(Lora({PROJ: layer}, "kohya"), "int8").lora.modules[PROJ]
    assert torch.equal(made.dora_scale, layer.dora_scale)


def test_a_convolution_keeps_its_kernel(tmp_path):
    layer = replace(spectral(320, 36, 6, 0.5), kernel=(3, 3))
    made = quantise(Lora({"input_blocks.0.0": layer}, "kohya", base="sdxl"), "int8")
    assert made.lora.modules["input_blocks.0.0"].kernel == (3, 3)


@pytest.mark.parametrize(
    ("change", "layout", "words"),
    [
        ({}, "diffusers", "no alpha"),
        ({}, "core", "no alpha"),
        ({"vectors": {"img_in.bias": torch.ones(64)}}, "kohya", "img_in.bias"),
    ],
)
def test_8_bits_without_a_place_for_the_scale_are_told(change, layout, words):
    with pytest.raises(AtelierError, match=words):
        quantise(replace(lora_of(), **change), "float8_e4m3fn", layout)
    quantise(replace(lora_of(), **change), "bfloat16", layout)


def test_an_unknown_storage_is_told():
    with pytest.raises(AtelierError, match="int4"):
        quantise(lora_of(), "int4")
