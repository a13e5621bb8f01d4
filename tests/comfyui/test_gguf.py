"""MODELs of the real ComfyUI-GGUF: looked for at COMFYUI_GGUF_PATH, else in the custom_nodes of the ComfyUI checkout.

    COMFYUI_GGUF_PATH=~/ComfyUI-GGUF python -m pytest tests/comfyui/test_gguf.py

The package `gguf` makes the files. It cannot quantise to the K and IQ kinds, so their blocks are random bytes with
sane scales, and its own dequantiser says what weights they stand for.
"""

import importlib.util
import os
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch
from test_flavours import EXACT, aligned, apart, gradients, held_bytes, load, view_velocity, with_loras
from test_host import batch, comfy_velocity, float32_model

from flux_atelier.core.files import read_tensors
from flux_atelier.trainer.nano import files

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")

QUANTISED = ("BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
# Where the float16 scales of a block stand, in bytes.
SCALES = {
    "Q6_K": (208,), "Q5_K": (0, 2), "Q4_K": (0, 2), "Q3_K": (108,), "Q2_K": (80, 82), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


@pytest.fixture(scope="module")
def loader(comfyui):
    """ComfyUI-GGUF's loader node."""
    path = Path(os.environ.get("COMFYUI_GGUF_PATH") or comfyui / "custom_nodes" / "ComfyUI-GGUF").expanduser()
    if not (path / "__init__.py").is_file():
        pytest.skip(f"no ComfyUI-GGUF at {path}: put it there, or set COMFYUI_GGUF_PATH")
    spec = importlib.util.spec_from_file_location(
        "comfyui_gguf", path / "__init__.py", submodule_search_locations=[str(path)]
    )
    assert spec and spec.loader
    package = sys.modules["comfyui_gguf"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]


@pytest.fixture
def made(loader, tmp_path, monkeypatch):
    """A function that gives the MODEL of a file with these kinds in turn, and its block weights in float32."""
    import folder_paths

    folders, endings = folder_paths.folder_names_and_paths["diffusion_models"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([*folders, str(tmp_path)], endings))

    def make(*kinds):
        name = f"{len(list(tmp_path.iterdir()))}.gguf"  # a loaded file stays mapped: never write over one
        weights = write(tmp_path / name, kinds)
        with torch.inference_mode():
            return loader().load_unet(name)[0], weights

    return make


def write(path, kinds):
    """Write nano-flux with its block matrices in these kinds in turn; -> what they stand for."""
    writer, random, turn = gguf.GGUFWriter(path, "flux"), np.random.default_rng(0), cycle(kinds)
    weights = {}
    for key, value in read_tensors(files.TRANSFORMER)[0].items():
        value = value.float().numpy()
        if "blocks" in key and value.ndim == 2:
            name = next(turn)
            kind = gguf.GGMLQuantizationType[name]
            packed = gguf.quants.quantize(value, kind) if name in QUANTISED else random_blocks(value, name, random)
            writer.add_tensor(key, packed, raw_dtype=kind)
            weights[key] = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
        else:
            writer.add_tensor(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def random_blocks(weight, name: str, random):
    """Random blocks of a kind for a matrix of this shape and about this size of values."""
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    assert weight.shape[1] % values == 0
    blocks = random.integers(0, 256, (len(weight), weight.shape[1] // values, size), dtype=np.uint8)

    def scale(by):
        for at in SCALES[name]:
            some = by * random.uniform(0.5, 1, blocks.shape[:2])
            blocks[..., at : at + 2] = some.astype(np.float16)[..., None].view(np.uint8)
        return blocks.reshape(len(weight), -1)

    return scale(weight.std() / gguf.quants.dequantize(scale(1.0), kind).std())


# 1e-5: float32 rounding in another order. 2e-3 of the largest weight: ComfyUI-GGUF multiplies in float16, whose step
# is 1e-3 at most, and the package `gguf` in float32.
@pytest.mark.parametrize("kind", [*QUANTISED, *SCALES])
def test_every_kind_is_computed_as_comfyui_does(made, kind):
    from flux_atelier.nodes import host

    model, weights = made(kind)
    given = batch()
    assert apart(view_velocity(model, given), comfy_velocity(model, *given)) <= EXACT
    for key, weight in weights.items():
        layer = model.model.get_submodule("diffusion_model." + key.removesuffix(".weight"))
        found, _, release = host.cast(layer, torch.zeros(1))
        assert type(found) is torch.Tensor
        assert (found - weight).abs().max() <= 2e-3 * weight.abs().max()
        release()


# A file mixes kinds, as Q4_K_M files do. 0.001 and 0.9999: float16 against float32 weights, as above. Q8_0 has 8 bits
# a weight: its gradients hardly turn from the unquantised model's (0.9999 measured).
def test_a_file_of_many_kinds_is_trained_and_left_as_it_was(made):
    model, weights = made(*SCALES, *QUANTISED)
    given, state = batch(), read_tensors(files.TRANSFORMER)[0]
    reference = load({key: value.float() for key, value in state.items()} | weights)
    before = held_bytes(model)
    assert apart(view_velocity(model, given), comfy_velocity(reference, *given)) <= 1e-3
    assert aligned(gradients(model, given), gradients(reference, given)) >= 0.9999
    gradients(model, given, steps=3)
    assert held_bytes(model) == before
    eight, _ = made("Q8_0")
    assert aligned(gradients(eight, given), gradients(float32_model(), given)) >= 0.999


def test_two_loras_over_gguf_are_trained_on_and_taken_off(made):
    given, plain = batch(), made("Q4_K", "Q6_K")[0]
    before, patched = held_bytes(plain), with_loras(plain, 0, 5)
    theirs, alone = comfy_velocity(patched, *given), comfy_velocity(plain, *given)
    assert apart(view_velocity(patched, given), theirs) <= EXACT
    assert apart(view_velocity(plain, given), alone) <= EXACT
    assert apart(alone, theirs) > 0.01
    gradients(patched, given, steps=1)
    assert held_bytes(plain) == before


def test_gguf_models_have_a_fingerprint(made):
    from flux_atelier.nodes import host

    first, second, plain = made("Q8_0")[0], made("Q4_0")[0], made("Q8_0")[0]
    assert host.fingerprint(first) == host.fingerprint(plain) != host.fingerprint(second)
    patched = with_loras(plain, 0)
    before = host.fingerprint(patched)
    comfy_velocity(patched, *batch())
    assert host.fingerprint(patched) == before != host.fingerprint(plain) == host.fingerprint(first)
