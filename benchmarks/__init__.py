"""Side-by-side timing of tensorprog and the peer: `python -m benchmarks.compare`."""
