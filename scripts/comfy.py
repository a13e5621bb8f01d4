"""Start ComfyUI with the pack and nano-flux in place: `make comfy`.

It runs in a base directory of its own (.comfy), so nobody's installation, models or outputs are touched.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / ".comfy"
MODEL = ROOT / "trainer" / "nano" / "model"
PLACES = {
    MODEL / "nano-flux.safetensors": "models/diffusion_models",
    MODEL / "nano-flux-vae.safetensors": "models/vae",
}


def find_comfyui() -> Path:
    """The ComfyUI at COMFYUI_PATH; where there is none, offer to bring one with comfy-cli."""
    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if (folder / "main.py").is_file():
        return folder
    print(f"There is no ComfyUI at {folder}.")
    if sys.stdin.isatty() and input("Bring one there with comfy-cli? [y/N] ").strip().lower() == "y":
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "comfy-cli"], check=True)
        command = [
            str(Path(sys.executable).with_name("comfy")),
            "--skip-prompt",
            "--workspace",
            str(folder),
            "install",
            "--cpu",
        ]
        subprocess.run(command, check=True)
        return folder
    sys.exit(
        "Clone https://github.com/comfyanonymous/ComfyUI there, or set COMFYUI_PATH to yours, "
        "then remove .venv/.ready and run make comfy again so that its requirements are installed."
    )


def prepare() -> None:
    """The base directory: its folders, the pack as a link, nano-flux's files among the models."""
    for kind in ("custom_nodes", "input", "output", "temp", "user", *set(PLACES.values())):
        (BASE / kind).mkdir(parents=True, exist_ok=True)
    link = BASE / "custom_nodes" / "flux_atelier"
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    for source, place in PLACES.items():
        if not (BASE / place / source.name).exists():
            shutil.copy(source, BASE / place)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port(start: int = 8188) -> int:
    return next(port for port in range(start, start + 100) if not answers(port))


def main() -> int:
    comfyui, port = find_comfyui(), free_port()
    prepare()
    import torch

    device = [] if torch.cuda.is_available() else ["--cpu", "--use-pytorch-cross-attention"]
    command = [
        sys.executable, "main.py", *device, "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(BASE),
        "--database-url", "sqlite:///:memory:", "--disable-auto-launch",
    ]  # fmt: skip
    server = subprocess.Popen(command, cwd=comfyui)
    try:
        while server.poll() is None and not answers(port):
            time.sleep(0.3)
        if server.poll() is None:
            print(
                f"\nopen http://127.0.0.1:{port}  (Templates -> flux_atelier -> quickstart; Ctrl-C ends it)", flush=True
            )
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
