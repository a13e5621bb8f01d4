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
        (dict(weights="1, nan"), "weight of lora1 is nan"),
        (dict(weights="inf"), "weight of lora0 is inf"),
        (dict(weights="0, 0"), "All weights are 0"),
        (dict(weights="1, 0"), True),
        (dict(weights="1, -1", method="average"), "add up to 0"),
        (dict(weights="1", method="slerp", loras={"lora0": None}), "between two LoRAs, and there is 1"),
        (dict(weights="1, 2", loras={"lora0": None}), "2 weights for 1 LoRA."),
        (dict(method="ties", rank=0), "Set rank"),
        (dict(method="ties", rank=0, energy=0.9), True),
        (dict(method="ties", rank=None), True),
        (dict(rank=-1), "rank is -1"),
        (dict(rank=2000), "rank is 2000"),
        (dict(block_weights="single.0-9 = 0.5\nlora1: double = 0 | 0: single = 1"), True),
        (dict(block_weights="singel = 0.5"), "The nearest name is single"),
        (dict(block_weights="lora1: singel = 0.5"), "The nearest name is single"),
        (dict(block_weights="lora2: single = 0.5", loras={"lora0": None, "lora1": None}), "there are 2 LoRAs"),
        (dict(block_weights="lora1: single = 0.5", loras={"lora0": None}), "there is 1 LoRA."),
        (dict(block_weights=None), True),
        (dict(name="../out"), "leads out"),
    ],
)
def test_mistakes_are_told_before_the_queue_starts(merging, inputs, words):
    given = dict(name="m", weights="1.0", rank=16, loras={"lora0": None, "lora1": None})
    told = merging.MergeLoras.validate_inputs(**given | inputs)
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


def loaded(folders, *names) -> dict:
    """LoRAs as Load LoRA File puts them on wires, under the sockets' names."""
    import folder_paths

    from flux_atelier.core.lora.formats import write_lora
    from flux_atelier.nodes.loras import LoadLora

    folder_paths.add_model_folder_path("loras", str(folders / "output" / "loras"))
    for seed, name in enumerate(names):
        write_lora(folders / "output" / "loras" / name, some_lora(seed))
    return {f"lora{i}": run(LoadLora, lora_name=name).args[0] for i, name in enumerate(names)}


def said(folders, name: str, key: str):
    return json.loads(read_lora(folders / "output" / "loras" / f"{name}.safetensors").metadata[key])


def test_the_recipe_and_the_parents_have_the_files_names(merging, folders):
    from flux_atelier.core.lora.identity import identity
    from flux_atelier.nodes import rank

    given = loaded(folders, "evening.safetensors", "below/ink.v2.safetensors") | {"lora2": wires(7)["lora0"]}
    out = run(merging.MergeLoras, loras=given, weights="1, 0.5", rank=8, name="both")
    assert said(folders, "both", "flux_atelier.recipe")["merge"] == [
        {"name": "evening", "weight": 1.0}, {"name": "ink.v2", "weight": 0.5}, {"name": "lora2", "weight": 0.5},
    ]  # fmt: skip
    parents = said(folders, "both", "flux_atelier.parent_hashes")
    assert [parent["name"] for parent in parents] == ["evening", "ink.v2", "lora2"]
    # What a node has written goes on under the name of its file.
    run(
        rank.ResizeLora, lora=out.args[0], method="rank", amount=2, lowest_rank=1, highest_rank=0, rules="", name="less"
    )
    assert said(folders, "less", "flux_atelier.parent_hashes") == [
        {"hash": identity(from_wire_of(out.args[0])), "name": "both"}
    ]


def from_wire_of(tensors):
    from flux_atelier.nodes.wire import from_wire

    return from_wire(tensors, "it")


def test_files_of_one_name_in_two_folders_are_told_apart(merging, folders):
    given = loaded(folders, "one/same.safetensors", "two/same.safetensors")
    run(merging.MergeLoras, loras=given, weights="1", rank=8, name="twins")
    names = ["same (lora0)", "same (lora1)"]
    assert [part["name"] for part in said(folders, "twins", "flux_atelier.recipe")["merge"]] == names
    assert [parent["name"] for parent in said(folders, "twins", "flux_atelier.parent_hashes")] == names
