"""What of a header a file made from it goes on saying, whatever another program wrote there."""

import json

import pytest

from flux_atelier.core.lora.provenance import RECIPE, TAGS, inherit
from flux_atelier.core.lora.record import Lora


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
