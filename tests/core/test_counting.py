"""Numbers of things in words, and that one thing is one in the sentences about LoRAs."""

from test_lora import some_lora

from flux_atelier.core.counting import counted
from flux_atelier.core.lora.blocks import parse_weights, summary
from flux_atelier.core.lora.merge import MergeOptions, merge
from flux_atelier.core.lora.merge import summary as merge_summary
from flux_atelier.core.lora.record import Lora
from flux_atelier.core.lora.resize import Rule, resize


def test_by_hand():
    assert [counted(n, "LoRA") for n in (0, 1, 2)] == ["0 LoRAs", "1 LoRA", "2 LoRAs"]
    assert [counted(n, "was", "were") for n in (0, 1, 2)] == ["0 were", "1 was", "2 were"]


def test_one_is_one():
    lora = some_lora()
    name = next(iter(lora.modules))
    one = Lora({name: lora.modules[name]}, "kohya", unknown=("x",))
    merged = merge([("a", 1.0, one)])
    assert merge_summary([("a", 1.0, one)], merged, MergeOptions()).startswith("1 LoRA, rank")
    assert "1 tensor that is no layer of the base model was left out" in merge_summary(
        [("a", 1.0, one)], merged, MergeOptions()
    )
    resized = resize(one, Rule("rank", 1)).summary
    assert resized.startswith("1 layer, ") and "1 tensor that is no layer was left out" in resized
    assert summary(one, parse_weights("")).startswith("1 layer: ")
