"""One admitted request while it is being computed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dsv4_backend.kv.prefix import KeyedTokens
from dsv4_backend.records import PlanRow, Prompt, Request, RowResult, SequenceStart, TokenLogprob, Usage
from dsv4_backend.scheduler.reasoning import ReasoningBudget
from dsv4_backend.scheduler.sharing import turn_edges
from dsv4_backend.speculative import DraftPace, NgramDrafts


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Tokens of a request and how far they are computed. Owned by the scheduler.

    Units: times in seconds of the engine's clock.
    Rule:  token_ids are prompt and answer; positions [0, num_computed) are in the cache. A sequence that was never
           started, was preempted, or whose rank was lost has num_computed 0 and is not `is_on_rank`.
           num_written is how many positions were ever written: more than num_computed where drafts were wrong.
           num_shared tokens of the prompt were found in the prefix cache at the first start.
           drafts are what the ranks proposed behind the newest token; None where drafts come from the text itself.
           turn_id is the token with which a turn of a conversation begins.
    """

    id: int
    request: Request
    max_tokens: int
    arrival_s: float
    token_ids: list[int]
    num_prompt: int
    num_computed: int = 0
    num_written: int = 0
    is_on_rank: bool = False
    last_step: int = -1
    num_restarts: int = 0
    num_shared: int = 0
    is_first_start: bool = False
    reasoning: ReasoningBudget | None = None
    pace: DraftPace | None = None
    drafts: tuple[int, ...] | None = None
    turn_id: int | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    keyed: KeyedTokens = field(init=False)
    ngrams: NgramDrafts = field(init=False)

    def __post_init__(self) -> None:
        prompt = self.prompt
        may_hit = not prompt.sampling.prompt_logprobs  # which need the logits of every prompt token
        edges = turn_edges(self.token_ids, self.turn_id)
        self.keyed = KeyedTokens(self.token_ids, prompt.cache_salt, may_hit=may_hit, turn_edges=edges)
        self.ngrams = NgramDrafts(self.token_ids)

    @property
    def prompt(self) -> Prompt:
        """What the client asked for."""
        return self.request.prompt

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Known tokens that are not in the cache yet; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the newest token is missing from the cache."""
        return self.num_pending > 1 or self.num_output == 0

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt logprobs were asked for and are not all there."""
        return self.prompt.sampling.prompt_logprobs and len(self.prompt_logprobs) < self.num_prompt - 1

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(
            num_input_tokens=self.num_prompt,
            num_output_tokens=self.num_output,
            num_cached_tokens=min(self.num_shared, self.num_prompt),
        )

    @property
    def forced_token_id(self) -> int | None:
        """The token that the reasoning budget demands next."""
        return self.reasoning.forced_id if self.reasoning else None

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.token_ids.append(token_id)
        self.num_restarts = 0  # progress: only crashes without any count against the retry limit
        if self.reasoning:
            self.reasoning.push(token_id)

    def drop_last(self, count: int) -> None:
        """Forget the newest tokens: the request ended before them."""
        if count:
            del self.token_ids[-count:]

    def propose(self) -> tuple[int, ...]:
        """Drafts for the next step; none where the answer may not get that long, or a budget may force a token."""
        count = self.num_draftable(self.num_output)
        if self.drafts is not None:
            return self.drafts[:count]
        count = min(count, self.pace.count()) if self.pace and count else 0
        return self.ngrams.propose(count) if count else ()

    def num_wanted(self) -> int:
        """How many drafts the ranks are to propose behind the next token."""
        most = self.num_draftable(self.num_output + 1)
        return min(most, self.pace.count()) if self.pace and most else 0

    def num_draftable(self, num_output: int) -> int:
        """Drafts that fit behind an answer of num_output tokens; 0 where a budget may force a token."""
        return max(0, self.max_tokens - num_output - 1) if self.pace and self.reasoning is None else 0

    def advance(self, row: PlanRow, num_sampled: int) -> int:
        """A row was computed: note what is in the cache now, and return how many drafts were right."""
        num_accepted = max(0, num_sampled - 1) if row.num_drafts else 0
        end = row.start + len(row.token_ids)
        self.num_computed = end - row.num_drafts + num_accepted
        self.num_written = max(self.num_written, end)
        if self.pace and row.num_drafts:
            self.pace.note(row.num_drafts, num_accepted)
        return num_accepted

    def start_record(self) -> SequenceStart:
        """What a rank must know before the first row."""
        return SequenceStart(
            sequence_id=self.id,
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=self.num_prompt,
            sampling=self.prompt.sampling,
            min_tokens=self.prompt.limits.min_tokens,
            ignore_eos=self.prompt.limits.ignore_eos,
            constraint=self.prompt.constraint,
        )

    def keep_prompt_logprobs(self, start: int, result: RowResult) -> None:
        """Append the logprobs of prompt tokens that a row starting at `start` gave and that are not known yet."""
        known = len(self.prompt_logprobs)
        first_target = start + 1
        self.prompt_logprobs.extend(result.prompt_logprobs[max(0, known + 1 - first_target) :])

    def share(self, num_tokens: int) -> None:
        """The first num_tokens are in the cache already; what counts for usage is what was found at the first start."""
        self.num_computed = self.num_written = num_tokens
        if not self.num_output and self.last_step < 0:
            self.num_shared = num_tokens

    def forget_cache(self) -> None:
        """Everything must be computed again: preemption, or a lost rank."""
        self.num_computed = self.num_written = 0
        self.is_on_rank = False
        self.drafts = None if self.drafts is None else ()


def with_seed(request: Request, seed: int) -> Request:
    """Return the request with its seed set, so that a restart repeats its random numbers."""
    if request.prompt.sampling.seed is not None:
        return request
    sampling = replace(request.prompt.sampling, seed=seed)
    return replace(request, prompt=replace(request.prompt, sampling=sampling))
