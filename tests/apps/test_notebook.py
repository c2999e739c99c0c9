"""What a notebook shows."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import operands
from tensorprog.runtime import picture
from tests.apps.common import data, kernel


def test_a_gram_shows_heat_maps() -> None:
    x, _, _ = data()
    html = kernel()(x)._repr_html_()
    encoded = re.fullmatch(r'<img alt="kernel matrices" src="data:image/png;base64,(.*)"/>', html)
    assert encoded and base64.b64decode(encoded[1]).startswith(b"\x89PNG")
    assert tp.KernelResult(np.zeros((2, 2)), np.zeros(()))._repr_html_() is None
    assert kernel()(x[:0])._repr_html_() is None


def test_outputs_with_axes_and_several_outputs_are_one_matrix() -> None:
    """Entries of all outputs of all inputs, in the order of the joint Gaussian's vector."""
    rng = np.random.default_rng(0)
    samples = {"a": rng.standard_normal((50, 3, 2)), "b": rng.standard_normal((50, 3))}
    moment = lambda u, v: np.einsum("sn...,sm...->nm...", u, v)
    pair = {
        "a": {"a": np.einsum("sna,smb->nmab", samples["a"], samples["a"]), "b": np.einsum("sna,sm->nma", samples["a"], samples["b"])},
        "b": {"a": np.einsum("sn,smb->nmb", samples["b"], samples["a"]), "b": moment(samples["b"], samples["b"])},
    }  # fmt: skip
    vector = np.concatenate([samples["a"].reshape(50, 6), samples["b"]], 1)
    np.testing.assert_allclose(picture._whole(pair), vector.T @ vector, atol=1e-12)
    np.testing.assert_allclose(picture._whole(pair["a"]["a"]), (vector.T @ vector)[:6, :6], atol=1e-12)
    assert tp.KernelResult(pair, pair)._repr_html_().startswith("<img")
    assert tp.KernelResult(pair["a"], pair["a"])._repr_html_() is None
    own = np.ones((4, 2, 2))  # as `kernel.diag` gives them for an output with an axis
    assert tp.KernelResult(own, own)._repr_html_() is None


def test_loaded_kernels_show_their_derivation(tmp_path: Path) -> None:
    made = kernel()
    made.export(tmp_path / "net.tpk")
    loaded = tp.load(tmp_path / "net.tpk")
    assert loaded._repr_markdown_() == f"`{loaded!r}`\n\n{made.derivation()}"
    assert loaded.derivation()._repr_markdown_() == made.derivation()


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
