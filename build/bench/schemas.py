"""Random bounded JSON schemas as forced answers: `python build/bench/schemas.py --count 500`.

Each is asked at temperature 1.0, once with thinking and once without, of a server with random weights (the worst case:
the model helps in nothing). Every answer that ends must be valid by jsonschema_rs; answers that end by length are
counted apart. "free" is the speed of the same server without a schema, "bound" with one, both 128 tokens an
answer to the same prompt; they take turns, because the machine is not ours alone, and each pair gives one ratio.
"first_token" is the wait of one request alone, without thinking, free and for schemas that were never seen before.
Figures go to build/bench/results/gateway/schemas.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "loadtools"))

import jsonschema_rs  # noqa: E402
import record  # noqa: E402  (found beside the load tools)
from dsv4_client.aio import AsyncClient  # noqa: E402

from dsv4_backend.chat import ChatEncoder, Protocol  # noqa: E402
from dsv4_backend.launcher import Server, ServerOptions  # noqa: E402
from dsv4_backend.records import Constraint, ConstraintKind, FinishReason  # noqa: E402

MAX_TOKENS = 400
TOGETHER = 32
SPEED = 16
SPEED_TOKENS = 128
ITEMS = {"type": "array", "items": {"type": "string", "minLength": 4}, "minItems": 100}
LONG = {"type": "object", "properties": {"a": ITEMS}, "required": ["a"]}
WORDS = ("red", "green", "blue", "north", "south", "on", "off")


def make_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a random schema whose answers are bounded in length."""
    kinds = ["string", "integer", "boolean", "enum", "const", "null", "pattern"]
    kinds += ["object", "array", "anyOf"] if depth < 2 else []
    kind = "object" if depth == 0 else draw.choice(kinds)
    match kind:
        case "object":
            names = draw.sample(["a", "b", "item", "count", "tags", "who", "Größe"], draw.randint(1, 4))
            required = [name for name in names if draw.random() < 0.6]
            return {
                "type": "object",
                "properties": {name: make_schema(draw, depth + 1) for name in names},
                "required": required,
                "additionalProperties": False,
            }
        case "array":
            low = draw.randint(0, 2)
            return {"type": "array", "items": make_schema(draw, depth + 1), "minItems": low, "maxItems": low + 2}
        case "anyOf":
            return {"anyOf": [make_schema(draw, depth + 1) for _ in range(2)]}
        case "string":
            return {"type": "string", "minLength": draw.randint(0, 3), "maxLength": draw.randint(3, 12)}
        case "pattern":
            return {
                "type": "string",
                "pattern": draw.choice(["[a-z]{2,6}", "(on|off)", "[0-9]{4}-[0-9]{2}", "x[ab]{0,4}y"]),
            }
        case "integer":
            low = draw.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 1000)}
        case "enum":
            return {"enum": draw.sample(WORDS, 3)}
        case "const":
            return {"const": draw.choice(WORDS)}
    return {"type": kind}


