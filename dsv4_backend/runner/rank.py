"""One rank: the model, its caches, and what sampling remembers of each sequence. A plan in, a result out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from dsv4_kernels.cpu.plan import PlannedStep, unplanned
from dsv4_kernels.sampling import num_words
from torch import Tensor

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.config import ServingConfig
from dsv4_backend.errors import ConstraintError
from dsv4_backend.grammar import AnswerMatcher, GrammarCompiler
from dsv4_backend.kv.layout import BLOCK, STATE
from dsv4_backend.kv.listing import cache_folder
from dsv4_backend.kv.manager import cache_rules
from dsv4_backend.kv.resolve import layout_of, resolve
from dsv4_backend.model.step import StepInputs
from dsv4_backend.model.transformer import Computed, Transformer
from dsv4_backend.records import (
    CHOSEN_BEFORE,
    Constraint,
    PlanRow,
    RowResult,
    SequenceStart,
    StepPlan,
    StepResult,
    TokenLogprob,
)
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.disk import DiskStore
from dsv4_backend.runner.drafting import DraftModel, DraftRow, load_draft_model
from dsv4_backend.runner.graphs import DecodeGraphs, Recorder
from dsv4_backend.runner.inputs import InputBuilder
from dsv4_backend.runner.padding import Padding
from dsv4_backend.runner.target import Target, open_target
from dsv4_backend.runner.upload import Upload
from dsv4_backend.sampling import Choice, Choosing, SequenceSampling, draft_token, prompt_logprobs, sample

Progressed = Callable[[int, int], None]


class _SequenceState:
    """One sequence between steps. `error` is why it cannot be constrained; it is reported with its first sample."""

    def __init__(self, start: SequenceStart, model: Transformer, grammars: GrammarCompiler) -> None:
        self._ops = model.ops
        config = model.config
        self.token_ids = list(start.token_ids)
        self.num_prompt = start.num_prompt_tokens
        self.draft_known_from = 0
        self._num_tried = 0
        self.num_top = max(start.sampling.logprobs, 0)
        self.sampling = SequenceSampling(start, config.vocab_size, config.eos_token_ids, model.placement.device)
        self.matcher: AnswerMatcher | None = None
        self.error = ""
        if start.constraint is not None:
            self._constrain(start.constraint, start, grammars)

    def _constrain(self, constraint: Constraint, start: SequenceStart, grammars: GrammarCompiler) -> None:
        try:
            self.matcher = grammars.answer_matcher(constraint, self.token_ids[: self.num_prompt])
            for token_id in self.token_ids[self.num_prompt :]:
                self.matcher.accept(token_id)
        except ConstraintError as error:
            self.error = str(error)

    def choosing(self, row: PlanRow) -> Choosing:
        """What decides the next token besides its logits."""
        return Choosing(state=self.sampling, forced_token_id=row.forced_token_id)

    def accept(self, token_id: int) -> None:
        """Note the chosen token."""
        self.token_ids.append(token_id)
        self.sampling.append(token_id)
        if self.matcher:
            self.matcher.accept(token_id)

    def choose_draft(self, scores: Tensor, number: int) -> int:
        """Choose draft `number` as the token itself would be chosen behind the drafts before it. Shapes: scores [V]."""
        if self.matcher is None:
            return draft_token(scores, self.sampling, number, self._ops)
        words = _allowed([self.matcher], len(scores))
        token_id = draft_token(scores, self.sampling, number, self._ops, words)
        with suppress(ConstraintError):  # at a dead end
            self.matcher.accept(token_id)
            self._num_tried += 1
        return token_id

    def forget_drafts(self) -> None:
        """Take the grammar back to the newest token."""
        if self.matcher:
            self.matcher.rollback(self._num_tried)
        self._num_tried = 0


def _allowed(matchers: Sequence[AnswerMatcher | None], vocab_size: int) -> Tensor | None:
    """Return what the constraints leave, one bit per token, int32 [S, W]; None if there is no constraint."""
    if not any(matchers):
        return None
    words = torch.full((len(matchers), num_words(vocab_size)), -1, dtype=torch.int32)
    for index, matcher in enumerate(matchers):
        if matcher is not None:
            matcher.fill(words, index)
    return words


def _picked(logits: Tensor, rows: list[int]) -> Tensor:
    """Some rows; where that is all of them in their order nothing is copied."""
    return logits if rows == list(range(logits.shape[0])) else logits[rows]


class Rank:
    """Executes plans. Everything that it knows of a sequence came with a plan's starts and its own samples."""

    def __init__(
        self,
        model: Transformer,
        config: ServingConfig,
        grammars: GrammarCompiler,
        draft_model: DraftModel | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        layout = layout_of(model.config, config)
        rules = cache_rules(config)
        self._model = model
        self._draft_model = draft_model
        self._grammars = grammars
        self._inputs = InputBuilder(model.config, layout, model.ops)
        folder = cache_folder(config, rank=0)
        self._disk = DiskStore(folder, int(config.disk_cache_gb * 1e9)) if folder else None
        device = model.placement.device
        num_spare = 0 if recorder is None else 1
        self._cache = RankCache(layout, rules.device, rules.host, self._disk, device, num_spare=num_spare)
        self._upload = Upload(device)
        self._tapped = draft_model.tapped if draft_model else ()
        self._graphs: DecodeGraphs | None = None
        if recorder is not None:
            padding = Padding(self._inputs, layout, rules.device[BLOCK], rules.device[STATE])
            self._graphs = DecodeGraphs(model, self._cache, padding, self._tapped, recorder)
        self._states: dict[int, _SequenceState] = {}
        self.notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, config: ServingConfig, on_progress: Progressed | None = None, target: Target | None = None) -> Rank:
        """Load the checkpoint that the settings name, for their device. Raises: CheckpointError, ConfigError."""
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        target = target or open_target(config)
        checkpoint = Checkpoint.open(Path(config.checkpoint))
        config = resolve(config, checkpoint.config)
        if config.drafter.is_model:
            checkpoint = checkpoint.with_draft()
        with checkpoint.source(on_progress) as source:
            model = Transformer.load(checkpoint.config, source, target.ops, config.numerics, target.placement)
            layout = layout_of(checkpoint.config, config)
            draft_model = load_draft_model(model, source, layout) if config.drafter.is_model else None
            source.finish()
        grammars = GrammarCompiler.load(Path(config.checkpoint), checkpoint.config)
        rank = cls(model, config, grammars, draft_model, target.recorder)
        rank.notes = tuple(
            f"{count} tensors not loaded: {rule}" for rule, count in sorted(checkpoint.skipped().items())
        )
        return rank

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute one step: caches first, then logits, then the choice of each sampled row."""
        for sequence_id in plan.finished:
            self._states.pop(sequence_id, None)
        for start in plan.starts:
            self._states[start.sequence_id] = _SequenceState(start, self._model, self._grammars)
        damaged = self._cache.copy(plan.copies)
        if not plan.rows:
            self._inputs.tables.apply(plan)
            return StepResult(step=plan.step, rows=(), damaged=damaged, compiling=self._compiling())
        plan = self._filled(plan)
        inputs = self._inputs.build(plan)
        computed, logits = self._compute(inputs, plan)
        chosen = self._choose(plan, logits, inputs.logit_spans)
        drafts = self._propose(plan, chosen, computed)
        rows = (
            self._result(row, chosen[row.sequence_id], logits[first:last], drafts.get(row.sequence_id, ()))
            for row, (first, last) in zip(plan.rows, inputs.logit_spans, strict=True)
        )
        return StepResult(step=plan.step, rows=tuple(rows), damaged=damaged, compiling=self._compiling())

    def _filled(self, plan: StepPlan) -> StepPlan:
        """Put in what was chosen since the step was planned; any token where nothing could be."""
        if all(CHOSEN_BEFORE not in row.token_ids for row in plan.rows):
            return plan
        rows = []
        for row in plan.rows:
            known = self._states[row.sequence_id].token_ids
            chosen = known[row.start] if row.start < len(known) else 0
            ids = tuple(chosen if token_id == CHOSEN_BEFORE else token_id for token_id in row.token_ids)
            rows.append(replace(row, token_ids=ids))
        return replace(plan, rows=tuple(rows))

    def _compute(self, inputs: StepInputs | PlannedStep, plan: StepPlan) -> tuple[Computed, Tensor]:
        """Run the model, by what was recorded where the step has a recorded shape. Shapes: logits [L, V]."""
        if self._graphs is not None and (replayed := self._graphs.run(unplanned(inputs), plan)) is not None:
            return replayed
        inputs = self._upload(inputs)
        computed = self._model.run(inputs, self._cache, self._tapped)
        return computed, self._model.logits(computed.at(inputs.logit_tokens))

    def _compiling(self) -> tuple[int, ...]:
        """Sequences that would make the next step wait for their grammar."""
        return tuple(each for each, state in self._states.items() if state.matcher and state.matcher.is_compiling)

    def close(self) -> None:
        """Finish what is being written to disk."""
        if self._disk is not None:
            self._disk.close()

    def _choose(self, plan: StepPlan, logits: Tensor, spans: tuple[tuple[int, int], ...]) -> dict[int, list[Choice]]:
        """Sample every row that asks for it, and go on behind each draft that was right.

        Rule: a row whose constraint failed gets that error.
        """
        chosen: dict[int, list[Choice]] = {row.sequence_id: [] for row in plan.rows}
        pending = []
        for row, (_, last) in zip(plan.rows, spans, strict=True):
            error = self._states[row.sequence_id].error
            if row.is_sampled and error:
                chosen[row.sequence_id].append(Choice(error=error))
            elif row.is_sampled:
                pending.append((row, last - 1 - row.num_drafts))
        while pending:
            rows = _picked(logits, [index for _, index in pending])  # [S, V]
            states = [self._states[row.sequence_id] for row, _ in pending]
            choosing = [state.choosing(row) for state, (row, _) in zip(states, pending, strict=True)]
            allowed = _allowed([state.matcher for state in states], logits.shape[1])
            choices = sample(rows, choosing, self._model.ops, allowed)
            for (row, _), choice in zip(pending, choices, strict=True):
                chosen[row.sequence_id].append(self._accept(row.sequence_id, choice))
            pending = [(row, index + 1) for row, index in pending if self._goes_on(row, chosen[row.sequence_id])]
        return chosen

    def _goes_on(self, row: PlanRow, choices: list[Choice]) -> bool:
        """Whether the newest choice is the draft that was computed behind it, and no end."""
        newest, number = choices[-1], len(choices) - 1
        if newest.error or number >= row.num_drafts or newest.token_id in self._model.config.eos_token_ids:
            return False
        return newest.token_id == row.token_ids[len(row.token_ids) - row.num_drafts + number]

    def _accept(self, sequence_id: int, choice: Choice) -> Choice:
        """Tell the sequence of its new token; a forced token that breaks the grammar ends that request alone."""
        if choice.error:
            return choice
        try:
            self._states[sequence_id].accept(choice.token_id)
        except ConstraintError as error:
            return Choice(error=str(error))
        return choice

    def _propose(
        self, plan: StepPlan, chosen: dict[int, list[Choice]], computed: Computed
    ) -> dict[int, tuple[int, ...]]:
        """Tell the draft model of what is certain now, and return its drafts by sequence."""
        if self._draft_model is None:
            return {}
        told, first_token = [], 0
        for row in plan.rows:
            state, choices = self._states[row.sequence_id], chosen[row.sequence_id]
            end = row.start + len(row.token_ids) - row.num_drafts + max(0, len(choices) - 1)
            if row.num_wanted is None:
                state.draft_known_from = end
            elif not (choices and choices[-1].error):
                told.append(self._draft_row(row, state, first_token, end))
            first_token += len(row.token_ids)
        drafts = self._draft_model.propose(told, computed, self._cache) if told else {}
        for item in told:
            self._states[item.sequence_id].forget_drafts()
        return drafts

    def _draft_row(self, row: PlanRow, state: _SequenceState, first_token: int, end: int) -> DraftRow:
        return DraftRow(
            sequence_id=row.sequence_id,
            state=self._inputs.tables.states(self._inputs.tables.lines([row.sequence_id]))[0],
            first_token=first_token,
            start=row.start,
            next_ids=state.token_ids[row.start + 1 : end + 1],
            known_from=state.draft_known_from,
            num_wanted=row.num_wanted or 0,
            choose=state.choose_draft,
        )

    def _result(self, row: PlanRow, choices: list[Choice], logits: Tensor, drafts: tuple[int, ...]) -> RowResult:
        good = [choice for choice in choices if not choice.error]
        return RowResult(
            sequence_id=row.sequence_id,
            token_ids=tuple(choice.token_id for choice in good),
            drafts=drafts,
            logprobs=tuple(choice.logprob for choice in good if choice.logprob),
            prompt_logprobs=self._prompt_logprobs(row, logits) if row.wants_prompt_logprobs else (),
            error=choices[-1].error if choices else "",
        )

    def _prompt_logprobs(self, row: PlanRow, logits: Tensor) -> tuple[TokenLogprob, ...]:
        """Logprobs of the prompt tokens that follow tokens of this row."""
        state = self._states[row.sequence_id]
        end = min(row.start + len(row.token_ids) + 1, state.num_prompt)
        targets = state.token_ids[row.start + 1 : end]
        return prompt_logprobs(logits[: len(targets)], targets, state.num_top)
