"""What a network does between its products with weights: RMSNorm, attention, SwiGLU, log-probs, each with its gradient in closed form.

Every function here stands for itself in plain PyTorch. On a CPU, for float32 and bfloat16, the C files beside this one do the same
in a single pass: they are compiled at their first use (two or three seconds), kept in the user's cache, and done without where there is no
C compiler. Products with weights stay PyTorch's in both cases.

Shapes: B sequences, T new positions, S keys, D width, H query heads, K key heads, E head size, N rows, F inner width, V vocabulary.
"""

import ctypes
import os
import platform
import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridle.kernels.library import Code, Unavailable, cache_folder, library_of, load_library

# Sums may be cut up for vectors; nans and infinities stay what they are, for a run is stopped by them.
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
MACROS = {torch.float32: [], torch.bfloat16: ["-DBFLOAT16"]}
Kernels = Literal["auto", "compiled", "plain", "torch"]
Tables = tuple[Tensor, Tensor]  # cos and sin of the rotary embedding's angles, [positions, E / 2]


class Compiled:
    """One type's library. Called by a kernel's name with tensors (contiguous), None, whole numbers and floats."""

    def __init__(self, path: Path) -> None:
        library, self.functions = load_library(path), {}
        for name, declared in functions():
            self.functions[name] = library[name]
            self.functions[name].argtypes = [kind_of(argument) for argument in declared.split(",")]
            self.functions[name].restype = None

    def __call__(self, name: str, *arguments: Tensor | int | float | None) -> None:
        function = self.functions[name]
        assert len(arguments) == len(function.argtypes), f"{name} takes {len(function.argtypes)} arguments"
        function(*[argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments])


def sources() -> list[Path]:
    """The C files, which lie beside this one."""
    return sorted(Path(__file__).parent.glob("*.c"))


def functions() -> list[tuple[str, str]]:
    """The name and the declared arguments of each kernel."""
    text = "".join(file.read_text("utf-8") for file in sources())
    return re.findall(r"^void (\w+)\((.*?)\) \{", text, re.MULTILINE | re.DOTALL)


def kind_of(declaration: str) -> Any:
    if "*" in declaration:
        return ctypes.c_void_p
    return ctypes.c_float if "float" in declaration else ctypes.c_int64


# ------------------------------------------------------------------------------------------------ building, choosing


def build(dtype: torch.dtype) -> Path:
    """Compile for this processor, or find what was compiled before. Raises Unavailable."""
    # Threads come from the OpenMP that PyTorch has loaded: linked to one of its own, the two would fight for the cores.
    threads = in_process("GOMP_parallel")
    flags = [*FLAGS, "-fopenmp-simd" if threads is None else "-fopenmp", *MACROS[dtype]]
    machine, needs = f"{torch.__version__} {processor()}", [] if threads is None else files_with(threads)
    header = Path(__file__).with_suffix(".h")
    return library_of(
        Code(str(dtype)[6:], sources(), [header], flags, machine, [name for name, _ in functions()], needs)
    )


def in_process(name: str) -> Any | None:
    """A function of that name in a library that the process has loaded; None where there is none."""
    try:
        return ctypes.CDLL(None)[name]
    except (AttributeError, TypeError):  # none of that name; no such look-up on this system
        return None


def files_with(function: Any) -> list[str]:
    """The file that a function of the process was loaded from, as Linux tells; elsewhere none."""
    maps, place = Path("/proc/self/maps"), ctypes.cast(function, ctypes.c_void_p).value or 0
    for line in maps.read_text("utf-8", errors="replace").splitlines() if maps.exists() else ():
        start, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
        if start <= place < end:
            return line.split(maxsplit=5)[5:]
    return []


