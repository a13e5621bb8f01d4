"""Distilling LoRAs: what is learnt, where it starts, that it goes below truncation, and that it goes on where it stopped."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from tiny import SHAPE, tiny_batch, tiny_tree
from training import samples_in

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.factors import Factors, truncate, weighted_sum
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.lora.record import Lora
from flux_atelier.trainer import adapter
from flux_atelier.trainer.cache import Cache
from flux_atelier.trainer.commands.distil import read_weighted
from flux_atelier.trainer.distil import Errors, Lesson, LoraTeacher, errors_file, errors_of, layer_rules
from flux_atelier.trainer.flux.tree import FluxTree
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.loop import Session, train
from flux_atelier.trainer.run import open_run
from flux_atelier.trainer.session import Extras
from flux_atelier.trainer.targets import read_rules

LAYERS = ("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_mlp.0", "single_blocks.0.linear1", "final_layer.linear")
with torch.device("meta"):
    SIZES = {name: FluxTree(SHAPE).get_submodule(name).weight.shape for name in LAYERS}
VALUES = dict(
    steps=40, rank=2, learning_rate=3e-3, warmup=2, batch_size=2, validate_every=10, save_every=3, schedule="constant",
    weight_decay=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def lora(seed: int, rank: int = 4, layers=LAYERS, size: float = 0.06) -> Lora:
    rng, modules = torch.Generator().manual_seed(seed), {}
    for name in layers:
        out, width = SIZES[name]
        up, down = torch.randn(out, rank, generator=rng), torch.randn(rank, width, generator=rng)
        modules[name] = Factors(size * up, size * down, 2.0 * rank)
    return Lora(modules, "kohya", {"modelspec.trigger_phrase": f"word{seed}"})


def lesson(**changes) -> Lesson:
    return Lesson([("one", 0.8, lora(1)), ("two", -0.5, lora(2, 3))], **changes)


def session_in(folder, chosen: Lesson, teacher=None, **values) -> Session:
    options = chosen.options(VALUES | values, SHAPE, "the test")
    cache = Cache(folder / "cache")
    samples = [replace(s, split="validation") if s.name == "4.png" else s for s in samples_in(cache)]
    run = open_run(folder / "run", "run", options, "dataset", "model", "loras")
    view = TrainView(tiny_tree(), SHAPE, cast_plain, torch.device("cpu"))
    extras = Extras(begin=chosen.sum.modules, teacher=teacher or LoraTeacher(chosen.sum))
    return Session.start(view, samples, cache, "empty", options, run, extras)


def test_rules_by_hand():
    ranks = {"single_blocks.3.linear1": 4, "single_blocks.11.linear1": 4, "single_blocks.0.linear1": 2, "img_in": 4}
    rules = layer_rules(ranks, others=True).splitlines()
    assert rules == [
        r"single_blocks\.(3|11)\.linear1: rank=4", r"single_blocks\.(0)\.linear1: rank=2", "img_in: rank=4", ".*: rank=0",
    ]  # fmt: skip
    assert [rule.rank for rule in read_rules("\n".join(rules))] == [4, 2, 4, 0]


def test_a_whole_flux_lora_fits_into_the_rules():
    names = [f"double_blocks.{n}.{s}_{p}" for n in range(19) for s in ("img", "txt") for p in ("mod.lin", "attn.qkv")]
    names += [f"single_blocks.{n}.{part}" for n in range(38) for part in ("linear1", "linear2", "modulation.lin")]
    assert len(layer_rules(dict.fromkeys(names, 16), others=True)) < 3000


def test_what_is_learnt_is_the_model_with_the_sum_of_the_loras(tmp_path):
    session = session_in(tmp_path, lesson())
    latent, _, sigma, text, pooled, _ = tiny_batch()
    changed = tiny_tree()
    for name in LAYERS:
        layer = changed.get_submodule(name)
        dense = 0.8 * lora(1).modules[name].delta() - 0.5 * lora(2, 3).modules[name].delta()
        layer.weight.data += dense
    expected = changed(latent, sigma, text, pooled, torch.full((2,), session.options.objective.guidance))
    learnt = session.wanted(torch.zeros_like(latent), latent, sigma, text, pooled, None)
    moved = session.tree(latent, sigma, text, pooled, torch.full((2,), 1.0))
    assert torch.allclose(learnt, expected, atol=2e-5)
    assert (moved - expected).abs().max() > 1e-2  # the student is another model


def test_looking_at_the_teacher_leaves_the_student_as_it_was(tmp_path):
    session = session_in(tmp_path, lesson())
    given = tiny_batch()[0], *tiny_batch()[2:5]
    before = session.velocity(*given)
    wanted = session.wanted(before, *given)
    assert not wanted.requires_grad and before.requires_grad
    assert torch.equal(session.velocity(*given), before)
    assert all(p.requires_grad for p in session.parameters)
    with adapter.disabled(session.tree):
        alone = session.velocity(*given)
        assert torch.equal(session.wanted(before, *given), wanted)
        assert torch.equal(session.velocity(*given), alone)


def test_the_student_starts_where_truncation_ends(tmp_path):
    session = session_in(tmp_path, lesson())
    for name, factors in adapter.layers(session.tree).items():
        parts = [(0.8, lora(1).modules[name]), (-0.5, lora(2, 3).modules[name])]
        best, _ = truncate(weighted_sum(parts), 2)
        assert torch.allclose(factors.delta(), best.delta(), atol=1e-6)
    assert sorted(adapter.layers(session.tree)) == sorted(LAYERS)


def test_the_measured_errors_are_those_of_dense_models(tmp_path):
    """Beside models whose weights are changed in the open, on the run's own validation triples."""
    session = session_in(tmp_path, lesson())
    found = json.loads(errors_file(session.run).read_text())
    validation, told = session.validation, []
    models = {"alone": lambda total: total * 0, "truncated": lambda total: truncate_dense(total, 2), "sum": lambda t: t}
    trees = {}
    for kind, change in models.items():
        trees[kind] = tiny_tree()
        for name in LAYERS:
            total = 0.8 * lora(1).modules[name].delta() - 0.5 * lora(2, 3).modules[name].delta()
            trees[kind].get_submodule(name).weight.data += change(total)
    told = {kind: dense_error(session, validation, trees[kind], trees["sum"]) for kind in ("alone", "truncated")}
    assert found["alone"] == pytest.approx(told["alone"], rel=1e-3)
    assert found["truncated"] == pytest.approx(told["truncated"], rel=1e-3)
    assert 0 < found["truncated"] < found["alone"]


