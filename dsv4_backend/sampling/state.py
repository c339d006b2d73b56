"""What sampling remembers of a sequence: which tokens it holds, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv4_backend.records import SequenceStart


class SequenceSampling:
    """Sampling state of one sequence on a rank; rebuilt from SequenceStart after preemption or a restart.

    Rule: seen counts the prompt too (repetition penalty); counts are of generated tokens only (presence, frequency).
          Both tables exist only if a penalty needs them.
    """

    def __init__(
        self,
        start: SequenceStart,
        vocab_size: int,
        eos_ids: Sequence[int],
        device: torch.device | None = None,
    ) -> None:
        params = start.sampling
        self.params = params
        self.seed = params.seed or 0  # admission has replaced None
        self.eos_ids = tuple(eos_ids)
        self.min_tokens = start.min_tokens
        self.num_prompt_tokens = start.num_prompt_tokens
        self.num_tokens = len(start.token_ids)
        self.seen: torch.Tensor | None = None  # [V] bool
        self.counts: torch.Tensor | None = None  # [V] float32
        if params.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.seen[torch.tensor(start.token_ids, dtype=torch.int64, device=device)] = True
        if params.presence_penalty or params.frequency_penalty:
            answer = torch.tensor(start.token_ids[start.num_prompt_tokens :], dtype=torch.int64)
            self.counts = torch.bincount(answer, minlength=vocab_size).to(device, torch.float32)
        self.bias_ids = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.int64, device=device)
        values = [value for _, value in params.logit_bias]
        self.bias_values = torch.tensor(values, dtype=torch.float32, device=device)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def is_plain(self) -> bool:
        """True while the scores are the logits: no penalty, bias or `min_tokens` changes them."""
        return self.seen is None and self.counts is None and not len(self.bias_ids) and not self.must_go_on

    @property
    def must_go_on(self) -> bool:
        """True while `min_tokens` keeps the end-of-sequence token away."""
        return self.num_output_tokens < self.min_tokens

    def append(self, token_id: int) -> None:
        """Note one generated token."""
        self.num_tokens += 1
        if self.seen is not None:
            self.seen[token_id] = True
        if self.counts is not None:
            self.counts[token_id] += 1
