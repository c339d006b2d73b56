"""The draft models compute what the specification says, however the text is cut into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from draft_oracle import DraftOracle
from dsv4_kernels.dispatch import bind
from dsv4_kernels.tensors import QuantTensor, WeightFormat
from hf_oracle import TINY
from torch import Tensor

from dsv4_backend.checkpoint.layout import layout_of
from dsv4_backend.checkpoint.names import Storage, model_weights
from dsv4_backend.config import CacheFormat, ModelConfig, Numerics, parse_model_config
from dsv4_backend.kv.layout import KINDS, make_layout
from dsv4_backend.kv.manager import CacheManager, CacheRules
from dsv4_backend.model import Transformer
from dsv4_backend.model.draft import BlockGuess
from dsv4_backend.model.transformer import Computed
from dsv4_backend.records import PlanRow, SamplingParams, SequenceStart, StepPlan
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.drafting import DraftModel, DraftRow, DsparkDrafts, MtpDrafts, load_draft_model
from dsv4_backend.runner.inputs import InputBuilder
from dsv4_backend.sampling import SequenceSampling, draft_token

MAX_DRAFTS = 5
NUM_TOKENS = 150  # more than a window
MTP = TINY | {"num_nextn_predict_layers": 1, "compress_ratios": [0, 4, 128, 4, 0]}
DSPARK = TINY | {
    "compress_ratios": [0, 4, 128, 4, 0, 0],
    "dspark_block_size": 5,
    "dspark_noise_token_id": 2,
    "dspark_target_layer_ids": [2, 3],
    "dspark_markov_rank": 8,
}
TOLERANCE = 2e-5


@dataclass(frozen=True)
class PlainSource:
    """Random float32 weights of every name that the config announces."""

    weights: dict[str, Tensor]

    @classmethod
    def random(cls, config: ModelConfig) -> PlainSource:
        chance = torch.Generator().manual_seed(3)
        weights = {}
        for weight in model_weights(config, layout_of(config)):
            if weight.storage is Storage.I64:
                weights[weight.name] = torch.randint(config.num_experts, weight.shape, generator=chance)
            else:
                size = weight.shape[-1] ** -0.5 if len(weight.shape) == 2 else 0.3
                base = 1.0 if "norm" in weight.name else 0.0
                weights[weight.name] = base + size * torch.randn(weight.shape, generator=chance)
        return cls(weights)

    def dense(self, name: str) -> Tensor:
        return self.weights[name]

    def linear(self, name: str) -> QuantTensor:
        codes = self.weights[f"{name}.weight"]
        return QuantTensor(
            format=WeightFormat.FP32, codes=codes, scales=None, global_scale=1.0, shape=tuple(codes.shape)
        )


class Talk:
    """One text that a model and its draft model compute in steps of any size."""

    def __init__(
        self, values: dict[str, object], numerics: Numerics = Numerics.PLAIN, cache: CacheFormat = CacheFormat.FP32
    ) -> None:
        self.config = parse_model_config(values)
        self.source = PlainSource.random(self.config)
        self.model = Transformer.load(self.config, self.source, bind("cpu"), numerics)
        self.layout = make_layout(self.config, cache, MAX_DRAFTS, self.config.draft.num_stages)
        self.drafts: DraftModel = load_draft_model(self.model, self.source, self.layout)
        self.tokens = torch.randint(3, 97, (NUM_TOKENS + 1,), generator=torch.Generator().manual_seed(1)).tolist()

    def run(
        self, chunks: Sequence[int], wanted: int, seen: Callable[[Computed], None] | None = None
    ) -> list[tuple[int, ...]]:
        """Compute the text in chunks; return the drafts behind each of them."""
        places = dict.fromkeys(KINDS, 4)
        manager, cache = CacheManager(CacheRules(device=places)), RankCache(self.layout, places)
        builder = InputBuilder(self.config, self.layout)
        start = SequenceStart(
            sequence_id=0, token_ids=(5,), num_prompt_tokens=1, sampling=SamplingParams(temperature=0.0)
        )
        sampling, done, found = SequenceSampling(start, self.config.vocab_size, ()), 0, []
        for count in chunks:
            grants = manager.reserve(0, done + count)
            assert grants is not None
            row = PlanRow(sequence_id=0, start=done, token_ids=tuple(self.tokens[done : done + count]), grants=grants)
            plan = StepPlan(step=0, rows=(row,), starts=() if done else (start,))
            computed = self.model.run(builder.build(plan), cache, self.drafts.tapped)
            told = DraftRow(
                sequence_id=0,
                state=builder.tables.states(builder.tables.lines([0]))[0],
                first_token=0,
                start=done,
                next_ids=self.tokens[done + 1 : done + count + 1],
                known_from=0,
                num_wanted=wanted,
                choose=lambda scores, number: draft_token(scores, sampling, number, self.model.ops),
            )
            if seen:
                seen(computed)
            found.append(self.drafts.propose([told], computed, cache).get(0, ()))
            done += count
        return found

    def oracle(self) -> DraftOracle:
        return DraftOracle(self.config, self.source.weights)


def traces(
    talk: Talk, chunks: Sequence[int], wanted: int
) -> tuple[list[Computed], list[Tensor], list[tuple[int, ...]]]:
    """What the backbone computed, the logits that the drafts were chosen from, and the drafts."""
    steps: list[Computed] = []
    logits: list[Tensor] = []
    block = talk.drafts._block  # type: ignore[attr-defined]
    if isinstance(talk.drafts, MtpDrafts):
        plain = block.logits
        block.logits = lambda streams: logits.append(plain(streams)) or logits[-1]
    else:
        plain, guess = block.bias, block.guess
        rows: list[Tensor] = []

        def guessed(*given: object) -> BlockGuess:
            found: BlockGuess = guess(*given)
            rows[:] = found.base[0].unbind(0)
            return found

        block.guess = guessed
        block.bias = lambda before: logits.append(rows.pop(0) + plain(before)) or plain(before)
    drafts = talk.run(chunks, wanted, steps.append)
    return steps, logits, drafts


def close(found: Tensor, wanted: Tensor) -> None:
    assert float((found - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))


def test_mtp_equals_the_specification_at_every_position() -> None:
    talk = Talk(MTP)
    steps, logits, drafts = traces(talk, [100] + [1] * 50, 2)
    streams = torch.cat([step.streams for step in steps])
    _, wanted = talk.oracle().mtp(streams, torch.tensor(talk.tokens[1:]))
    close(torch.cat(logits[::2]), wanted[99:])
    assert [row[0] for row in drafts] == wanted[99:].argmax(1).tolist()


def test_the_second_mtp_draft_reads_the_streams_of_the_first() -> None:
    talk = Talk(MTP)
    steps, logits, drafts = traces(talk, [NUM_TOKENS], 2)
    oracle = talk.oracle()
    ids = torch.tensor([*talk.tokens[1:], drafts[0][0]])
    block, _ = oracle.mtp(steps[0].streams, ids[:-1])
    # the keys of certain positions come from the backbone's streams, those of the newest from the block's own
    _, wanted = oracle.mtp(torch.cat([steps[0].streams, block[-1:]]), ids)
    close(logits[1], wanted[-1:])


def test_dspark_equals_the_specification() -> None:
    for count in (3, 127, 128, 131, NUM_TOKENS):
        talk = Talk(DSPARK)
        confidences: list[Tensor] = []
        block = talk.drafts._block  # type: ignore[attr-defined]
        plain = block.confidence
        block.confidence = lambda *given, plain=plain, kept=confidences: kept.append(plain(*given)) or kept[-1]
        steps, logits, drafts = traces(talk, [count], 5)
        assert steps[0].taps is not None
        tokens, wanted, chances = talk.oracle().dspark(steps[0].taps, talk.tokens[count])
        close(torch.cat(logits), wanted)
        close(torch.cat(confidences), chances)
        num_kept = int((chances.cumprod(0) >= 0.3).sum())
        assert drafts[0] == tuple(tokens.tolist())[:num_kept]


@pytest.mark.parametrize("values", [MTP, DSPARK], ids=["mtp", "dspark"])
@pytest.mark.parametrize("cache", [CacheFormat.FP32, CacheFormat.PACKED_FP4INDEX], ids=lambda item: item.value)
def test_steps_of_any_size_give_the_same_bits(values: dict[str, object], cache: CacheFormat) -> None:
    last = []
    for chunks in ([NUM_TOKENS], [1] * NUM_TOKENS, [128, 22], [3, 60, 80, 7], [149, 1]):
        _, logits, drafts = traces(Talk(values, Numerics.TRAINED, cache), chunks, 2)
        last.append((torch.cat(logits[-2:]), drafts[-1]))
    assert all(torch.equal(item[0], last[0][0]) and item[1] == last[0][1] for item in last)


def test_a_checkpoint_names_the_kind_of_its_drafts() -> None:
    assert isinstance(Talk(MTP).drafts, MtpDrafts) and isinstance(Talk(DSPARK).drafts, DsparkDrafts)
