"""What of a header a file made from it goes on saying, whatever another program wrote there."""

import json

import pytest
import torch

from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.lora.merge import merge
from flux_atelier.core.lora.provenance import RECIPE, TAGS, inherit
from flux_atelier.core.lora.quantise import quantise
from flux_atelier.core.lora.record import Lora
from flux_atelier.core.lora.resize import Rule, parse_rules, resize


def lora_of(**metadata):
    return Lora({}, "kohya", {RECIPE if k == "recipe" else TAGS: text for k, text in metadata.items()})


def test_recipes_and_tags_by_hand():
    one = lora_of(recipe='{"resize": 4}', tags='{"a": {"cat": 2}, "b": {"dog": 1}}')
    other = lora_of(tags='{"a": {"cat": 3}}')
    told = inherit([one, other], {"merge": 1})
    assert json.loads(told[RECIPE]) == {"merge": 1, "before": [{"resize": 4}, None]}
    assert json.loads(told[TAGS]) == {"a": {"cat": 5}, "b": {"dog": 1}}


@pytest.mark.parametrize("recipe", ["hello", "", "[1]", '"text"', "3", "{", "[" * 100_000])
def test_what_is_no_recipe_is_passed_over(recipe):
    told = inherit([lora_of(recipe=recipe), lora_of(recipe='{"resize": 4}')], {"merge": 1})
    assert json.loads(told[RECIPE]) == {"merge": 1, "before": [None, {"resize": 4}]}
    assert json.loads(inherit([lora_of(recipe=recipe)], {"merge": 1})[RECIPE]) == {"merge": 1}


@pytest.mark.parametrize(
    "tags",
    [
        "hello",
        "[1]",
        '{"a": [1]}',
        '{"a": {"t": "3"}}',
        '{"a": {"t": null}}',
        '{"a": "t"}',
        '{"a": {"t": NaN}}',
        "[" * 100_000,
    ],
)
def test_what_are_no_counts_of_tags_is_passed_over(tags):
    told = inherit([lora_of(tags=tags), lora_of(tags='{"a": {"cat": 2}}')], {"merge": 1})
    assert json.loads(told[TAGS]) == {"a": {"cat": 2}}


def test_counts_beside_what_is_none_are_kept():
    told = inherit([lora_of(tags='{"a": {"cat": 2, "t": "3"}, "b": [1]}'), lora_of()], {"merge": 1})
    assert json.loads(told[TAGS]) == {"a": {"cat": 2}}


DIM, ALPHA, TITLE, DATE = "ss_network_dim", "ss_network_alpha", "modelspec.title", "modelspec.date"
QKV, SINGLE = "double_blocks.0.img_attn.qkv", "single_blocks.1.linear2"


def trained(seed=1, rank=8, alpha=4.0, **metadata):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    layers = {
        QKV: Factors(draw(384, rank), draw(rank, 128), alpha),
        SINGLE: Factors(draw(128, rank), draw(rank, 640), alpha),
    }
    told = {DIM: str(rank), ALPHA: str(alpha), TITLE: "Evening", DATE: "2024-01-01", "ss_seed": "3"}
    return Lora(layers, "kohya", told | metadata)


MADE = {
    "as it is": (lambda lora: lora, ("8", "4")),
    "resize to a rank": (lambda lora: resize(lora, Rule("rank", 2)).lora, ("2", "2")),
    "resize by rules": (lambda lora: resize(lora, Rule("rank", 2), parse_rules("single: keep")).lora, ("Dynamic",) * 2),
    # It moves powers of two between the factors and alpha, layer by layer.
    "quantise": (lambda lora: quantise(lora, "bfloat16").lora, ("8", "Dynamic")),
    "merge": (lambda lora: merge([("a", 1.0, lora), ("b", 1.0, trained(2, 4))]).lora, ("12", "12")),
    "another alpha a layer": (
        lambda lora: Lora({**lora.modules, QKV: trained(1, 8, 2.0).modules[QKV]}, "kohya", lora.metadata),
        ("8", "Dynamic"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", MADE)
@pytest.mark.parametrize("layout", ["kohya", "diffusers_alpha"])
def test_rank_and_alpha_in_a_header_are_those_of_its_file(tmp_path, way, layout):
    make, told = MADE[way]
    said = read_lora(write_lora(tmp_path / "made.safetensors", make(trained()), layout)).metadata
    assert (said[DIM], said[ALPHA]) == told


def test_a_layout_without_alphas_has_the_rank_for_one(tmp_path):
    said = read_lora(write_lora(tmp_path / "made.safetensors", trained(), "diffusers")).metadata
    assert (said[DIM], said[ALPHA]) == ("8", "8")


def test_a_file_without_factors_names_no_rank(tmp_path):
    lora = Lora({}, "kohya", {DIM: "8", ALPHA: "4"}, vectors={"img_in.bias": torch.ones(128)})
    said = read_lora(write_lora(tmp_path / "made.safetensors", lora)).metadata
    assert DIM not in said and ALPHA not in said


def test_what_a_file_is_made_of_does_not_tell_its_rank():
    told = inherit([trained()], {"resize": 1})
    assert DIM not in told and ALPHA not in told and told["ss_seed"] == "3"


def test_a_merged_file_has_a_title_and_a_date_of_its_own(tmp_path):
    merged = merge([("a", 1.0, trained()), ("b", 1.0, trained(2))]).lora
    said = read_lora(write_lora(tmp_path / "both.v2.safetensors", merged)).metadata
    assert said[TITLE] == "both.v2"
    assert said[DATE].startswith("20") and "T" in said[DATE]
    kept = read_lora(write_lora(tmp_path / "other.safetensors", trained())).metadata
    assert (kept[TITLE], kept[DATE]) == ("Evening", "2024-01-01")
    plain = read_lora(write_lora(tmp_path / "plain.safetensors", Lora(trained().modules, "kohya"))).metadata
    assert TITLE not in plain and DATE not in plain
