"""Against llama.cpp on this CPU: python build/bench/llama_cpp.py build|compare --folder DIR [--shapes small,large]

build     takes the sdist llama-cpp-python 0.3.36 from the package index, and compiles the llama.cpp inside it, for this
          machine, into DIR (a quarter of an hour on two idle cores)
compare   writes the two random checkpoints of cpu_models.py (official FP8 + FP4 layout) into DIR, converts them with
          llama.cpp's own script (FP4 experts stay as they are, FP8 becomes Q8_0), and lets both engines take turns:
          decode alone, 8 streams together, prompts of 512 and 4,096 tokens; flash attention on, float16 cache for
          llama.cpp, float32 cache here. transformers in float32 decodes the small one.
Wall time, medians of rounds. llama.cpp multiplies in 8-bit integers; here activations make V4's own FP8 round trip and
the products are exact. Writes build/bench/results/cpu/llama-cpp.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu_decode import RESULTS, active_bytes, hardware, read_bandwidth
from cpu_models import Streams, load_model, make_checkpoint, num_parameters, random_prompt

from dsv4_backend.config import CacheFormat
from dsv4_backend.model import Transformer

SDIST = "llama-cpp-python==0.3.36"
SOURCE = "llama_cpp_python-0.3.36/vendor/llama.cpp"
TARGETS = ("llama-bench", "llama-batched-bench")
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=OFF")
DECODED, STREAMS, STREAM_PROMPT, STREAM_DECODED = 64, 8, 64, 32
PROMPTS = (512, 4096)
CHUNK = 512
CONVERT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import convert_hf_to_gguf
from conversion import deepseek
def no_vocabulary(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
deepseek.DeepseekV4Model.set_vocab = no_vocabulary
sys.argv[1:] = [sys.argv[2], "--outfile", sys.argv[3], "--outtype", "q8_0"]
convert_hf_to_gguf.main()
"""
SIZES = """
import sys, json
sys.path.insert(0, sys.argv[1] + "/gguf-py")
from gguf import GGUFReader
print(json.dumps({item.name: int(item.n_bytes) for item in GGUFReader(sys.argv[2]).tensors}))
"""


def run(*command: str | Path) -> str:
    """Run a command and return what it prints; a failure ends this program with its last words."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def build(folder: Path) -> None:
    """Take and compile llama.cpp."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SOURCE).exists():
        run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", folder, SDIST)
        run("tar", "-xzf", next(folder.glob("llama_cpp_python-*.tar.gz")), "-C", folder)
    run("cmake", "-S", folder / SOURCE, "-B", folder / "build", *OPTIONS)
    run("cmake", "--build", folder / "build", "-j", str(os.cpu_count()), "--target", *TARGETS)


def converted(folder: Path, checkpoint: Path) -> Path:
    """The checkpoint as llama.cpp reads it."""
    target = folder / f"{checkpoint.name}.gguf"
    if not target.exists():
        run(sys.executable, "-c", CONVERT, folder / SOURCE, checkpoint, target)
    return target


def their_bytes(folder: Path, model: Path, share: float) -> int:
    """Weight bytes that one token reads: `share` of the experts, and one row of the embedding."""
    sizes = json.loads(run(sys.executable, "-c", SIZES, folder / SOURCE, model))
    kept = {name: size for name, size in sizes.items() if not name.startswith("token_embd")}
    return int(sum(size * (share if "_exps" in name else 1.0) for name, size in kept.items()))


class Theirs:
    """llama.cpp's own benchmark programs."""

    def __init__(self, folder: Path, model: Path, threads: int) -> None:
        self._folder = folder / "build" / "bin"
        self._options = ("-m", model, "-t", threads, "-fa", "on")

    def prefill(self, count: int) -> float:
        """Tokens per second of a prompt."""
        return self._bench("-p", count, "-n", 0, "-ub", CHUNK)

    def decode(self) -> float:
        """Tokens per second of one sequence."""
        return self._bench("-p", 0, "-n", DECODED)

    def streams(self) -> float:
        """Tokens per second of all sequences together."""
        sizes = ("-npp", STREAM_PROMPT, "-ntg", STREAM_DECODED, "-npl", STREAMS, "-c", 2048)
        text = self._run("llama-batched-bench", *sizes, "--output-format", "jsonl")
        return float(json.loads(next(line for line in text.splitlines() if line.startswith("{")))["speed_tg"])

    def _bench(self, *sizes: object) -> float:
        return float(json.loads(self._run("llama-bench", *sizes, "-r", 1, "-o", "json"))[0]["avg_ts"])

    def _run(self, program: str, *options: object) -> str:
        return run(self._folder / program, *map(str, self._options), *map(str, options))


