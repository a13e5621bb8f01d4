"""What the pack adds to ComfyUI's start, beside ComfyUI's own imports; each run in a fresh process."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from .__main__ import ROOT, Figure

RUNS = 5
CODE = """
import json, sys, time
sys.path.insert(0, {comfyui!r}); sys.argv = ["main.py"]
began = time.perf_counter()
import comfy.options; comfy.options.enable_args_parsing(False)
from comfy.cli_args import args; args.cpu = True
import execution, server, comfy_api.latest  # what main.py has loaded before it comes to custom nodes
host = time.perf_counter() - began
import asyncio, importlib.util
began = time.perf_counter()
spec = importlib.util.spec_from_file_location("flux_atelier", {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
pack = importlib.util.module_from_spec(spec); sys.modules["flux_atelier"] = pack; spec.loader.exec_module(pack)
listed = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
[n.GET_NODE_INFO_V1() for n in listed]
print(json.dumps([host, time.perf_counter() - began]))
"""


def run() -> list[Figure]:
    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if not (comfyui / "comfy_api").is_dir():
        sys.exit(f"There is no ComfyUI at {comfyui}. Set COMFYUI_PATH.")
    code = CODE.format(comfyui=str(comfyui), root=str(ROOT))
    times = []
    for _ in range(RUNS):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
        times.append(json.loads(done.stdout.strip().splitlines()[-1]))
    host, pack = (statistics.median(t[i] for t in times) for i in (0, 1))
    return [Figure("pack beside ComfyUI's imports", pack, host, "s", most=0.2)]