def truncate_dense(total, rank: int):
    left, sigma, right = torch.linalg.svd(total.double(), full_matrices=False)
    return ((left[:, :rank] * sigma[:rank]) @ right[:rank]).float()


def dense_error(session, validation, tree, other) -> float:
    """The mean squared difference of two models' velocities."""
    from flux_atelier.trainer import batches, objective

    total, count = 0.0, 0
    for index, sample in enumerate(validation.samples):
        latent, (text, pooled) = session.cache.get(sample.latent)[0], session.cache.get(sample.texts[0])
        sigmas = validation.sigmas(sample)
        noise = torch.randn(len(sigmas), *latent.shape, generator=batches.generator("validation", index))
        for sigma, one in zip(sigmas, noise, strict=True):
            given = (
                objective.add_noise(latent[None], one[None], sigma[None]),
                sigma[None],
                text[None].float(),
                pooled[None],
            )
            a, b = (model(*given, torch.ones(1)) for model in (tree, other))
            total, count = total + (a - b).square().mean().item(), count + 1
    return total / count


def test_at_the_full_rank_there_is_nothing_to_learn(tmp_path):
    session = session_in(tmp_path, lesson(), rank=7)
    found = json.loads(errors_file(session.run).read_text())
    assert found["truncated"] < 1e-8 * found["alone"]


def test_distilling_goes_below_truncation_on_what_was_not_trained_on(tmp_path):
    session = session_in(tmp_path, lesson())
    assert [s.name for s in session.validation.samples] == ["4.png"]
    assert "4.png" not in [s.name for s in session.samples]
    list(train(session))
    errors = errors_of(session.run)
    assert errors.distilled < 0.9 * errors.truncated, errors
    assert "lost by truncation" in errors.line() and "nothing better" not in errors.line()


def test_a_cancelled_distillation_goes_on_bit_for_bit(tmp_path):
    def ended(session):
        return {k: v.clone() for k, v in adapter.state(session.tree).items()}, [
            r["loss"] for r in session.run.metrics()
        ]

    whole = session_in(tmp_path / "whole", lesson(), steps=8, validate_every=4)
    list(train(whole))
    first = errors_file(whole.run).read_text()
    with closing(train(session_in(tmp_path / "parts", lesson(), steps=8, validate_every=4))) as steps:
        for step in steps:
            if step.step == 5:
                break
    resumed = session_in(tmp_path / "parts", lesson(), steps=8, validate_every=4)
    assert resumed.step == 5
    list(train(resumed))
    assert errors_file(resumed.run).read_text() == first
    (state, losses), (again, others) = ended(whole), ended(resumed)
    assert losses == others
    assert all(torch.equal(state[k], again[k]) for k in state)


def test_without_a_teacher_the_pictures_are_what_is_learnt(tmp_path):
    session = session_in(tmp_path, lesson())
    session.teacher = None
    told = torch.randn(2, 16, 4, 4)
    assert session.wanted(told) is told


