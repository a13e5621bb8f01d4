"""The LoRAs that ship with nano-flux do what they say, and go on doing it once they are one."""

from functools import cache

import pytest
import torch

from flux_atelier.core.evaluation.style_figure import describe, style_position
from flux_atelier.core.lora.directions import select
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.core.lora.merge import merge
from flux_atelier.trainer.demo.road import JUDGED_SIZES
from flux_atelier.trainer.nano import files, measure, scenes

COUNT = 20
SEEDS = (1, 2, 3)
KEPT = 0.8


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine take ten times as long


@cache
def loras():
    painted, diamond = read_lora(files.PAINTED), read_lora(files.DIAMOND)
    parts = [("painted", 1.0, painted), ("diamond", 1.2, diamond)]
    merged = {"sum": merge(parts).lora, "rank 16": merge(parts, 16).lora}
    first = select(painted, "1")
    return merged | {"painted": painted, "diamond": diamond, "first": first.lora, "rest": first.rest}


@cache
def drawn(name: str | None, seed: int, subject: bool = False):
    return measure.draw_held_out(COUNT, seed, loras()[name] if name else None, JUDGED_SIZES, subject)


@cache
def target() -> torch.Tensor:
    chosen = scenes.draw_prompts(64, 5, sizes=JUDGED_SIZES)
    return describe(torch.stack([scenes.paint(p, i) for i, p in enumerate(scenes.draw(chosen, 5))]))


def style(name: str, seed: int) -> float:
    """How far plain prompts moved towards the painterly hand, 0 to 1."""
    base, moved = (describe(drawn(n, seed)[1]) for n in (None, name))
    return style_position(moved, base, target()).mean().item()


def subject(name: str | None, seed: int) -> float:
    """Share of prompts for the subject that show it."""
    return measure.content_share(*drawn(name, seed, True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_each_does_what_it_says(seed):
    assert style("painted", seed) >= 0.6
    assert measure.content_share(*drawn("painted", seed)) >= 0.8
    assert subject("diamond", seed) >= 0.7
    assert subject(None, seed) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sum", "rank 16"])
def test_merged_they_keep_what_each_did(name):
    styles = [style(name, s) / style("painted", s) for s in SEEDS]
    subjects = [subject(name, s) / subject("diamond", s) for s in SEEDS]
    assert sum(styles) / len(SEEDS) >= KEPT, styles
    assert sum(subjects) / len(SEEDS) >= KEPT, subjects


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_direction_of_every_layer_is_the_style_and_leaves_the_content(seed):
    whole, first, rest = (style(name, seed) for name in ("painted", "first", "rest"))
    assert first >= 0.5 * whole, (whole, first, rest)
    assert first >= 2 * rest, (whole, first, rest)
    assert measure.content_share(*drawn("first", seed)) >= 0.8
