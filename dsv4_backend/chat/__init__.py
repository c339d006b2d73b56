"""Chat, Responses and Messages bodies to prompts, through deepseek-recipe."""

from dsv4_backend.chat.body import Protocol
from dsv4_backend.chat.encoder import ChatEncoder

__all__ = ["ChatEncoder", "Protocol"]
