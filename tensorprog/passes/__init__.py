"""Passes: each takes a Program and returns one, or reads facts off it."""
