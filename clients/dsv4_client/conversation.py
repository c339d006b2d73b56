"""A conversation as the body of a chat request."""

from __future__ import annotations

from dataclasses import dataclass, field

THINKING_LEVELS = ("on", "off", "max")


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Messages so far, and how much the model thinks.

    Rule: the thinking of earlier answers is not sent again: the model's own encoding drops it too.
    """

    system: str = ""
    thinking: str = "on"
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_thinking(self) -> bool:
        """Whether the next answer begins with thinking."""
        return self.thinking != "off"

    def body(self, message: str) -> dict[str, object]:
        """Return the request for the answer to `message`, which is not yet part of the conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, object] = {
            "messages": [*system, *self.messages, {"role": "user", "content": message}],
            "thinking": {"type": "enabled" if self.is_thinking else "disabled"},
        }
        if self.is_thinking:
            body["reasoning_effort"] = "max" if self.thinking == "max" else "high"
        return body

    def add(self, message: str, answer: str) -> None:
        """Remember a message and its answer."""
        self.messages.append({"role": "user", "content": message})
        self.messages.append({"role": "assistant", "content": answer})

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages.clear()
