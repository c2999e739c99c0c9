"""Tests of ntk_rules."""
