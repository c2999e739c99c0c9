"""tensorprog: a symbolic compiler for infinitely wide neural networks."""

from tensorprog import nn
from tensorprog.apps.agreement import check
from tensorprog.apps.parametrization import Parametrization
from tensorprog.apps.scaling import Scaling, scaling
from tensorprog.compile import Kernel, compile, compile_program, joint, load
from tensorprog.errors import (
    ArchiveError,
    InputError,
    InternalError,
    LawWarning,
    NetworkError,
    ProgramError,
    TensorprogError,
    UnsupportedError,
    UserError,
)  # fmt: skip
from tensorprog.frontend.finite import apply, init
from tensorprog.frontend.params import Constant, Gaussian, Network, hyper
from tensorprog.ir import Program, parse_program
from tensorprog.joint import JointKernel
from tensorprog.models import (
    ModelNetwork,
    from_equinox,
    from_flax,
    from_linen,
    mean_logits_attention,
    mean_logits_heads,
)
from tensorprog.runtime import KernelResult, LoadedJoint, LoadedKernel

# A method that stands above the compiler, which knows nothing of it: `kernel.check(x, widths)`.
Kernel.check = check  # type: ignore[attr-defined]

__all__ = [
    "ArchiveError", "Constant", "Gaussian", "InputError", "InternalError", "JointKernel", "Kernel", "KernelResult", "LawWarning",
    "LoadedJoint", "LoadedKernel",
    "ModelNetwork", "Network", "NetworkError", "Parametrization", "Program", "ProgramError", "Scaling", "TensorprogError",
    "UnsupportedError", "UserError", "apply", "compile", "compile_program", "from_equinox", "from_flax", "from_linen",
    "hyper", "init", "joint", "load", "mean_logits_attention", "mean_logits_heads", "nn", "parse_program", "scaling",
]  # fmt: skip
