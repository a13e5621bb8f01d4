"""LoRAs put into checkpoint files and taken out: beside loading everything, in every precision, losing nothing."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from test_extract import KINDS, layers_of_every_kind, normal, write, write_gguf

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors, write_tensors
from flux_atelier.core.flux.layout import to_diffusers
from flux_atelier.core.flux.rewrite import Grid
from flux_atelier.core.lora.bake import BAKED, BakeOptions, UnbakeOptions, bake, baked, unbake
from flux_atelier.core.lora.blocks import parse_weights
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.kinds import Dense, delta_over
from flux_atelier.core.lora.record import Lora
from flux_atelier.core.tensor_stream import Planned, open_tensors, writing
from flux_atelier.trainer.nano import files

QKV, LINEAR1, FINAL = "double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "final_layer.adaLN_modulation.1"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture(scope="module")
def base():
    return {k: v.float() for k, v in read_tensors(files.TRANSFORMER)[0].items()}


@pytest.fixture(scope="module")
def lora():
    """Rank 4 on a fused projection, a linear1, the layer whose halves diffusers exchanges; a bias and a norm."""
    return Lora(
        {QKV: factors(768, 256, 1), LINEAR1: factors(1792, 256, 2), FINAL: factors(512, 256, 3)}, "kohya",
        vectors={"img_in.bias": normal(256, scale=0.1), "single_blocks.0.norm.key_norm.weight": normal(128, scale=0.1)},
    )  # fmt: skip


def factors(out, width, seed):
    return Factors(normal(out, 4, seed=seed, scale=0.1), normal(4, width, seed=seed + 9, scale=0.1), 6.0)


def last(steps):
    return list(steps)[-1].result


def baked_state(base, lora, strength=1.0, dtype=torch.float32, weights=None):
    """The checkpoint as loading everything makes it: a sum in float32, rounded once."""
    out = {k: v.to(dtype).float() for k, v in base.items()}
    of = weights.of if weights else lambda name: 1.0
    for module, layer in lora.modules.items():
        key = f"{module}.weight"
        out[key] = out[key] + strength * of(module) * delta_over(layer, out[key])
    for name, value in lora.vectors.items():
        key = in_file(name)
        out[key] = out[key] + strength * of(name) * value
    return {k: v.to(dtype) for k, v in out.items()}


def in_file(name):
    return name.replace("_norm.weight", "_norm.scale")


def equal(one, other):
    assert set(one) == set(other)
    return all(one[k].dtype == v.dtype and one[k].shape == v.shape and same_bytes(one[k], v) for k, v in other.items())


def same_bytes(one, other):
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))


def only(folder: Path, *names: str) -> bool:
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_a_sum_by_hand(tmp_path, base):
    lora = Lora({"img_in": Dense(torch.full((256, 64), 2.0))}, "kohya")
    flat = base | {"img_in.weight": torch.ones(256, 64)}
    result = last(
        bake(
            write(tmp_path / "b.safetensors", flat), tmp_path / "o.safetensors", lora, "two", BakeOptions(strength=-1.5)
        )
    )
    made, metadata = read_tensors(tmp_path / "o.safetensors")
    assert torch.equal(made["img_in.weight"], torch.full((256, 64), -2.0))
    assert torch.equal(made["txt_in.weight"], base["txt_in.weight"])
    assert (result.layers, result.vectors, result.left_out, result.error) == (1, 0, (), 0.0)
    (entry,) = json.loads(metadata[BAKED])
    assert entry["name"] == "two"
    assert entry["strength"] == -1.5


@pytest.mark.parametrize("name", list(DTYPES))
@pytest.mark.parametrize("values", [1 << 21, 1 << 14])
def test_it_equals_loading_everything_bit_for_bit(tmp_path, base, lora, name, values, monkeypatch):
    from flux_atelier.core.flux import checkpoint

    monkeypatch.setattr(checkpoint, "VALUES", values)
    source = write(tmp_path / "b.safetensors", base, DTYPES[name])
    result = last(bake(source, tmp_path / "o.safetensors", lora, options=BakeOptions(strength=0.8)))
    made = read_tensors(tmp_path / "o.safetensors")[0]
    assert equal(made, baked_state(base, lora, 0.8, DTYPES[name]))
    assert (result.layers, result.vectors) == (3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_in(tmp_path, kind):
    """A model of the one layer that the kinds were made for, beside those by which a Flux model is known."""
    weight = normal(64, 48, seed=30)
    state = {
        "img_in.weight": weight, "txt_in.weight": torch.ones(64, 8), "vector_in.in_layer.weight": torch.ones(64, 8),
        "double_blocks.0.img_mlp.0.weight": torch.ones(256, 64),
    }  # fmt: skip
    layer = layers_of_every_kind()[kind]
    lora = Lora({"img_in": layer}, "kohya")
    last(
        bake(
            write_tensors(tmp_path / "b.safetensors", state),
            tmp_path / "o.safetensors",
            lora,
            options=BakeOptions(strength=0.5),
        )
    )
    made = read_tensors(tmp_path / "o.safetensors")[0]["img_in.weight"]
    assert torch.allclose(made, weight + 0.5 * delta_over(layer, weight), atol=1e-6)


def test_block_weights_count_once_each(tmp_path, base, lora):
    text = "double.0 = -2, single.1.linear1 = 0, img_in = 0.5"
    source = write(tmp_path / "b.safetensors", base)
    result = last(bake(source, tmp_path / "o.safetensors", lora, options=BakeOptions(strength=0.5, block_weights=text)))
    made = read_tensors(tmp_path / "o.safetensors")[0]
    assert equal(made, baked_state(base, lora, 0.5, weights=parse_weights(text)))
    assert torch.equal(made[f"{LINEAR1}.weight"], base[f"{LINEAR1}.weight"])
    assert (result.layers, result.vectors) == (2, 2)


def test_diffusers_layout_stays_and_gets_the_same(tmp_path, base, lora):
    source = write(tmp_path / "d.safetensors", to_diffusers(base), torch.bfloat16)
    last(bake(source, tmp_path / "o.safetensors", lora))
    made = read_tensors(tmp_path / "o.safetensors")[0]
    assert equal(made, to_diffusers(baked_state(base, lora, dtype=torch.bfloat16)))


def test_what_else_a_checkpoint_holds_is_copied(tmp_path, base, lora):
    inner = {f"model.diffusion_model.{k}": v for k, v in base.items()}
    more = {
        "first_stage_model.x": normal(3, 5).to(torch.float8_e4m3fn),
        "step": torch.tensor(7),
        "flag": torch.tensor([True]),
    }
    source = write_tensors(
        tmp_path / "c.safetensors", inner | more, {"modelspec.title": "all", "modelspec.hash_sha256": "0"}
    )
    last(bake(source, tmp_path / "o.safetensors", lora, options=BakeOptions(dtype="bf16")))
    made, metadata = read_tensors(tmp_path / "o.safetensors")
    assert equal({k: made.pop(k) for k in more}, more)
    expected = baked_state(base, lora)
    assert equal(made, {f"model.diffusion_model.{k}": v.bfloat16() for k, v in expected.items()})
    assert metadata["modelspec.title"] == "all"
    assert "modelspec.hash_sha256" not in metadata


def test_plain_fp8_stays_and_never_overflows(tmp_path, base):
    state = {k: v.to(torch.float8_e4m3fn) for k, v in base.items()}
    lora = Lora({"img_in": Dense(torch.full((256, 64), 1e4))}, "kohya")
    last(bake(write_tensors(tmp_path / "b.safetensors", state), tmp_path / "o.safetensors", lora))
    made = read_tensors(tmp_path / "o.safetensors")[0]
    assert made["img_in.weight"].dtype == torch.float8_e4m3fn
    assert torch.equal(made["img_in.weight"].float(), torch.full((256, 64), 448.0))


def test_fp8_gets_scales_that_use_its_range(tmp_path, base, lora):
    out = tmp_path / "o.safetensors"
    result = last(bake(files.TRANSFORMER, out, lora, options=BakeOptions(dtype="fp8")))
    made, expected = read_tensors(out)[0], baked_state(base, lora)
    for key, value in expected.items():
        if "_blocks." in key and value.dim() == 2:
            scale = made[key.replace(".weight", ".scale_weight")]
            assert scale.item() == pytest.approx(value.abs().max().item() / 448)
            assert torch.equal(made[key], (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn))
        else:
            assert torch.equal(made[key], value.half())
    assert made["scaled_fp8"].numel() == 2
    assert 0.01 < result.error < 1
    # Put in again: the scales follow, and what the LoRA does not change stays byte for byte.
    again = tmp_path / "p.safetensors"
    last(bake(out, again, Lora({QKV: Dense(torch.full((768, 256), 3.0))}, "kohya")))
    twice = read_tensors(again)[0]
    assert set(twice) == set(made)
    assert twice[f"{QKV}.scale_weight"] > 2 * made[f"{QKV}.scale_weight"]
    value = made[f"{QKV}.weight"].float() * made[f"{QKV}.scale_weight"] + 3
    assert ((twice[f"{QKV}.weight"].float() * twice[f"{QKV}.scale_weight"] - value).norm() / value.norm()).item() < 0.04
    assert all(same_bytes(twice[k], made[k]) for k in made if not k.startswith(QKV))
    assert len(baked(read_tensors(again)[1])) == 2


def test_scaled_fp8_can_be_unpacked(tmp_path, base, lora):
    packed, out = tmp_path / "f.safetensors", tmp_path / "o.safetensors"
    last(bake(files.TRANSFORMER, packed, lora, options=BakeOptions(dtype="fp8")))
    last(bake(packed, out, lora, options=BakeOptions(dtype="fp32")))
    made, before = read_tensors(out)[0], read_tensors(packed)[0]
    assert set(made) == set(base)
    value = before[f"{LINEAR1}.weight"].float() * before[f"{LINEAR1}.scale_weight"]
    assert torch.equal(made[f"{LINEAR1}.weight"], value + delta_over(lora.modules[LINEAR1], value))


def test_gguf_becomes_bf16(tmp_path, base, lora):
    gguf = pytest.importorskip("gguf")
    kind, names = gguf.GGMLQuantizationType.Q8_0, (f"{QKV}.weight", "single_blocks.0.linear2.weight")
    packed = {n: (gguf.quants.quantize(base[n].numpy(), kind), kind) for n in names}
    source = write_gguf(tmp_path / "q.gguf", base, packed)
    last(bake(source, tmp_path / "o.safetensors", lora))
    held = base | {n: torch.from_numpy(gguf.quants.dequantize(raw, kind).copy()) for n, (raw, _) in packed.items()}
    expected = baked_state(held, lora)
    assert equal(
        read_tensors(tmp_path / "o.safetensors")[0], {k: v.bfloat16() if k in names else v for k, v in expected.items()}
    )


def test_layers_that_a_checkpoint_lacks_are_told(tmp_path, base, lora):
    more = Lora({**lora.modules, "clip_l.text_model.x": factors(8, 8, 5)}, "kohya")
    result = last(bake(files.TRANSFORMER, tmp_path / "o.safetensors", more))
    assert result.left_out == ("clip_l.text_model.x",)
    assert "such as clip_l.text_model.x" in result.report()


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"single_blocks.30.linear1": factors(1792, 256, 1)}, "none of the LoRA's layers such as single_blocks.30"),
        ({QKV: factors(768, 128, 1)}, "is 768 x 256 in nano-flux.safetensors, and 768 x 128"),
        ({QKV: Dense(torch.full((768, 256), float("inf")))}, "no finite numbers"),
        ({QKV: Dense(torch.full((768, 256), 1e5))}, "fp16 holds no number above 65504"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, modules, words):
    with pytest.raises(AtelierError, match=words):
        last(bake(files.TRANSFORMER, tmp_path / "o.safetensors", Lora(modules, "kohya")))
    assert only(tmp_path)


def test_a_checkpoint_is_never_written_over_itself(tmp_path, base, lora):
    source = write(tmp_path / "b.safetensors", base)
    with pytest.raises(AtelierError, match="is the checkpoint itself"):
        last(bake(source, source, lora))


def test_a_cancel_leaves_what_was_there(tmp_path, lora):
    out = tmp_path / "o.safetensors"
    out.write_text("before")
    for step in bake(files.TRANSFORMER, out, lora):
        if step.done == 30:
            assert len(list(tmp_path.iterdir())) == 2  # the unfinished file is beside it
            break
    del step
    assert only(tmp_path, "o.safetensors")
    assert out.read_text() == "before"


def test_a_full_disk_leaves_nothing(tmp_path, lora, monkeypatch):
    from flux_atelier.core import tensor_stream

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(tensor_stream.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(AtelierError, match="disk is full"):
        last(bake(files.TRANSFORMER, tmp_path / "o.safetensors", lora))
    assert only(tmp_path)
    monkeypatch.undo()

    def full(self, name, rows, at=0):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_stream.TensorWriter, "put", full)
    with pytest.raises(AtelierError, match="disk is full"):
        last(bake(files.TRANSFORMER, tmp_path / "o.safetensors", lora))
    assert only(tmp_path)


@pytest.mark.parametrize("end", [-1000, 3000])
def test_a_checkpoint_cut_short_leaves_nothing(tmp_path, lora, end):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files.TRANSFORMER.read_bytes()[:end])
    with pytest.raises(AtelierError, match="not a whole safetensors file"):
        last(bake(cut, tmp_path / "o.safetensors", lora))
    assert only(tmp_path, "cut.safetensors")


def test_a_checkpoint_that_shrinks_meanwhile_is_told(tmp_path, base, lora):
    source = write(tmp_path / "b.safetensors", base)
    steps = bake(source, tmp_path / "o.safetensors", lora)
    next(steps)
    with open(source, "rb+") as opened:
        opened.truncate(source.stat().st_size // 2)
    with pytest.raises(AtelierError, match="cut short"):
        list(steps)
    assert only(tmp_path, "b.safetensors")


def test_a_gguf_cut_short_is_told(tmp_path, base, lora):
    pytest.importorskip("gguf")
    source = write_gguf(tmp_path / "q.gguf", base, {})
    source.write_bytes(source.read_bytes()[:-100_000])
    with pytest.raises(AtelierError, match=r"not a whole GGUF file|cut short"):
        last(bake(source, tmp_path / "o.safetensors", lora))
    assert only(tmp_path, "q.gguf")


def test_written_files_are_aligned_and_whole(tmp_path):
    plan = {
        "a": Planned("U8", (3,)),
        "b": Planned("F32", (2, 2)),
        "c": Planned("BF16", ()),
        "d": Planned("F32", (0, 4)),
    }
    path = tmp_path / "x.safetensors"
    with writing(path, plan, {"who": "me"}) as writer:
        writer.put("b", torch.tensor([[3.0, 4.0]]), 1)
        writer.put("a", torch.tensor([1, 2, 3], dtype=torch.uint8))
        writer.put("b", torch.tensor([[1.0, 2.0]]))
        writer.put("c", torch.tensor(0.5, dtype=torch.bfloat16))
    tensors, metadata = read_tensors(path)
    assert tensors["b"].tolist() == [[1, 2], [3, 4]]
    assert tensors["a"].tolist() == [1, 2, 3]
    assert tensors["c"].item() == 0.5
    assert tensors["d"].shape == (0, 4)
    assert metadata["who"] == "me"
    with open_tensors(path) as opened:
        assert all(s.start % 4 == 0 for s in opened.tensors.values() if s.kind == "F32")
    with pytest.raises(ValueError, match="b was written with 16 bytes missing"), writing(path, plan, {}) as writer:
        writer.put("a", torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert read_tensors(path)[1]["who"] == "me"
    assert only(tmp_path, "x.safetensors")


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("BF16", 1.0),
        ("F16", 1.0),
        ("F32", 1.0),
        ("F8_E4M3", 1.0),
        ("F8_E4M3", 0.37),
        ("F8_E5M2", 1.0),
        ("F8_E5M2", 3.1),
    ],
)
def test_a_grid_knows_its_steps(kind, scale):
    grid = Grid(kind, scale)
    values = torch.cat([torch.zeros(1), torch.logspace(-6, 2, 200), -torch.logspace(-9, 2, 200)])
    stored = grid.value(grid.rounded(values))
    assert ((stored - values).abs() <= grid.step(values) * 0.501).all()
    further = stored + 0.6 * grid.step(stored) * torch.where(values < 0, -1, 1)  # nearer to the next value of the file
    assert not (grid.rounded(stored).float() == grid.rounded(further).float()).any()


# In float32 the LoRA's change is as coarse as the weights, so that ties are common, which the forecast does not know.
@pytest.mark.parametrize(
    ("name", "error", "off", "share"),
    [("fp32", 1e-7, 0.5, 0.1), ("fp16", 3e-4, 0.25, 0.01), ("bf16", 3e-3, 0.25, 0.01)],
)
def test_out_again_is_the_base_up_to_rounding_which_is_foretold(tmp_path, base, lora, name, error, off, share):
    filled = {k: v * 1.00012345 for k, v in base.items()}  # to the last bit of float32, which float16 leaves empty
    source = write(tmp_path / "b.safetensors", filled, DTYPES[name])
    put_in, out = tmp_path / "i.safetensors", tmp_path / "o.safetensors"
    last(bake(source, put_in, lora, "mine", BakeOptions(strength=0.7, block_weights="single = 0.5")))
    measured = last(unbake(put_in, out, lora, source))
    made, metadata = read_tensors(out)
    before = read_tensors(source)[0]
    changed = [*(f"{m}.weight" for m in lora.modules), *map(in_file, lora.vectors)]
    ours, theirs = (torch.cat([s[k].float().flatten() for k in changed]) for s in (made, before))
    assert measured.error == pytest.approx(((ours - theirs).norm() / ours.norm()).item(), rel=1e-3)
    assert measured.exact == pytest.approx((ours == theirs).float().mean().item())
    assert measured.error <= error
    assert all(torch.equal(made[k], before[k]) for k in before if k not in changed)
    assert BAKED not in metadata
    foretold = last(unbake(put_in, out, lora))
    assert not foretold.measured
    assert foretold.error == pytest.approx(measured.error, rel=off)
    assert foretold.exact == pytest.approx(measured.exact, abs=share)


def test_what_a_lower_precision_took_is_told(tmp_path, lora):
    put_in, out = tmp_path / "i.safetensors", tmp_path / "o.safetensors"
    last(bake(files.TRANSFORMER, put_in, lora, options=BakeOptions(dtype="fp8")))
    measured, foretold = (last(unbake(put_in, out, lora, b)) for b in (files.TRANSFORMER, None))
    assert foretold.exact is None
    assert foretold.error == pytest.approx(measured.error, rel=0.25)
    assert "put in with a change to fp8" in foretold.report()


def test_only_what_was_put_in_comes_out(tmp_path, lora):
    put_in, out = tmp_path / "i.safetensors", tmp_path / "o.safetensors"
    other = Lora({QKV: factors(768, 256, 40)}, "kohya")
    with pytest.raises(AtelierError, match="does not say that a LoRA is in it"):
        last(unbake(files.TRANSFORMER, out, lora))
    last(bake(files.TRANSFORMER, put_in, lora, "mine", BakeOptions(strength=0.7)))
    with pytest.raises(AtelierError, match=r"has mine at 0\.7 in it, not this LoRA"):
        last(unbake(put_in, out, other))
    assert only(tmp_path, "i.safetensors")
    last(unbake(put_in, out, other, options=UnbakeOptions(anyway=True, strength=2.0)))
    assert len(baked(read_tensors(out)[1])) == 1  # the one that is still there
    expected = read_tensors(put_in)[0][f"{QKV}.weight"].float() - 2 * other.modules[QKV].delta()
    assert torch.equal(read_tensors(out)[0][f"{QKV}.weight"], expected.half())


def test_the_same_lora_is_known_from_a_file(tmp_path, lora):
    """Factors in float16, alpha elsewhere: the identity is of what it changes."""
    put_in, out = tmp_path / "i.safetensors", tmp_path / "o.safetensors"
    last(bake(files.TRANSFORMER, put_in, lora))
    half = Lora(
        {m: Factors(f.up.half(), f.down.half(), f.alpha) for m, f in lora.modules.items()}, "comfy",
        vectors={k: v.half() for k, v in lora.vectors.items()},
    )  # fmt: skip
    assert last(unbake(put_in, out, half)).layers == 3


@pytest.mark.parametrize("kind", ["DoRA", "OFT", "BOFT"])
def test_what_leans_on_the_base_does_not_come_out(tmp_path, kind):
    with pytest.raises(AtelierError, match=f"is a {kind}, which cannot be taken out"):
        last(unbake(files.TRANSFORMER, tmp_path / "o", Lora({"img_in": layers_of_every_kind()[kind]}, "kohya")))


CHILD = """
import importlib.util, re, sys
import torch
spec = importlib.util.spec_from_file_location("flux_atelier", r"{root}/__init__.py", submodule_search_locations=[r"{root}"])
package = importlib.util.module_from_spec(spec); sys.modules["flux_atelier"] = package; spec.loader.exec_module(package)
from pathlib import Path
from flux_atelier.core.lora.bake import BakeOptions, bake
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.record import Layers, Lora
torch.set_num_threads(1)
def mib(what): return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
make = lambda: Factors(torch.full((4096, 16), 0.01), torch.full((16, 3072), 0.01), 16.0)
lora = Lora(Layers({{f"single_blocks.{{n}}.linear1": make for n in range(10)}}), "kohya")
make().delta()[:8].sum()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = mib("VmRSS")
for dtype in ("same", "fp8"):
    for step in bake(Path(r"{source}"), Path(r"{out}"), lora, options=BakeOptions(dtype=dtype)): pass
    print(mib("VmHWM") - before, step.result.layers)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process' memory")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """240 MiB of 24 MiB tensors: the bound is three of them and 200 MB, whatever the file's size; a copy of it is beyond."""
    wide = {f"single_blocks.{n}.linear1.weight": Planned("BF16", (4096, 3072)) for n in range(10)}
    known = {
        "img_in.weight": (8, 64), "txt_in.weight": (8, 8), "vector_in.in_layer.weight": (8, 8),
        "double_blocks.0.img_mlp.0.weight": (32, 8),
    }  # fmt: skip
    plan = wide | {name: Planned("BF16", shape) for name, shape in known.items()}
    source = tmp_path / "b.safetensors"
    with writing(source, plan, {}) as writer:
        for name, planned in plan.items():
            writer.put(name, torch.full(planned.shape, 0.5, dtype=torch.bfloat16))
    code = CHILD.format(root=Path(__file__).parents[2], source=source, out=tmp_path / "o.safetensors")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        grown, layers = line.split()
        assert int(layers) == 10
        assert 1 < float(grown) <= 150 < 3 * 24 + 200


def command(name, *words):
    """A command as the command line runs it; -> its lines."""
    import argparse

    from flux_atelier.trainer.commands.checkpoints import COMMANDS

    parser = argparse.ArgumentParser()
    COMMANDS[name][1](parser)
    return list(COMMANDS[name][2](parser.parse_args([str(w) for w in words])))


def test_the_command_line_goes_in_and_out(tmp_path, lora):
    from flux_atelier.core.lora.formats import read_lora, write_lora

    file, put_in, out = (tmp_path / f"{n}.safetensors" for n in ("lora", "in", "out"))
    write_lora(file, lora)
    lines = command("bake", files.TRANSFORMER, file, "--out", put_in, "--strength", "0.5", "--dtype", "fp32")
    assert lines[0] == "10 %"
    assert "3 layers and 2 biases and norms changed" in lines[-1]
    lines = command("extract", put_in, files.TRANSFORMER, "--out", out, "--rank", "4", "--method", "exact")
    assert "3 layers, rank 4: 100.00% of the energy kept" in lines[-1]
    made = read_lora(out)
    assert set(made.modules) == set(lora.modules)
    assert set(made.vectors) == set(lora.vectors)
    delta = 0.5 * lora.modules[QKV].delta()
    assert ((made.modules[QKV].delta() - delta).norm() / delta.norm()).item() < 2e-3
    lines = command("unbake", put_in, file, "--out", tmp_path / "again.safetensors", "--base", files.TRANSFORMER)
    assert "beside the base" in lines[-1]
    lines = command("to-lora", file, "--out", tmp_path / "plain.safetensors", "--rank", "2")
    assert "3 layers, rank 2" in lines[-1]
