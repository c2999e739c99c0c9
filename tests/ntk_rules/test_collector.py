"""The collector of cycles at rest."""

from __future__ import annotations

import gc

import jax.numpy as jnp
import pytest

import tensorprog as tp
from ntk_rules.collector import collector_at_rest
from tensorprog import nn


def test_rests_until_the_last_has_left() -> None:
    assert gc.isenabled()
    with collector_at_rest():
        with collector_at_rest():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_wakes_it() -> None:
    with pytest.raises(ZeroDivisionError), collector_at_rest():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_what_was_switched_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_while_a_kernel_is_derived_and_traced() -> None:
    seen = []

    def net(x):
        seen.append(gc.isenabled())
        return nn.dense(jnp.tanh(nn.dense(x)), features=1)

    kernel = tp.compile(net, jnp.zeros(2))
    kernel(jnp.eye(2))
    assert gc.isenabled() and seen and not any(seen)
