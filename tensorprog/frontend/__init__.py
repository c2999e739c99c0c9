"""The front end: a JAX function as a tensor program."""
