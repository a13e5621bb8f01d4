"""Block weights as text, what they do to a LoRA of every kind, and the browser's reading of the same words."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.flux.layout import FluxShape
from flux_atelier.core.lora.anatomy import ANATOMY, modules
from flux_atelier.core.lora.blocks import BlockWeights, apply_weights, check_weights, parse_weights, scaled, summary
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.lora.kinds import Dense, Hada, Kron, Rotation
from flux_atelier.core.lora.record import Layers, Lora
from flux_atelier.trainer.commands.block_weights import run_block_weights
from flux_atelier.trainer.targets import preset

QKV, PROJ, LINEAR1 = "double_blocks.3.img_attn.qkv", "double_blocks.3.txt_attn.proj", "single_blocks.37.linear1"


# --- the words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "module", "weight"),
    [
        ("", QKV, 1.0),
        ("  \n# a note\n", QKV, 1.0),
        ("double.0-18 = 0.5", QKV, 0.5),
        ("double.0-18 = 0.5", LINEAR1, 1.0),
        ("double.3=.25", QKV, 0.25),
        ("double.4 = 0.5", QKV, 1.0),
        ("single.37 = 0", LINEAR1, 0.0),
        ("double_blocks.3 = 0.5", QKV, 0.5),
        ("double_blocks.*.img_attn = 0.5", QKV, 0.5),
        ("double.0-2+3+7-9 = 0.5", QKV, 0.5),
        ("double.0-2+4 = 0.5", QKV, 1.0),
        ("single = -1.5", LINEAR1, -1.5),
        ("single.0-37 = 0..1", "single_blocks.0.linear2", 0.0),
        ("single.0-37 = 0..1", LINEAR1, 1.0),
        ("single.17-37 = 1..0", "single_blocks.22.linear2", 0.75),
        ("single.37 = 0.2..0.9", LINEAR1, 0.2),
        ("single = 0...37", "single_blocks.10.linear1", 0.1),
        ("attention = 0.5", QKV, 0.5),
        ("attention = 0.5", LINEAR1, 0.5),
        ("attention = 0.5", "double_blocks.3.img_mlp.0", 1.0),
        ("attention = 0.5", "clip_l.text_model.encoder.layers.0.self_attn.q_proj", 1.0),
        ("mlp = 0.5", "double_blocks.18.txt_mlp.2", 0.5),
        ("mlp = 0.5", "single_blocks.1.linear2", 0.5),
        ("modulation = 0", "single_blocks.1.modulation.lin", 0.0),
        ("modulation = 0", "double_blocks.1.txt_mod.lin", 0.0),
        ("modulation = 0", "final_layer.adaLN_modulation.1", 1.0),
        ("img = 0", QKV, 0.0),
        ("img = 0", "img_in", 1.0),
        ("txt = 0", PROJ, 0.0),
        ("qkv = 0", PROJ, 1.0),
        ("proj = 0", PROJ, 0.0),
        ("double.0-9.mlp = 0", "double_blocks.9.img_mlp.0", 0.0),
        ("double.0-9.mlp = 0", "double_blocks.10.img_mlp.0", 1.0),
        ("double.0-9.mlp = 0", "double_blocks.9.img_attn.qkv", 1.0),
        ("double.attention = 0", QKV, 0.0),
        ("single.linear1 = 0", LINEAR1, 0.0),
        ("double.0-9.img_attn.qkv = 0", QKV, 0.0),
        ("double.3.attention = 0..1", QKV, 0.0),
        ("*.img_attn = 0", QKV, 0.0),
        ("*.qkv = 0", QKV, 0.0),
        ("*_attn.proj = 0", PROJ, 0.0),
        (f"{QKV} = 0.3", QKV, 0.3),
        (f"{QKV} = 0.3", f"{QKV}.bias", 0.3),
        ("double.1 = 0", "double_blocks.10.img_attn.qkv", 1.0),
        ("text = 0", "t5xxl.encoder.block.0.layer.0.SelfAttention.q", 0.0),
        ("text = 0", QKV, 1.0),
        ("clip_l = 0", "clip_l.text_model.encoder.layers.0.mlp.fc1", 0.0),
        ("clip_l = 0", "clip_g.text_model.encoder.layers.0.mlp.fc1", 1.0),
        ("other = 0", "img_in", 0.0),
        ("other = 0", QKV, 1.0),
        ("other = 0", "clip_l.text_model", 1.0),
        ("* = 0.5", "img_in", 0.5),
        ("single.7 = 1; default = 0", QKV, 0.0),
        ("single.7 = 1\ndefault = 0", "single_blocks.7.linear1", 1.0),
        ("attention = 0.5, double.3.attention = 0.8", QKV, 0.8),
        ("double.3 = 0.8, attention = 0.5", QKV, 0.5),
        ("attention = 0.5 # of all blocks", QKV, 0.5),
        ("double.3 = 1e-1", QKV, 0.1),
    ],
)
def test_words_by_hand(text, module, weight):
    assert parse_weights(text).of(module) == pytest.approx(weight)


def test_vectors_by_their_lengths():
    numbers = [n / 100 for n in range(57)]
    weights = parse_weights(", ".join(map(str, numbers)))
    assert weights.blocks() == {"double": numbers[:19], "single": numbers[19:]}
    assert weights.of("img_in") == weights.of("clip_l.x") == 1
    based = parse_weights("0.5 " + " ".join(map(str, numbers)))
    assert based.blocks() == weights.blocks()
    assert based.of("img_in") == based.of("t5xxl.x") == 0.5
    whole = parse_weights(",".join(map(str, [0.1, 0.2, 0.3, *numbers, 0.4])))
    assert whole.blocks() == weights.blocks()
    assert [whole.of(m) for m in ("clip_l.x", "t5xxl.x", "txt_in", "final_layer.linear")] == [0.1, 0.2, 0.3, 0.4]


def test_entries_after_a_vector_win():
    weights = parse_weights(",".join(["1"] * 57) + "\nattention = 0.5\nsingle.0 = 0")
    assert (weights.of(QKV), weights.of("single_blocks.0.linear1"), weights.of(f"{QKV[:-3]}proj")) == (0.5, 0.0, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1, 1, 1", "vector of 3 numbers. Give 57"),
        (",".join(["1"] * 60), "60 numbers"),
        ("double = 0.5, 3", "'3' among patterns"),
        ("a b", "'a b', which is no entry"),
        ("= 3", "no entry"),
        ("double = much", "no entry"),
        ("double = nan", "no entry"),
        ("double = 1..", "no entry"),
        ("double.19 = 1", "double_blocks 0 to 18"),
        ("single.38 = 1", "single_blocks 0 to 37"),
        ("double.9-3 = 1", "double_blocks 0 to 18"),
        ("duble.3 = 1", "nearest name is double.0"),
        ("atention = 1", "nearest name is attention"),
        ("*.img_atn = 1", r"nearest name is \*\.img_attn"),
        ("img_attn = 1", r"nearest name is \*\.img_attn"),
        ("single.0-9.linaer1 = 1", "nearest name is single.0.linear1"),
        ("double.linear1 = 1", "no Flux.1 model has"),
        ("zzzz = 1", "Write names such as double, single or attention"),
        ("attention = 0..1", "no block numbers for a ramp"),
        ("joint.3 = 1", "no Flux.1 model has"),
    ],
)
def test_mistakes_are_told(text, words):
    with pytest.raises(AtelierError, match=words) as told:
        parse_weights(text)
    assert len(re.findall(r"\.(?=\s|$)", str(told.value))) <= 2


@pytest.mark.parametrize(
    ("base", "text", "module", "weight"),
    [
        ("flux2", "single.47 = 0.5", "single_blocks.47.linear2", 0.5),
        ("flux2", "modulation = 0", "double_stream_modulation_img.lin", 0.0),
        ("flux2", "attention = 0", "double_blocks.7.txt_attn.qkv", 0.0),
        ("sd3", "joint.0-23 = 0..0.23", "joint_blocks.10.x_block.attn.qkv", 0.1),
        ("sd3", "txt = 0", "joint_blocks.10.context_block.mlp.fc1", 0.0),
        ("sdxl", "input.4 = 0", "input_blocks.4.1.transformer_blocks.0.attn1.to_q", 0.0),
        ("sdxl", "middle = 0.5", "middle_block.1.transformer_blocks.9.ff.net.2", 0.5),
        ("sdxl", "output.0-2.attention = 0.5", "output_blocks.1.1.transformer_blocks.3.attn2.to_k", 0.5),
        ("sdxl", "*.attn2 = 0.5", "output_blocks.1.1.transformer_blocks.3.attn2.to_k", 0.5),
    ],
)
def test_other_bases(base, text, module, weight):
    assert parse_weights(text, base).of(module) == pytest.approx(weight)
    check_weights(text)


@pytest.mark.parametrize(
    ("base", "text", "words"),
    [
        ("sdxl", ",".join(["1"] * 57), "57 numbers, and the LoRA is for SDXL"),
        ("flux2", "double.8 = 1", "double_blocks 0 to 7"),
        ("sdxl", "double.1 = 1", "no SDXL model has"),
        ("flux2", "double.0.img_mod = 1", "no Flux.2 model has"),
    ],
)
def test_other_bases_refuse(base, text, words):
    with pytest.raises(AtelierError, match=words):
        parse_weights(text, base)


def test_a_text_for_no_base_is_told_as_for_flux():
    with pytest.raises(AtelierError, match=r"no Flux\.1 model"):
        check_weights("joint.3 = 1, input.3 = 1, double.3 = 1")


def test_every_listed_module_has_one_weight_by_its_own_name():
    for base in ANATOMY:
        for name in modules(base)[:: 1 if base != "sdxl" else 97]:
            assert parse_weights(f"default = 0, {name} = 0.25", base).of(name) == 0.25


def test_flux_has_its_304_layers():
    layers = [m for m in modules("flux1") if "_blocks." in m and "norm" not in m]
    assert len(layers) == 304
    covered = parse_weights("default = 1, attention = 2, mlp = 3, modulation = 4")
    assert {covered.of(m) for m in layers} == {2, 3, 4}


# --- what they do ----------------------------------------------------------------------------------------------------


def factors(seed: int = 0, **more) -> Factors:
    make = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(6, 2, generator=make), torch.randn(2, 4, generator=make), 3.0, **more)


def lora_of(**modules) -> Lora:
    return Lora({name.replace("__", "."): layer for name, layer in modules.items()}, "kohya")


KINDS = {
    "lora": factors(),
    "lokr": Kron(torch.randn(3, 2), (torch.randn(2, 1), torch.randn(1, 2)), 0.5),
    "loha": Hada((torch.randn(6, 2), torch.randn(2, 4)), (torch.randn(6, 2), torch.randn(2, 4)), 0.7),
    "difference": Dense(torch.randn(6, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.5, -0.5, 2.0, 1.0])
def test_a_weight_counts_once_and_keeps_its_sign(kind, weight):
    layer = KINDS[kind]
    before = layer.delta().clone()
    assert torch.allclose(scaled(layer, weight).delta(), weight * before, rtol=1e-6, atol=1e-7)
    assert torch.equal(layer.delta(), before)


def test_factors_are_shared_not_copied():
    layer = factors()
    half = scaled(layer, 0.5)
    assert half.up is layer.up
    assert half.down is layer.down
    assert half.alpha == 1.5


def test_weights_change_what_they_name_and_drop_zeros():
    lora = lora_of(**{QKV: factors(1), PROJ: factors(2), LINEAR1: factors(3), "img_in": factors(4)})
    out = apply_weights(lora, parse_weights("double.3 = 0.5, txt = 0, other = 2"))
    assert list(out.modules) == [QKV, LINEAR1, "img_in"]
    for name, weight in ((QKV, 0.5), (LINEAR1, 1.0), ("img_in", 2.0)):
        assert torch.allclose(out.modules[name].delta(), weight * lora.modules[name].delta())
    assert list(lora.modules) == [QKV, PROJ, LINEAR1, "img_in"]


def test_biases_and_norms_go_with_their_blocks():
    lora = replace(lora_of(**{QKV: factors()}), vectors={f"{QKV}.bias": torch.ones(6), "img_in.bias": torch.ones(3)})
    out = apply_weights(lora, parse_weights("double = 0.5, other = 0"))
    assert list(out.vectors) == [f"{QKV}.bias"]
    assert torch.equal(out.vectors[f"{QKV}.bias"], torch.full((6,), 0.5))


def test_blocks_that_a_lora_lacks_change_nothing():
    """A vector goes by the blocks' numbers in the model: the first number is double block 0, there or not."""
    numbers = [0.0] * 57
    numbers[3], numbers[19 + 37] = 0.25, 0.5
    lora = lora_of(**{QKV: factors(1), LINEAR1: factors(2)})
    out = apply_weights(lora, parse_weights(",".join(map(str, numbers))))
    assert torch.allclose(out.modules[QKV].delta(), 0.25 * lora.modules[QKV].delta())
    assert torch.allclose(out.modules[LINEAR1].delta(), 0.5 * lora.modules[LINEAR1].delta())
    same = apply_weights(lora, parse_weights("double.0-2 = 0, single.0-36 = 0"))
    assert {n: layer.alpha for n, layer in same.modules.items()} == {QKV: 3.0, LINEAR1: 3.0}


