"""Merge LoRAs as the executor calls it: real wires, every method, the file, and what is told before the queue starts."""

import json

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.core.lora.merge import MergeOptions
from flux_atelier.core.lora.record import Lora

QKV, SINGLE = "double_blocks.0.img_attn.qkv", "single_blocks.1.linear2"


@pytest.fixture
def merging(comfyui):
    from flux_atelier.nodes import merging

    return merging


def some_lora(seed: int, rank: int = 4) -> Lora:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    layers = {
        QKV: Factors(draw(384, rank), draw(rank, 128), 6.0),
        SINGLE: Factors(draw(128, rank), draw(rank, 640), 2.0),
    }
    return Lora(layers, "kohya", {"modelspec.trigger_phrase": f"word{seed}"})


def wires(*seeds) -> dict:
    from flux_atelier.nodes.wire import to_wire

    with torch.inference_mode():  # as another node's output is
        return {f"lora{i}": to_wire(some_lora(seed)) for i, seed in enumerate(seeds)}


def run(node, **inputs):
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


def deltas(lora: Lora) -> dict:
    return {name: layer.delta() for name, layer in lora.modules.items()}


def test_a_saved_graph_of_before_gives_what_it_gave(merging, folders):
    """Only the four inputs that old graphs have: the weighted sum at a rank, its file, and its name."""
    out = run(merging.MergeLoras, loras=wires(1, 2), weights="1.0, -0.5", rank=8, name="old")
    lora, name, report = out.args
    assert name == "old.safetensors"
    written = read_lora(folders / "output" / "loras" / name)
    a, b = deltas(some_lora(1)), deltas(some_lora(2))
    from flux_atelier.nodes.wire import from_wire

    for found, error in ((from_wire(lora, "it"), 1e-6), (written, 2e-3)):  # the file has float16
        for module, delta in deltas(found).items():
            wanted = a[module] - 0.5 * b[module]
            assert (delta - wanted).norm() <= error * wanted.norm()
    assert written.metadata["modelspec.trigger_phrase"] == "word1, word2"
    assert "2 LoRAs, rank 8, 100.00% of the sum's energy kept" in report
    assert f"{QKV}: rank 8" in report


@pytest.mark.parametrize("method", MergeOptions.model_fields["method"].annotation.__args__)
def test_every_method_writes_a_lora(merging, folders, method):
    out = run(merging.MergeLoras, loras=wires(1, 2), weights="1.0", rank=8, name=f"by {method}", method=method)
    written = read_lora(folders / "output" / "loras" / f"by {method}.safetensors")
    assert written.modules.keys() == {QKV, SINGLE}
    assert all(torch.isfinite(delta).all() for delta in deltas(written).values())
    assert json.loads(written.metadata["flux_atelier.recipe"]).get("method", "linear") == method
    assert not any(tensor.is_inference() for tensor in out.args[0].values())


def test_block_weights_and_progress(merging, folders, monkeypatch):
    from flux_atelier.nodes import host

    seen = []
    monkeypatch.setattr(host.Progress, "at", lambda self, value: seen.append((value, self.total)))
    text = "lora0: single = 0\nlora1: double.0 = 0"
    out = run(merging.MergeLoras, loras=wires(1, 2), weights="1", rank=0, name="parts", block_weights=text)
    from flux_atelier.nodes.wire import from_wire

    found, a, b = deltas(from_wire(out.args[0], "it")), deltas(some_lora(1)), deltas(some_lora(2))
    assert torch.allclose(found[QKV], a[QKV], rtol=1e-5, atol=1e-5)
    assert torch.allclose(found[SINGLE], b[SINGLE], rtol=1e-5, atol=1e-5)
    assert seen == [(1, 2), (2, 2)]


def test_a_refused_merge_leaves_no_file(merging, folders):
    given = dict(loras=wires(1, 2), weights="1.0", name="never")
    with pytest.raises(AtelierError, match="Set rank"):
        run(merging.MergeLoras, **given, rank=0, method="ties")
    with pytest.raises(AtelierError, match=r"density is 0\.1, which linear does not use"):
        run(merging.MergeLoras, **given, rank=4, density=0.1)
    assert not list((folders / "output" / "loras").glob("never*"))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (dict(), True),
        (dict(method="ties", density=0.2), True),
        (dict(method=None, density=0.2), True),  # linked: known when it runs
        (dict(density=0.2), "which linear does not use"),
        (dict(method="della", density=0.9, epsilon=0.4), "gives chances"),
        (dict(weights="1, x"), "no number"),
        (dict(weights="1, 2, 3", loras={"lora0": None, "lora1": None}), "3 weights for 2"),
        (dict(name="../out"), "leads out"),
    ],
)
def test_mistakes_are_told_before_the_queue_starts(merging, inputs, words):
    told = merging.MergeLoras.validate_inputs(**dict(name="m", weights="1.0") | inputs)
    assert told is True if words is True else words in told


def test_a_name_with_a_folder_goes_out_as_comfyui_lists_it(merging, folders):
    out = run(
        merging.MergeLoras, loras=wires(1, 2), weights="1", rank=4, name="sub/merged", **MergeOptions().model_dump()
    )
    assert out.args[1] == "sub/merged.safetensors"
    assert (folders / "output" / "loras" / out.args[1]).is_file()


def test_the_face_keeps_its_names(merging):
    schema = merging.MergeLoras.GET_SCHEMA()
    assert schema.node_id == "FluxAtelierMergeLoras"
    names = [i.id for i in schema.inputs]
    assert names[:4] == ["loras", "weights", "rank", "name"]
    assert all(i.optional and i.tooltip for i in schema.inputs[4:])
    assert set(names[4:]) == set(MergeOptions.model_fields)
    assert [o.display_name for o in schema.outputs] == ["lora", "lora name", "report"]


@pytest.mark.parametrize(
    ("weights", "count", "expected"),
    [("1.0", 3, [1.0, 1.0, 1.0]), ("1, .5", 2, [1.0, 0.5]), ("1;-0.5", 3, [1.0, -0.5, -0.5])],
)
def test_weights_are_read(merging, weights, count, expected):
    assert merging.read_weights(weights, count) == expected
