"""Drafts: tokens that a step computes on trial. Integers only; the ranks verify them.

A draft is accepted where it is the token that would have been chosen anyway, with the same random number: the answer is
the same with and without drafts, whatever the temperature, the penalties and the grammar.
"""

from dsv4_backend.speculative.ngram import NgramDrafts
from dsv4_backend.speculative.pace import DraftPace

__all__ = ["DraftPace", "NgramDrafts"]
