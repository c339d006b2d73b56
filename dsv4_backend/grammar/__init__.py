"""Output constraints on the compute side, through xgrammar."""

from dsv4_backend.grammar.answer import AnswerMatcher
from dsv4_backend.grammar.compile import GrammarCompiler
from dsv4_backend.grammar.matcher import GrammarMatcher

__all__ = ["AnswerMatcher", "GrammarCompiler", "GrammarMatcher"]
