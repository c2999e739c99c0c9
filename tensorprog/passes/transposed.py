"""Linear maps of positions behind further axes, and their transposes: how a slope goes through them, and a gradient back."""

from __future__ import annotations

from tensorprog.ir import Position, position

__all__ = ["behind", "transposed"]


def transposed(op: Position, shape: tuple[int, ...], lead: tuple[int, ...]) -> Position:
    """The transpose of `op`, a map of arrays of `shape`, after axes of the sizes `lead` that it leaves alone.

    Maps with a simple transpose get it by name; the others are transposed by JAX when they run.
    """
    kw, front = op.kw, tuple(range(len(lead)))
    behind = lambda axes: (*front, *(a + len(lead) for a in axes))
    match op.name:
        case "reshape":
            return position("reshape", to=(*lead, *shape))
        case "transpose":
            order = kw["permutation"]
            return position("transpose", permutation=behind(sorted(range(len(order)), key=order.__getitem__)))
        case "sum":
            kept = [i for i in range(len(shape)) if i not in kw["axes"]]
            return position("broadcast", to=(*lead, *shape), axes=behind(kept))
        case "rev":
            return position("rev", axes=tuple(a + len(lead) for a in kw["axes"]))
        case "slice" if all(s == 1 for s in kw["stride"]):
            edges = [(a, n - b, 0) for a, b, n in zip(kw["start"], kw["stop"], shape, strict=True)]
            return position("pad", config=(*((0, 0, 0) for _ in lead), *edges))
        case "pad" if all(low >= 0 and high >= 0 and inside == 0 for low, high, inside in kw["config"]):
            start = [low for low, _, _ in kw["config"]]
            stop = [low + n for low, n in zip(start, shape, strict=True)]
            ones = (1,) * (len(lead) + len(shape))
            return position("slice", start=(*(0 for _ in lead), *start), stop=(*lead, *stop), stride=ones)
        case "cumsum":
            return position("cumsum", axis=kw["axis"] + len(lead), reverse=not kw["reverse"])
    return position("transposed", of=op.name, kw=op.params, shape=shape, lead=len(lead))


def behind(op: Position, shape: tuple[int, ...], lead: tuple[int, ...]) -> Position:
    """`op`, a map of arrays of `shape`, after axes of the sizes `lead` that it leaves alone."""
    if not lead:
        return op
    kw, front = op.kw, tuple(range(len(lead)))
    after = lambda axes: tuple(a + len(lead) for a in axes)
    match op.name:
        case "reshape":
            return position("reshape", to=(*lead, *kw["to"]))
        case "transpose":
            return position("transpose", permutation=(*front, *after(kw["permutation"])))
        case "broadcast":
            return position("broadcast", to=(*lead, *kw["to"]), axes=(*front, *after(kw["axes"])))
        case "sum" | "rev":
            return position(op.name, axes=after(kw["axes"]))
        case "slice":
            start, stop, stride = (0,) * len(lead), lead, (1,) * len(lead)
            return position(
                "slice", start=(*start, *kw["start"]), stop=(*stop, *kw["stop"]), stride=(*stride, *kw["stride"])
            )
        case "pad":
            return position("pad", config=(*((0, 0, 0) for _ in lead), *kw["config"]))
        case "cumsum":
            return position("cumsum", axis=kw["axis"] + len(lead), reverse=kw["reverse"])
    return position("behind", of=op.name, kw=op.params, shape=shape, lead=len(lead))
