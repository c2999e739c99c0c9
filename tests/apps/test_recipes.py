"""Recipes for other libraries give the log likelihood and its derivative of the library here, and train to its maximum, where they are
installed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from examples.recipes import RECIPES, likeliest, net
from tensorprog import apps
from tests.apps.common import data


@pytest.mark.filterwarnings("default")  # of the libraries
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.slow
def test_recipe(name: str) -> None:
    pytest.importorskip(name)
    x, y, _ = data()
    kernel = tp.compile(net, jnp.zeros(3))
    value, slopes = apps.marginal_likelihood_gradient(kernel, x, y, noise=0.1)
    found = RECIPES[name](kernel, jnp.asarray(x), jnp.asarray(y), 0.1)
    np.testing.assert_allclose(found[:2], (value, slopes["w"]), rtol=1e-8)
    np.testing.assert_allclose(found[2], likeliest(kernel, x, y), rtol=1e-3)  # where Adam has come after its steps
