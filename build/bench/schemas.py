"""Random bounded JSON schemas as forced answers: `python build/bench/schemas.py --count 500`.

Each is asked at temperature 1.0, once with thinking and once without, of a server with random weights (the worst case:
the model helps in nothing). Every answer that ends must be valid by jsonschema_rs; answers that end by length are
counted apart. "free" is the speed of the same server without a schema, "bound" with one, both 128 tokens an
answer to the same prompt; they take turns, because the machine is not ours alone, and each pair gives one ratio, by the
wall clock and by the CPU time of all the server's processes.
"first_token" is the wait of one request alone, without thinking, for the same prompt with and without its schema.
Figures go to build/bench/results/gateway/NAME.json. Answers are kept in build/cache/schemas-SEED.jsonl as they come:
a run that was cut short, or is over by --minutes, goes on where it was; remove the file to begin again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
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
MODES = ("thinking", "plain")
SPEED = 16
SPEED_TOKENS = 128
FIRST = 16
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


class Answers:
    """Every answer that was got, one a line of a file: a run that is cut short goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        self.by_key = {(each["mode"], each["number"]): each for each in map(json.loads, lines)}

    def add(self, answer: dict[str, Any]) -> None:
        self.by_key[answer["mode"], answer["number"]] = answer
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")

    def figures(self, mode: str, schemas: list[dict[str, Any]]) -> dict[str, Any]:
        """Count what ended, what of it is valid, and what ended by length."""
        got = [(answer, schemas[number]) for (name, number), answer in self.by_key.items() if name == mode]
        ended = [(answer["text"], schema) for answer, schema in got if answer["reason"] == FinishReason.STOP.value]
        wrong = [(text, schema) for text, schema in ended if not is_valid(text, schema)]
        return {
            "num_answers": len(got),
            "num_ended": len(ended),
            "num_valid": len(ended) - len(wrong),
            "num_by_length": len(got) - len(ended),
            "num_tokens": sum(answer["num_tokens"] for answer, _ in got),
            "commits": sorted({answer["commit"] for answer, _ in got}),
            "wrong": wrong[:3],
        }


async def play(client: AsyncClient, encoder: ChatEncoder, schemas: list[dict[str, Any]], answers: Answers) -> None:
    """Ask what was not yet answered, TOGETHER at a time."""
    gate, commit = asyncio.Semaphore(TOGETHER), record.commit()

    async def one(mode: str, number: int) -> None:
        async with gate:
            body = body_of(schemas[number], is_thinking=mode == "thinking", seed=number)
            text, reason, count = await ask(client, encoder, body)
        known = {"mode": mode, "number": number, "commit": commit}
        answers.add({**known, "text": text, "reason": reason.value, "num_tokens": count})

    keys = [(mode, number) for number in range(len(schemas)) for mode in MODES]
    await asyncio.gather(*(one(*key) for key in keys if key not in answers.by_key))


def is_valid(text: str, schema: object) -> bool:
    """Whether the text is JSON that the schema admits."""
    try:
        return bool(jsonschema_rs.is_valid(schema, json.loads(text)))
    except ValueError:
        return False


