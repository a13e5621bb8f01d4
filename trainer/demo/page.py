"""The demo's page: one HTML file with everything in it, readable without a network."""

import base64
import html
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...core.files import write_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #282828; background: #faf9f6; max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1, h2 { font-weight: 600; line-height: 1.2 } h2 { margin-top: 2em }
img, video { max-width: 100%; border: 1px solid #d6d3cc } table { border-collapse: collapse }
td, th { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid #d6d3cc } figcaption { color: #666 }
"""


@dataclass
class Page:
    """Parts of the page in order, and every figure by its name."""

    title: str
    parts: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    def section(self, title: str, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")

    def picture(self, picture: Image.Image, caption: str) -> None:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=90)
        data = base64.b64encode(buffer.getvalue()).decode()
        self.parts.append(
            f'<figure><img src="data:image/jpeg;base64,{data}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def clip(self, path: Path, caption: str) -> None:
        data = base64.b64encode(path.read_bytes()).decode()
        self.parts.append(
            f'<figure><video src="data:video/mp4;base64,{data}" controls loop muted autoplay></video>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def table(self, rows: dict[str, str]) -> None:
        self.figures |= rows
        cells = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        self.parts.append(f"<table>{cells}</table>")

    def write(self, path: Path) -> Path:
        body = "\n".join(self.parts)
        return write_text(
            path,
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f"<style>{STYLE}</style><h1>{html.escape(self.title)}</h1>\n{body}</html>\n",
        )
