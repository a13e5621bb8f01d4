"""What is said of a LoRA file, for files whose facts are known."""

import json

import pytest
import torch
from test_lora import factors, some_lora
from test_lora_layouts import kinds

from flux_atelier.core.lora.formats import to_layout
from flux_atelier.core.lora.inspection import inspect_lora
from flux_atelier.core.lora.record import Lora

KEY = "transformer.transformer_blocks.0.attn.to_out.0"


def peft_file(header):
    f = factors(128, 128, 4, 1.0, 0)
    config = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in header.items()})}
    return {f"{KEY}.lora_A.weight": f.down, f"{KEY}.lora_B.weight": f.up}, config


def test_a_files_facts():
    lora = some_lora()
    lora.metadata["modelspec.trigger_phrase"] = "ohwx, sks"
    seen = inspect_lora(to_layout(lora, "kohya", torch.float16) | {"odd.key": torch.zeros(1)}, lora.metadata, "a")
    text = seen.text(every_layer=True)
    assert "9 LoRA layers for Flux.1" in text
    assert "layout kohya, float16" in text
    assert "rank 4, alpha 6, scale 1.5" in text
    assert "trigger words: ohwx, sks" in text
    assert "not understood: odd.key" in text
    assert "single_blocks.37.linear1  LoRA  896 x 128  rank 4  alpha 6" in text
    assert not seen.warnings
    assert seen.right_in_comfyui


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"r": 4, "lora_alpha": 8}, "0.5 times as strong"),
        ({"r": 4, "lora_alpha": 4, "use_rslora": True}, "0.5 times as strong"),
        ({"r": 4, "lora_alpha": 4}, ""),
    ],
)
def test_an_alpha_that_comfyui_does_not_see_is_told(header, words):
    seen = inspect_lora(*peft_file(header), "a")
    assert (words in " ".join(seen.warnings)) and seen.right_in_comfyui == (not words)


def test_what_each_loader_does_not_read_is_told():
    told = {y: " ".join(inspect_lora(to_layout(some_lora(), y, torch.float32), {}, "a").warnings) for y in ("peft", "comfy", "onetrainer", "kohya")}  # fmt: skip
    assert "ComfyUI reads 0 of 28 keys" in told["peft"]
    assert "diffusers does not read" in told["comfy"]
    assert "bypass loader" in told["onetrainer"]
    assert not told["kohya"]


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_is_named(kind):
    state = to_layout(Lora({"double_blocks.0.img_attn.proj": kinds()[kind]}, "kohya"), "kohya", torch.float32)
    text = inspect_lora(state, {}, "a").text()
    assert f"1 {kind.split()[0]} layer for" in text
    assert ("It is a DoRA" in text) == (kind == "DoRA")