def test_nothing_said_is_the_same_lora():
    lora = lora_of(**{QKV: factors()})
    assert apply_weights(lora, BlockWeights()) is lora


def test_twice_is_the_product():
    lora = lora_of(**{QKV: factors()})
    half = parse_weights("double = 0.5")
    assert apply_weights(apply_weights(lora, half), half).modules[QKV].alpha == pytest.approx(0.75)


def test_layers_are_made_only_when_asked_for():
    made = []
    lora = replace(lora_of(), modules=Layers({m: lambda m=m: made.append(m) or factors() for m in (QKV, LINEAR1)}))
    out = apply_weights(lora, parse_weights("double = 0.5"))
    assert made == []
    assert out.modules[QKV].alpha == 1.5
    assert made == [QKV]


@pytest.mark.parametrize(
    "layer", [factors(dora_scale=torch.ones(6)), factors(magnitude=torch.ones(6)), Rotation(torch.zeros(3, 2, 2))]
)
def test_what_is_not_proportional_takes_nought_or_one(layer):
    lora = lora_of(**{QKV: layer, LINEAR1: factors()})
    assert apply_weights(lora, parse_weights("single = 0.5")).modules[QKV] is layer
    assert list(apply_weights(lora, parse_weights("double = 0")).modules) == [LINEAR1]
    with pytest.raises(AtelierError, match=rf"{QKV} is a (DoRA|OFT)"):
        _ = apply_weights(lora, parse_weights("double = 0.5")).modules[QKV]