def test_block_weights_and_layers_of_weight_nothing_are_left_out(tmp_path):
    chosen = lesson(blocks="default = 0\nsingle = 1\nlora1: double.1 = 0.5")
    assert sorted(chosen.sum.modules) == ["double_blocks.1.txt_mlp.0", "single_blocks.0.linear1"]
    factors = chosen.sum.modules["double_blocks.1.txt_mlp.0"]
    assert torch.allclose(factors.delta(), -0.25 * lora(2, 3).modules["double_blocks.1.txt_mlp.0"].delta(), atol=1e-6)


def test_what_no_transformer_layer_holds_is_left_out_and_told(tmp_path, caplog):
    given = lora(1)
    modules = dict(given.modules) | {"clip_l.text_model.x": Factors(torch.ones(2, 1), torch.ones(1, 2), 1.0)}
    wider = replace(given, modules=modules, vectors={"img_in.bias": torch.ones(256)})
    found = Lesson([("one", 1.0, wider)]).sum
    assert sorted(found.modules) == sorted(LAYERS) and not found.vectors
    assert "2 changes of text encoders" in caplog.text


@pytest.mark.parametrize(
    ("loras", "values", "words"),
    [
        ([lora(1)], {"layer_rules": "img_in: rank=4"}, "layer_rules are set"),
        ([lora(1)], {"learning_rate": 0}, "learning_rate"),
        ([Lora({"clip_l.x": Factors(torch.ones(2, 1), torch.ones(1, 2), 1.0)}, "kohya")], {}, "no layer of the transformer"),
        ([Lora({"double_blocks.9.img_attn.qkv": lora(1).modules[LAYERS[0]]}, "kohya")], {}, "that the model lacks"),
        ([Lora({"img_in": lora(1).modules[LAYERS[0]]}, "kohya")], {}, "Choose a LoRA for this model"),
        ([], {}, "no LoRA to merge"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_told(loras, values, words):
    with pytest.raises(AtelierError, match=words):
        Lesson([("one", 1.0, given) for given in loras]).options(VALUES | values, SHAPE, "the test")


def test_the_header_names_every_source():
    chosen = lesson(blocks="single = 0.5")
    options = chosen.options(VALUES, SHAPE, "the test")
    told = chosen.header({"modelspec.title": "mine", "modelspec.trigger_phrase": "own"}, options)
    assert told["modelspec.title"] == "mine"
    assert told["modelspec.trigger_phrase"] == "word1, word2"
    assert json.loads(told["flux_atelier.recipe"]) == {
        "distil": [{"name": "one", "weight": 0.8}, {"name": "two", "weight": -0.5}],
        "rank": 2, "steps": 40, "block_weights": "single = 0.5",
    }  # fmt: skip


def test_a_distillation_that_helped_nothing_says_so():
    assert "made nothing better" in Errors(1.0, 0.1, 0.2).line()
    assert "10.000% of the square is lost by truncation and 5.000% by distillation" in Errors(1.0, 0.1, 0.05).line()


def test_files_come_with_weights():
    assert read_weighted("a/b.safetensors=0.5")[1] == 0.5 and read_weighted("b.safetensors")[1] == 1.0
    with pytest.raises(AtelierError, match="'x', which is no number"):
        read_weighted("b=x")


def test_the_command_on_nano_flux(tmp_path):
    from argparse import ArgumentParser

    from flux_atelier.trainer.commands.distil import COMMANDS
    from flux_atelier.trainer.nano.practice import write_scenes

    write_scenes(tmp_path / "scenes", "plain", 4, 5)
    rng = torch.Generator().manual_seed(3)
    for name in ("a", "b"):
        factors = Factors(torch.randn(768, 4, generator=rng) * 0.1, torch.randn(4, 256, generator=rng) * 0.1, 4.0)
        made = Lora({"double_blocks.0.img_attn.qkv": factors}, "kohya", {"modelspec.trigger_phrase": name})
        write_lora(tmp_path / f"{name}.safetensors", made)
    _, add, run = COMMANDS["distil"]
    parser = ArgumentParser()
    add(parser)
    words = [
        tmp_path / "scenes",
        tmp_path / "a.safetensors",
        f"{tmp_path / 'b.safetensors'}=0.5",
        "--run",
        tmp_path / "run",
    ]
    words += [
        "--rank",
        "2",
        "--steps",
        "3",
        "--learning-rate",
        "1e-4",
        "--resolution",
        "64",
        "--no-buckets",
        "--gradient-checkpointing",
        "0",
    ]
    lines = list(run(parser.parse_args([str(w) for w in words])))
    assert "lost by truncation" in lines[-1]
    written = read_lora(tmp_path / "run" / "run.safetensors")
    assert written.rank == 2 and list(written.modules) == ["double_blocks.0.img_attn.qkv"]
    assert written.metadata["modelspec.trigger_phrase"] == "a, b"
