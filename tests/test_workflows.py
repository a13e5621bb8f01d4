"""Shipped workflows: known nodes, fitting links, values within limits; the graph and its API twin say the same."""

import json
from itertools import combinations
from pathlib import Path

import faces
import pytest

ROOT = Path(__file__).resolve().parent.parent
FACES = json.loads((ROOT / "tests" / "node_faces.json").read_text())
GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
TWINS = sorted((ROOT / "workflows" / "api").glob("*.json"))
CORE = json.loads((ROOT / "tests" / "core_faces.json").read_text())  # ComfyUI's own nodes

TITLE = 30  # height of a node's title bar, which stands above its position


def outputs_of(kind: str) -> list[str]:
    return (FACES if kind in FACES else CORE)[kind]["outputs"]


def input_of(kind: str, name: str) -> dict:
    """What an input takes; an Autogrow's `loras.lora0` is its template's."""
    if kind not in FACES:
        return {"type": CORE[kind]["inputs"][name]}
    inputs = FACES[kind]["inputs"]
    if name in inputs:
        return inputs[name]
    group = inputs[name.split(".")[0]]
    (inner,) = group["template"]["input"]["required"].values()
    return {"type": inner[0]}


def needed_by(kind: str) -> set[str]:
    """Inputs that a node does not go without."""
    if kind not in FACES:
        return set(CORE[kind]["needed"])
    inputs = FACES[kind]["inputs"].items()
    return {name for name, i in inputs if i["need"] == "required" and i["type"] != "COMFY_AUTOGROW_V3"}


def test_every_graph_has_its_twin_and_its_layout():
    layouts = {p.stem for p in (ROOT / "workflows" / "layout").glob("*.toml")}
    assert {p.stem for p in GRAPHS} == {p.stem for p in TWINS} == layouts


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
            if "options" in face and name not in faces.MACHINE:
                assert value in face["options"], where
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert face.get("min", value) <= value <= face.get("max", value), where
        needed = needed_by(kind)
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


def area(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node with its title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_nodes_stand_side_by_side_and_inside_their_groups(path):
    graph = json.loads(path.read_text())
    for a, b in combinations(graph["nodes"], 2):
        (l1, t1, r1, b1), (l2, t2, r2, b2) = area(a), area(b)
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, f"{a['type']} lies over {b['type']}"
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in graph["groups"])]
    for node in graph["nodes"]:
        left, top, right, bottom = area(node)
        homes = [b for b in boxes if b[0] <= left and b[1] <= top and right <= b[2] and bottom <= b[3]]
        assert homes or node.get("title") == "About", f"{node['id']} {node['type']} stands outside of every group"