class Ours:
    """The runtime without scheduler and server, on the same lengths."""

    def __init__(self, model: Transformer, threads: int) -> None:
        self._model = model
        self._threads = threads

    def prefill(self, count: int) -> float:
        """Tokens per second of a prompt, in chunks as the scheduler cuts them."""
        torch.set_num_threads(self._threads)
        streams, prompt = Streams(self._model, count, 1, CacheFormat.FP32), random_prompt(count, 7)
        started = time.perf_counter()
        for first in range(0, count, CHUNK):
            streams.step({0: prompt[first : first + CHUNK]})
        return count / (time.perf_counter() - started)

    def decode(self) -> float:
        """Tokens per second of one sequence."""
        return self._decode(1, 1, DECODED)

    def streams(self) -> float:
        """Tokens per second of all sequences together."""
        return self._decode(STREAMS, STREAM_PROMPT, STREAM_DECODED)

    def _decode(self, count: int, prompt: int, steps: int) -> float:
        torch.set_num_threads(self._threads)
        streams = Streams(self._model, prompt + steps + 1, count, CacheFormat.FP32)
        chosen = {}
        for each in range(count):
            chosen[each] = [int(streams.step({each: random_prompt(prompt, each)})[-1].argmax())]
        started = time.perf_counter()
        for _ in range(steps):
            logits = streams.step(chosen)
            chosen = {each: [int(logits[each].argmax())] for each in range(count)}
        return count * steps / (time.perf_counter() - started)


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> dict[str, Any]:
    """Both in turn, after one round that is not counted."""
    pairs = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {
        "ours_tokens_per_s": round(mine, 1),
        "llama_cpp_tokens_per_s": round(other, 1),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "rounds": [[round(a, 1), round(b, 1)] for a, b in pairs],
    }


def transformers_decode(checkpoint: Path, threads: int) -> float:
    """Tokens per second that transformers decodes in float32 with its own cache: this shape, its own random weights.

    Its loader wants a GPU library for FP8; what the weights are does not change the speed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - slow to import, needed here alone

    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(checkpoint)
    config.quantization_config = None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = model(torch.tensor([random_prompt(8, 0)]), use_cache=True)
        started, count = time.perf_counter(), 24
        for _ in range(count):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return count / (time.perf_counter() - started)


def compare(folder: Path, name: str, threads: int, rounds: int) -> dict[str, Any]:
    """All figures of one checkpoint at one number of threads."""
    checkpoint = make_checkpoint(folder, name)
    gguf, model = converted(folder, checkpoint), load_model(checkpoint)
    theirs, ours = Theirs(folder, gguf, threads), Ours(model, threads)
    torch.set_num_threads(threads)
    share = model.config.num_active_experts / model.config.num_experts
    bandwidth, read = read_bandwidth(), active_bytes(model)["total"]
    figures: dict[str, Any] = {
        "threads": threads,
        "parameters": num_parameters(checkpoint),
        "our_bytes_per_token": read,
        "llama_cpp_bytes_per_token": their_bytes(folder, gguf, share),
        "read_bandwidth_gb_per_s": round(bandwidth / 1e9, 2),
        "decode": in_turn(ours.decode, theirs.decode, rounds),
        "decode_8_streams": in_turn(ours.streams, theirs.streams, rounds),
    }
    for count in PROMPTS:
        few = rounds if count == PROMPTS[0] else 1
        figures[f"prefill_{count}"] = in_turn(
            lambda count=count: ours.prefill(count), lambda count=count: theirs.prefill(count), few
        )
    alone = figures["decode"]["ours_tokens_per_s"]
    figures["share_of_bandwidth"] = round(read * alone / bandwidth, 3)
    if name == "small":
        figures["transformers_tokens_per_s"] = round(transformers_decode(checkpoint, threads), 1)
        figures["ratio_to_transformers"] = round(alone / figures["transformers_tokens_per_s"], 1)
    return figures


def main() -> int:
    """Build, or measure, print and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["build", "compare"])
    parser.add_argument("--folder", type=Path, required=True, help="of llama.cpp and of the checkpoints")
    parser.add_argument("--shapes", default="small,large")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="llama-cpp", help="of the result file")
    args = parser.parse_args()
    if args.command == "build":
        build(args.folder)
        return 0
    options = f"--shapes {args.shapes} --threads {args.threads} --rounds {args.rounds}"
    record = {
        "command": f"python build/bench/llama_cpp.py compare --folder DIR {options}",
        "hardware": hardware(),
        "llama_cpp": SDIST,
        "checkpoints": {
            name: [compare(args.folder, name, int(threads), args.rounds) for threads in args.threads.split(",")]
            for name in args.shapes.split(",")
        },
    }
    text = json.dumps(record, indent=1) + "\n"
    (RESULTS / f"{args.name}.json").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
