"""Conversations for the small trained model: made from grammars, rendered by the official encoding, graded."""

from nano_data.grade import Grader, grade
from nano_data.pack import Packed, Row, fill_rows, pack
from nano_data.records import DEFAULT_MIX, MODES, Call, Check, Example, Mix, Mode, Split, Verdict
from nano_data.stream import FAMILIES, make_example, stream

__all__ = [
    "DEFAULT_MIX",
    "FAMILIES",
    "MODES",
    "Call",
    "Check",
    "Example",
    "Grader",
    "Mix",
    "Mode",
    "Packed",
    "Row",
    "Split",
    "Verdict",
    "fill_rows",
    "grade",
    "make_example",
    "pack",
    "stream",
]
