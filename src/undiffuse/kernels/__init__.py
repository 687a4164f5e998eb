"""Native kernels for CPUs, compiled by the machine's own compiler at their first use (two seconds, then kept on disk).

They are a faster way to the same numbers, within rounding, as the formulas in `undiffuse.networks`, which are what is
used where there is no compiler with OpenMP, on other devices and for other types. UNDIFFUSE_KERNELS=0 turns them off.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from undiffuse.files import cache_folder

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
WIDE = "-mprefer-vector-width=512"  # of x86 alone, where compilers otherwise halve the registers
LANES = 16  # channels that are worked on together
ROWS = 8192  # numbers in a block whose sums are taken in float32: they stay in the nearest cache
# widths of the attention heads whose backward pass is faster here than in torch
HEADS = {torch.float32: (8,), torch.bfloat16: (8, 16)}
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

Rows = Float[Tensor, "batch positions channels"]
PerChannel = Float32[Tensor, "rows channels"]  # rows: batch, or 1 for all
Heads = Float[Tensor, "batch heads length width"]


def _machine() -> str:
    """What decides which instructions the compiler may use: a home directory may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    except OSError:
        return platform.processor()


def _whole(library: Path) -> bool:
    """Whether a library reaches to its end, where its table of sections stands: half of one kills who loads it."""
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    (start,), (size, count) = struct.unpack_from("=Q", header, 0x28), struct.unpack_from("=HH", header, 0x3A)
    return bool(library.stat().st_size >= start + size * count)


def _compile() -> Path:
    """The compiled library, from disk where this source was compiled for this machine before.

    Raises: OSError or subprocess.SubprocessError where it cannot be made.
    """
    if platform.system() != "Linux":
        raise OSError(f"there are none for {platform.system()}")
    compiler = (
        shlex.split(os.environ.get("CC", "")) or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    )
    if not compiler:
        raise OSError("no C compiler (cc, gcc, clang) was found")
    flags = (*FLAGS, WIDE) if platform.machine() == "x86_64" else FLAGS
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=30).stdout
    said = "\n".join((*flags, platform.machine(), _machine(), *compiler))
    digest = hashlib.sha256(SOURCE.read_bytes() + said.encode() + version).hexdigest()[:16]
    library = cache_folder() / f"kernels-{digest}.so"
    if not library.is_file() or not _whole(library):
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            command = [*compiler, *flags, "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, capture_output=True, check=True, timeout=120)
            made.replace(library)  # atomic: another process may be compiling the same
    return library


def _loaded(library: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(library))
    _ = found.forward_float32, found.attend_backward_bfloat16_16
    return found


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    asked = os.environ.get("UNDIFFUSE_KERNELS", "")
    if asked.lower() in ("0", "false", "off", "no"):
        return f"turned off by UNDIFFUSE_KERNELS={asked}"
    try:
        library = _compile()
        try:
            return _loaded(library)
        except (OSError, AttributeError):  # damaged since, or another
            library.unlink()
            return _loaded(_compile())
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() if error.stderr else [str(error)]
        return f"the compiler failed: {lines[0]:.200}"
    except (OSError, AttributeError, subprocess.SubprocessError, RuntimeError) as error:
        return f"{error}"


def available() -> bool:
    """Whether the kernels can be used on this machine's CPU; compiles them at the first call."""
    return isinstance(_library(), ctypes.CDLL)


def missing() -> str:
    """Why there are none; empty where there are."""
    library = _library()
    return library if isinstance(library, str) else ""


def _called(name: str, *arguments: Tensor | int | float | ctypes.Array[ctypes.c_int64]) -> int:
    """Call a function of the library: tensors as addresses, whole numbers as int64."""
    converted: list[object] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, int):
            converted.append(ctypes.c_int64(argument))
        else:
            converted.append(ctypes.c_float(argument) if isinstance(argument, float) else argument)
    failed: int = getattr(_library(), name)(*converted)
    return failed


