"""The derivation of a kernel as a page to read: Markdown with LaTeX, printed from the graph itself.

First the program (and its tangent program) with a name for every variable, then each Gaussian expectation that was
needed, with its rule and error bound, then the recursion, one quantity a line, in the order in which it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import sympy
from sympy.printing.latex import LatexPrinter

from ntk_rules import Expectation
from ntk_rules.constants import snap
from ntk_rules.law import pair_name
from tensorprog.ir import (
    Const,
    Hyper,
    Input,
    LinComb,
    MatMul,
    Moment,
    Node,
    Nonlin,
    PositionMap,
    Program,
    Weight,
    topological,
)  # fmt: skip
from tensorprog.kernel.derive import KernelGraph
from tensorprog.kernel.graph import (
    Apply,
    Average,
    Combine,
    Contract,
    Data,
    Drawn,
    Expect,
    Operand,
    Quantity,
    Ran,
    Sampled,
    Shifts,
    Tilted,
    Zero,
)
from tensorprog.kernel.questions import Mean, Question, Second, Value
from tensorprog.passes.adjoint import Adjoint
from tensorprog.passes.dots import Dot
from tensorprog.passes.hypotheses import caveats
from tensorprog.passes.structure import Structure, tied_weights

__all__ = ["Derivation", "Shown", "derivation", "joint_derivation"]


class Derivation(str):
    """A page of Markdown that a notebook sets: `print` shows its text."""

    def _repr_markdown_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Shown:
    """One output of several: what the page says of it. node: what covariances are asked of."""

    label: str
    kind: str
    shape: tuple[int, ...]
    node: Node
    reason: str
    method: str


class _Graph(Protocol):
    """What is computed, and what each quantity answers."""

    @property
    def nodes(self) -> tuple[Quantity, ...]: ...
    @property
    def answers(self) -> Mapping[Quantity, Sequence[Question]]: ...


# What a tangent kernel is asked of, with the label of the output, which is empty where there is one.
Moved = tuple[str, Program | Adjoint]


def derivation(
    program: Program,
    moved: Program | Adjoint | None,
    graph: KernelGraph,
    dots: Sequence[Dot] = (),
    method: str = "",
) -> Derivation:
    """The page for one kernel. moved: what the tangent kernel is asked of. dots: the terms that transposes add, where the programs
    have them written out. method: how the tangent kernel is taken, and why."""
    kernels = [("\\mathrm{NNGP}", graph.nngp), ("\\mathrm{NTK}", graph.ntk)]
    page = _Page([program.output], [] if moved is None else [("", moved)], graph, dots)
    return Derivation("\n".join(page.lines([f"{method}.\n"] if method else [], kernels)))


def joint_derivation(
    outputs: Sequence[Shown], moved: Sequence[Moved], graph: _Graph, kernels: tuple[Sequence[Quantity], Sequence[Quantity]],
    dots: Sequence[Dot],
) -> Derivation:  # fmt: skip
    """The page for several outputs. kernels: the blocks of nngp and of ntk, row by row."""
    page = _Page([shown.node for shown in outputs], moved, graph, dots)
    table = ["| output | kind | shape | variable | tangent kernel |\n|---|---|---|---|---|"]
    for shown in outputs:
        name = page.name(shown.node)
        how = f"of the {shown.method} program: {shown.reason}"
        table.append(f"| {shown.label} | {shown.kind} | `{shown.shape}` | ${name}$ | {how} |")
    pairs = [(i, j) for i in range(len(outputs)) for j in range(i, len(outputs))]
    lines = []
    for kernel, blocks in zip(("NNGP", "NTK"), kernels, strict=True):
        for i, j in pairs:
            labels = ",".join(f"\\text{{{_text(outputs[k].label)}}}" for k in (i, j))
            lines.append((f"\\mathrm{{{kernel}}}_{{{labels}}}", blocks[i * len(outputs) + j]))
    note = "Blocks of outputs in the other order are these with the inputs exchanged.\n"
    return Derivation("\n".join(page.lines([*table, "", note], lines)))


class _Page:
    def __init__(self, outputs: Sequence[Node], moved: Sequence[Moved], graph: _Graph, dots: Sequence[Dot]):
        self.graph, self.dots, self.moved = graph, tuple(dict.fromkeys(dots)), moved
        gradients = [m for _, m in moved if isinstance(m, Adjoint)]
        outputs = list(outputs)
        for _, m in moved:
            outputs += m.nodes if isinstance(m, Adjoint) else [m.output]
        self.tied = tied_weights(topological(outputs))
        self.facts = Structure(outputs)
        self.answers = _answers(graph, self.facts)
        shown = [part for dot in self.dots for part in (dot.of, dot.by, dot.vector)]
        self.nodes = list(topological([*outputs, *shown]))
        back = {node for m in gradients for use in m.uses for node in (use.dy,)}
        forward = [node for node in outputs if node not in back]
        self.names = _names(self.nodes, self.facts, frozenset(topological(forward)))
        self.reductions: dict[Average | Sampled | Tilted, int] = {
            q: n for n, q in enumerate((q for q in graph.nodes if isinstance(q, (Average, Sampled, Tilted))), 1)
        }
        self.laws: dict[int, tuple[int, Expect]] = {}
        for quantity in graph.nodes:
            if isinstance(quantity, Expect) and id(quantity.expectation) not in self.laws:
                self.laws[id(quantity.expectation)] = (len(self.laws) + 1, quantity)

    # -------------------------------------------------------------------------------------- the page

    def lines(self, notes: Sequence[str], kernels: Sequence[tuple[str, Quantity]]) -> Iterator[str]:
        """notes: what stands before the kernels. kernels: their names, and the quantities that they are."""
        yield "# The infinite-width limit of this network\n"
        yield "## The program\n"
        yield "Each line is an instruction of the tensor program; $n$ is the width. Variables $h$ are vectors of the network,"
        yield self.letters()
        yield "| instruction | shape | made at |\n|---|---|---|"
        for node in self.nodes:
            if node in self.names and not isinstance(node, (Input, Const, Hyper, Weight)):
                yield f"| ${self.names[node]} = {self.instruction(node)}$ | `{node.type}` | {node.source or ''} |"
        yield from self.transposes()
        for caveat in caveats(self.nodes, bool(self.tied)):
            yield f"\nCaveat: {caveat}."
        yield "\n## The Gaussian expectations\n"
        if not self.laws and not self.reductions:
            yield "None: every variable is Gaussian and linear in the weights."
        for number, law in self.laws.values():
            yield from self.law(number, law)
        for reduced, place in self.reductions.items():
            match reduced:
                case Sampled():
                    yield from self.sampled(place, reduced)
                case Tilted():
                    yield from self.tilted(place, reduced)
        yield from self.population()
        yield "\n## The recursion\n"
        yield "$K[u,v](x,x')$ stands for $\\mathbb{E}[Z^u(x)\\,Z^v(x')]$, and $K[u,v](x)$ for both at the input $x$."
        yield "One weight gives $\\operatorname{Cov}(Wu, Wv) = \\sigma_W^2\\,\\mathbb{E}[uv]$ (Yang, Tensor Programs III);"
        yield "different weights are independent.\n"
        for quantity in self.graph.nodes:
            if (line := self.step(quantity)) is not None:
                yield line
        yield "\n## The kernels\n"
        yield from notes
        if self.moved and any(isinstance(q, (Average, Sampled)) for q in self.reductions):
            yield "Caveat: expectations are sampled. The tangent kernels of the tangent and of the adjoint program, which are one in theory,"
            yield "agree within `kernel.standard_error`, and to rounding where both come to the same slopes to sample (docs/adjoint.md). Their"
            yield "derivatives are NaN where what is sampled jumps, as the slope of relu: no sample shows how the mean of a jump moves.\n"
        for label, moved in self.moved:
            if isinstance(moved, Adjoint):
                yield from self.uses(label, moved)
        for name, quantity in kernels:
            yield f"$${name}(x,x') = {self.symbol(Operand(quantity))}$$\n"

    def letters(self) -> str:
        """What the letters of variables say."""
        gradients = [m for _, m in self.moved if isinstance(m, Adjoint)]
        said = []
        if gradients:
            units = dict.fromkeys("$n$" if m.output.type.kind == "scalar" else "$\\sqrt n$" for m in gradients)
            said.append(f"$d$ gradients in them, times {' or '.join(units)}")
        if len(gradients) < len(self.moved) or not gradients:
            said.append("$t$ their tangents (derivatives in a random direction of all parameters)")
        return f"{', '.join(said)}, $s$ deterministic.\n"

    def uses(self, label: str, gradients: Adjoint) -> Iterator[str]:
        """The uses of trained parameters, of whose pairs the tangent kernel is a sum. label: of the output, where there are several."""
        of = f" of {label}" if label else ""
        yield f"The tangent kernel{of} is a sum over parameters $w$ and over pairs of their uses $y = Wz$, $y' = Wz'$, of"
        yield "$\\tau_w^2\\,\\mathbb{E}[dy\\,dy']\\,\\mathbb{E}[z\\,z']$ summed over positions (Yang, Tensor Programs II, theorem 2.1):\n"
        yield "| parameter | $\\tau$ | letters | $dy$ | $z$ |\n|---|---|---|---|---|"
        for use in gradients.uses:
            w, z, y = use.letters
            dy, other = (f"${self.name(v)}$" if v else "" for v in (use.dy, use.z))
            tau = _number(use.weight.tangent_std)
            yield f"| ${self.name(use.weight)}$ | ${tau}$ | `{w}{',' + z if use.z else ''}->{y}` | {dy} | {other} |"
        yield ""

    def transposes(self) -> Iterator[str]:
        """How the products with a matrix that is used both ways round, or is symmetric, come apart."""
        if not self.tied:
            return
        names = ", ".join(f"${self.name(weight)}$" for weight in self.nodes if weight in self.tied)
        yield f"\n## Transposes\n\n{names}: used together with the transpose, or symmetric. A product $Wx$ is $\\widehat{{Wx}}$, Gaussian and"
        yield "independent of every product with $W^\\top$, plus, for each earlier $W^\\top y$ on which $x$ depends, a multiple of $y$:"
        yield "$\\dot Z^{Wx} = \\sigma^2 \\sum_y Z^y\\,\\mathbb{E}[\\partial Z^x / \\partial \\hat Z^{W^\\top y}]$ (Yang, Tensor Programs III)."
        yield "Terms that vanish by structure are absent.\n"
        if not self.dots:
            yield "Here all of them vanish."
        for dot in self.dots:
            weight, x, y = self.name(dot.of.root), self.name(dot.of.x), self.name(dot.by.x)
            turned = weight if dot.of.root.symmetric else f"{{{weight}}}^\\top"
            first, second = (turned, weight) if self.transposed(dot.of) else (weight, turned)
            yield f"- ${first}\\,{x}$, by $\\widehat{{{second}\\,{y}}}$: $\\;{_sum([(self.scalar(dot.coefficient), self.term(dot.vector))])}$"

    def transposed(self, node: MatMul) -> bool:
        axes = node.root.matrix_axes
        return axes is not None and not node.root.symmetric and node.summed == axes[0]

    def scalar(self, a: float | Node) -> str:
        """A deterministic coefficient, written out."""
        match a:
            case Moment():
                return f"\\mathbb{{E}}\\left[{self.instruction(Nonlin(a.phi, a.xs, a.thetas))}\\right]"
            case LinComb(terms=terms):
                return _sum([(self.scalar(b), self.scalar(x)) for b, x in terms])
            case PositionMap(op=op, args=args) if op.name == "reshape":
                return self.scalar(args[0])
            case Node():
                return self.name(a)
        return _number(a)

    def term(self, vector: Node) -> str:
        return self.name(vector) if vector in self.names else self.instruction(vector)

    def law(self, number: int, quantity: Expect) -> Iterator[str]:
        law = quantity.expectation
        entries = ", ".join(f"C_{{{pair_name(i, j)}}}" for i, j in law.needs)
        value = f" = {law.latex()}" if law.formula is not None else ""
        yield f"**E{number}** ({law.tier}; {_bound(law)})\n"
        yield f"$$E_{{{number}}}({entries}) = \\mathbb{{E}}\\left[{_latex(quantity.function)}\\right]{value}$$\n"
        if law.steps:
            yield "- " + "\n- ".join(str(step) for step in law.steps) + "\n"

    def sampled(self, number: int, q: Sampled) -> Iterator[str]:
        names = ", ".join(dict.fromkeys(f"${self.name(leaf.node)}$" for leaf in q.leaves))
        yield f"**S{number}** (sampled: {q.points} points of a lattice under random shifts; `kernel.standard_error` has the error)\n"
        yield f"- a function of many positions at once of the Gaussian {names}: $S_{{{number}}}$ below\n"

    def population(self) -> Iterator[str]:
        averages = [number for q, number in self.reductions.items() if isinstance(q, Average)]
        if not averages:
            return
        neurons = next(q.operands[0].quantity.shape[0] for q in self.reductions if isinstance(q, Average))  # type: ignore[attr-defined]
        names = ", ".join(f"$S_{{{number}}}$" for number in averages)
        yield f"**{names}** (sampled: a population of {neurons} neurons; `kernel.standard_error` has the error)\n"
        yield "- a state is carried through several layers by elementwise code: independent samples of all variables of a neuron are"
        yield "taken through the program. A product $Wx$ is drawn given the earlier ones of $W$, by the population's averages"
        yield "$\\operatorname{Cov}(Wx, Wx') = \\sigma_W^2\\,\\overline{x x'}$\n"

    def tilted(self, number: int, q: Tilted) -> Iterator[str]:
        names = ", ".join(f"${self.name(leaf)}$" for leaf in q.leaves)
        epsilons = ", ".join(_number(norm[1]) for norm in dict.fromkeys(q.norms) if norm)
        powers = ", ".join(
            f"${','.join(map(str, powers))}$" for powers in dict.fromkeys(powers for powers, _ in q.parts)
        )
        yield f"**S{number}** (Laplace reduction, {q.nodes} nodes along each axis, relative error {q.error:.0e}): $S_{{{number}}}$ below\n"
        yield f"- a normalisation by $r = (Q + \\epsilon)^{{-1/2}}$, $Q = g^\\top M g$ a quadratic form of {names}, $\\epsilon = {epsilons}$"
        yield "- $\\mathbb{E}[r^k w] = \\frac{1}{\\Gamma(k/2)} \\int_0^\\infty s^{k/2-1} e^{-s \\epsilon} \\det(1 + 2 s C M)^{-1/2}\\,"
        yield f"\\mathbb{{E}}_s[w]\\,ds$, $g \\sim N(0, (C^{{-1}} + 2 s M)^{{-1}})$ under $\\mathbb{{E}}_s$; $k = $ {powers}\n"
        if any(norm and not norm[1] for norm in q.norms):
            yield "- caveat: with $\\epsilon = 0$ the function is not bounded by a polynomial where $Q = 0$, which the master theorem asks for;"
            yield "  the formulas are known to hold all the same where the moment is finite (Yang et al. 2019)."
            yield "  Where $Q$ sees two directions or one, of two members that differ, the tangent kernel is infinite: no number (NaN)\n"

    # -------------------------------------------------------------------------------------- instructions

    def instruction(self, node: Node) -> str:
        match node:
            case MatMul(weight=weight, x=x):
                plain = node.spec == "ab,b->a" or (node.root in self.tied and node.spec == "ab,a->b")
                spec = "" if plain else f"\\;[\\text{{{node.spec}}}]"
                turned = self.transposed(node) and plain
                matrix = f"{{{self.name(weight)}}}^\\top" if turned else self.name(weight)
                product = f"{matrix}\\,{self.name(x)}{spec}"
                return f"\\widehat{{{product}}}" if node.root in self.tied else product
            case LinComb(terms=terms):
                return _sum([(self.coefficient(a), self.name(x)) for a, x in terms])
            case PositionMap(op=op, args=args):
                return f"\\operatorname{{{_text(op.name)}}}({', '.join(map(self.name, args))})"
            case Nonlin() | Moment():
                swap = {s: sympy.Symbol(self.name(x)) for s, x in zip(node.phi.vectors, node.xs, strict=True)}
                swap |= {s: sympy.Symbol(self.name(x)) for s, x in zip(node.phi.parameters, node.thetas, strict=True)}
                inner = _latex(node.phi.expr.xreplace(swap))
                return f"\\tfrac1n\\sum_\\alpha {inner}" if isinstance(node, Moment) else inner
        return f"\\operatorname{{{_text(getattr(node, 'primitive', type(node).__name__))}}}(\\ldots)"

    def name(self, node: Node) -> str:
        if isinstance(node, Const) and node.value.array().size == 1:
            return _number(float(node.value.array().ravel()[0]))
        return self.names.get(node, "?")

    def coefficient(self, a: float | Node) -> str:
        return self.name(a) if isinstance(a, Node) else _number(a)

    # -------------------------------------------------------------------------------------- quantities

    def step(self, quantity: Quantity) -> str | None:
        """One line of the recursion, for quantities that answer a question."""
        if quantity not in self.answers or isinstance(quantity, (Zero, Data, Drawn, Ran)):
            return None
        return f"$${self.symbol(Operand(quantity))} = {self.formula(quantity)}$$\n"

    def symbol(self, operand: Operand) -> str:
        """How a quantity is called: by the question it answers."""
        quantity = operand.quantity
        if isinstance(quantity, Zero):
            return "0"
        at = "" if operand.side is None else ("(x)", "(x')")[operand.side]
        match self.answers.get(quantity):
            case Second(u=u, v=v, cross=cross, out=out):
                inner = self.name(u) if u is v else f"{self.name(u)},{self.name(v)}"
                where = "(x,x')" if cross else at or "(x)"
                return f"K[{inner}]{'_{' + out + '}' if out else ''}{where}"
            case Mean(u=u):
                return f"\\mathbb{{E}}[{self.name(u)}]{at}"
            case Value(node=node):
                return self.value(node, quantity, at)
        return self.formula(quantity, at)

    def value(self, node: Node, quantity: Quantity, at: str) -> str:
        if isinstance(node, Moment):
            return f"\\mathbb{{E}}\\left[{self.instruction(Nonlin(node.phi, node.xs, node.thetas))}\\right]{at}"
        if isinstance(node, Input):
            return {"(x')": f"{self.name(node)}'"}.get(at, self.name(node))
        return self.name(node) + (at if not isinstance(node, (Const, Hyper)) else "")

    def formula(self, quantity: Quantity, at: str = "") -> str:
        match quantity:
            case Zero():
                return "0"
            case Combine(coefficients=coefficients, operands=operands):
                return _sum(
                    [(_number(c), self.symbol(self._at(o, at))) for c, o in zip(coefficients, operands, strict=True)]
                )
            case Contract():
                return self._contraction(quantity, at)
            case Apply(op=op, operands=operands):
                return f"\\operatorname{{{_text(op.name)}}}\\left({self.symbol(self._at(operands[0], at))}\\right)"
            case Shifts(operands=operands, op=op, axes=axes):
                window = "\\times ".join(map(str, op.kw["window"]))
                places = "s+k,\\,s+k" if all(len(places) == 1 for places in axes) else "s+k,\\,t+k"
                return f"\\sum_{{k\\in {window}}} {self.symbol(self._at(operands[0], at))}\\big|_{{{places}}}"
            case Expect(expectation=law, operands=operands):
                inner = ",\\; ".join(self.symbol(self._at(o, at)) for o in operands)
                return f"E_{{{self.laws[id(law)][0]}}}\\left({inner}\\right)"
            case Average() | Sampled() | Tilted():
                return f"S_{{{self.reductions[quantity]}}}{at}"
            case Data(node=node):
                return self.value(node, quantity, at)
        return "?"

    def _at(self, operand: Operand, at: str) -> Operand:
        if operand.side is None and at:
            return Operand(operand.quantity, 0 if at == "(x)" else 1)
        return operand

    def _contraction(self, q: Contract, at: str) -> str:
        left, right = q.spec.split("->")
        summed = "".join(dict.fromkeys(c for c in left if c.isalpha() and c not in right))
        parts = []
        for letters, operand in zip(left.split(",") if q.operands else [], q.operands, strict=True):
            own = letters.replace("1", "")
            symbol = self.symbol(self._at(operand, at))
            parts.append(f"{{{symbol}}}_{{{own}}}" if own and len(q.operands) > 1 else symbol)
        identity = [c for c in dict.fromkeys(right) if right.count(c) > 1]
        parts += [f"\\delta_{{{c}{c}'}}" for c in identity]
        if q.scale != 1.0 or not parts:
            parts.insert(0, _number(q.scale))
        return (f"\\sum_{{{summed}}} " if summed else "") + "\\,".join(parts)


def _answers(graph: _Graph, facts: Structure) -> dict[Quantity, Question]:
    """For each quantity the plainest question it answers: one about the network rather than its tangent, about one
    variable."""

    def plainness(question: Question) -> tuple[bool, bool]:
        if isinstance(question, Second) and question.u.type.kind == "vector":
            return bool(facts[question.u].odd), question.u is not question.v
        return False, False

    return {quantity: min(questions, key=plainness) for quantity, questions in graph.answers.items()}


def _names(nodes: list[Node], facts: Structure, forward: frozenset[Node]) -> dict[Node, str]:
    """forward: the network's own variables, among those of a backward pass."""
    names: dict[Node, str] = {}
    counts: dict[str, int] = {}
    for node in nodes:
        match node:
            case Input(name=name):
                names[node] = _text(name) if name == "x" else f"\\mathrm{{{_text(name)}}}"
                continue
            case Hyper(name=name):
                names[node] = f"\\mathrm{{{_text(name)}}}"
                continue
            case Weight():
                prime = "\\prime" if node.primed else ""
                names[node] = f"W^{{\\text{{{_text(node.name)}}}{prime}}}"
                continue
        letter = {"matrix": "M", "scalar": "s"}.get(node.type.kind)
        if letter is None:
            letter = "d" if node not in forward else "t" if facts[node].odd else "h"
        counts[letter] = counts.get(letter, 0) + 1
        names[node] = f"{letter}_{{{counts[letter]}}}"
    return names


