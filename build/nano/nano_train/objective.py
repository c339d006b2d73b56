"""The loss of one row: next tokens, the draft's tokens, the indexers' divergence, and the prompt's own tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nano_train.model import Pass


@dataclass(frozen=True, slots=True)
class Losses:
    """Parts of the loss; `hits` are the shares of targets that were the most likely token, per depth (0: the model)."""

    next_token: Tensor
    drafts: tuple[Tensor, ...]
    index: Tensor
    hits: tuple[float, ...]
    prompt: Tensor

    def total(self, draft_weight: float, prompt_weight: float = 0.0) -> Tensor:
        """What is minimised."""
        drafts = sum(self.drafts, start=torch.zeros(()))
        total = self.next_token + draft_weight * drafts / max(len(self.drafts), 1) + self.index
        return total + prompt_weight * self.prompt if prompt_weight else total


def losses(run: Pass, draft_depth: int, *, has_prompt: bool = False) -> Losses:
    """Compute all parts on the row of a pass."""
    streams = run.backbone()
    next_token, hit = _predict(run, streams, 0)
    prompt = _predict_prompt(run, streams) if has_prompt else torch.zeros(())
    drafts, hits = [], [hit]
    for depth in range(1, draft_depth + 1):
        if depth > 1:
            streams = streams.roll(1, 0)  # the block goes on from its own streams of the position before
        streams = run.draft(streams)
        loss, hit = _predict(run, streams, 1)
        drafts.append(loss)
        hits.append(hit)
    index = sum(run.index_losses, start=torch.zeros(()))
    return Losses(next_token, tuple(drafts), index, tuple(hits), prompt)


def _predict_prompt(run: Pass, streams: Tensor) -> Tensor:
    """Cross entropy at the tokens that are no targets: copying inside a prompt teaches copying out of it."""
    rows = run.batch.is_prompt.nonzero().squeeze(1)
    return cross_entropy(run.logits(streams[rows]), run.batch.next_ids[rows]) if len(rows) else streams.sum() * 0


def _predict(run: Pass, streams: Tensor, ahead: int) -> tuple[Tensor, float]:
    """Cross entropy at the targets that lie `ahead` tokens after the next one, and the share of hits."""
    wanted, ids = run.batch.is_target, run.batch.next_ids
    if ahead:
        wanted, ids = _shifted(wanted), _shifted(ids)
        wanted = wanted & (run.batch.documents == _shifted(run.batch.documents))
    rows = wanted.nonzero().squeeze(1)
    logits = run.logits(streams[rows], "mtp.0." if ahead else "")
    with torch.no_grad():
        hit = float((logits.argmax(1) == ids[rows]).float().mean()) if len(rows) else 0.0
    return cross_entropy(logits, ids[rows]) if len(rows) else streams.sum() * 0, hit


def _shifted(values: Tensor) -> Tensor:
    """The value of the following token; 0 for the last."""
    return torch.cat([values[1:], torch.zeros_like(values[:1])])
