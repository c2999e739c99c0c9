"""The questions and answers of the engine: `expectation`, its result `Expectation`, and their derivatives.

The tiers are tried in the order of `TIERS`; each answers with a method or a reason why it declines.
Derivatives of a value are not taken through its formula: Price's theorem makes them expectations again,
d/dC_ij E[F] = E[d_i d_j F] for i != j and d/dC_ii E[F] = E[d_i^2 F]/2, derived when first asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jax.custom_derivatives import SymbolicZero

from ntk_rules import tiers
from ntk_rules.constants import snap_floats
from ntk_rules.errors import NoRule
from ntk_rules.evaluate import in_covariances
from ntk_rules.factors import collected
from ntk_rules.functions import ceiling, floor
from ntk_rules.heads import CANCELLING
from ntk_rules.interpreted import by_numpy, interpreted
from ntk_rules.many import SAMPLED
from ntk_rules.promotion import any_ranks
from ntk_rules.question import Question, canonical, cov_derivative, gaussian_symbols, parameter_derivative

Entry = tuple[int, int]
_CORRELATIONS = np.array([0.0, 0.9, -0.9])  # at which errors are looked at: at 1 and -1 a rounded correlation decides
_NONNEGATIVE = np.array([0.0, 0.5, 0.9])  # that all of several Gaussians may have
EXCHANGED: dict[Entry, Entry] = {(0, 0): (1, 1), (0, 1): (0, 1), (1, 1): (0, 0)}  # entries of two Gaussians


class Core:
    """One canonical question with the method that answers it; shared by all who ask it."""

    def __init__(self, question: Question):
        self.question = question
        self.method = tiers.choose(question)
        self._derivatives: dict[Any, Core | None] = {}
        self._traced: dict[Any, Callable[..., list[Any]]] = {}  # of `by_numpy`
        self._value = self._differentiable()
        self._alone = any_ranks(
            lambda entries, parameters: self.method.compute(dict(zip(self.needs, entries, strict=True)), parameters)
        )

    @property
    def needs(self) -> tuple[Entry, ...]:
        return self.method.needs

    @functools.cached_property
    def by_parameters(self) -> bool:
        """Do the values of parameters decide how exact it is? Of quadrature, and of closed forms whose terms may cancel, or that divide by
        them."""
        symbols, formula = set(self.question.parameter_symbols()), self.method.formula
        if not symbols or SAMPLED in self.method.tier or self.method.estimate is None:
            return False
        if formula is None:
            return True
        powers = (p for p in formula.atoms(sp.Pow) if not p.exp.is_nonnegative)
        return any(not symbols.isdisjoint(part.free_symbols) for part in (*formula.atoms(*CANCELLING), *powers))

    @functools.cached_property
    def divisors(self) -> list[int]:
        """Which parameters the formula divides by."""
        powers = [] if self.method.formula is None else self.method.formula.atoms(sp.Pow)
        bases = [p.base for p in powers if not p.exp.is_nonnegative]
        return [
            k
            for k, s in enumerate(self.question.parameter_symbols())
            if any(b.has(s) and b.subs(s, 0) == 0 for b in bases)
        ]

    def estimated(self, entries: Sequence[jax.Array], parameters: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The value, and a bound of its error."""
        known = dict(zip(self.needs, entries, strict=True))
        value = (self.method.once or self.method.compute)(known, tuple(parameters))
        return value, self.method.error(known, tuple(parameters))

    def by_numpy(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """The same of arrays of one shape, by NumPy; traced once for each."""
        kind, count = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype), len(self.needs)
        with jax.enable_x64(True):
            if kind not in self._traced:
                function = lambda *given: self.estimated(given[:count], given[count:])
                self._traced[kind] = interpreted(jax.make_jaxpr(function)(*[kind] * len(arrays)))
            return [np.broadcast_to(a, kind.shape) for a in self._traced[kind](*arrays)]

    @functools.cached_property
    def symmetric(self) -> bool:
        """Is F the same with its two Gaussians exchanged? Then its slope in one variance is that in the other, with entries exchanged."""
        expr = self.question.expr
        if self.question.gaussians != 2 or expr is None:
            return False
        u, v = gaussian_symbols(2)
        return expr.xreplace({u: v, v: u}) == expr

    def value(
        self, covariances: Sequence[jax.Array], parameters: Sequence[jax.Array], differentiated: bool = True
    ) -> jax.Array:
        return (self._value if differentiated else self._alone)(tuple(covariances), tuple(parameters))

    def derivative(self, key: Entry | int) -> Core | None:
        """The expectation that is d/dC_ij (key (i, j)) or d/d parameter (key k); None when it is zero."""
        if key not in self._derivatives:
            asked = self.question if self.method.terms is None else replace(self.question, terms=self.method.terms)
            question = cov_derivative(asked, key) if isinstance(key, tuple) else parameter_derivative(asked, key)
            self._derivatives[key] = None if question is None else core_of(collected(question))
        return self._derivatives[key]

    def _differentiable(self):
        needs, method = self.needs, self.method

        @jax.jit
        @any_ranks
        def primal(covariances, parameters):
            return method.compute(dict(zip(needs, covariances, strict=True)), parameters)

        value = jax.custom_jvp(primal)

        @any_ranks
        def jvp(primals, tangents):
            covariances, parameters = primals
            out = value(covariances, parameters)
            total = jnp.zeros_like(out)
            known = dict(zip(needs, covariances, strict=True))
            given = [*zip(needs, tangents[0], strict=True), *enumerate(tangents[1])]
            moving = {key: t for key, t in given if not (isinstance(t, SymbolicZero) or t.dtype == jax.dtypes.float0)}
            for key, slope in self._slopes(tuple(moving), known, parameters).items():
                if slope is not None:
                    total = total + slope * moving[key]
            return out, total

        value.defjvp(jvp, symbolic_zeros=True)
        return value

    def _slopes(self, keys, known, parameters):
        """The slopes in entries and parameters, by these; None of one that is zero."""
        slopes: dict[Any, Any] = {}
        for key in (key for key in keys if key not in slopes):
            try:
                if key == (0, 0) and (1, 1) in keys and self.symmetric:
                    slopes |= self._in_both_variances(known, parameters)
                else:
                    slopes[key] = self._slope(key, known, parameters)
            except NoRule:
                if self.method.pathwise is None:
                    raise
                slopes[key] = _pathwise_slope(self.method, key, known, parameters)
        return slopes

    def _slope(self, key, known, parameters):
        if key == (1, 1) and self.symmetric:
            return self._slope((0, 0), {e: known[EXCHANGED[e]] for e in known}, parameters)
        core = self.derivative(key)
        if core is None:
            return None
        missing = [e for e in core.needs if e not in known]
        if missing:
            raise AssertionError(f"the derivative by {key} of {self.question} reads {missing} beyond {self.needs}")
        return core.value([known[e] for e in core.needs], parameters)

    def _in_both_variances(self, known, parameters):
        """The slopes in the two variances of a symmetric F, which are one function: a closed form is computed of both at once, and so compiled
        once. (What has none is mostly computed of each input, and would be of pairs.)"""
        keys, core = ((0, 0), (1, 1)), self.derivative((0, 0))
        if core is None or core.method.formula is None:
            return {key: self._slope(key, known, parameters) for key in keys}
        shape = jnp.broadcast_shapes(*(x.shape for x in (*known.values(), *parameters)))
        both = {e: jnp.stack([jnp.broadcast_to(known[k], shape) for k in (e, EXCHANGED[e])]) for e in known}
        return dict(zip(keys, self._slope((0, 0), both, parameters), strict=True))


