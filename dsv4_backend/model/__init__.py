"""DeepSeek-V4 on one rank: tensors in, logits out. No policy; operators and caches are handed in."""

from dsv4_backend.model.indexer import EntrySelector
from dsv4_backend.model.step import EntryTable, Fold, FoldInputs, PoolInputs, Ring, StepCache, StepInputs
from dsv4_backend.model.transformer import Transformer
from dsv4_backend.model.weights import WeightSource

__all__ = [
    "EntrySelector",
    "EntryTable",
    "Fold",
    "FoldInputs",
    "PoolInputs",
    "Ring",
    "StepCache",
    "StepInputs",
    "Transformer",
    "WeightSource",
]
