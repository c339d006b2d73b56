"""Continuous batching: which tokens of which sequences make up the next step.

Rule: decoding sequences get their token first; what is left of the token budget goes to prefills, fairly; new sequences
      are admitted while pages and places last. When a running sequence cannot get a page, the least urgent one gives
      its pages back and waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_backend.config import Drafter, ServingConfig
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.manager import CacheManager
from dsv4_backend.records import PageGrant, PlanRow, StepPlan, StepResult
from dsv4_backend.scheduler.ahead import is_certain, row_after
from dsv4_backend.scheduler.budget import chunk_tokens, fair_shares
from dsv4_backend.scheduler.queue import WaitingQueue, is_starving
from dsv4_backend.scheduler.sequence import Sequence
from dsv4_backend.scheduler.sharing import kept_edge
from dsv4_backend.speculative import DraftPace

SUSPECT_RESTARTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What a committed row did to its sequence: tokens appended, or an error that ends it."""

    sequence: Sequence
    row: PlanRow
    num_new_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    error: str = ""


class Scheduler:
    """Owns every admitted sequence and the page bookkeeping. Not thread-safe: the engine's loop calls it."""

    def __init__(self, config: ServingConfig, cache: CacheManager) -> None:
        self._config = config
        self._cache = cache
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._dropped: list[int] = []
        self._compiling: frozenset[int] = frozenset()
        self._step = 0
        self._has_drafts = False
        self.num_preemptions = 0

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences that hold pages, oldest first."""
        return tuple(self._running)

    @property
    def drafter(self) -> str:
        """Where drafts come from."""
        return self._config.drafter.value

    @property
    def has_saves(self) -> bool:
        """Whether a plan without rows would write something to disk."""
        return self._cache.has_saves

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no pages."""
        return len(self._waiting)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Every admitted sequence."""
        return (*self._running, *self._waiting.sequences())

    def add(self, sequence: Sequence) -> None:
        """Put an admitted sequence into the waiting line; the engine bounds how many there are."""
        if self._config.drafter is not Drafter.NONE:
            sequence.pace = DraftPace(self._config.max_drafts)
            sequence.drafts = () if self._config.drafter.is_model else None
        self._waiting.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence and give all its pages back."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._drop(sequence)
        else:
            self._waiting.remove(sequence)

    def clear(self) -> None:
        """Forget every sequence and free every page, whatever state they are in."""
        self._running, self._dropped = [], []
        self._waiting = WaitingQueue()
        self._cache.clear()

    def lose_ranks(self, step: int | None = None) -> tuple[Sequence, ...]:
        """The ranks forgot everything: all running sequences must be computed again.

        Returns the sequences of the step that was running, if one was: each of them may be the cause.
        """
        self._dropped.clear()
        self._compiling = frozenset()
        self._cache.forget_beginnings()  # first: nothing of it may be written to disk
        for sequence in self._running:
            self._cache.release(sequence.id)
            sequence.forget_cache()
        blamed = tuple(item for item in self._running if step is not None and item.last_step >= step)
        for sequence in blamed:
            sequence.num_restarts += 1
        return blamed

    def plan(self, now_s: float) -> StepPlan | None:
        """Choose the next step; None when there is nothing to compute."""
        self._admit(now_s)
        rows = self._rows() or self._rows()  # again where all that were ready have given their pages back
        if not rows and not self._cache.has_saves:
            return None
        return self._seal(rows, {item.id: item for item in self._running})

    def plan_after(self, plan: StepPlan) -> StepPlan | None:
        """Choose the step behind one that is still running: the same sequences, each with the token that it gets there.

        Rule: None unless `ahead.is_certain` for all of them, nobody waits, and nothing is saved in between.
        """
        if not self._config.overlap:
            return None
        has_newcomers = bool(self._waiting.sequences()) and not self._is_full
        has_news = has_newcomers or plan.starts or self._compiling or self._cache.has_saves
        may_draft = self._config.drafter is not Drafter.NONE and self._has_drafts
        alive = {item.id: item for item in self._running}
        if has_news or may_draft or {row.sequence_id for row in plan.rows} != set(alive):
            return None
        if not all(is_certain(row, alive[row.sequence_id], self._config.max_drafts) for row in plan.rows):
            return None
        rows = [after for row in plan.rows if (after := row_after(row, alive[row.sequence_id]))]
        return self._seal(rows, alive) if rows else None

    def commit(self, plan: StepPlan, result: StepResult) -> list[Advance]:
        """Take over a step's results: caches are longer by its rows, sampled tokens are appended."""
        if result.damaged:
            self._start_again(plan, result.damaged)
        self._compiling = frozenset(result.compiling)
        alive = {item.id: item for item in self._running}
        advances = []
        for row, outcome in zip(plan.rows, result.rows, strict=True):
            sequence = alive.get(row.sequence_id)
            if sequence is None:
                continue  # cancelled while the step ran
            num_accepted = sequence.advance(row, len(outcome.token_ids))
            sequence.keep_prompt_logprobs(row.start, outcome)
            for token_id in outcome.token_ids:
                sequence.append(token_id)
            sequence.drafts = None if sequence.drafts is None else outcome.drafts
            self._cache.commit(sequence.id, sequence.num_computed)
            advances.append(
                Advance(
                    sequence=sequence,
                    row=row,
                    num_new_tokens=len(outcome.token_ids),
                    num_drafted=row.num_drafts,
                    num_accepted=num_accepted,
                    error=outcome.error,
                )
            )
        return advances

    def check(self) -> None:
        """Verify that only running sequences hold pages and nobody is in two places. Raises: AssertionError."""
        self._cache.check()
        ids = [item.id for item in self.sequences]
        if len(set(ids)) != len(ids):
            raise AssertionError(f"a sequence is both running and waiting: {sorted(ids)}")
        if len(self._running) > self._config.max_sequences:
            raise AssertionError(f"{len(self._running)} sequences run, max_sequences is {self._config.max_sequences}.")
        if any(item.num_computed or item.is_on_rank for item in self._waiting.sequences()):
            raise AssertionError("a waiting sequence claims to be in the cache.")
        used = any(count for count, _ in self._cache.usage().values())
        if not self._running and used:
            raise AssertionError(f"no sequence runs but pages are used: {self._cache.usage()}")

    @property
    def _is_full(self) -> bool:
        return len(self._running) >= self._config.max_sequences

    def _admit(self, now_s: float) -> None:
        if self._is_full:
            return  # as in most steps under load: the line need not be put in order
        for sequence in self._waiting.in_order(now_s):
            if self._config.prefix_cache and not is_starving(sequence, now_s) and self._follows(sequence):
                continue
            # A page of headroom for each that runs: without it, the newcomer would soon be preempted, over and over.
            num_tokens = len(sequence.token_ids) + 1 + PAGE_TOKENS * len(self._running)
            num_shared = self._cache.admit(sequence.id, sequence.keyed, num_tokens)
            if num_shared is None:
                return  # its turn: nobody overtakes it, or a long prompt would wait for ever
            sequence.share(num_shared)
            self._waiting.remove(sequence)
            self._running.append(sequence)
            if self._is_full:
                return

    def _follows(self, sequence: Sequence) -> bool:
        """Whether more of a prompt's beginning will be kept soon, because a running one computes the same text."""
        interval = self._config.snapshot_interval_tokens
        return any(
            item.num_computed < kept_edge(item.keyed, sequence.keyed, interval)
            for item in self._running
            if item.is_prefilling
        )

    def _candidates(self) -> tuple[Sequence, ...]:
        """Who may be in the next step: everybody running, but one suspect at a time and alone.

        Rule: a sequence is suspect when it was in SUSPECT_RESTARTS steps that lost a rank and has got no token since.
              Alone, an innocent one gets its token and is cleared; a guilty one takes nobody down with it.
              One that only lacks its grammar lets the others go on; with no others, its step waits for the grammar.
        """
        suspects = [item for item in self._running if item.num_restarts >= SUSPECT_RESTARTS]
        ready = [item for item in self._running if item.id not in self._compiling or item.num_pending > 1]
        return tuple(suspects[:1] or ready or self._running)

    def _rows(self) -> list[PlanRow]:
        """Rows of the candidates, as far as pages last."""
        candidates = self._candidates()
        decoding = [item for item in candidates if not item.is_prefilling]
        self._has_drafts = len(candidates) <= self._config.max_draft_sequences
        rows = [row for item in decoding if item in self._running and (row := self._row(item, 1))]
        budget = self._config.max_step_tokens - sum(len(row.token_ids) for row in rows)
        prefills = sorted((item for item in candidates if item.is_prefilling), key=lambda item: item.last_step)
        for item, share in zip(prefills, fair_shares((item.num_pending for item in prefills), budget), strict=True):
            if share and item in self._running:
                row = self._row(item, self._chunk(item, share))
                rows.extend([row] if row else [])
        alive = {item.id for item in self._running}
        return [row for row in rows if row.sequence_id in alive]  # a later row may have preempted an earlier one

    def _chunk(self, sequence: Sequence, share: int) -> int:
        """Return how many tokens of a prefill to compute: up to an edge first where what is computed can be kept.

        Rule: the last token of a constrained prompt waits for its grammar, if there are others that need not wait. The
              ranks begin to compile with its first chunk and tell how that goes with every step.
        """
        is_unsure = sequence.prompt.constraint is not None and not sequence.is_on_rank
        is_held = len(self._running) > 1 and (is_unsure or sequence.id in self._compiling)
        pending = sequence.num_pending - int(is_held and sequence.num_pending > 1)
        count = chunk_tokens(sequence.num_computed, pending, share)
        to_edge = sequence.keyed.edge_after(sequence.num_computed) - sequence.num_computed
        return to_edge if self._config.prefix_cache and 0 < to_edge < count else count

    def _row(self, sequence: Sequence, num_tokens: int) -> PlanRow | None:
        """Reserve pages for the next tokens of a sequence, preempting less urgent ones where needed."""
        end = sequence.num_computed + num_tokens
        drafts = sequence.propose() if self._has_drafts and not sequence.is_prefilling else ()
        grants = self._cache.reserve(sequence.id, end + len(drafts))
        if grants is None and drafts:
            drafts, grants = (), self._cache.reserve(sequence.id, end)
        while grants is None:
            victim = max(self._running, key=_urgency)
            self._preempt(victim)
            if victim is sequence:
                return None
            grants = self._cache.reserve(sequence.id, end)
        is_last = end == len(sequence.token_ids)
        return PlanRow(
            sequence_id=sequence.id,
            start=sequence.num_computed,
            token_ids=(*sequence.token_ids[sequence.num_computed : end], *drafts),
            num_drafts=len(drafts),
            num_wanted=self._num_wanted(sequence, is_sampled=is_last),
            num_written=sequence.num_written,
            grants=self._owned(sequence, grants),
            is_sampled=is_last,
            forced_token_id=sequence.forced_token_id if is_last else None,
            wants_prompt_logprobs=sequence.wants_prompt_logprobs,
        )

    def _num_wanted(self, sequence: Sequence, *, is_sampled: bool) -> int | None:
        """How many drafts to ask the ranks for; None where they leave the draft model alone."""
        if sequence.drafts is None or not self._has_drafts:
            return None
        return sequence.num_wanted() if is_sampled else 0

    def _owned(self, sequence: Sequence, grants: tuple[PageGrant, ...]) -> tuple[PageGrant, ...]:
        """Grants for a rank that already knows the sequence, or all its pages for one that does not."""
        return grants if sequence.is_on_rank else self._cache.grants(sequence.id)

    def _seal(self, rows: list[PlanRow], alive: dict[int, Sequence]) -> StepPlan:
        self._step += 1
        starts = []
        for row in rows:
            sequence = alive[row.sequence_id]
            sequence.is_first_start = sequence.last_step < 0
            sequence.last_step = self._step
            if not sequence.is_on_rank:
                starts.append(sequence.start_record())
                sequence.is_on_rank = True
        finished, self._dropped = tuple(self._dropped), []
        return StepPlan(
            step=self._step,
            rows=tuple(rows),
            starts=tuple(starts),
            finished=finished,
            copies=self._cache.take_copies(),
        )

    def _start_again(self, plan: StepPlan, damaged: tuple[bytes, ...]) -> None:
        """Something could not be read from disk: whoever began with this plan may have computed with it."""
        self._cache.forget(damaged)
        begun = {start.sequence_id for start in plan.starts}
        for sequence in [item for item in self._running if item.id in begun]:
            self._preempt(sequence)
            sequence.num_shared = 0

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._drop(sequence)
        sequence.forget_cache()
        self._waiting.add(sequence)
        self.num_preemptions += 1

    def _drop(self, sequence: Sequence) -> None:
        self._cache.release(sequence.id)
        if sequence.is_on_rank:
            self._dropped.append(sequence.id)


def _urgency(sequence: Sequence) -> tuple[int, float, int]:
    """Largest = least urgent: high priority value, late arrival."""
    return (sequence.prompt.priority, sequence.arrival_s, sequence.id)
