"""Fill docs/architectures.md: every network of examples/architectures.py, and how exact its kernel is.

Run `python -m benchmarks.architectures`; with names, only these rows are computed again, and the other links renewed.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import jax

import tensorprog as tp
from examples import architectures as zoo
from tensorprog.kernel.graph import Expect, Tilted

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
# Beside sampled networks of growing width, which every architecture has: a formula in tests/architectures/test_formulas.py
# or another test.
FORMULAS = {
    "maxout": "halves of sum and difference", "glu": "product of two duals", "tied_layers": "the kernel of untied layers",
    "gcn": "node by node (Kipf and Welling)", "gin": "Du et al. 2019, section 4", "causal_attention": "Tensor Programs II",
    "masked_rnn": "the shorter sequence", "token_embedding": "indicators of equal tokens",
    "gru": "populations against exact kernels (tests/kernel/test_population.py)",
    "lstm": "the same", "residual_after": "the same",
    "weight_norm": "the plain weight", "bilinear": "product of two kernels; a' W b itself",
    "stochastic_depth": "path by path", "dropout": "neural-tangents' train mode (tests/kernel/test_dropout.py)",
    "many_large_heads": "Hron et al. 2020, theorem 3; heads of growing dimension",
    "batch_norm": "Yang et al. 2019, appendix E (tests/kernel/test_tilted.py)",
}  # fmt: skip

HEAD = """# Architectures

Networks beyond stacks of layers, each a few lines of JAX in [examples/architectures.py](../examples/architectures.py). Nothing in
the compiler knows them by name. Written by `python -m benchmarks.architectures`; do not edit.

*Exact*: every Gaussian expectation has a closed form. *Quadrature*: some are integrals in one or two variables, with the largest error
bound. *Laplace*: a normalisation over positions was turned into an integral over tilted Gaussian laws, with its relative error.
*Sampled*: some function mixes too many Gaussians; by randomly shifted lattices, or by a population of neurons where a state is
carried through several layers, at `tolerance=1e-2`, where
`kernel.standard_error(x1, x2)` has the error on your inputs.

Every row is checked against sampled networks of growing width (tests/architectures/test_sampled.py); the last column names the
second witness where there is a formula of its own.

| architecture | what | how | instructions | second witness |
|---|---|---|---|---|
"""

TAIL = """
What has no Gaussian limit, or none here, is refused with the reason:

- attention with 1/sqrt(n) logits in a fixed number of heads: divide by n, let the number of heads grow with the width at a fixed
  size of a head (*many small heads*), or take the limit in which both grow (*many large heads*);
- a bilinear head a' W b written with one matrix W, which would be summed over the width twice: in the factors of *bilinear* it has
  the same kernels, NTK included;
- a hypernetwork that makes a whole n x n matrix, a parameter with three width axes: let it make scales (*hypernetwork*), or a matrix in
  factors;
- dropout of the input or the output, where a mask does not average out: give the mask as an input, as *stochastic depth* does, and average
  the kernels;
- positions that were flattened after a concatenation of widths, times a weight: flatten before concatenating;
- softmax or sorting over the width, batch norm with running statistics, a finite layer in the middle;
- a readout tied to what it reads, unless it is odd in each of its coordinates ([two ways](adjoint.md)): divided by n it is an average.
"""


def accuracy(kernel: tp.Kernel) -> str:
    """How the expectations of a kernel were done."""
    words = []
    if kernel.sampled:
        words.append("sampled")
    if integrals := [q.error for q in kernel.graph.nodes if isinstance(q, Tilted)]:
        words.append(f"Laplace, {max(integrals):.0e}")
    bound = max((q.expectation.bound for q in kernel.graph.nodes if isinstance(q, Expect)), default=0.0)
    if bound:
        words.append(f"quadrature, {bound:.0e}")
    return "; ".join(words) or "exact"


def row(name: str, measured: str) -> str:
    """One line of the table."""
    net = zoo.ARCHITECTURES[name].net
    what = (inspect.getdoc(net) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
    link = f"[{name.replace('_', ' ')}](../examples/architectures.py#L{inspect.getsourcelines(net)[1]})"
    return f"| {link} | {what} | {measured} | {FORMULAS.get(name, '')} |"


def measured(name: str) -> str:
    """How exact the kernel is, and the size of the program."""
    kernel = zoo.compiled(name)
    return f"{accuracy(kernel)} | {len(kernel.program)}"


def on_the_page() -> dict[str, str]:
    """What the page says was measured, by name."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| [")]
    return {cells[0][3:].split("]")[0].replace(" ", "_"): " | ".join(cells[2:4]) for cells in rows}


def main(names: list[str]) -> None:
    """Write the page."""
    jax.config.update("jax_enable_x64", True)
    known = on_the_page() if names else {}
    rows = []
    for name in zoo.ARCHITECTURES:
        rows.append(row(name, measured(name) if not names or name in names or name not in known else known[name]))
        print(rows[-1], file=sys.stderr, flush=True)
    PAGE.write_text(HEAD + "\n".join(rows) + "\n" + TAIL)


if __name__ == "__main__":
    main(sys.argv[1:])
