"""Infinite-width kernels written out by hand, in numpy, from the papers.

These are the independent witnesses of the test-suite: nothing here imports JAX,
``tensorprog`` or ``ntk_rules``, so an agreement with the compiler cannot be an
agreement of one mistake with itself.  Each module names the paper and the
equation its formulas come from, and ``tests/test_references.py`` checks every
one of them against sampled finite networks and against brute-force quadrature.

``duals``            E[phi(u) phi(v)] and E[phi'(u) phi'(v)] in closed form
``quadrature``       the same by brute force, for any phi, and in more dimensions
``gram``             the steps every recursion is made of, on joint covariances
``fully_connected``  Jacot et al. 2018
``convolution``      Arora et al. 2019
``recurrent``        Yang 2020 (Tensor Programs II), simple recurrent network
``composite``        sums, products, concatenations, pooling, normalisation
"""
