"""The nodes as the executor calls them: inside inference mode, with real inputs, through their own execute."""

import json

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.images import to_picture
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.trainer import cache as cache_of
from flux_atelier.trainer.nano import scenes


@pytest.fixture(scope="module")
def pictures(folders):
    """Six painted scenes with captions in ComfyUI's input folder."""
    folder = folders / "input" / "painted"
    folder.mkdir()
    chosen = scenes.draw_prompts(6, 2)
    for i, picture in enumerate(scenes.draw(chosen, 2)):
        to_picture(scenes.paint(picture, i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(chosen[i].caption)
    return "painted"


def run(node, **inputs):
    """Execute a node as ComfyUI does."""
    with torch.inference_mode():
        prepared = node.PREPARE_CLASS_CLONE(None)
        return prepared.execute(**inputs)


@pytest.fixture(scope="module")
def dataset(pictures):
    from flux_atelier.nodes import datasets

    return run(datasets.LoadDataset, folder=pictures, validation=0).args[0]


def train(nano, dataset, name, **changes):
    from flux_atelier.nodes import training

    values = dict(
        steps=4, learning_rate=1e-3, rank=4, alpha=4.0, resolution=64, batch_size=2, trigger="", seed=0, sample_every=2
    )
    options = {"validate_every": 2, "gradient_checkpointing": 0.0}
    model, clip, vae = nano
    return run(
        training.TrainLora,
        model=model,
        clip=clip,
        vae=vae,
        dataset=dataset,
        name=name,
        options=options,
        **values | changes,
    )


def test_train_gives_a_lora_a_loss_and_a_run(nano, dataset, folders):
    lora, loss, trained, name = train(nano, dataset, "four").args
    assert name == "four.safetensors"
    assert len(loss["loss"]) == 4
    assert trained.lora_file.is_file()
    assert sorted(p.name for p in trained.samples.glob("step-*")) == ["step-000002.png", "step-000004.png"]
    written = read_lora(folders / "output" / "loras" / "four.safetensors")
    assert written.layout == "kohya"
    assert written.rank == 4
    assert all(key.startswith("lora_unet_") for key in lora)
    assert json.loads(written.metadata["flux_atelier.config"])["steps"] == 4


def test_cancel_keeps_the_lora_and_the_next_run_goes_on(nano, dataset, folders):
    import comfy.model_management as memory

    from flux_atelier.nodes import host

    seen = []
    original = host.Progress.at

    def cancel_at_three(self, value, picture=None):
        if self.total == 7 and value == 3 and not seen:
            seen.append(value)
            memory.interrupt_current_processing()
        original(self, value, picture)

    host.Progress.at = cancel_at_three
    try:
        with pytest.raises(memory.InterruptProcessingException):
            train(nano, dataset, "stopped", steps=7, batch_size=3)
    finally:
        host.Progress.at = original
    if not seen:
        pytest.fail("the training was never cancelled")
    assert (folders / "output" / "loras" / "stopped.safetensors").is_file()
    lora, loss, _, _ = train(nano, dataset, "stopped", steps=7, batch_size=3).args
    straight, whole, _, _ = train(nano, dataset, "straight", steps=7, batch_size=3).args
    assert loss["loss"] == whole["loss"]
    assert all(torch.equal(lora[k], straight[k]) for k in straight)


def test_merge_with_itself_at_half_weight_is_itself(nano, dataset):
    from flux_atelier.nodes import merging

    lora = train(nano, dataset, "four").args[0]
    merged = run(
        merging.MergeLoras, loras={"lora0": lora, "lora1": lora}, weights="0.5, 0.5", rank=4, name="half"
    ).args[0]
    for key in lora:
        if key.endswith("lora_up.weight"):
            stem = key.removesuffix("lora_up.weight")
            before = lora[key] @ lora[stem + "lora_down.weight"]
            after = merged[key] @ merged[stem + "lora_down.weight"]
            assert torch.allclose(before, after, atol=1e-7)


def test_compare_draws_both_and_the_figure(nano, dataset):
    from flux_atelier.nodes import evaluation

    model, clip, vae = nano
    lora = train(nano, dataset, "four").args[0]
    grid, base, styled, figure = run(
        evaluation.CompareLora, model=model, clip=clip, vae=vae, lora=lora, prompts="a red circle\n\na blue square",
        strength=1.0, seed=0, steps=3, guidance=3.5, width=64, height=64, target=dataset,
    ).args  # fmt: skip
    assert grid.shape[0] == 1
    assert base.shape == styled.shape == (2, 64, 64, 3)
    assert not torch.equal(base, styled)
    assert isinstance(figure, float)


def test_stylise_keeps_the_picture_at_zero_and_changes_it_above(nano):
    from flux_atelier.nodes import style

    model, clip, vae = nano
    images = scenes.draw(scenes.draw_prompts(2, 0), 0).permute(0, 2, 3, 1)
    given = dict(images=images, model=model, clip=clip, vae=vae, prompt="a red circle", seed=0, steps=4, guidance=3.5)
    assert torch.equal(run(style.Stylise, strength=0.0, **given).args[0], images)
    assert run(style.Stylise, strength=0.5, **given).args[0].shape == images.shape
    with pytest.raises(AtelierError, match="3 prompts for 2 pictures"):
        run(style.Stylise, strength=0.5, **given | {"prompt": "a\nb\nc"})


def test_an_edited_caption_makes_the_loader_run_again(pictures, folders):
    from flux_atelier.nodes.datasets import LoadDataset

    before = LoadDataset.fingerprint_inputs(folder=pictures, validation=0)
    caption = folders / "input" / pictures / "0.txt"
    caption.write_text(caption.read_text() + " and more")
    assert LoadDataset.fingerprint_inputs(folder=pictures, validation=0) != before


def test_encode_fills_the_cache_that_training_reads(nano, dataset):
    from flux_atelier.nodes import training

    model, clip, vae = nano
    out = run(
        training.EncodeDataset,
        model=model,
        clip=clip,
        vae=vae,
        dataset=dataset,
        resolution=64,
        buckets=True,
        trigger="t",
    )
    assert out.args[0] is dataset
    encoder, cache = host_encoder(nano), training.open_cache()
    with torch.inference_mode(False):
        items = list(
            cache_of.encode(dataset.dataset(), encoder, training.DataOptions(resolution=64, trigger="t"), cache)
        )
    assert not any(item.made for item in items)


def host_encoder(nano):
    from flux_atelier.nodes import host

    return host.GraphEncoder(*nano)


def test_a_shift_that_was_loaded_leaves_no_mark(nano):
    import comfy.model_management as memory
    import comfy_extras.nodes_model_advanced as advanced

    from flux_atelier.nodes import host

    with torch.inference_mode():
        own = host.fingerprint(nano[0])
        shifted = advanced.ModelSamplingFlux().patch(nano[0], 3.0, 0.5, 64, 64)[0]
        memory.load_models_gpu([shifted])
        assert host.fingerprint(nano[0]) == own


def test_checks_of_nodes_that_grow_take_what_grew(comfyui):
    """The server passes an Autogrow input to every validate_inputs; without the argument the whole prompt is refused."""
    import asyncio
    import inspect

    from comfy_api.latest import io

    import flux_atelier

    nodes = asyncio.run(asyncio.run(flux_atelier.comfy_entrypoint()).get_node_list())
    seen = 0
    for node in nodes:
        grown = [i.id for i in node.GET_SCHEMA().inputs if isinstance(i, io.Autogrow.Input)]
        if "validate_inputs" in vars(node):
            seen += len(grown)
            taken = inspect.signature(node.validate_inputs).parameters
            assert all(name in taken or "kwargs" in taken for name in grown), node.__name__
    assert seen >= 4


def test_identity_is_of_the_weights_and_patches_not_of_what_is_loaded(nano):
    import comfy.model_management as memory
    from test_host import some_lora

    from flux_atelier.core.lora.formats import to_layout
    from flux_atelier.nodes import host

    with torch.inference_mode():
        model, state = nano[0], to_layout(some_lora(), "kohya", torch.float32)
        own = host.fingerprint(model)
        strong, weak = (host.with_lora(model, state, s) for s in (1.0, 0.3))
        marks = host.fingerprint(strong), host.fingerprint(weak)
        assert len({own, *marks}) == 3
        memory.load_models_gpu([strong])
        assert host.fingerprint(model) == own
        assert (host.fingerprint(strong), host.fingerprint(weak)) == marks


def test_a_training_leaves_nothing_behind_and_the_model_as_it_was(nano, dataset):
    import gc

    from flux_atelier.nodes import host
    from flux_atelier.trainer.flux.view import TrainView
    from flux_atelier.trainer.session import Session

    model, clip, _ = nano
    latent = torch.zeros(1, 16, 8, 8)

    def drawn():
        with torch.inference_mode():
            return host.sample(model, host.condition(clip, "a red circle", 3.5), latent, 1, 3)

    def alive():
        gc.collect()
        return [o for o in gc.get_objects() if type(o) in (TrainView, Session)]

    before, there = drawn(), alive()  # the command line's own view of nano-flux stays as long as the process
    train(nano, dataset, "leaves-nothing")
    assert not [o for o in alive() if all(o is not other for other in there)]
    assert torch.equal(drawn(), before)


def test_wishes_stop_keep_and_sample(nano, dataset, folders):
    from flux_atelier.nodes import panel

    original, asked = panel.Wishes.take, iter([[], ["sample", "save"], ["stop"]])
    panel.Wishes.take = lambda self: next(asked)
    try:
        _, loss, trained, _ = train(nano, dataset, "wished", steps=9, sample_every=0).args
    finally:
        panel.Wishes.take = original
    assert len(loss["loss"]) == 3
    assert sorted(p.name for p in trained.samples.glob("step-*")) == ["step-000002.png"]
    assert (folders / "output" / "loras" / "wished.safetensors").is_file()
    assert (trained.folder / "curves.png").is_file()
    assert "beside the model" in trained.plan_file.read_text().splitlines()[0]


def test_a_training_goes_on_from_a_lora_with_an_adapter_and_regularisation(nano, dataset):
    from flux_atelier.nodes import training

    model, clip, vae = nano
    first = train(nano, dataset, "four").args[0]
    given = dict(
        model=model, clip=clip, vae=vae, dataset=dataset, name="onwards", steps=3, learning_rate=1e-3, rank=4, alpha=4.0,
        resolution=64, batch_size=2, trigger="", seed=0, sample_every=0, options={"validate_every": 0},
    )  # fmt: skip
    out = run(
        training.TrainLora, **given, regularisation=dataset, start_from=first, training_adapter=first
    ).args  # fmt: skip
    assert len(out[1]["loss"]) == 3
    with pytest.raises(AtelierError, match="another LoRA to go on from"):
        run(training.TrainLora, **given, regularisation=dataset, start_from=first)


def test_the_plan_names_the_choice(nano):
    from flux_atelier.nodes import training

    text = run(training.TrainingPlan, model=nano[0], steps=10, rank=4, alpha=4.0, resolution=64, batch_size=1).args[0]
    assert "lora on" in text
    assert ">" in text


def test_settings_come_back_as_inputs(nano, dataset, folders):
    import folder_paths

    from flux_atelier.nodes import runs

    train(nano, dataset, "four")
    folder_paths.add_model_folder_path("loras", str(folders / "output" / "loras"))
    options, *values = run(runs.LoadTrainingSettings, lora_name="four.safetensors").args
    assert dict(zip(runs.SHOWN, values, strict=True))["rank"] == 4
    assert options["validate_every"] == 2
    assert "steps" not in options


def test_states_are_averaged(nano, dataset, folders):
    from flux_atelier.nodes import runs, training

    model, clip, vae = nano
    trained = run(
        training.TrainLora, model=model, clip=clip, vae=vae, dataset=dataset, name="several", steps=4, learning_rate=1e-3,
        rank=4, alpha=4.0, resolution=64, batch_size=2, trigger="", seed=0, sample_every=0,
        options={"validate_every": 0, "save_every": 1, "keep_states": 3},
    ).args[2]  # fmt: skip
    lora, name = run(runs.AverageStates, run=trained, last=3, name="mean").args
    assert name == "mean.safetensors"
    assert (folders / "output" / "loras" / "mean.safetensors").is_file()
    assert all(key.startswith("lora_unet_") for key in lora)


@pytest.mark.parametrize("name", ["made", "made.safetensors", "made.SafeTensors", "v1.0", "below/v1.0.safetensors"])
def test_a_file_is_named_with_its_ending_or_without(folders, name):
    from flux_atelier.nodes import host

    stem = name[: -len(".safetensors")] if name.lower().endswith("tensors") else name
    assert host.lora_file(name) == folders / "output" / "loras" / f"{stem}.safetensors"


@pytest.mark.parametrize("name", ["", " ", ".safetensors", "..", ". .safetensors"])
def test_a_file_without_a_name_is_refused(folders, name):
    from flux_atelier.nodes import host

    with pytest.raises(AtelierError, match="Give the LoRA a name"):
        host.lora_file(name)