def _bound(law: Expectation) -> str:
    return "exact" if law.bound == 0 else f"error at most {law.bound:.1g} {law.bound_range}".strip()


def _number(value: float) -> str:
    exact = snap(float(value))
    if exact.is_Float and (fraction := Fraction(value)).denominator <= 10**6:
        exact = sympy.Rational(fraction.numerator, fraction.denominator)
    return _latex(exact)


def _sum(terms: list[tuple[str, str]]) -> str:
    written = []
    for c, x in terms:
        written.append(x if c == "1" else f"-{x}" if c == "-1" else f"{c}\\,{x}")
    return " + ".join(written).replace("+ -", "- ")


def _text(name: str) -> str:
    return name.replace("_", "\\_")


class _Latex(LatexPrinter):
    """Steps that say what they are where they jump: 1[x > 0], 1[x >= 0], and theta(x) for the one that is halfway."""

    def _print_Heaviside(self, expr: sympy.Heaviside, exp: str | None = None) -> str:
        relation = {0: ">", 1: r"\geq"}.get(expr.args[1])
        inner = self._print(expr.args[0])
        step = rf"\theta\left({inner}\right)" if relation is None else rf"\mathbf{{1}}_{{{inner} {relation} 0}}"
        return step if exp is None or relation is not None else rf"\left({step}\right)^{{{exp}}}"


def _latex(expr: sympy.Expr) -> str:
    return _Latex().doprint(expr)
