"""The record at each seam of the story, from prompt to text. Plain data: no torch, no behaviour.

    Prompt ─► Request ─► StepPlan ─► StepResult ─► Chunk ─► TextDelta

All records are immutable. Token positions are 0-based and absolute. Probabilities are natural logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class FinishReason(str, Enum):
    """Why a request ended. The wire carries the value."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the context limit
    CANCELLED = "cancelled"  # the client asked for it, or went away
    TIME_LIMIT = "time_limit"  # the request's or the server's wall-clock limit
    ERROR = "error"  # an engine failure; the message says which


class ConstraintKind(str, Enum):
    """How the answer is constrained; `Constraint.value` is read accordingly."""

    JSON_OBJECT = "json_object"  # any JSON object; value is ignored
    JSON_SCHEMA = "json_schema"  # value: JSON text of the schema
    REGEX = "regex"  # value: the expression
    GRAMMAR = "grammar"  # value: EBNF text
    STRUCTURAL_TAG = "structural_tag"  # value: JSON text of an xgrammar structural tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A grammar that the answer must match."""

    kind: ConstraintKind
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen.

    Units: temperature 0 means greedy; top_k 0 and top_p 1 and min_p 0 switch that filter off.
    Rule:  seed None is replaced by a fresh one at admission; a token's random number depends on (seed, position) only.
           logprobs -1 = none, 0 = of the chosen token, n = plus the n best alternatives.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int = -1
    prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When generation ends.

    Rule:  max_tokens None means "as much as the server allows for this prompt".
           stop strings are compared as UTF-8 bytes and cut from the text at their first byte.
           max_reasoning_tokens None means no limit; otherwise the end-of-thinking token is forced after that many
           tokens inside an open <think>.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[bytes, ...] = ()
    ignore_eos: bool = False
    max_reasoning_tokens: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A client's request after tokenising: what the tokenizer hands to the runtime.

    Rule: echo asks for the prompt's own text before the answer (`exclude_input_in_output=false`, or `echo`).
    """

    token_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    limits: Limits = Limits()
    constraint: Constraint | None = None
    priority: int = 0
    cache_salt: str = ""
    echo: bool = False
    stream: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt under an id that is unique among the running ones. Lower priority values are served first."""

    id: str
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PageGrant:
    """Pages that a sequence may use from now on: page `page_ids[i]` holds block `first_block + i` of 128 tokens."""

    kind: str
    first_block: int
    page_ids: tuple[int, ...]


class Tier(str, Enum):
    """Where a place of the cache is."""

    DEVICE = "device"  # what the model computes with
    HOST = "host"  # host memory: what is kept but has no room there
    DISK = "disk"  # files that outlive the server


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCopy:
    """Copy one place of a kind over all layers, within a tier or from one to the other.

    Rule: on disk a place is named by its key instead of a number.
    """

    kind: str
    source: int
    target: int
    source_tier: Tier = Tier.DEVICE
    target_tier: Tier = Tier.DEVICE
    key: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStart:
    """What a rank must know of a sequence before its first row: at admission, after preemption, after a restart.

    Rule: token_ids are the prompt and everything generated so far; the rank appends what it samples.
    """

    sequence_id: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling: SamplingParams
    min_tokens: int = 0
    ignore_eos: bool = False
    constraint: Constraint | None = None


CHOSEN_BEFORE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One sequence's share of a step: compute tokens [start, start + len(token_ids)).

    Rule: is_sampled says that the logits of the last token choose the next one; forced_token_id replaces that choice
          (its logprob is still reported). wants_prompt_logprobs asks for the logprob of every prompt token that follows
          a token of this row.
          The last num_drafts tokens are drafts: each is accepted if it is the token that would have been chosen, the
          first one that is not is replaced by that choice.
          num_wanted is how many drafts the rank's own draft model is to propose behind the row; None where it is not
          even told of the row's tokens.
          num_written is how many positions were ever written, if a step before went further than `start` and its last
          tokens were taken back (at most the layout's max_drafts).
          A token CHOSEN_BEFORE stands for what the rank chooses for the sequence in the step before, which was running
          when this one was planned. Where that ended the sequence, the row's result is not looked at.
    """

    sequence_id: int
    start: int
    token_ids: tuple[int, ...]
    num_drafts: int = 0
    num_wanted: int | None = None
    num_written: int = 0
    grants: tuple[PageGrant, ...] = ()
    is_sampled: bool = True
    forced_token_id: int | None = None
    wants_prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step, the same for every rank.

    Rule: `finished` are sequences whose rank-side state is dropped before the step; `copies` are made before it, in
          their order.
    """

    step: int
    rows: tuple[PlanRow, ...]
    starts: tuple[SequenceStart, ...] = ()
    finished: tuple[int, ...] = ()
    copies: tuple[PageCopy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Logprob of one token under the unmodified distribution, with the best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What one row produced, and what may come next. `error` ends that request alone; the others go on."""

    sequence_id: int
    token_ids: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Results in the order of the plan's rows.

    Rule: `damaged` are keys that could not be read from disk; what the plan's starts computed is worth nothing then.
          `compiling` are sequences whose next token would have to wait for their grammar.
    """

    step: int
    rows: tuple[RowResult, ...]
    damaged: tuple[bytes, ...] = ()
    compiling: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a request so far."""

    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens that may leave the runtime, at a complete UTF-8 end and with no stop string pending.

    Rule: the text of this chunk is bytes [skip_bytes, keep_bytes) of the joined bytes of text_ids. text_ids repeats a
          token of the previous chunk when a character ended inside it, and leaves out the end-of-sequence token.
          token_ids lists every generated token exactly once over all chunks.
          prompt_logprobs stand in the first chunk only; position 0 has none.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    text_ids: tuple[int, ...]
    skip_bytes: int
    keep_bytes: int
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""

    @property
    def is_final(self) -> bool:
        """Exactly one chunk of a request is final."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """A chunk as text."""

    text: str
    index: int
