"""Which parametrisation lets every layer learn as much as it can? The maximal update parametrisation, by trying all.

An abc-parametrisation multiplies weights by n^-a, draws them with variance n^-2b and trains at the rate n^-c (Yang and Hu 2021, Tensor
Programs IV). `tp.scaling` counts powers of the width n through a network. Shifting (a, b, c) to (a + t, b - t, c - 2t) changes
nothing, so c = 0 throughout. Among all multiples of 1/2, one parametrisation alone is stable with every weight's update of the
size 1 from the first step on. (With a readout that starts smaller, or at zero, the hidden layers follow from the second step on.)

Run: python examples/scaling.py
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import jax.numpy as jnp

import tensorprog as tp
from tensorprog import nn

HALVES = [Fraction(k, 2) for k in range(-2, 3)]


def net(x):
    """A perceptron of two hidden layers."""
    h = jnp.tanh(nn.dense(x, name="first"))
    return nn.dense(jnp.tanh(nn.dense(h, name="second")), features=1, name="readout")


def maximal(program: tp.Program) -> list[tp.Parametrization]:
    """The stable parametrisations with c = 0 in which every weight's own update is of the size 1, and every layer's first change too.

    Hidden layers are of the size 1 at initialisation only with a + b = 0 for the first and 1/2 for the second, which fixes b there.
    """
    found = []
    for first, second, third, b in itertools.product(HALVES, repeat=4):
        one = tp.Parametrization((first, -first), (second, Fraction(1, 2) - second), (third, b))
        counted = tp.scaling(program, parametrization=one)
        at_once = all(row.step == 0 for row in counted.rows)
        if counted.kind != "unstable" and at_once and set(counted.updates.values()) == {0}:
            found.append(one)
    return found


def main() -> None:
    """Print what the usual parametrisations do, and the one that the search finds."""
    program = tp.compile(net, jnp.zeros(3)).program
    for name in ("standard", "ntk", "mup"):
        print(f"{name} parametrisation\n{tp.scaling(program, parametrization=name)}\n")
    found = maximal(program)
    print(f"of {len(HALVES) ** 4} parametrisations, those in which every layer learns maximally:")
    for one in found:
        print(f"  {one}")


if __name__ == "__main__":
    main()