def body_of(schema: object, *, is_thinking: bool, seed: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Fill the form."}],
        "temperature": 1.0,
        "max_tokens": MAX_TOKENS,
        "seed": seed,
        "stream": True,
        "thinking": {"type": "enabled" if is_thinking else "disabled"},
        "max_reasoning_tokens": 24,
    }
    if schema is None:
        return {**body, "ignore_eos": True}
    return {**body, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


async def ask(client: AsyncClient, encoder: ChatEncoder, body: dict[str, Any]) -> tuple[str, FinishReason, int]:
    """Return the answer's content, why it ended, and its number of tokens."""
    reply = encoder.reply(encoder.read(Protocol.CHAT, body), reply_id="x", model="x")
    is_open = False
    async for event in client.generate(body):
        if not is_open and event.usage is not None:
            reply.start(event.usage)
            is_open = True
        token_ids = getattr(event, "token_ids", None)
        if token_ids is not None:
            reply.push(token_ids)
        else:
            reason, usage = event.finish_reason, event.usage  # type: ignore[union-attr]
            if reason is FinishReason.ERROR:
                raise RuntimeError(event.error)  # type: ignore[union-attr]
            reply.finish(reason)
    return reply.whole()["choices"][0]["message"]["content"] or "", reason, usage.num_output_tokens


async def play(client: AsyncClient, encoder: ChatEncoder, bodies: list[dict[str, Any]]) -> tuple[list[Any], float]:
    """Ask all, TOGETHER at a time; return the answers and the seconds."""
    gate = asyncio.Semaphore(TOGETHER)

    async def one(body: dict[str, Any]) -> Any:
        async with gate:
            return await ask(client, encoder, body)

    started_s = time.monotonic()
    found = await asyncio.gather(*map(one, bodies))
    return list(found), time.monotonic() - started_s


def is_valid(text: str, schema: object) -> bool:
    """Whether the text is JSON that the schema admits."""
    try:
        return bool(jsonschema_rs.is_valid(schema, json.loads(text)))
    except ValueError:
        return False


async def measure(url: str, checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(args.seed)
    schemas = [make_schema(draw) for _ in range(args.count)]
    encoder = ChatEncoder(checkpoint)
    found: dict[str, Any] = {"num_schemas": args.count, "seed": args.seed}
    async with AsyncClient(url) as client:
        for name, is_thinking in (("thinking", True), ("plain", False)):
            bodies = [body_of(schema, is_thinking=is_thinking, seed=seed) for seed, schema in enumerate(schemas)]
            answers, seconds = await play(client, encoder, bodies)
            ended = [
                (text, schema)
                for (text, why, _), schema in zip(answers, schemas, strict=True)
                if why is FinishReason.STOP
            ]
            wrong = [(text, schema) for text, schema in ended if not is_valid(text, schema)]
            found[name] = {
                "num_ended": len(ended),
                "num_valid": len(ended) - len(wrong),
                "num_by_length": len(answers) - len(ended),
                "tokens_per_s": round(sum(count for *_, count in answers) / seconds, 1),
                "wrong": wrong[:3],
            }
            sys.stderr.write(f"{name} {found[name]}\n")
        found["speed"] = await measure_speed(client, args.rounds)
        found["first_token"] = await measure_first_token(client, draw)
    return found


async def measure_speed(client: AsyncClient, num_rounds: int) -> dict[str, Any]:
    """Return tokens/s free and bound, and the ratio of each pair of rounds; the first pair only warms up."""
    speeds: dict[str, list[float]] = {"free": [], "bound": []}
    bound = {"constraint": Constraint(kind=ConstraintKind.JSON_SCHEMA, value=json.dumps(LONG))}

    async def one(number: int, options: dict[str, Any]) -> int:
        limits = {"max_tokens": SPEED_TOKENS, "ignore_eos": True, "temperature": 1.0, "seed": number}
        events = [event async for event in client.generate("Fill the form.", **limits, **options)]
        return int(events[-1].usage.num_output_tokens)

    for _ in range(num_rounds + 1):
        for name, options in (("free", {}), ("bound", bound)):
            started_s = time.monotonic()
            counts = await asyncio.gather(*(one(number, options) for number in range(SPEED)))
            speeds[name].append(sum(counts) / (time.monotonic() - started_s))
    pairs = list(zip(speeds["free"], speeds["bound"], strict=True))[1:]
    return {
        "free_tokens_per_s": round(statistics.median(free for free, _ in pairs), 1),
        "bound_tokens_per_s": round(statistics.median(bound for _, bound in pairs), 1),
        "bound_to_free": round(statistics.median(bound / free for free, bound in pairs), 3),
        "ratios": [round(bound / free, 3) for free, bound in pairs],
    }


async def measure_first_token(client: AsyncClient, draw: random.Random) -> dict[str, float]:
    """Return the median wait for a first token in ms, without thinking: free, and with a new schema each time."""
    waits: dict[str, list[float]] = {"free_ms": [], "new_schema_ms": []}
    for number in range(10):
        schema = {**make_schema(draw), "title": f"new {number}"}
        for name, form in (("free_ms", None), ("new_schema_ms", schema)):
            started_s, wait_ms = time.monotonic(), 0.0
            async for event in client.generate({**body_of(form, is_thinking=False, seed=number), "max_tokens": 2}):
                if not wait_ms and getattr(event, "token_ids", None):
                    wait_ms = (time.monotonic() - started_s) * 1e3
            waits[name].append(wait_ms)
    return {name: round(statistics.median(found), 1) for name, found in waits.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a free and a bound round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random"
        subprocess.run([sys.executable, str(ROOT / "build" / "random_checkpoint.py"), str(checkpoint)], check=True)
        settings = {"checkpoint": str(checkpoint)}
        with Server(ServerOptions(repository=ROOT / "model_repository", settings=settings)) as server:
            found = asyncio.run(measure(server.grpc_address, checkpoint, args))
    record.RESULTS = ROOT / "build" / "bench" / "results" / "gateway"
    shown = ["python", "build/bench/schemas.py", *sys.argv[1:]]
    record.write("schemas", shown, {"settings": {"checkpoint": "random weights"}}, found)
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return int(any(found[name]["wrong"] for name in ("thinking", "plain")))


if __name__ == "__main__":
    sys.exit(main())
