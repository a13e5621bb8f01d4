"""A LoRA learns the painterly hand: its style arrives and its content stays, on three seeds of unseen prompts."""

from pathlib import Path

import pytest
import torch

from flux_atelier.core.dataset.folder import load_folder
from flux_atelier.core.evaluation.style_figure import describe, style_position
from flux_atelier.core.images import to_tensor
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.core.options import parse
from flux_atelier.trainer.cache import Cache
from flux_atelier.trainer.commands.train import Given, train_folder
from flux_atelier.trainer.config import TrainOptions
from flux_atelier.trainer.demo.road import JUDGED, JUDGED_SIZES, PAINTINGS, SEEDS, STYLE_OPTIONS
from flux_atelier.trainer.models import nano
from flux_atelier.trainer.nano import measure
from flux_atelier.trainer.nano.practice import write_scenes


@pytest.mark.slow
def test_style_arrives_and_content_stays(tmp_path):
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine take ten times as long
    dataset = load_folder(write_scenes(tmp_path / "painted", "painted", PAINTINGS, seed=7), validation=12)
    options = parse(TrainOptions, STYLE_OPTIONS, "the test")
    folder = tmp_path / "run"
    list(train_folder(Given(dataset, nano(), folder, options, Cache(tmp_path / "cache"), torch.device("cpu"))))
    lora = read_lora(folder / "run.safetensors")
    target = describe(torch.stack([to_tensor(_open(dataset.file(r))) for r in dataset.kept]))
    for seed in SEEDS:
        chosen, base = measure.draw_held_out(JUDGED, seed, sizes=JUDGED_SIZES)
        _, styled = measure.draw_held_out(JUDGED, seed, lora, JUDGED_SIZES)
        moved = style_position(describe(styled), describe(base), target).mean()
        assert moved >= 0.6, f"seed {seed}: the style moved {moved:.2f} of the way"
        assert measure.content_share(chosen, styled) >= 0.8, f"seed {seed}"


def _open(path: Path):
    from PIL import Image

    return Image.open(path).convert("RGB")