def _pathwise_slope(method, key, known, parameters):
    """The derivative along z = L x of a sampled expectation (for Lipschitz F), where Price's theorem
    has no rule.
    """

    entries = tuple(known)

    def value(*arrays):
        return method.pathwise(dict(zip(entries, arrays, strict=False)), arrays[len(entries) :])

    place = entries.index(key) if isinstance(key, tuple) else len(entries) + key
    return _derivative(value, place)(*known.values(), *parameters)


def _derivative(function, k):
    """The derivative of an elementwise function in its k-th argument, by forward mode however often it is asked for: loops have no other."""

    def forward(*xs):
        along = lambda x: function(*xs[:k], x, *xs[k + 1 :])
        return jax.jvp(along, (xs[k],), (jnp.ones_like(xs[k]),))[1]

    slope = jax.custom_jvp(forward)

    def rule(primals, tangents):
        out = slope(*primals)
        moving = [(m, t) for m, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
        return out, sum((_derivative(forward, m)(*primals) * t for m, t in moving), jnp.zeros_like(out))

    slope.defjvp(rule, symbolic_zeros=True)
    return slope


@functools.cache
@any_ranks
def core_of(question: Question) -> Core:
    """The core of a canonical question; equal questions share one."""
    with jax.ensure_compile_time_eval():  # a derivative may first be asked for inside a trace; its nodes are numbers
        return Core(question)


@dataclass(frozen=True, eq=False)
class Expectation:
    """E[F] for jointly Gaussian arguments: what it reads, how it is computed, how exact it is.

    needs: the entries (i, j), i <= j, of the covariance matrix that `value` reads.
    """

    needs: tuple[Entry, ...]
    tier: str
    bound: float
    bound_range: str
    steps: tuple[str, ...]
    formula: sp.Expr | None
    _core: Core = field(repr=False)

    def value(
        self, covariances: Sequence[jax.Array], parameters: Sequence[jax.Array] = (), *, differentiated: bool = True
    ) -> jax.Array:
        """The expectation; `covariances` in the order of `needs`, all arrays broadcasting elementwise. differentiated: False where no
        derivatives are taken, which is traced sooner; those of its formula are not the expectation's everywhere."""
        self._check(covariances, parameters)
        entries, values = self._arrays(covariances, parameters)
        return self._core.value(entries, values, differentiated)

    @any_ranks
    def error(self, covariances: Sequence[jax.Array], parameters: Sequence[jax.Array] = ()) -> jax.Array:
        """A bound of the absolute error of `value` there, its rounding included (`conditioning.py`, which is all that closed forms have);
        of sampled values three standard errors.
        """
        self._check(covariances, parameters)
        entries, values = self._arrays(covariances, parameters)
        found = lambda entries, values: self._core.method.error(dict(zip(self.needs, entries, strict=True)), values)
        # the bounds of closed forms are long programs on few numbers, and compiled to stay
        if self.formula is not None or any(isinstance(a, jax.core.Tracer) for a in (*entries, *values)):
            return found(entries, values)
        return jnp.asarray(by_numpy(found)(entries, values))

    @property
    def sampled(self) -> bool:
        """Is the value, or a part of it, sampled?"""
        return SAMPLED in self.tier

    @property
    def reach(self) -> float:
        """The largest variance for which `bound` was shown: infinite for closed forms, and where it is not known."""
        return self._core.method.reach

    def holds(self, double: bool) -> float:
        """The largest variance for which the estimated error stays below 1e-9 of the scale of the answer (1e-5 in single precision)."""
        return self._core.method.near[0 if double else 1]

    @property
    def by_parameters(self) -> bool:
        """Do the values of parameters decide how exact it is? Then `reach` and `holds` are those of parameters that are 1."""
        return self._core.by_parameters

    def relative_error(
        self, variances: Mapping[int, np.ndarray], parameters: Sequence[np.ndarray], single: bool = False
    ) -> float:
        """The largest estimated error at some variances and parameters, relative to the largest value there, of several correlations.

        variances: of each Gaussian, arrays of one shape. parameters: arrays of that shape. single: of single precision. By NumPy.
        """
        several = len(variances) > 2  # whose correlations are not free
        rho = (_NONNEGATIVE if several else _CORRELATIONS).reshape(-1, *[1] * np.ndim(next(iter(variances.values()))))
        entries = [
            variances[i] + 0 * rho if i == j else rho * (variances[i] * variances[j]) ** 0.5 for i, j in self.needs
        ]
        arrays = [np.asarray(a, np.float64) for a in (*entries, *(p + 0 * rho for p in parameters))]
        value, error = self._core.by_numpy(arrays)
        size = np.max(np.abs(value))
        if single:
            value, error = self._core.by_numpy([a.astype(np.float32) for a in arrays])
        usable = np.isfinite(error) & np.isfinite(value)
        for k in self._core.divisors:
            usable &= arrays[len(entries) + k] != 0
        if not usable.all() or not np.isfinite(size):
            return math.inf
        worst = float(np.max(error))
        return worst / float(size) if size > 0 else 0.0 if worst < 1e-30 else math.inf

    def latex(self) -> str:
        """The formula in LaTeX; of a numerical value, the name of its tier."""
        if self.formula is None:
            return rf"\text{{{self.tier}}}"
        return sp.latex(self.formula)

    def _arrays(self, covariances, parameters):
        from ntk_rules.special import as_floats

        arrays = as_floats(*covariances, *parameters) if len(covariances) + len(parameters) else ()
        return arrays[: len(covariances)], arrays[len(covariances) :]

    def _check(self, covariances, parameters):
        if len(covariances) != len(self.needs):
            raise ValueError(
                f"Expectation.value: covariances has {len(covariances)} arrays, expected {len(self.needs)}, "
                f"the entries {self.needs} in this order"
            )
        n = self._core.question.parameters
        if len(parameters) != n:
            raise ValueError(f"Expectation.value: parameters has {len(parameters)} values, expected {n}")


def expectation(
    F: sp.Expr,
    gaussians: Sequence[sp.Symbol],
    parameters: Sequence[sp.Symbol] = (),
    *,
    means: Sequence[sp.Expr] | None = None,
    independent: Sequence[Entry] = (),
    tolerance: float | None = None,
) -> Expectation:
    """E[F(z)] for z jointly Gaussian of mean zero (or `means`, in the parameters), covariance known at
    run time.

    `independent` lists pairs of indices (i, j) into `gaussians` whose covariance is zero whatever the input.
    `tolerance` is the relative error wanted of numerical tiers in float64 (default 1e-12; float32 has its rounding, 1e-6,
    besides). Sampling, the last tier, meets none below 1e-5 or so: it answers only where a looser one is given.
    Raises NoRule where no tier can answer, ValueError for malformed arguments.

    >>> u, v = sp.symbols("u v", real=True)
    >>> kernel = expectation(sp.Max(u, 0) * sp.Max(v, 0), (u, v))
    >>> kernel.needs, kernel.tier
    (((0, 0), (0, 1), (1, 1)), 'closed form')
    >>> round(float(kernel.value((1.0, 1.0, 1.0))), 6)
    0.5
    """
    F = snap_floats(sp.sympify(F)).replace(sp.floor, floor).replace(sp.ceiling, ceiling)
    gaussians, parameters = tuple(gaussians), tuple(parameters)
    _validate(F, gaussians, parameters, means, independent)
    pairs = frozenset((min(p), max(p)) for p in independent)
    question = canonical(F, gaussians, parameters, tuple(means) if means else None, pairs, tolerance)
    core = core_of(question)
    return _named(core, parameters)


@functools.lru_cache(maxsize=1024)
def _named(core: Core, parameters: tuple[sp.Symbol, ...]) -> Expectation:
    """The answer with the caller's names for the parameters."""
    method, question = core.method, core.question
    formula = method.formula
    if formula is not None:
        names = dict(zip(question.parameter_symbols(), parameters, strict=True))
        formula = in_covariances(formula, question.gaussians).xreplace(names)
    return Expectation(core.needs, method.tier, method.bound, method.bound_range, tuple(method.steps), formula, core)


def explain(
    F: sp.Expr,
    gaussians: Sequence[sp.Symbol] | None = None,
    parameters: Sequence[sp.Symbol] = (),
    **options: Any,
) -> str:
    """The derivation of E[F] in words: the rules used in order, the result and its bound.

    Without `gaussians`, every symbol of F that is not a parameter is one, in order of name.

    >>> print(explain(sp.Max(sp.Symbol("u"), 0)).splitlines()[0])
    E[Max(0, u)]: closed form
    """
    F = sp.sympify(F)
    if gaussians is None:
        gaussians = sorted(F.free_symbols - set(parameters), key=str)
    result = expectation(F, gaussians, parameters, **options)
    lines = [f"E[{F}]: {result.tier}"]
    lines += [f"  {k}. {step}" for k, step in enumerate(result.steps, 1)]
    if result.formula is not None:
        lines.append(f"  = {result.formula}")
    else:
        lines.append(f"  error at most {result.bound:.1e} {result.bound_range}")
    return "\n".join(lines)


def _validate(F, gaussians, parameters, means, independent) -> None:
    if not isinstance(F, sp.Expr):
        raise ValueError(f"expectation: F must be a SymPy expression, got {type(F).__name__}")
    if len(set(gaussians + parameters)) != len(gaussians) + len(parameters):
        raise ValueError(f"expectation: a symbol is named twice in gaussians {gaussians}, parameters {parameters}")
    unknown = F.free_symbols - set(gaussians) - set(parameters)
    if unknown:
        raise ValueError(
            f"expectation: F has the symbols {sorted(map(str, unknown))}, neither gaussians {gaussians} "
            f"nor parameters {parameters}; add them to one of the two"
        )
    for cases in F.atoms(sp.Piecewise):
        if sp.simplify_logic(sp.Or(*(condition for _, condition in cases.args))) != sp.true:
            raise ValueError(
                f"expectation: {cases} says nothing of what remains beside its conditions; expected a last case (.., True)"
            )
    if means is not None and len(means) != len(gaussians):
        raise ValueError(f"expectation: means has {len(means)} entries for {len(gaussians)} gaussians")
    for pair in independent:
        if len(set(pair)) != 2 or not all(0 <= i < len(gaussians) for i in pair):
            raise ValueError(f"expectation: independent has {tuple(pair)}; expected two indices below {len(gaussians)}")


__all__ = ["Core", "Expectation", "NoRule", "expectation", "explain"]
