"""Conversations as a chat template wants them.

Templates differ: most take a list of parts with one of type image, some take plain text and place the picture
themselves, some take plain text that must hold the image token. Which one it is shows in what the template makes of a
probe.
"""

from typing import Any

from ...core.errors import AtelierError
from .prompts import Ask

_PROBE = "PROBE"


class ChatTexts:
    """A processor's chat template, asked once which form of content it takes."""

    def __init__(self, processor: Any, folder_name: str):
        self.processor, self.folder_name = processor, folder_name
        owners = (processor, processor.tokenizer)
        names = ("image_token", "boi_token", "start_image_token")
        found = [getattr(owner, name, None) for owner in owners for name in names]
        self.tokens = tuple(dict.fromkeys(str(token) for token in found if token))
        self.form = self._find_form()

    def text(self, ask: Ask, answers: tuple[str, ...] = ()) -> str:
        """The conversation up to the turn after the last answer, as text with the picture's place in it.

        ask      the turns of one picture
        answers  what was answered to the first of them
        """
        messages = [{"role": "system", "content": self._words(ask.system)}] if ask.system else []
        for i, turn in enumerate(ask.turns[: len(answers) + 1]):
            messages.append({"role": "user", "content": self._user(turn, picture=i == 0)})
            if i < len(answers):
                messages.append({"role": "assistant", "content": self._words(answers[i])})
        return self._render(messages)

    def _render(self, messages: list[dict]) -> str:
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _plain(self, text: str) -> str:
        """A file's name or a tag must not count as a second picture."""
        for token in self.tokens:
            text = text.replace(token, "")
        return text

    def _words(self, text: str) -> Any:
        text = self._plain(text)
        return [{"type": "text", "text": text}] if self.form == "parts" else text

    def _user(self, turn: str, picture: bool) -> Any:
        turn = self._plain(turn)
        if self.form == "parts":
            return [{"type": "image"}] * picture + [{"type": "text", "text": turn}]
        return f"{self.tokens[0]}\n{turn}" if picture and self.form == "token" else turn

    def _find_form(self) -> str:
        for form in ("parts", "text", "token"):
            self.form = form
            if form == "token" and not self.tokens:
                continue
            shown = self._try(self._user(_PROBE, picture=True))
            if _PROBE not in shown or "'type'" in shown:
                continue
            placed = any(token in shown for token in self.tokens)
            if placed or (form == "parts" and shown != self._try(self._user(_PROBE, picture=False))):
                return form
        raise AtelierError(
            f"The chat template of {self.folder_name} has no place for a picture. Put the template of its authors there."
        )

    def _try(self, content: Any) -> str:
        from jinja2 import TemplateError

        try:
            return self._render([{"role": "user", "content": content}])
        except (TemplateError, TypeError):
            return ""  # the template takes another form
