"""Weights that are kept small: what comes out of them is what their own libraries say, and it trains."""

import numpy as np
import pytest
import torch
from tiny import SHAPE, tiny_batch, tiny_tree

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import write_tensors
from flux_atelier.trainer import adapter
from flux_atelier.trainer.config import AdapterOptions
from flux_atelier.trainer.flux.stream import place
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.models import Placement, load_transformer, shape_in
from flux_atelier.trainer.packed import block_linears, quantise, read_gguf

CPU = torch.device("cpu")
KINDS = ("Q8_0", "Q5_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")


def velocity(view):
    latent, _, sigma, text, pooled, guidance = tiny_batch()
    with torch.no_grad():
        return view(latent, sigma, text, pooled, guidance)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_tensors(tmp_path_factory.mktemp("model") / "flux.safetensors", tiny_tree().state_dict())


@pytest.mark.parametrize(("weights", "most"), [("fp8", 0.06), ("int8", 0.02), ("nf4", 0.2)])
def test_a_tier_is_close_to_the_file_and_learns(file, weights, most):
    exact = velocity(load_transformer(file, CPU))
    view = load_transformer(file, CPU, Placement(weights))
    packed = velocity(view)
    assert 0 < (packed - exact).norm() / exact.norm() < most
    parameters = adapter.inject(view, AdapterOptions(rank=2), 0)
    latent, _, sigma, text, pooled, guidance = tiny_batch()
    view(latent, sigma, text, pooled, guidance).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in parameters)
    assert any(p.grad.any() for p in parameters)


def test_a_tier_holds_fewer_bytes():
    sizes = {}
    for weights in ("file", "fp8", "nf4"):
        tree = tiny_tree()
        quantise(tree, weights)
        sizes[weights] = sum(
            m.weight.nbytes for n, m in tree.named_modules() if "_blocks." in n and hasattr(m, "out_features")
        )
    assert sizes["fp8"] == sizes["file"] / 4
    assert sizes["nf4"] == sizes["file"] / 8


def test_8_bit_weights_are_not_packed_again(tmp_path):
    tree = tiny_tree()
    for _, module in block_linears(tree):
        module.weight.data = module.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(AtelierError, match="8 bit already"):
        quantise(tree, "int8")


def raw_blocks(kind, shape, seed):
    """Valid random blocks of a GGUF kind: sane scales, any codes."""
    import gguf

    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (shape[0], shape[1] // block * size), dtype=np.uint8)
    places = {"Q6_K": [208], "Q5_K": [0, 2], "Q4_K": [0, 2], "Q3_K": [108], "Q2_K": [80, 82]}
    blocks = rows.reshape(shape[0], -1, size)
    for at in places.get(kind.name, [0, 2] if kind.name.endswith("_1") else [0]):
        scale = (rng.random(blocks.shape[:2]) * 0.002 + 0.0005).astype(np.float16)
        blocks[..., at : at + 2] = scale.view(np.uint8).reshape(*blocks.shape[:2], 2)
    return blocks.reshape(shape[0], -1)


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    """A GGUF file with every kind in it, and the same weights unpacked by the gguf package."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "flux.gguf"
    writer, exact = gguf.GGUFWriter(path, "flux"), {}
    for i, (name, value) in enumerate(tiny_tree().state_dict().items()):
        if "_blocks." in name and value.dim() == 2:
            kind = gguf.GGMLQuantizationType[KINDS[i % len(KINDS)]]
            rows = raw_blocks(kind.name, value.shape, i)
            writer.add_tensor(name, rows, raw_dtype=kind)
            exact[name] = torch.from_numpy(gguf.quants.dequantize(rows, kind).copy()).float()
        else:
            writer.add_tensor(name, value.numpy().astype(np.float32 if value.dim() == 1 else np.float16))
            exact[name] = value if value.dim() == 1 else value.half().float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, exact


def test_gguf_weights_are_those_of_the_gguf_package(packed_file):
    path, exact = packed_file
    tree = read_gguf(path)
    assert tree.shape == SHAPE
    seen = 0
    for name, module in tree.named_modules():
        if hasattr(module, "unpack"):
            weight, _, _ = cast_plain(module, torch.zeros(()))
            assert torch.allclose(weight, exact[f"{name}.weight"], rtol=5e-3, atol=2e-3), (
                name
            )  # diffusers unpacks in float16
            seen += 1
    assert seen == len(block_linears(tiny_tree()))


def test_a_gguf_file_trains(packed_file):
    path, exact = packed_file
    view = load_transformer(path, CPU)
    plain = tiny_tree()
    plain.load_state_dict(exact)
    theirs = velocity(TrainView(plain, SHAPE, cast_plain, CPU))
    assert (velocity(view) - theirs).norm() / theirs.norm() < 1e-3
    adapter.inject(view, AdapterOptions(rank=2), 0)
    velocity(view)
    assert shape_in(path) == SHAPE


def test_a_gguf_file_that_is_cut_short_is_told(packed_file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(packed_file[0].read_bytes()[:2000])
    with pytest.raises(AtelierError, match="not a whole GGUF file"):
        read_gguf(cut)


def test_without_a_gpu_nothing_is_streamed():
    tree = tiny_tree()
    assert place(tree, CPU, 0.5) is cast_plain
