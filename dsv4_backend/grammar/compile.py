"""Constraint → compiled grammar, through xgrammar. With matcher.py the only place that imports it."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import xgrammar
from dsv4_kernels.sampling import pack_bits

from dsv4_backend.config import ModelConfig
from dsv4_backend.errors import ConstraintError
from dsv4_backend.grammar.answer import AnswerMatcher
from dsv4_backend.grammar.matcher import GrammarMatcher
from dsv4_backend.records import Constraint, ConstraintKind
from dsv4_backend.text.constraint import MAX_REPEAT, check_constraint, spell_out
from dsv4_backend.text.vocab import THINK_CLOSE, THINK_OPEN, Vocabulary

# Special tokens that an answer may contain: grammars meet them as text. The others mark turns and are never generated.
ANSWER_TOKENS = frozenset(token.encode() for token in (THINK_OPEN, THINK_CLOSE, "｜DSML｜"))
CACHE_BYTES = 512 * 1024 * 1024
MAX_KEPT = 128  # constraints
NUM_COMPILERS = 2  # so that one long compilation does not keep all other constraints waiting
# A literal, or a class of characters; what the library lets stand in a bounded JSON string; what JSON lets stand there.
_TERMINAL = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_LOOSE, _STRICT_LENGTH = r"[^\"\\\r\n]", r"[^\0-\u001f\"\\\ud800-\udfff]"


class GrammarCompiler:
    """Compiles constraints for one vocabulary; results are kept, so a repeated constraint costs nothing."""

    def __init__(self, vocab: Vocabulary, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._vocab = vocab
        self.vocab_size = vocab_size
        self.eos_ids = tuple(eos_ids)
        info = xgrammar.TokenizerInfo(
            _grammar_tokens(vocab)[:vocab_size],
            xgrammar.VocabType.RAW,
            vocab_size=vocab_size,
            stop_token_ids=list(self.eos_ids),
        )
        threads = torch.get_num_threads()  # a bounded string costs seconds of one core on a full vocabulary
        # Reasoning goes on meanwhile: the library lets other threads run while it compiles.
        self._pool = ThreadPoolExecutor(max_workers=NUM_COMPILERS, thread_name_prefix="dsv4-grammar")
        self._kept = _Kept()
        is_end = torch.zeros(vocab_size, dtype=torch.bool)
        is_end[list(self.eos_ids)] = True
        self._ends, self._free = pack_bits(is_end), pack_bits(~is_end)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=threads, cache_limit_bytes=CACHE_BYTES)

    @classmethod
    def load(cls, checkpoint: Path, config: ModelConfig) -> GrammarCompiler:
        """Make the compiler of a checkpoint. Raises: ConfigError if its tokenizer.json cannot be used."""
        return cls(Vocabulary.load(checkpoint), config.vocab_size, config.eos_token_ids)

    def answer_matcher(self, constraint: Constraint, prompt_ids: Sequence[int]) -> AnswerMatcher:
        """Return a matcher that leaves an open thinking part of this prompt free, and begin to compile its grammar."""
        return AnswerMatcher(self._pool.submit(self.matcher, constraint), self._free, self._vocab, prompt_ids)

    def matcher(self, constraint: Constraint) -> GrammarMatcher:
        """Return a matcher at the beginning of the constraint.

        Raises: ConstraintError naming what cannot be compiled.
        """
        compiled = self._kept.get(constraint)
        if compiled is None:
            check_constraint(constraint)
            compiled = self._compiled(constraint)
            self._kept.put(constraint, compiled)
        return GrammarMatcher(xgrammar.GrammarMatcher(compiled), self._ends, self.eos_ids)

    def _compiled(self, constraint: Constraint) -> xgrammar.CompiledGrammar:
        try:
            return self._compile(constraint)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConstraintError(
                f"the {constraint.kind.value} constraint cannot be compiled: {_reason(error)}"
            ) from error

    def _compile(self, constraint: Constraint) -> xgrammar.CompiledGrammar:
        match constraint.kind:
            case ConstraintKind.JSON_OBJECT:
                return self._compiler.compile_json_schema('{"type": "object"}')
            case ConstraintKind.JSON_SCHEMA:
                schema = json.dumps(spell_out(json.loads(constraint.value)))
                strict = _strict_text(xgrammar.Grammar.from_json_schema(schema))
                return self._compiler.compile_grammar(strict) if strict else self._compiler.compile_json_schema(schema)
            case ConstraintKind.REGEX:
                return self._compiler.compile_regex(constraint.value)
            case ConstraintKind.GRAMMAR:
                return self._compiler.compile_grammar(constraint.value)
            case ConstraintKind.STRUCTURAL_TAG:
                strict = _strict_text(xgrammar.Grammar.from_structural_tag(constraint.value))
                if strict:
                    return self._compiler.compile_grammar(strict)
                return self._compiler.compile_structural_tag(constraint.value)


def _strict_text(grammar: xgrammar.Grammar) -> str:
    """Return the text of a grammar that holds long bounded strings, without their control characters; else nothing.

    Rule: a grammar without them is compiled from what it was made of, for the library prints and reads a Grammar again
          and reads some of its own escapes wrongly (`_strict`).
    """
    text = str(grammar)
    strict = _TERMINAL.sub(_strict, text) if _LOOSE in text else ""
    return strict if _STRICT_LENGTH in strict else ""


class _Kept:
    """The grammars used last, by constraint: the library's own cache asks for a schema's grammar first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grammars: OrderedDict[Constraint, xgrammar.CompiledGrammar] = OrderedDict()
        self._num_bytes = 0

    def get(self, constraint: Constraint) -> xgrammar.CompiledGrammar | None:
        with self._lock:
            compiled = self._grammars.get(constraint)
            if compiled is not None:
                self._grammars.move_to_end(constraint)
            return compiled

    def put(self, constraint: Constraint, compiled: xgrammar.CompiledGrammar) -> None:
        with self._lock:
            if constraint in self._grammars:
                return
            self._grammars[constraint] = compiled
            self._num_bytes += compiled.memory_size_bytes
            while len(self._grammars) > MAX_KEPT or self._num_bytes > CACHE_BYTES:
                _, oldest = self._grammars.popitem(last=False)
                self._num_bytes -= oldest.memory_size_bytes


def _strict(found: re.Match[str]) -> str:
    """Return a terminal as it may be read again: the library prints \\xdf before an e so that it reads \\xdfe."""
    if found.group() == _LOOSE:
        return _STRICT_LENGTH
    return _ESCAPE.sub(lambda each: f"\\u00{each[1][1:]}" if each[1][0] == "x" else each[0], found.group())


def _grammar_tokens(vocab: Vocabulary) -> list[bytes]:
    """Return the vocabulary as grammars see it: a token without bytes is never allowed."""
    hidden = {token_id for token_id in vocab.special_ids if vocab.tokens[token_id] not in ANSWER_TOKENS}
    return [b"" if token_id in hidden else token for token_id, token in enumerate(vocab.tokens)]


def _reason(error: Exception) -> str:
    """Return the library's message without its clock and source line."""
    if "per_rule_fsm_hashes" in str(error):  # a bug of xgrammar 0.2.8, mended after it
        return (
            f"a pattern inside JSON repeats something more than {MAX_REPEAT} times. Split it, such as x{{100}}x{{100}}."
        )
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", str(error)).strip()
