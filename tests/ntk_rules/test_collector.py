"""Older objects set aside while the collector of cycles looks at new ones."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import pytest

import tensorprog as tp
from ntk_rules.collector import older_objects_aside
from tensorprog import nn
from tensorprog.kernel import derive


@pytest.fixture(autouse=True)
def nothing_aside() -> Iterator[None]:
    """What runs the tests may have set objects aside."""
    aside = gc.get_freeze_count() > 0
    gc.unfreeze()
    yield
    if aside:
        gc.freeze()


def test_until_the_last_has_left() -> None:
    assert gc.get_freeze_count() == 0
    with older_objects_aside():
        with older_objects_aside():
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_an_error_brings_them_back() -> None:
    with pytest.raises(ZeroDivisionError), older_objects_aside():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


def test_what_a_user_has_set_aside_stays_aside() -> None:
    gc.freeze()
    try:
        with older_objects_aside():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_new_cycles_are_still_found() -> None:
    class Cycle:
        itself: Any = None

    with older_objects_aside():
        cycle = Cycle()
        cycle.itself = cycle
        seen = weakref.ref(cycle)
        del cycle
        gc.collect()
        assert seen() is None


def test_while_a_kernel_is_derived(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, counts = importlib.import_module("tensorprog.compile"), []

    def noted(*arguments: Any) -> Any:
        counts.append(gc.get_freeze_count())
        return derive(*arguments)

    monkeypatch.setattr(compiling, "derive", noted)
    kernel = tp.compile(lambda x: nn.dense(jnp.tanh(nn.dense(x)), features=1), jnp.zeros(2))
    kernel(jnp.eye(2))
    assert gc.get_freeze_count() == 0 and counts and all(counts)