async def measure(server: Server, checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that are asked for; what was found is kept after each."""
    draw = random.Random(args.seed)
    schemas = [make_schema(draw) for _ in range(args.count)]
    encoder = ChatEncoder(checkpoint)
    answers = Answers(ROOT / "build" / "cache" / f"schemas-{args.seed}.jsonl")
    found: dict[str, Any] = {"num_schemas": args.count, "seed": args.seed, "max_tokens": MAX_TOKENS}
    async with AsyncClient(server.grpc_address) as client:
        if schemas:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(args.minutes * 60):
                    await play(client, encoder, schemas, answers)
            found |= {mode: answers.figures(mode, schemas) for mode in MODES}
            keep(args.name, found)
        if args.rounds:
            found["first_token"] = await measure_first_token(client, encoder, draw)
            found["speed"] = await measure_speed(client, args.rounds, server.pid)
            keep(args.name, found)
    return found


def keep(name: str, found: dict[str, Any]) -> None:
    """Write what was found so far."""
    record.RESULTS = ROOT / "build" / "bench" / "results" / "gateway"
    found["load_average"] = round(os.getloadavg()[0], 1)
    shown = ["python", "build/bench/schemas.py", *sys.argv[1:]]
    record.write(name, shown, {"settings": {"checkpoint": "random weights"}}, found)
    sys.stderr.write(f"{json.dumps(found, ensure_ascii=False)}\n")


async def measure_speed(client: AsyncClient, num_rounds: int, pid: int) -> dict[str, Any]:
    """Return tokens per second and per CPU second of the server, and the ratio of each pair of rounds.

    Rule: which of a pair goes first changes from pair to pair; the first pair only warms up.
    """
    speeds: dict[str, list[tuple[float, float]]] = {"free": [], "bound": []}
    bound = {"constraint": Constraint(kind=ConstraintKind.JSON_SCHEMA, value=json.dumps(LONG))}

    async def one(number: int, options: dict[str, Any]) -> int:
        limits = {"max_tokens": SPEED_TOKENS, "ignore_eos": True, "temperature": 1.0, "seed": number}
        events = [event async for event in client.generate("Fill the form.", **limits, **options)]
        return int(events[-1].usage.num_output_tokens)

    for number in range(num_rounds + 1):
        pair: list[tuple[str, dict[str, Any]]] = [("free", {}), ("bound", bound)]
        for name, options in pair if number % 2 else reversed(pair):
            started_s, started_cpu_s = time.monotonic(), cpu_s(pid)
            count = sum(await asyncio.gather(*(one(seed, options) for seed in range(SPEED))))
            speeds[name].append((count / (time.monotonic() - started_s), count / (cpu_s(pid) - started_cpu_s)))
    found: dict[str, Any] = {"num_pairs": num_rounds}
    for place, clock in enumerate(("wall", "cpu")):
        free, bounds = ([each[place] for each in speeds[name][1:]] for name in ("free", "bound"))
        ratios = [one / other for one, other in zip(bounds, free, strict=True)]
        found[clock] = {
            "free_tokens_per_s": round(statistics.median(free), 1),
            "bound_tokens_per_s": round(statistics.median(bounds), 1),
            "bound_to_free": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its living descendants have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return own + sum(cpu_s(int(child)) for children in tasks for child in children.read_text().split())


async def measure_first_token(client: AsyncClient, encoder: ChatEncoder, draw: random.Random) -> dict[str, Any]:
    """Return the median wait for a first token in ms, without thinking, one request at a time.

    Rule: the same prompt each time, which holds the schema, as V4's format wants it: "free" without a constraint, "new"
          with a schema that was never seen, "again" with it once more. No prompt goes on from a kept beginning.
    """
    waits: dict[str, list[float]] = {"free": [], "new": [], "again": []}
    lengths = []
    for number in range(FIRST):
        body = body_of({**make_schema(draw), "title": f"new {number}"}, is_thinking=False, seed=number)
        prompt = encoder.prompt(encoder.read(Protocol.CHAT, body))
        lengths.append(len(prompt.token_ids))
        names = ["free", "new", "again"] if number % 2 else ["new", "again", "free"]
        for name in names:
            options: dict[str, Any] = {} if name == "free" else {"constraint": prompt.constraint}
            limits = {"max_tokens": 2, "temperature": 1.0, "seed": number, "cache_salt": f"{name} {number}"}
            started_s, wait_ms = time.monotonic(), 0.0
            async for event in client.generate(prompt.token_ids, **limits, **options):
                if not wait_ms and getattr(event, "token_ids", None):
                    wait_ms = (time.monotonic() - started_s) * 1e3
            waits[name].append(wait_ms)
    medians = {f"{name}_ms": round(statistics.median(found), 1) for name, found in waits.items()}
    later = [new - free for new, free in zip(waits["new"], waits["free"], strict=True)]
    return {"prompt_tokens": statistics.median(lengths), **medians, "new_later_ms": round(statistics.median(later), 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default="schemas", help="of the file of figures")
    parser.add_argument("--count", type=int, default=500, help="schemas; 0: only the speed")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="longest time for the answers")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 1 where others use the cores too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a free and a bound round; 0: no speed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random"
        subprocess.run([sys.executable, str(ROOT / "build" / "random_checkpoint.py"), str(checkpoint)], check=True)
        settings = {"checkpoint": str(checkpoint), "num_threads": str(args.threads)}
        with Server(ServerOptions(repository=ROOT / "model_repository", settings=settings)) as server:
            found = asyncio.run(measure(server, checkpoint, args))
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return int(any(found[mode]["wrong"] for mode in MODES if mode in found))


if __name__ == "__main__":
    sys.exit(main())
