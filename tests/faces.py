"""The public face of every node as plain data: id, inputs with types, limits and defaults, outputs."""

import json
from pathlib import Path

FILE = Path(__file__).with_name("node_faces.json")
MACHINE = (
    "lora_name",
    "sampler",
    "scheduler",
    "checkpoint",
    "tuned_file",
    "base_file",
    "model_folder",
    "tagger_folder",
    "clip_folder",
)  # lists that differ by machine
KEPT = ("default", "min", "max", "step", "options", "multiline", "template")


def face(node) -> dict:
    """What a workflow file depends on."""
    info = node.GET_NODE_INFO_V1()
    inputs = {}
    for need in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(need, {}).items():
            details = rest[0] if rest else {}
            if isinstance(kind, list):  # a combo in the older form
                kind, details = "COMBO", {**details, "options": kind}
            if name in MACHINE:
                details = {**details, "options": []}
            inputs[name] = {"type": kind, "need": need} | {k: details[k] for k in KEPT if k in details}
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "inputs": inputs,
        "outputs": list(info["output"]),
    }


def current() -> dict[str, dict]:
    """Faces of all nodes of the pack, from the code."""
    import asyncio

    import flux_atelier

    extension = asyncio.run(flux_atelier.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    return json.loads(json.dumps({n.GET_SCHEMA().node_id: face(n) for n in nodes}))


def stored() -> dict[str, dict]:
    return json.loads(FILE.read_text())


if __name__ == "__main__":
    import conftest  # noqa: F401 - loads the package and ComfyUI

    FILE.write_text(json.dumps(current(), indent=1, ensure_ascii=False) + "\n")
