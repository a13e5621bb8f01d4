"""Shipped workflows: known nodes, fitting links, values within limits; the graph and its API twin say the same."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FACES = json.loads((ROOT / "tests" / "node_faces.json").read_text())
GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
TWINS = sorted((ROOT / "workflows" / "api").glob("*.json"))
CORE = {  # the nodes of ComfyUI itself that the workflows use: outputs, and types of the inputs that take links
    "LoraModelLoader": (["MODEL"], {"model": "MODEL", "lora": "LORA_MODEL"}),
    "CreateVideo": (["VIDEO"], {"images": "IMAGE"}),
    "SaveVideo": ([], {"video": "VIDEO"}),
}


def outputs_of(kind: str) -> list[str]:
    return FACES[kind]["outputs"] if kind in FACES else CORE[kind][0]


def input_of(kind: str, name: str) -> dict:
    """What an input takes; an Autogrow's `loras.lora0` is its template's."""
    if kind not in FACES:
        return {"type": CORE[kind][1].get(name, "*")}
    inputs = FACES[kind]["inputs"]
    if name in inputs:
        return inputs[name]
    group = inputs[name.split(".")[0]]
    (inner,) = group["template"]["input"]["required"].values()
    return {"type": inner[0]}


def fits(given: str, wanted: str) -> bool:
    return "*" in (given, wanted) or bool(set(given.split(",")) & set(wanted.split(",")))


@pytest.mark.parametrize("path", TWINS, ids=lambda p: p.stem)
def test_api_files_fit_the_nodes(path):
    prompt = json.loads(path.read_text())
    for number, node in prompt.items():
        kind = node["class_type"]
        assert kind in FACES or kind in CORE, kind
        assert node["_meta"]["title"]
        for name, value in node["inputs"].items():
            face, where = input_of(kind, name), f"{number} {kind}.{name}"
            if isinstance(value, list):
                source = prompt[value[0]]["class_type"]
                assert fits(outputs_of(source)[value[1]], face["type"]), where
                continue
            if "options" in face:
                assert value in face["options"], where
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert face.get("min", value) <= value <= face.get("max", value), where
        if kind in FACES:
            needed = {
                n
                for n, i in FACES[kind]["inputs"].items()
                if i["need"] == "required" and i["type"] != "COMFY_AUTOGROW_V3"
            }
            assert needed <= node["inputs"].keys(), f"{number} {kind} lacks {needed - node['inputs'].keys()}"


def values_of(node: dict) -> dict:
    """Widget values of a graph's node by name, from its widget inputs in order."""
    names = [i["name"] for i in node.get("inputs", []) if "widget" in i]
    values, found = list(node.get("widgets_values", [])), {}
    for name in names:
        found[name] = values.pop(0)
        if name == "seed":
            assert values.pop(0) == "fixed"  # a seed that moves would start another run
    return found


@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_a_graph_and_its_twin_say_the_same(path):
    graph = json.loads(path.read_text())
    twin = json.loads((path.parent / "api" / path.name).read_text())
    nodes = {str(n["id"]): n for n in graph["nodes"] if n["type"] != "MarkdownNote"}
    links = {link[0]: link for link in graph["links"]}
    assert nodes.keys() == twin.keys()
    for number, node in nodes.items():
        given = values_of(node) | {
            i["name"]: [str(links[i["link"]][1]), links[i["link"]][2]]
            for i in node.get("inputs", [])
            if i.get("link") is not None
        }
        assert node["type"] == twin[number]["class_type"]
        for name, value in twin[number]["inputs"].items():
            assert given[name] == value, f"{number} {node['type']}.{name}"


@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_a_graph_has_its_thumbnail_and_notes(path):
    assert path.with_suffix(".jpg").is_file()
    assert any(n["type"] == "MarkdownNote" for n in json.loads(path.read_text())["nodes"])