def test_nothing_left_and_another_base_are_refused():
    lora = lora_of(**{QKV: factors()})
    with pytest.raises(AtelierError, match="leave nothing"):
        apply_weights(lora, parse_weights("double = 0"))
    with pytest.raises(AtelierError, match=r"for SDXL and the LoRA for Flux\.1"):
        apply_weights(lora, parse_weights("input = 0", "sdxl"))


def test_the_header_tells_the_weights():
    lora = replace(lora_of(**{QKV: factors()}), metadata={"modelspec.trigger_phrase": "mia", "sshs_model_hash": "1"})
    told = apply_weights(lora, parse_weights("double = 0.5")).metadata
    assert json.loads(told["flux_atelier.recipe"])["block weights"] == "double = 0.5"
    assert told["modelspec.trigger_phrase"] == "mia"
    assert "sshs_model_hash" not in told


def test_the_summary_counts_and_names_idle_entries():
    lora = lora_of(**{QKV: factors(), PROJ: factors(), LINEAR1: factors()})
    assert summary(lora, parse_weights("double.3 = 0.5, txt = 0, single.5 = 0")).splitlines() == [
        "3 layers: 1 at 1, 1 at 0.5",
        "1 left out",
        "no layer of this LoRA is named by: single.5 = 0",
    ]


