"""A tool question that the bundled model answers rightly by itself: no grammar touches its tokens."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import httpx2
from nano_prompts import Question, questions
from real_rig import KEY, NANO, OFF, Real

MAX_QUESTIONS = 12
_INVOKE = re.compile(r'<｜DSML｜invoke name="([^"]+)">\n(.*?)</｜DSML｜invoke>', re.DOTALL)
_ARGUMENT = re.compile(r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">(.*?)</｜DSML｜parameter>', re.DOTALL)


@dataclass(frozen=True)
class OwnCall:
    """A question, and the call that the model writes for it when nothing is enforced."""

    question: Question
    name: str
    arguments: dict[str, Any]


def find_own_call(real: Real) -> OwnCall:
    """Ask as a raw completion of the chat's tokens, which has no constraint, until one call is whole and right."""
    with httpx2.Client(base_url=real.url, headers={"x-api-key": KEY}, timeout=120) as client:
        for question in questions(MAX_QUESTIONS):
            chat = {"messages": question.messages, "tools": question.tools, **OFF}
            ids = client.post("/tokenize", json=chat).json()["tokens"]
            asked = {"model": NANO, "prompt": ids, "max_tokens": 200, "temperature": 0}
            choice = client.post("/v1/completions", json=asked).json()["choices"][0]
            found = _INVOKE.findall(choice["text"])
            if choice["finish_reason"] == "stop" and len(found) == 1 and _fits(question, *found[0]):
                return OwnCall(question, found[0][0], _arguments(found[0][1]))
    raise AssertionError(f"none of the model's own calls was right in {MAX_QUESTIONS} questions that want one")


def _arguments(text: str) -> dict[str, Any]:
    return {name: value if kind == "true" else json.loads(value) for name, kind, value in _ARGUMENT.findall(text)}


def _fits(question: Question, name: str, text: str) -> bool:
    """Whether the call names one of the tools, with what that needs and nothing else, each argument once."""
    schemas = [tool["function"]["parameters"] for tool in question.tools if tool["function"]["name"] == name]
    names = [each for each, *_ in _ARGUMENT.findall(text)]
    if not schemas or len(set(names)) != len(names):
        return False
    return set(schemas[0]["required"]) <= set(names) <= set(schemas[0]["properties"])
