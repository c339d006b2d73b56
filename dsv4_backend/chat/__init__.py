"""Chat, Responses and Messages bodies to prompts, and answers back into their APIs, through deepseek-recipe."""

from dsv4_backend.chat.body import Protocol, parse_body
from dsv4_backend.chat.encoder import ChatEncoder, Reading
from dsv4_backend.chat.reply import ApiEvent, ReplyStream

__all__ = ["ApiEvent", "ChatEncoder", "Protocol", "Reading", "ReplyStream", "parse_body"]
