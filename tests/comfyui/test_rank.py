"""Resize, Prune and Quantise LoRA as the executor calls them, and their files in ComfyUI's own loaders."""

import json

import pytest
import torch
from test_host import batch, comfy_velocity, float32_model, some_lora

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.lora.quantise import STORAGES, quantise
from flux_atelier.nodes.host.folders import lora_file


def run(node, **inputs):
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


@pytest.fixture(scope="module")
def lora(comfyui):
    from flux_atelier.nodes.wire import to_wire

    return to_wire(some_lora())


RESIZE = {"method": "rank", "amount": 2.0, "lowest_rank": 1, "highest_rank": 0, "rules": "", "name": "small"}


def resized(lora, **changes):
    from flux_atelier.nodes import rank

    return run(rank.ResizeLora, lora=lora, **RESIZE | changes)


def test_resize_gives_file_wire_and_report(lora, folders):
    wire, name, report = resized(lora).args
    path = folders / "output" / "loras" / name
    back = read_lora(path)
    assert name == "small.safetensors"
    assert {layer.rank for layer in back.modules.values()} == {2}
    assert back.modules.keys() == some_lora().modules.keys()
    assert str(path) in report
    assert "single_blocks.2.linear2" in report
    assert json.loads(wire.metadata["flux_atelier.recipe"])["resize"]["value"] == 2.0
    assert wire["lora_unet_single_blocks_1_linear1.lora_down.weight"].shape[0] == 2
    assert not wire["lora_unet_single_blocks_1_linear1.lora_down.weight"].is_inference()


@pytest.mark.parametrize(
    ("method", "amount"), [("energy", 0.7), ("frobenius", 0.9), ("cumulative", 0.6), ("ratio", 1.2)]
)
def test_other_methods(lora, method, amount):
    wire = resized(lora, method=method, amount=amount, highest_rank=3, rules="single: keep").args[0]
    ranks = {k: v.shape[0] for k, v in wire.items() if k.endswith("lora_down.weight")}
    assert all(rank == 4 for key, rank in ranks.items() if "single" in key)
    assert all(1 <= rank <= 3 for key, rank in ranks.items() if "double" in key)


def test_a_size_with_and_without_the_model(lora, nano, folders):
    ranks = {}
    for model in (None, nano[0]):
        name = resized(lora, method="size", amount=0.05, lowest_rank=0, model=model, name="sized").args[1]
        path = folders / "output" / "loras" / name
        assert 0.95 * 0.05 <= path.stat().st_size / 2**20 <= 0.05  # a direction of nano's takes up to 4 KiB
        ranks[model is None] = [layer.rank for layer in read_lora(path).modules.values()]
    assert ranks[True] != ranks[False]  # nano's weights are of different sizes, and so is what a change of them means
    with pytest.raises(AtelierError, match="Disconnect"):
        resized(lora, model=nano[0])


def test_norms_are_the_models(nano):
    from flux_atelier.core.lora.budget import norms_of
    from flux_atelier.nodes.host.weights import ModelWeights

    with torch.inference_mode(False):
        norm = norms_of(ModelWeights(nano[0], "model"))
        weight = nano[0].model.diffusion_model.single_blocks[0].linear1.weight
        assert norm("single_blocks.0.linear1") == pytest.approx(weight.double().norm().item(), rel=1e-5)
        with pytest.raises(AtelierError, match=r"clip_l\.x"):
            norm("clip_l.x")


def test_prune(lora):
    from flux_atelier.nodes import rank

    wire, name, report = run(
        rank.PruneLora, lora=lora, layers="double.0.txt_attn\nsingle.2", share=0.0, threshold=0.0, name="pruned"
    ).args
    assert name == "pruned.safetensors"
    assert len(wire) == 3 * (len(some_lora().modules) - 2)
    assert "2 dropped" in report


def test_a_name_with_a_folder_goes_out_as_comfyui_lists_it(lora):
    assert resized(lora, name="sub/small").args[1] == "sub/small.safetensors"


def test_mistakes_are_told_before_the_queue(comfyui):
    from flux_atelier.nodes import rank

    def check(**changes):
        return rank.ResizeLora.validate_inputs(**RESIZE | changes)

    assert check() is True
    assert check(method="size", amount=100.0, highest_rank=8) is True
    assert check(amount=None) is True  # linked
    assert "whole number" in check(amount=2.5)
    assert "at most 1" in check(method="energy", amount=16.0)
    assert "Set lowest_rank to 1 and highest_rank to 0" in check(highest_rank=8)
    assert "nearest name is single" in check(rules="singel.0-9: rank=4")
    assert "whole number" in check(rules="single: rank=2.5")
    assert "most is 1024" in check(method="energy", amount=0.5, highest_rank=5000)
    assert "most is 1024" in check(method="energy", amount=0.5, lowest_rank=5000)
    assert "most is 100000" in check(method="ratio", amount=1e6)
    assert check(rules="single.40: rank=4") is True  # of Flux.2
    assert check(rules=None) is True
    assert "lowest rank" in check(method="energy", amount=0.5, lowest_rank=9, highest_rank=8)
    assert "leads out" in check(name="../x")
    prune = rank.PruneLora.validate_inputs
    assert "nothing to prune" in prune(name="x", layers=" ", share=0.0, threshold=0.0)
    assert prune(name="x", layers="single", share=0.0, threshold=0.0) is True
    assert "name" in rank.QuantiseLora.validate_inputs(name="")