def test_the_command_bakes_weights_into_a_file(tmp_path):
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(source, lora_of(**{QKV: factors(1), LINEAR1: factors(2)}), "comfy", torch.float32)
    command = SimpleNamespace(lora=source, weights="double = 0.5, single = 0", out=out, dtype="float32")
    told = list(run_block_weights(command))
    assert told == ["2 layers: 1 at 0.5\n1 left out", str(out)]
    written = read_lora(out)
    assert list(written.modules) == [QKV]
    assert torch.allclose(written.modules[QKV].delta(), 0.5 * factors(1).delta())


# --- the browser's reading of the same words -------------------------------------------------------------------------

BLOCKS_MJS = Path(__file__).resolve().parents[2] / "web" / "lib" / "blocks.mjs"
TEXTS = [
    "",
    "double.0-18 = 0.5, single.3 = .2",
    "default = 0\nsingle.0-37 = 0..1\nattention = 0.5",
    "single.17-37 = 1..-0.5; double.0-2+7 = 1e-1",
    "single = 0.5, * = 0.2, single.1 = 1 # a note",
    "double_blocks.* = 0.3, single_blocks.4-6 = 0.7",
    ", ".join(str(n / 50) for n in range(57)),
    "0.5 " + " ".join(str(n / 50) for n in range(57)),
    ",".join(str(n / 50) for n in range(61)),
]
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node: the browser's reading was not compared")


