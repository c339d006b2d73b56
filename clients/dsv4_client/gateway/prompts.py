"""The prompts of a completions body: text, token ids, or lists of either; with `suffix`, the middle is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_backend.text import join_bytes
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.requests import Body
from dsv4_client.gateway.service import Service

FIM_BEGIN, FIM_HOLE, FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """One prompt: what is sent, its tokens, and its text."""

    prompt: str | list[int]
    token_ids: tuple[int, ...]
    text: str


def read_prompts(service: Service, body: Body) -> list[Raw]:
    """Return the prompts of a body. Raises: ApiError, RequestError."""
    given = body.get("prompt")
    is_one = isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_id, given)))
    prompts = [given] if is_one else given
    if not isinstance(prompts, list) or not prompts:
        raise ApiError(400, f"prompt is {given!r:.60} but must be text, a list of token ids, or a list of these.",
                       param="prompt")  # fmt: skip
    limit = service.settings.max_prompts
    if len(prompts) > limit:
        raise ApiError(400, f"prompt has {len(prompts)} entries but at most {limit} may be sent.", param="prompt")
    return [_raw(service, prompt, body.get("suffix"), index) for index, prompt in enumerate(prompts)]


def _raw(service: Service, prompt: object, suffix: object, index: int) -> Raw:
    if isinstance(prompt, str) and prompt:
        sent = prompt if suffix in (None, "") else _with_hole(service, prompt, suffix)
        return Raw(prompt=sent, token_ids=service.text.encode(sent), text=prompt)
    if isinstance(prompt, list) and prompt and all(map(_is_id, prompt)):
        size = service.vocabulary.size
        stranger = next((token for token in prompt if not 0 <= token < size), None)
        if stranger is not None:
            raise ApiError(
                400, f"prompt[{index}] has token {stranger} but ids go from 0 to {size - 1}.", param="prompt"
            )
        if suffix not in (None, ""):
            raise ApiError(400, "suffix goes with a prompt of text, but this one is token ids.", param="suffix")
        shown = prompt[1:] if prompt[0] == service.vocabulary.bos_id else prompt  # the server leaves it out of an echo
        text = join_bytes(service.vocabulary, shown).decode("utf-8", "replace")
        return Raw(prompt=list(prompt), token_ids=tuple(prompt), text=text)
    raise ApiError(400, f"prompt[{index}] is {prompt!r:.60} but must be text or token ids, and not empty.",
                   param="prompt")  # fmt: skip


def _with_hole(service: Service, prompt: str, suffix: object) -> str:
    """Return the prompt with the marks that ask for what stands between it and the suffix."""
    if not isinstance(suffix, str):
        raise ApiError(400, f"suffix is {suffix!r:.60} but must be a string.", param="suffix")
    marks = {service.vocabulary.tokens[token] for token in service.vocabulary.special_ids}
    if not {mark.encode() for mark in (FIM_BEGIN, FIM_HOLE, FIM_END)} <= marks:
        raise ApiError(400, "suffix needs fill-in-the-middle tokens, which this tokenizer lacks.", param="suffix")
    return f"{FIM_BEGIN}{prompt}{FIM_HOLE}{suffix}{FIM_END}"


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
