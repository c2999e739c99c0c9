"""Gaussian expectations E[F(z)] as a rewriting system: exact where an exact form exists, bounded
elsewhere.
"""

from ntk_rules import functions
from ntk_rules.errors import NoRule
from ntk_rules.expectation import Expectation, expectation, explain

__all__ = ["Expectation", "NoRule", "expectation", "explain", "functions"]