def in_node(expression: str):
    script = f"import * as b from {json.dumps(BLOCKS_MJS.as_uri())};\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


@needs_node
def test_the_browser_reads_and_writes_the_same_words():
    read = in_node(f"{json.dumps(TEXTS)}.map(t => b.parse(t, 'flux1')).map(s => [s, b.format(s)])")
    for text, (state, written) in zip(TEXTS, read, strict=True):
        assert state["problem"] == "", text
        weights, again = parse_weights(text), parse_weights(written)
        for kind, values in weights.blocks().items():
            if "attention" not in text:
                assert state["blocks"][kind] == pytest.approx(values)
            assert again.blocks()[kind] == pytest.approx(values, abs=1e-4)
        for name in modules("flux1"):
            assert again.of(name) == pytest.approx(weights.of(name), abs=1e-4), (text, written, name)


@needs_node
def test_the_browser_knows_the_same_blocks():
    kinds = in_node("b.KINDS")
    for base, anatomy in ANATOMY.items():
        assert kinds[base] == [[name, kind.prefix, kind.count] for name, kind in anatomy.kinds.items()]


@needs_node
def test_the_browser_knows_the_same_names_beside_whole_blocks():
    names = in_node("b.NAMES")
    for base, anatomy in ANATOMY.items():
        prefixes = {kind.prefix: name for name, kind in anatomy.kinds.items()}
        found = {"parts": set(anatomy.parts), "outside": set(), **{name: set() for name in anatomy.kinds}}
        for module in modules(base):
            head, *rest = module.split(".")
            found[prefixes.get(head, "outside")].add(rest[1] if head in prefixes else head)
        assert {where: set(known) for where, known in names[base].items()} == found, base


@needs_node
def test_presets_name_the_blocks_that_the_training_options_do():
    presets = in_node("b.PRESETS")
    for text in presets.values():
        parse_weights(text)
    shape = FluxShape(3072, 19, 38, 64, 4096, 768, True, 12288)
    linear = [
        m for m in modules("flux1") if re.fullmatch(r"(double|single)_blocks\..*(linear[12]|qkv|proj|mlp\.[02])", m)
    ]
    for name in ("style blocks", "subject blocks"):
        chosen, weights = re.compile(preset(name, shape)), parse_weights(presets[name])
        assert {m: weights.of(m) for m in linear} == {m: float(bool(chosen.fullmatch(m))) for m in linear}