def normalises(x: Rows) -> bool:
    """Whether `normalise` takes this: on the CPU, contiguous, in float32 or bfloat16, 16 n channels."""
    fits = x.device.type == "cpu" and x.dtype in TYPES and x.shape[2] % LANES == 0 and x.numel() > 0
    return fits and x.is_contiguous() and available()


def _floats(*shape: int) -> Tensor:
    """Room for numbers of the kind that the kernels write, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _layer(
    x: Rows, scale: PerChannel, shift: PerChannel, mean: PerChannel, rstd: PerChannel, groups: int, epsilon: float
) -> tuple[Tensor | int | float, ...]:
    """What both passes of a normalisation are told."""
    batch, positions, channels = x.shape
    rows = max(1, ROWS // channels)
    partial = _floats(batch, -(-positions // rows), 2, channels)
    step = channels if len(scale) > 1 else 0
    sizes = (batch, positions, channels, groups, rows)
    return x, scale.contiguous(), shift.contiguous(), step, mean, rstd, partial, *sizes, float(epsilon)


def normalise(
    x: Rows, scale: PerChannel, shift: PerChannel, groups: int, epsilon: float, silu: bool
) -> tuple[Rows, PerChannel, PerChannel]:
    """y = (x - mean) rstd scale + shift, or silu of it, with the mean and rstd of each channel's group (B, C)."""
    mean, rstd = _floats(x.shape[0], x.shape[2]), _floats(x.shape[0], x.shape[2])
    y = torch.empty_like(x)
    layer = _layer(x, scale, shift, mean, rstd, groups, epsilon)
    _called(f"forward_{TYPES[x.dtype]}{'_silu' if silu else ''}", *layer, y)
    return y, mean, rstd


def normalise_backward(
    gradient: Rows,
    x: Rows,
    scale: PerChannel,
    shift: PerChannel,
    mean: PerChannel,
    rstd: PerChannel,
    groups: int,
    silu: bool,
) -> tuple[Rows, PerChannel, PerChannel]:
    """The gradients of x, scale and shift from that of y; the latter two for each sample (B, C)."""
    of_x, of_scale, of_shift = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    layer = _layer(x, scale, shift, mean, rstd, groups, 0.0)
    _called(f"backward_{TYPES[x.dtype]}{'_silu' if silu else ''}", *layer, gradient, of_x, of_scale, of_shift)
    return of_x, of_scale, of_shift


def attends(q: Heads) -> bool:
    """Whether there is an `attend_backward` for such heads: on the CPU, of a type and width in `HEADS`."""
    return q.device.type == "cpu" and q.shape[-1] in HEADS.get(q.dtype, ()) and available()


def attend_backward(
    gradient: Heads, q: Heads, k: Heads, v: Heads, out: Heads, log_sum: Float32[Tensor, "batch heads length"]
) -> tuple[Heads, Heads, Heads]:
    """The gradients of q, k and v from that of out = softmax(q k^T / sqrt(width)) v.

    All are of one type and of q's shape, but that k and v may have another length; log_sum: of each row's exponentials.

    Raises: MemoryError.
    """
    batch, heads, length, width = q.shape
    # laid out as (batch, length, heads, width), as the projections around the attention are
    of_q, of_k, of_v = (
        torch.empty(batch, t.shape[2], heads, width, dtype=q.dtype, device="cpu").transpose(1, 2) for t in (q, k, v)
    )
    given = [t if t.stride(-1) == 1 else t.contiguous() for t in (gradient, q, k, v, out)]
    strides = [stride for t in (*given, of_q, of_k, of_v) for stride in t.stride()[:3]]
    steps = (ctypes.c_int64 * len(strides))(*strides)
    tensors = (*given, log_sum.contiguous(), of_q, of_k, of_v)
    if _called(f"attend_backward_{TYPES[q.dtype]}_{width}", *tensors, steps, batch, heads, length, k.shape[2]):
        raise MemoryError("not enough memory for the backward pass of attention")
    return of_q, of_k, of_v