def test_a_rule_that_is_none_is_told_and_writes_nothing(lora, folders):
    with pytest.raises(AtelierError, match="rules"):
        resized(lora, rules="single = 4", name="never")
    assert not (folders / "output" / "loras" / "never.safetensors").exists()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_quantised_file_is_what_comfyui_makes_of_it(lora, storage, folders):
    """ComfyUI's own load_lora and calculate_weight on the file, beside the exact deltas; and the error told is its."""
    import comfy.lora
    import comfy.utils

    from flux_atelier.nodes import rank

    _, name, report = run(rank.QuantiseLora, lora=lora, storage=storage, name=f"in-{storage}").args
    path = folders / "output" / "loras" / name
    tensors, _ = read_tensors(path)
    made = quantise(some_lora(), storage)
    assert {t.dtype for k, t in tensors.items() if not k.endswith("alpha")} == {made.dtype}
    assert {t.dtype for k, t in tensors.items() if k.endswith("alpha")} == {torch.float32}
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    names = {f"lora_unet_{m.replace('.', '_')}": f"diffusion_model.{m}.weight" for m in some_lora().modules}
    patches = comfy.lora.load_lora(state, names)
    assert len(patches) == len(names)
    lost = total = 0.0
    for module, layer in some_lora().modules.items():
        key = f"diffusion_model.{module}.weight"
        start = torch.zeros(layer.up.shape[0], layer.down.shape[1])
        theirs = comfy.lora.calculate_weight([(1.0, patches[key], 1.0, None, None)], start, key)
        lost += (theirs.double() - layer.delta().double()).square().sum().item()
        total += layer.delta().double().square().sum().item()
    assert (lost / total) ** 0.5 == pytest.approx(made.error, rel=0.01, abs=1e-6)
    assert f"{made.error:.3%}" in report
    assert (lost / total) ** 0.5 <= {"float16": 5e-4, "bfloat16": 4e-3, "float8_e4m3fn": 0.04, "int8": 0.015}[storage]


@pytest.mark.parametrize("storage", ["float8_e4m3fn", "int8"])
@pytest.mark.parametrize("layout", ["kohya", "comfy"])
@pytest.mark.parametrize("loader", ["load_lora_for_models", "load_bypass_lora_for_models"])
def test_8_bits_draw_as_the_whole_lora_does(storage, layout, loader, folders, caplog):
    import comfy.sd
    import comfy.utils

    given, model = batch(), float32_model()
    made = quantise(some_lora(), storage, layout)
    path = write_lora(lora_file(f"{storage}-{layout}"), made.lora, layout, made.dtype)
    exact = write_lora(lora_file("exact"), some_lora(), layout, torch.float32)
    with torch.inference_mode():
        plain = comfy_velocity(model, *given)
        drawn = []
        for file in (exact, path):
            state = comfy.utils.load_torch_file(str(file), safe_load=True)
            patched = getattr(comfy.sd, loader)(model, None, state, 1.0, 0)[0]
            drawn.append(comfy_velocity(patched, *given))
    assert "not loaded" not in caplog.text
    change = (drawn[0] - plain).norm()
    assert change / plain.norm() > 0.01
    assert (drawn[1] - drawn[0]).norm() / change <= (0.08 if storage == "float8_e4m3fn" else 0.03)


def test_8_bits_go_on_to_other_nodes(lora):
    """What Quantise gives on the wire can be resized, pruned and quantised again."""
    from flux_atelier.nodes import rank

    wire = run(rank.QuantiseLora, lora=lora, storage="int8", name="eight").args[0]
    assert resized(wire).args[0].keys() == wire.keys()
    again = run(rank.QuantiseLora, lora=wire, storage="int8", name="eight").args
    assert "error 0.000%" in again[2]


def test_a_cancel_leaves_no_file(lora, folders):
    import comfy.model_management as memory

    memory.interrupt_current_processing()
    with pytest.raises(memory.InterruptProcessingException):
        resized(lora, name="cancelled")
    assert not (folders / "output" / "loras" / "cancelled.safetensors").exists()


def test_the_command_line(folders, capsys):
    import argparse

    from flux_atelier.trainer.commands.rank import COMMANDS

    source = write_lora(folders / "source.safetensors", some_lora())
    out = folders / "out.safetensors"

    def call(command, *words):
        parser = argparse.ArgumentParser()
        _, add, execute = COMMANDS[command]
        add(parser)
        return "\n".join(execute(parser.parse_args([str(source), "--out", str(out), *words])))

    assert "rank 2 to 2" in call("resize", "--rank", "2")
    assert "rank 1 to 4" in call(
        "resize", "--energy", "0.9", "--rule", "single: rank=1", "--rule", "double: keep", "--table"
    )
    assert "0.03 MiB" in call("resize", "--size", "0.03", "--layout", "comfy")
    assert read_lora(out).layout == "comfy"
    from flux_atelier.trainer import models

    assert "0.03 MiB" in call("resize", "--size", "0.03", "--base", str(models.nano().transformer))
    assert "1 dropped" in call("prune", "--layers", "single.2")
    assert "int8" in call("quantise", "--storage", "int8", "--table")
    for words in (("resize", "--rank", "2", "--base", "x"), ("prune",), ("resize", "--energy", "2")):
        with pytest.raises(AtelierError):
            call(*words)
    with pytest.raises(SystemExit):
        call("resize", "--rank", "2", "--energy", "0.5")
