"""What a notebook shows."""

from __future__ import annotations

import base64
import re

import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import operands
from tests.apps.common import data, kernel


def test_a_gram_shows_heat_maps() -> None:
    x, _, _ = data()
    html = kernel()(x)._repr_html_()
    encoded = re.fullmatch(r'<img alt="kernel matrices" src="data:image/png;base64,(.*)"/>', html)
    assert encoded and base64.b64decode(encoded[1]).startswith(b"\x89PNG")
    assert tp.KernelResult(np.zeros((2, 2, 2, 2)), np.zeros((2, 2, 2, 2)))._repr_html_() is None
    assert kernel()(x[:0])._repr_html_() is None


def test_programs_and_kernels_show_themselves() -> None:
    program = kernel().program
    shown = program._repr_markdown_()
    assert str(program) in shown and "```mermaid\nflowchart TD" in shown
    edges = {tuple(line.split(" --> ")) for line in program.mermaid().splitlines() if "-->" in line}
    assert {(a.strip(), b) for a, b in edges} == {
        (program.names[o], program.names[n]) for n in program for o in operands(n)
    }
    assert kernel()._repr_markdown_() == kernel().derivation() == kernel().derivation()._repr_markdown_()
    outputs = tp.joint(
        lambda x: {"a": nn.dense(x, features=1), "b": nn.dense(jnp.tanh(nn.dense(x)), features=1)}, jnp.zeros(2)
    )
    assert outputs._repr_markdown_() == outputs.derivation()._repr_markdown_() and "NTK" in outputs.derivation()
