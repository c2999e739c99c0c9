"""Passes on small networks, against plain text in tests/passes/goldens.

After an intended change, write them anew and read the difference:

    python -m tests.passes.test_goldens
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tensorprog import nn
from tensorprog.ir import parse_program
from tensorprog.ir.text import print_program
from tensorprog.passes.fuse import fuse
from tensorprog.passes.tangent import tangent
from tests.finite_program import network_program
from tests.networks import mixed, recurrent, residual

GOLDENS = Path(__file__).parent / "goldens"


def gated(x: jax.Array) -> jax.Array:
    h, g = jnp.split(nn.dense(x, width=2.0), 2)
    return nn.dense(jnp.where(h > 0, h, 0.1 * h) * jax.nn.sigmoid(g), features=1)


def convolved(x: jax.Array) -> jax.Array:
    return nn.dense(nn.flatten(nn.avg_pool(jax.nn.relu(nn.conv(x, 3)), 2)), features=1)


CASES = {
    "mixed": (mixed, (3,)),
    "residual": (residual, (3,)),
    "recurrent": (recurrent, (2, 3)),
    "gated": (gated, (3,)),
    "convolved": (convolved, (4, 2)),
}


def stages(name: str) -> str:
    """The program as traced, fused (and simplified), and its tangent."""
    net, shape = CASES[name]
    program = network_program(net, jnp.zeros(shape))
    fused = fuse(program)
    moved = tangent(fused)
    assert moved is not None
    parts = {"traced": program, "fused": fused, "tangent": moved, "tangent, fused": fuse(moved, drop_zeros=True)}
    return "\n".join(f"== {title}\n{print_program(p, comments=False)}" for title, p in parts.items())


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    wanted = (GOLDENS / f"{name}.txt").read_text(encoding="utf-8")
    assert stages(name) == wanted, "if this change is meant: python -m tests.passes.test_goldens"


@pytest.mark.parametrize("name", CASES)
def test_goldens_are_programs(name: str) -> None:
    text = (GOLDENS / f"{name}.txt").read_text(encoding="utf-8")
    parts = [part.split("\n", 1)[1] for part in text.split("== ")[1:]]
    assert len([parse_program(part) for part in parts]) == 4


def test_no_stale_golden() -> None:
    assert sorted(p.stem for p in GOLDENS.glob("*.txt")) == sorted(CASES)


if __name__ == "__main__":
    for case in CASES:
        (GOLDENS / f"{case}.txt").write_text(stages(case), encoding="utf-8")