def processor() -> str:
    """What decides the instructions that may be used."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() + platform.node()
    lines = info.read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


wish: Kernels = "auto"


def choose_kernels(kernels: Kernels, precision: torch.dtype = torch.float32) -> str:
    """Set which ones are used from now on, with activations in float32 and `precision`; in words, for the log. Raises Unavailable where
    `compiled` or `torch` cannot be had.

    `torch`: PyTorch's compiler makes one piece of each layer of a training step, which takes it most of a minute.
    """
    global wish
    wish = kernels
    if kernels == "torch":
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise Unavailable("torch.compile needs a C++ compiler, and there is none")
        if (
            "TORCHINDUCTOR_CACHE_DIR" not in os.environ
        ):  # its own is a name in /tmp that anyone may have taken, and it runs what is there
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder("bridle-torch"))
        return "layers by torch.compile (as asked)"
    if kernels == "plain":
        return "plain kernels (as asked)"
    try:
        for dtype in (torch.float32, precision):
            built(dtype)
    except Unavailable as error:
        if kernels == "compiled":
            raise
        wish = "plain"  # what is said is done, for every type
        return f"plain kernels ({error})"
    return "compiled kernels"


@cache
def built(dtype: torch.dtype) -> Compiled:
    """The library of a type. Raises Unavailable and nothing else: whatever is wrong with a compiler or a cache, the plain ones do the
    same."""
    if platform.system() not in ("Linux", "Darwin"):
        raise Unavailable(f"not made for {platform.system()}")
    try:
        path = build(dtype)
        try:
            return Compiled(path)
        except (
            OSError,
            AttributeError,
        ):  # kept, whole, and yet of no use here; or removed by another process a moment ago
            path.unlink(missing_ok=True)
            return Compiled(build(dtype))
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"they do not load: {error}") from error


@cache
def found(dtype: torch.dtype) -> Compiled | None:
    try:
        return built(dtype)
    except Unavailable:
        return None


def compiled(dtype: torch.dtype, *tensors: Tensor | None) -> Compiled | None:
    """The compiled kernels for activations of `dtype`, where they can be had and these tensors lie on a CPU."""
    if (
        wish in ("plain", "torch")
        or dtype not in MACROS
        or any(t is not None and t.device.type != "cpu" for t in tensors)
    ):
        return None
    return found(dtype)


def by_thread(size: int) -> Tensor:
    """A row of zeros for each thread, to sum up over rows."""
    return torch.zeros(torch.get_num_threads(), size)


# --------------------------------------------------------------------------------------------------------- RMSNorm


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(s, y): s = x + delta, y = s / rms(s) · weight in `dtype` (Zhang & Sennrich 2019, arxiv.org/abs/1910.07467, eq. 4).

    x [..., D], of the residual stream's type, delta like it or in `dtype`, or None for 0.
    """
    if compiled(dtype, x, delta) is None or x.dtype != torch.float32:
        total = x if delta is None else x + delta
        return total, normalise(total, weight, eps).to(dtype)
    if delta is None:
        return x, _Norm.apply(x, None, weight, eps, dtype)
    total, y = _Norm.apply(x, delta, weight, eps, dtype)
    return total, y


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight in x's type."""
    if x.device.type != "cpu" or wish == "torch":
        return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)
    normed: Tensor = _Normalise.apply(x, weight.to(x.dtype), eps)
    return normed


class _Normalise(torch.autograd.Function):
    """With its gradient in closed form: a third of the passes over memory of the composed one on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight = ctx.saved_tensors
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight
        return inverse * (grad_normed - normed * (grad_normed * normed).mean(-1, keepdim=True)), grad_weight, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> Any:
        run, size = built(dtype), x.shape[-1]
        x, delta = x.contiguous(), None if delta is None else delta.to(dtype).contiguous()
        total = x if delta is None else torch.empty_like(x)
        y, inverse = torch.empty(x.shape, dtype=dtype), torch.empty(x.shape[:-1])
        run("norm_forward", x.numel() // size, size, x, delta, weight.float(), eps, total, y, inverse)
        ctx.save_for_backward(total, weight, inverse)
        ctx.dtype, ctx.added = dtype, delta is not None
        return (total, y) if ctx.added else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        total, weight, inverse = ctx.saved_tensors
        grad_total, grad_y = (grads[0].contiguous(), grads[1]) if ctx.added else (None, grads[0])
        run, size, partial = built(ctx.dtype), total.shape[-1], by_thread(total.shape[-1])
        grad_x = torch.empty_like(total)
        grad_delta = torch.empty(total.shape, dtype=ctx.dtype) if ctx.added else None
        run(
            "norm_backward", total.numel() // size, size, grad_y.contiguous(), grad_total, total, weight.float(), inverse, grad_x,
            grad_delta, len(partial), partial,
        )  # fmt: skip
        return grad_x, grad_delta, partial.sum(0).to(weight.dtype), None, None


# --------------------------------------------------------------------------------------------------------- products


def project(x: Tensor, *linears: nn.Linear) -> Tensor:
    """x [..., D] through several linear maps at once, in x's type; their outputs side by side."""
    return project_by(x, [linear.weight for linear in linears], [linear.bias for linear in linears])


