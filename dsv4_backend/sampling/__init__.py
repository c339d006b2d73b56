"""From logits to the next token, on the compute side."""

from dsv4_backend.sampling.logprobs import prompt_logprobs, token_logprob
from dsv4_backend.sampling.sampler import Choice, Choosing, draft_token, sample
from dsv4_backend.sampling.state import SequenceSampling

__all__ = ["Choice", "Choosing", "SequenceSampling", "draft_token", "prompt_logprobs", "sample", "token_logprob"]
