"""Options: what does not fit is told in two sentences, with the limits that the field has."""

from typing import Literal

import pytest
from pydantic import Field

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.options import Options, parse


class Inner(Options):
    steps: int = Field(default=4, ge=1, description="Steps.")


class Some(Options):
    strength: float = Field(default=1.0, ge=0, le=2, description="Strength.")
    density: float = Field(default=0.5, gt=0, le=1, description="Density.")
    gamma: float = Field(default=0.0, ge=0, lt=1, description="Gamma.")
    below: float = Field(default=0.0, lt=1, description="Below.")
    above: float = Field(default=1.0, gt=0, description="Above.")
    rank: int = Field(default=4, ge=1, le=64, description="Rank.")
    size: int = Field(default=64, ge=64, le=4096, multiple_of=16, description="Size.")
    most: int = Field(default=0, le=9, description="Most.")
    count: int = Field(default=0, description="Count.")
    on: bool = Field(default=False, description="On.")
    way: Literal["exact", "fast"] = Field(default="exact", description="Way.")
    name: str = Field(default="", description="Name.")
    names: tuple[str, ...] = Field(default=(), description="Names.")
    maybe: int | None = Field(default=None, ge=0, le=5, description="Maybe.")
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strength": 3}, "strength is 3. Choose 0 to 2."),
        ({"strength": -0.5}, "strength is -0.5. Choose 0 to 2."),
        ({"strength": float("nan")}, "strength is nan. Choose 0 to 2."),
        ({"strength": "much"}, "strength is 'much'. Choose a number, 0 to 2."),
        ({"density": 0}, "density is 0. Choose above 0 and up to 1."),
        ({"gamma": 1}, "gamma is 1. Choose from 0 to below 1."),
        ({"below": 1}, "below is 1. Choose below 1."),
        ({"above": 0}, "above is 0. Choose above 0."),
        ({"rank": 0}, "rank is 0. Choose 1 to 64."),
        ({"rank": 2.5}, "rank is 2.5. Choose a whole number, 1 to 64."),
        ({"rank": "four"}, "rank is 'four'. Choose a whole number, 1 to 64."),
        ({"size": 65}, "size is 65. Choose a multiple of 16, 64 to 4096."),
        ({"most": 10}, "most is 10. Choose up to 9."),
        ({"count": "x"}, "count is 'x'. Choose a whole number."),
        ({"on": "perhaps"}, "on is 'perhaps'. Choose true or false."),
        ({"way": "quick"}, "way is 'quick'. Choose exact or fast."),
        ({"name": 3}, "name is 3. Write a text."),
        ({"names": "x"}, "names is 'x'. Write a list."),
        ({"names": ["a", 3]}, "names is 3 at place 1. Write a text."),
        ({"maybe": 9}, "maybe is 9. Choose 0 to 5."),
        ({"inner": {"steps": 0}}, "inner.steps is 0. Choose 1 or more."),
        ({"inner": 3}, "inner is 3. Write a table."),
    ],
)
def test_what_does_not_fit_is_told_with_its_limits(given, told):
    with pytest.raises(AtelierError) as caught:
        parse(Some, given, "Some Node")
    assert str(caught.value) == f"Some Node: {told}"


def test_an_unknown_option_is_told_with_its_nearest():
    with pytest.raises(AtelierError, match=r"has no option called strenght\. Did you mean strength"):
        parse(Some, {"strenght": 1}, "Some Node")


def test_no_field_of_the_house_is_told_in_another_tongue():
    """Every limit of every option model, passed by a number: the sentence is ours."""
    from flux_atelier.core.lora.bake import BakeOptions
    from flux_atelier.core.lora.extract import ExtractOptions
    from flux_atelier.core.lora.merge import MergeOptions
    from flux_atelier.trainer.config import TrainOptions

    told = []
    for kind in (MergeOptions, ExtractOptions, BakeOptions, TrainOptions):
        told += _told(kind)
    assert len(told) > 60
    assert not [text for text in told if "nput should" in text or "pydantic" in text or "valid" in text.split(". ")[1]]


def _told(kind):
    """What is said of wrong values for each field, those of tables included."""
    found = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        tables = list(inner.model_fields) if _is_table(inner) else []
        for value in (-1e30, 1e30, "odd value"):
            given = [{name: {f: value}} for f in tables] or [{name: value}]
            found += [text for one in given for text in _one(kind, one)]
    return found


def _is_table(kind):
    return isinstance(kind, type) and issubclass(kind, Options)


def _one(kind, values):
    try:
        parse(kind, values, "X")
    except AtelierError as error:
        return [str(error)]
    return []