def project_by(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """The same by weights [outputs, D]."""
    present = [bias for bias in biases if bias is not None]
    if wish == "torch":  # whose compiler stumbles over gradients in closed form
        return F.linear(x, join(weights, x.dtype), join(present, x.dtype) if present else None)
    y: Tensor = _Project.apply(x, len(weights), *weights, *present)
    return y


def join(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return parts[0].to(dtype) if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])


class _Project(torch.autograd.Function):
    """One product of matrices in a row; gradients for each of them and for their biases."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parts: Tensor) -> Tensor:
        weight, bias = join(parts[:count], x.dtype), join(parts[count:], x.dtype) if parts[count:] else None
        frozen = not any(ctx.needs_input_grad[2:])  # then no copy waits for the backward pass: it is joined again there
        ctx.save_for_backward(x, *(parts[:count] if frozen else [weight]))
        ctx.sizes, ctx.types = [len(part) for part in parts[:count]], [part.dtype for part in parts]
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        grad_x = grad @ join(weights, x.dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):  # frozen under an adapter: their product is the dearest of the three
            return grad_x, None, *[None] * len(ctx.types)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_parts = list((rows.T @ x.reshape(-1, x.shape[-1])).split(ctx.sizes))
        if len(ctx.types) > len(ctx.sizes):  # biases too
            grad_parts += rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32)).split(ctx.sizes)
        return grad_x, None, *(g.to(kind) for g, kind in zip(grad_parts, ctx.types, strict=True))


# -------------------------------------------------------------------------------------------------------- attention


def attention(
    q_BTHE: Tensor, kv_BSKE: Tensor, heads: tuple[int, int, int], tables: Tables, q_positions: Tensor | None,
    positions: Tensor | None, sees_BT3: Tensor | None, norms: tuple[Tensor, Tensor, float] | None,
) -> Tensor:  # fmt: skip
    """softmax(q kᵀ / √E) v with rotary embedding (Su 2021) and, for Qwen3, norms within the heads: [B, T, H · E].

    q [B, T, H · E], keys and values side by side [B, S, 2 K · E], heads = (H, K, E), tables = cos and sin [positions, E / 2], positions
    [B, T] and [B, S] or None for 0, 1, …; sees: a query whose three numbers are (prefix, start, end) sees the keys [0, prefix) and
    [start, end) of its row; None: those up to its own place, with T = S. A query must see a key.
    """
    if compiled(q_BTHE.dtype, q_BTHE) is None or tables[0].dtype != torch.float32:
        return plain_attention(q_BTHE, kv_BSKE, heads, tables, q_positions, positions, sees_BT3, norms)
    weights = (None, None, 0.0) if norms is None else norms
    out: Tensor = _Attention.apply(q_BTHE, kv_BSKE, *weights, heads, tables, q_positions, positions, sees_BT3)
    return out


def plain_attention(
    q_rows: Tensor, kv_rows: Tensor, heads: tuple[int, int, int], tables: Tables, q_positions: Tensor | None,
    positions: Tensor | None, sees: Tensor | None, norms: tuple[Tensor, Tensor, float] | None,
) -> Tensor:  # fmt: skip
    (H, K, E), (B, T, _), S = heads, q_rows.shape, kv_rows.shape[1]
    k_rows, v_rows = kv_rows.split(K * E, -1)
    q_weight, k_weight, eps = (None, None, 0.0) if norms is None else norms
    q = turn(q_rows, H, tables, q_positions, q_weight, eps)
    k = turn(k_rows, K, tables, positions, k_weight, eps)
    visible = None if sees is None else visible_keys(sees, S)
    return attend(q, k, v_rows.view(B, S, K, E).transpose(1, 2), visible).transpose(1, 2).reshape(B, T, H * E)


def turn(
    rows_BTD: Tensor, heads: int, tables: Tables, positions: Tensor | None, weight: Tensor | None, eps: float
) -> Tensor:
    """Rows of queries or keys as heads [B, H, T, E], normed by a weight if there is one, and turned by their positions."""
    x = rows_BTD.view(*rows_BTD.shape[:2], heads, -1)
    if weight is not None:
        x = normalise(x, weight, eps)
    return rotate(x.transpose(1, 2), *angles(tables, positions, x))


def visible_keys(sees_BT3: Tensor, keys: int) -> Tensor:
    """Which of so many keys each query sees, [B, T, S]."""
    place_S, (prefix, start, end) = torch.arange(keys, device=sees_BT3.device), sees_BT3[..., None].unbind(2)
    return (place_S < prefix) | ((start <= place_S) & (place_S < end))


def angles(tables: Tables, positions_BT: Tensor | None, like_BTHE: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the rotary tables that fit [B, ·, T, E / 2]."""
    cos, sin = (table.to(like_BTHE.dtype) for table in tables)
    if positions_BT is None:
        return cos[: like_BTHE.shape[1]], sin[: like_BTHE.shape[1]]
    return cos[positions_BT][:, None], sin[positions_BT][:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half rotary embedding: x [..., E] with cos and sin [..., E/2] that broadcast over x's leading axes."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, visible_BTS: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √E) v, [B, H, T, E], over what is visible; None: causal with T = S.

    On a CPU three plain products beat the fused kernel at these lengths (its backward is several times slower); elsewhere the
    fused kernel runs.
    """
    B, H, T, E = q_BHTE.shape
    K, S = k_BKSE.shape[1], k_BKSE.shape[2]
    if q_BHTE.device.type != "cpu" or wish == "torch":
        mask = None if visible_BTS is None else visible_BTS[:, None]
        return F.scaled_dot_product_attention(
            q_BHTE, k_BKSE, v_BKSE, attn_mask=mask, is_causal=mask is None, enable_gqa=H != K
        )
    if visible_BTS is None:
        visible_BTS = torch.ones(1, T, T, dtype=torch.bool).tril().expand(B, -1, -1)
    bias_BTS = torch.zeros(visible_BTS.shape, dtype=q_BHTE.dtype).masked_fill(~visible_BTS, float("-inf"))
    bias = bias_BTS.repeat_interleave(K, 0).repeat(1, H // K, 1)
    q = q_BHTE.reshape(B * K, H // K * T, E)
    scores = torch.baddbmm(bias, q, k_BKSE.reshape(B * K, S, E).transpose(1, 2), alpha=E**-0.5)
    return torch.bmm(scores.softmax(-1), v_BKSE.reshape(B * K, S, E)).view(B, H, T, E)


class _Attention(torch.autograd.Function):
    """Of what it makes, the sums of the softmax alone are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
        heads: tuple[int, int, int], tables: Tables, q_positions: Tensor | None, positions: Tensor | None,
        sees: Tensor | None,
    ) -> Tensor:  # fmt: skip
        run, (B, T, _), S = built(q.dtype), q.shape, kv.shape[1]
        assert T == S or sees is not None
        q, kv = q.contiguous(), kv.contiguous()
        laid_out = (None if t is None else t.contiguous() for t in (q_positions, positions, sees))
        given = (q, kv, q_weight, k_weight, eps, *tables, *laid_out)
        out, sums = torch.empty_like(q), torch.empty(B, heads[0], T, 2)
        run("attention_forward", B, T, S, *heads, *given, out, sums)
        ctx.save_for_backward(*(None if isinstance(part, float) else part for part in given), sums)
        ctx.heads, ctx.eps = heads, eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, kv, q_weight, k_weight, _, *layout, sums = ctx.saved_tensors
        run, (B, T, _), S, (_, K, E) = built(q.dtype), q.shape, kv.shape[1], ctx.heads
        grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
        norm_grads = [None if weight is None else torch.zeros(B * K, E) for weight in (q_weight, k_weight)]
        run(
            "attention_backward", B, T, S, *ctx.heads, q, kv, q_weight, k_weight, ctx.eps, *layout, sums, grad.contiguous(),
            grad_q, grad_kv, *norm_grads,
        )  # fmt: skip
        return grad_q, grad_kv, *(None if g is None else g.sum(0) for g in norm_grads), *[None] * 6


# ----------------------------------------------------------------------------------------------------------- SwiGLU


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of [..., 2 F], gate and up side by side (Shazeer 2020, arxiv.org/abs/2002.05202, eq. 6)."""
    if compiled(gate_up.dtype, gate_up) is None:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    out: Tensor = _SwiGLU.apply(gate_up)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        run, size = built(gate_up.dtype), gate_up.shape[-1] // 2
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        out = gate_up.new_empty((*gate_up.shape[:-1], size))
        run("swiglu_forward", gate_up.numel() // (2 * size), size, gate_up, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        run, size = built(gate_up.dtype), gate_up.shape[-1] // 2
        grad_in = torch.empty_like(gate_up)
        run("swiglu_backward", gate_up.numel() // (2 * size), size, grad.contiguous(), gate_up, grad_in)
        return grad_in
