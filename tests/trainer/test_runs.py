"""What a run keeps: averages, the best weights, settings in the header, trackers, notes; and what it draws on the way."""

import json
import math
import shutil
from contextlib import closing

import pytest
import torch
from training import options, session_in

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.options import flat
from flux_atelier.trainer import adapter
from flux_atelier.trainer.averages import Average
from flux_atelier.trainer.export import settings_of, to_lora
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.preview import sample_grid
from flux_atelier.trainer.report import run_curves
from flux_atelier.trainer.soup import average_states, lora_of
from flux_atelier.trainer.state import read_state, state_folders
from flux_atelier.trainer.validation import overfitting


def weights(session):
    return torch.cat([v.flatten() for v in adapter.state(session.tree).values()])


def test_the_average_is_the_recurrence_worked_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    average, by_hand = Average([parameter], 0.9), 1.0
    for step, value in enumerate((2.0, 4.0, 8.0), 1):
        parameter.data.fill_(value)
        average.update([parameter])
        decay = min(0.9, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * value
    assert average.values[0].item() == pytest.approx(by_hand)


def test_diffusers_averages_alike():
    from diffusers.training_utils import EMAModel

    parameter = torch.nn.Parameter(torch.randn(5))
    ours, theirs = Average([parameter], 0.95), EMAModel([parameter], decay=0.95)
    theirs.step([parameter])  # diffusers' first call only takes the values over
    for _ in range(300):
        parameter.data += torch.randn(5)
        ours.update([parameter])
        theirs.step([parameter])
        assert torch.allclose(ours.values[0], theirs.shadow_params[0], atol=1e-5)


def test_a_run_with_an_average_resumes_to_the_same_bytes(tmp_path):
    torch.set_num_threads(1)
    chosen = options(ema_decay=0.9)
    whole = session_in(tmp_path / "whole", chosen)
    list(train(whole))
    with closing(train(session_in(tmp_path / "parts", chosen))) as steps:
        for step in steps:
            if step.step == 5:
                break
    resumed = session_in(tmp_path / "parts", chosen)
    list(train(resumed))
    assert torch.equal(weights(resumed), weights(whole))
    assert all(torch.equal(a, b) for a, b in zip(resumed.average.values, whole.average.values, strict=True))
    with resumed.standing():
        assert not torch.equal(weights(resumed), weights(whole))
    assert torch.equal(weights(resumed), weights(whole))


def test_the_best_weights_become_the_lora_where_they_are_asked_for(tmp_path):
    session = session_in(tmp_path, options(steps=6, validate_every=2, result="best"))
    losses, seen = iter([(0.5, []), (0.3, []), (0.9, [])]), {}
    session.validation = type("Fixed", (), {"loss": lambda self, s: next(losses)})()
    for step in train(session):
        if step.validation is not None:
            seen[step.step] = weights(session).clone()
    lora = to_lora(session)
    assert session.best == (0.3, 4)
    assert lora.metadata["ss_steps"] == "4"
    assert torch.equal(weights(session), seen[6])  # the training's own weights are untouched
    with session.result():
        assert torch.equal(weights(session), seen[4])
    assert json.loads(lora.metadata["flux_atelier.losses"])["best_step"] == 4


def test_settings_come_back_out_of_a_lora(tmp_path):
    session = session_in(tmp_path, options(rank=3, trigger="ohwx", comment="for the wall"))
    list(train(session))
    file = write_lora(tmp_path / "a.safetensors", to_lora(session))
    metadata = read_lora(file).metadata
    assert settings_of(metadata, "a") == flat(session.options)
    assert metadata["modelspec.trigger_phrase"] == "ohwx"
    assert metadata["ss_training_comment"] == "for the wall"
    assert metadata["flux_atelier.dataset"] == "dataset"
    assert json.loads(metadata["flux_atelier.losses"])["last"] > 0


def test_a_foreign_lora_has_no_settings_to_give():
    with pytest.raises(AtelierError, match=r"b does not say how it was trained. It was made by networks.lora_flux"):
        settings_of({"ss_network_module": "networks.lora_flux"}, "b")


def test_the_mean_of_states_is_the_mean_of_their_deltas(tmp_path):
    session = session_in(tmp_path, options(save_every=2, keep_states=3, learning_rate=1e-2))
    list(train(session))
    lora = average_states(session.run, 3)
    states = [lora_of(read_state(path), path.name) for path in state_folders(session.run.checkpoints)[:3]]
    name = "double_blocks.0.img_attn.qkv"
    mean = sum(s.modules[name].delta() for s in states) / 3
    left, sigma, right = torch.linalg.svd(mean)
    best = left[:, :4] @ torch.diag(sigma[:4]) @ right[:4]
    assert lora.modules[name].rank == 4
    assert torch.allclose(lora.modules[name].delta(), best, atol=1e-6)
    assert (lora.modules[name].delta() - states[0].modules[name].delta()).norm() > 0


def test_averaging_needs_two_plain_states(tmp_path):
    session = session_in(tmp_path, options(steps=1))
    list(train(session))
    with pytest.raises(AtelierError, match="has 1 saved states of the 3"):
        average_states(session.run, 3)
    other = session_in(tmp_path / "lokr", options(steps=4, save_every=1, adapter_type="lokr", keep_states=3))
    list(train(other))
    with pytest.raises(AtelierError, match="no plain LoRA"):
        average_states(other.run, 2)


def test_overfitting_is_told_when_validation_rises_and_training_falls():
    falling = [1 - i / 100 for i in range(60)]
    rising = [(10, 0.8), (20, 0.5), (30, 0.52), (40, 0.55), (50, 0.6)]
    assert "lowest at step 20 (0.5000)" in overfitting(rising, falling)
    assert overfitting(rising[:3], falling) is None
    assert overfitting(rising, falling[::-1]) is None
    assert overfitting([(10, 0.8), (20, 0.7), (30, 0.6), (40, 0.55), (50, 0.5)], falling) is None


def test_validation_has_a_loss_for_each_noise_level(tmp_path):
    session = session_in(tmp_path, options())
    steps = [s for s in train(session) if s.validation is not None]
    for step in steps:
        assert len(step.levels) == 4
        assert step.validation == pytest.approx(sum(step.levels) / 4)
    assert run_curves(session.run).height > 400


def test_samples_stand_beside_the_base_and_change_nothing_in_the_training(tmp_path):
    torch.set_num_threads(1)
    straight = session_in(tmp_path / "straight", options())
    list(train(straight))
    drawing = session_in(tmp_path / "drawing", options())
    prompts = [("a cat", "text0"), ("a dog", "text1")]
    torch.manual_seed(7)
    for step in train(drawing):
        if step.step % 3 == 0:
            grid = sample_grid(drawing, prompts, lambda latents: latents[:, :3].sigmoid(), steps=2)
    assert torch.equal(weights(drawing), weights(straight))
    assert drawing.run.sample_file(6).is_file()
    assert sorted(p.name for p in drawing.run.samples.glob("base-*")) == ["base-0.png", "base-1.png"]
    assert grid.width > grid.height / 2


def test_tensorboard_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    session = session_in(tmp_path, options(tracker="tensorboard"))
    list(train(session))
    read = EventAccumulator(str(session.run.folder / "tensorboard"))
    read.Reload()
    assert [e.step for e in read.Scalars("loss")] == list(range(1, 9))
    ours = [r["loss"] for r in session.run.metrics()]
    assert [e.value for e in read.Scalars("loss")] == pytest.approx(ours, rel=1e-6)
    assert "validation/level_3" in read.Tags()["scalars"]


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    session = session_in(tmp_path, options(tracker="wandb"))
    with pytest.raises(AtelierError, match="pip install wandb"):
        list(train(session))


def test_compiled_blocks_give_the_same_gradients(tmp_path):
    if not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("no C++ compiler: compiled blocks were not tried")
    torch.set_num_threads(1)
    given = {"steps": 1, "batch_size": 1, "validate_every": 0, "gradient_checkpointing": 0.0}
    plain, compiled = (session_in(tmp_path / str(c), options(compile=c, **given)) for c in (False, True))
    a, b = list(train(plain)), list(train(compiled))
    assert a[0].loss == pytest.approx(b[0].loss, rel=1e-5)
    assert a[0].grad_norm == pytest.approx(b[0].grad_norm, rel=1e-4)


def test_activations_that_wait_in_ram_change_nothing(tmp_path):
    torch.set_num_threads(1)
    plain = session_in(tmp_path / "a", options(steps=3))
    waiting = session_in(tmp_path / "b", options(steps=3, offload_activations=True))
    list(train(plain))
    list(train(waiting))
    assert torch.equal(weights(plain), weights(waiting))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_and_its_scaler_goes_through_the_state(precision, tmp_path):
    session = session_in(tmp_path, options(precision=precision, steps=4))
    steps = list(train(session))
    assert all(math.isfinite(s.loss) for s in steps)
    assert all(p.dtype == torch.float32 for p in session.parameters)
    assert session.scaler.is_enabled() == (precision == "float16")
    again = session_in(tmp_path, options(precision=precision, steps=6))
    assert again.scaler.state_dict() == session.scaler.state_dict()
    assert len(list(train(again))) == 2


def test_a_float16_overflow_is_the_scalers_to_mend(tmp_path):
    session = session_in(tmp_path, options(precision="float16", steps=3))
    session.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    steps = list(train(session))
    assert steps[0].skipped
    assert "overflowed" in steps[0].note
    assert session.scaler.get_scale() < 2.0**40
    assert session.guard.skipped == 0


@pytest.mark.parametrize("kind", ["rslora", "dora", "lokr", "loha"])
def test_every_kind_resumes_to_the_same_bytes(kind, tmp_path):
    torch.set_num_threads(1)
    chosen = options(adapter_type=kind, steps=5, save_every=2)
    whole = session_in(tmp_path / "whole", chosen)
    list(train(whole))
    with closing(train(session_in(tmp_path / "parts", chosen))) as steps:
        for step in steps:
            if step.step == 3:
                break
    resumed = session_in(tmp_path / "parts", chosen)
    list(train(resumed))
    assert torch.equal(weights(resumed), weights(whole))
