"""The compiled kernels against plain PyTorch in float64, values and gradients; and what happens where they cannot be had."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bridle.kernels import kernels
from bridle.kernels.kernels import add_norm, attend, attention, project, swiglu
from bridle.maths.logprobs import linear_logprobs

TYPES = [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)]
Function = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = kernels.wish
    yield
    kernels.wish = before


@pytest.fixture
def have_kernels() -> None:
    try:
        kernels.choose_kernels("compiled")
    except kernels.Unavailable as error:
        pytest.skip(f"no compiled kernels here: {error}")


def rounded(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that `dtype` holds exactly, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).double()


def packed_rows(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Positions [B, T] and what is seen [B, T, 3] of rows that begin with a prompt and go on with answers of any length."""
    generator = torch.Generator().manual_seed(7)
    rows: list[list[tuple[int, int, int, int]]] = []
    for _ in range(B):
        prompt, *answers = torch.randint(1, T // 2 + 2, (T,), generator=generator).tolist()
        row = [(i, 0, 0, i + 1) for i in range(prompt)]
        for answer in answers:
            start = len(row)
            row += [(prompt + i, prompt, start, start + i + 1) for i in range(answer)]
        rows.append(row[:T])
    laid_out = torch.tensor(rows)
    return laid_out[..., 0] % T, laid_out[..., 1:]


def agree(function: Function, inputs: list[Tensor], types: list[torch.dtype], tolerance: float) -> None:
    """Value and gradients of `function` at `inputs` in `types` by compiled kernels, and in float64 by plain ones."""
    wide = [x.clone().requires_grad_() for x in inputs]
    kernels.choose_kernels("plain")
    expected = function(*wide)
    low = [x.to(kind).requires_grad_() for x, kind in zip(inputs, types, strict=True)]
    kernels.choose_kernels("compiled")
    found = function(*low)
    grad = rounded(found.dtype, *found.shape, seed=9)
    expected.backward(grad)
    found.backward(grad.to(found.dtype))
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(low, wide, strict=True))]
    for a, b in pairs:
        assert a is not None and b is not None
        scale = max(float(b.detach().abs().max()), 0.01)  # a gradient may be none at all
        torch.testing.assert_close(a.double(), b, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.usefixtures("have_kernels")
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
class TestCompiled:
    def test_norm_of_a_sum(self, dtype: torch.dtype, tolerance: float) -> None:
        def both(x: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
            total, y = add_norm(x, delta, weight, 1e-5, delta.dtype)
            return torch.cat((total.to(y.dtype), y), -1)

        inputs = [
            rounded(torch.float32, 3, 5, 37),
            rounded(dtype, 3, 5, 37, seed=1),
            rounded(torch.float32, 37, seed=2),
        ]
        agree(both, inputs, [torch.float32, dtype, torch.float32], tolerance)

    def test_norm_alone(self, dtype: torch.dtype, tolerance: float) -> None:
        def alone(x: Tensor, weight: Tensor) -> Tensor:
            return add_norm(x, None, weight, 1e-5, torch.float64 if x.dtype == torch.float64 else dtype)[1]

        inputs = [rounded(torch.float32, 11, 40), rounded(torch.float32, 40, seed=1)]
        agree(alone, inputs, [torch.float32, torch.float32], tolerance)

    @pytest.mark.parametrize("normed", [False, True])
    @pytest.mark.parametrize("layout", ["causal", "packed", "kept", "unordered"])
    @pytest.mark.parametrize(
        ("T", "heads"),
        [(1, (2, 2, 8)), (9, (4, 2, 12)), (50, (4, 1, 64)), (67, (2, 2, 80)), (140, (4, 1, 32)), (33, (2, 1, 128))],
    )
    def test_attention(
        self, dtype: torch.dtype, tolerance: float, normed: bool, layout: str, T: int, heads: tuple[int, int, int]
    ) -> None:
        B, (H, K, E) = 3, heads
        positions, sees = packed_rows(B, T) if layout != "causal" else (None, None)
        q_positions = positions
        if layout == "kept" and positions is not None and sees is not None:  # in no order, some twice
            kept = torch.randint(0, T, (B, T // 2 + 1), generator=torch.Generator().manual_seed(6))
            q_positions, sees = positions.gather(1, kept), torch.stack([sees[b, kept[b]] for b in range(B)])
        if (
            layout == "unordered" and sees is not None
        ):  # queries of one tile see far more than others, and ranges may overlap
            ends = torch.randint(1, T + 1, (B, T), generator=torch.Generator().manual_seed(8))
            sees = torch.stack(
                (torch.tensor([[0], [3], [20]]).expand(B, T), torch.tensor([[0], [10], [7]]).expand(B, T), ends), -1
            )
            sees = sees.clamp(max=T)
        angle = torch.outer(torch.arange(T), torch.rand(E // 2, generator=torch.Generator().manual_seed(5))).double()

        def attended(q: Tensor, kv: Tensor, *norms: Tensor) -> Tensor:
            tables = (angle.cos(), angle.sin())
            tables = tables if q.dtype == torch.float64 else (tables[0].float(), tables[1].float())
            weights = (norms[0], norms[1], 1e-5) if norms else None
            return attention(q, kv, heads, tables, q_positions, positions, sees, weights)

        queries = T if q_positions is None else q_positions.shape[1]
        inputs = [rounded(dtype, B, queries, H * E), rounded(dtype, B, T, 2 * K * E, seed=1)]
        inputs += [rounded(torch.float32, E, seed=2), rounded(torch.float32, E, seed=3)] if normed else []
        agree(attended, inputs, [dtype, dtype, torch.float32, torch.float32][: len(inputs)], 2 * tolerance)

    def test_packed_rows_are_those_of_each_alone(self, dtype: torch.dtype, tolerance: float) -> None:
        """A prompt of 5 with answers of 20 and 11, beside the prompt with each of them."""
        H, K, E = heads = (4, 2, 16)
        q, kv = torch.randn(1, 36, H * E).to(dtype), torch.randn(1, 36, 2 * K * E).to(dtype)
        grad = torch.randn(1, 36, H * E).to(dtype)
        angle = torch.outer(torch.arange(36), torch.rand(E // 2))
        prompt, answers = list(range(5)), [list(range(5, 25)), list(range(25, 36))]
        sees = torch.tensor([[(0, 0, t + 1) if t < 5 else (5, 5 if t < 25 else 25, t + 1) for t in range(36)]])
        positions = torch.tensor([[*range(25), *range(5, 16)]])

        def run(places: list[int], *layout: Tensor | None) -> list[Tensor]:
            inputs = [x[:, places].clone().requires_grad_() for x in (q, kv)]
            found = attention(
                inputs[0], inputs[1], heads, (angle.cos(), angle.sin()), layout[0], layout[0], layout[1], None
            )
            grads = torch.autograd.grad(found, inputs, grad[:, places] * (torch.tensor(places) >= 5)[:, None])
            return [found, *grads]

        packed = run(list(range(36)), positions, sees)
        alone = [run(prompt + answer, None, None) for answer in answers]
        for i, shared in enumerate(packed):
            for answer, one in zip(answers, alone, strict=True):
                torch.testing.assert_close(shared[:, answer], one[i][:, 5:], atol=tolerance, rtol=tolerance)
            both = sum(one[i][:, :5] for one in alone)
            both = both / 2 if i == 0 else both  # the prompt's own states are the same in each
            torch.testing.assert_close(shared[:, :5], both, atol=4 * tolerance, rtol=tolerance)

    def test_what_is_hidden_is_not_looked_at(self, dtype: torch.dtype, tolerance: float) -> None:
        """Behind a query's tile there may be anything."""
        x = torch.randn(1, 100, 32).to(dtype)
        x[:, 80:] = float("nan")
        angle = torch.zeros(100, 4)
        found = attention(x, x, (4, 2, 8), (angle.cos(), angle.sin()), None, None, None, None)
        assert found[:, :64].isfinite().all() and found[:, 80:].isnan().all()

    def test_swiglu(self, dtype: torch.dtype, tolerance: float) -> None:
        agree(swiglu, [10 * rounded(dtype, 4, 7, 34)], [dtype], tolerance)

    def test_several_linear_maps_at_once(self, dtype: torch.dtype, tolerance: float) -> None:
        one, two = nn.Linear(8, 5).double(), nn.Linear(8, 3).double()
        inputs = [rounded(dtype, 4, 6, 8)]
        expected = torch.cat((one(inputs[0]), two(inputs[0])), -1)
        expected.sum().backward()
        wide = [p.grad.clone() for p in (*one.parameters(), *two.parameters()) if p.grad is not None]
        one.zero_grad(), two.zero_grad()
        found = project(inputs[0].to(dtype), one.float(), two.float())
        found.sum().backward()
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=2 * tolerance, rtol=2 * tolerance)
        for p, other in zip((*one.parameters(), *two.parameters()), wide, strict=True):
            assert p.grad is not None and p.grad.dtype == torch.float32
            torch.testing.assert_close(
                p.grad.double(), other, atol=tolerance * float(other.abs().max()), rtol=tolerance
            )

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @pytest.mark.parametrize("slice_size", [2**22, 64 * 50])
    def test_logprobs(
        self, dtype: torch.dtype, tolerance: float, temperature: float, slice_size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bridle.maths.logprobs.LONG_SLICE", slice_size)
        targets = torch.randint(0, 50, (200,), generator=torch.Generator().manual_seed(4))
        inputs = [3 * rounded(dtype, 200, 16), rounded(dtype, 50, 16, seed=1)]
        agree(lambda h, w: linear_logprobs(h, w, targets, temperature), inputs, [dtype, dtype], tolerance)

    def test_what_is_not_finite_stays_so(self, dtype: torch.dtype, tolerance: float) -> None:
        """A run is stopped by a loss that is no number; a kernel must not make one of it."""
        x = torch.randn(3, 4, 16).to(dtype)
        x[1, 2, 5] = float("nan")
        angle = torch.zeros(4, 4)
        mixed = attention(x, x, (2, 1, 8), (angle.cos(), angle.sin()), None, None, None, None)
        normed = add_norm(x.float(), None, torch.ones(16), 1e-5, dtype)[1]
        for found in (
            swiglu(x),
            mixed,
            normed,
            linear_logprobs(x[1], torch.randn(9, 16).to(dtype), torch.zeros(4, dtype=torch.long)),
        ):
            assert found.isnan().any() and not found.isnan().all()

    def test_threads_change_nothing(self, dtype: torch.dtype, tolerance: float) -> None:
        x, weight = torch.randn(64, 48).to(dtype), torch.randn(48)
        q, angle = torch.randn(5, 40, 48).to(dtype), torch.rand(40, 4)
        ones = torch.ones(8, requires_grad=True)
        before = torch.get_num_threads()
        try:
            found = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                inputs = [q.clone().requires_grad_(), q.clone().requires_grad_(), ones]
                norms = (ones, ones, 1e-5)
                mixed = attention(inputs[0], inputs[1], (6, 3, 8), (angle.cos(), angle.sin()), None, None, None, norms)
                grads = torch.autograd.grad(mixed.float().square().sum(), inputs)
                found.append((add_norm(x.float(), x, weight, 1e-5, dtype)[1], swiglu(x), mixed, *grads))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.usefixtures("have_kernels")
def test_the_exponential_is_exact_to_seven_digits() -> None:
    """swiglu of (g, 1) is g · σ(g): an independent look at exp over all its range."""
    g = torch.linspace(-86, 80, 200_001)
    pairs = torch.stack((g, torch.ones_like(g)), -1)
    found, exact = swiglu(pairs)[:, 0], (g.double() * torch.sigmoid(g.double()))
    assert float(((found - exact).abs() / exact.abs().clamp(min=1e-30)).max()) < 5e-7


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    found = attend(q, k, v, None)
    for h in range(4):
        scores = q[:, h] @ k[:, h // 2].transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        torch.testing.assert_close(found[:, h], scores.softmax(-1) @ v[:, h // 2])


def test_the_norms_own_gradient_is_the_composed_ones() -> None:
    kernels.choose_kernels("plain")
    x = rounded(torch.float64, 3, 5, 8).requires_grad_()
    weight = rounded(torch.float64, 8, seed=1).requires_grad_()
    grad = rounded(torch.float64, 3, 5, 8, seed=2)
    add_norm(x, None, weight, 1e-6, torch.float64)[1].backward(grad)
    ours = (x.grad, weight.grad)
    x.grad = weight.grad = None
    torch.nn.functional.rms_norm(x, (8,), weight, 1e-6).backward(grad)
    torch.testing.assert_close(ours, (x.grad, weight.grad))


# ---------------------------------------------------------------------------------------- where they cannot be had


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[str, float]]]:
    """Choose kernels where nothing was compiled or loaded before, with other variables: the words, and a value of theirs."""

    def look(**environment: str) -> tuple[str, float]:
        for name, value in {"XDG_CACHE_HOME": str(tmp_path / "cache"), **environment}.items():
            monkeypatch.setenv(name, value)
        forget()
        line = kernels.choose_kernels("auto")
        return line, float(swiglu(GATED).sum())

    def forget() -> None:
        kernels.built.cache_clear()
        kernels.found.cache_clear()

    yield look
    forget()


GATED = rounded(torch.float32, 2, 6).float()


def test_without_a_compiler_the_plain_ones_do_the_same(look: Callable[..., tuple[str, float]], tmp_path: Path) -> None:
    line, value = look(PATH=str(tmp_path))
    expected = float(kernels.F.silu(GATED[:, :3]).mul(GATED[:, 3:]).sum())
    assert line == "plain kernels (no C compiler)" and value == pytest.approx(expected)


def test_a_compiler_that_fails_is_told_of(look: Callable[..., tuple[str, float]], tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'cc1: no such instruction' >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    line, _ = look(PATH=f"{tmp_path}:/usr/bin:/bin")
    assert line == "plain kernels (cc failed: cc1: no such instruction)"


def test_a_cache_that_cannot_be_written_is_done_without(look: Callable[..., tuple[str, float]], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    line, _ = look()
    assert line.startswith("plain kernels (")


def test_a_library_of_another_kind_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"not a library")
    kernels.built.cache_clear()
    monkeypatch.setattr(kernels, "build", lambda dtype: broken)
    try:
        assert kernels.choose_kernels("auto").startswith("plain kernels (they do not load")
        with pytest.raises(kernels.Unavailable):
            kernels.choose_kernels("compiled")
    finally:
        kernels.built.cache_clear()


def test_threads_are_those_that_pytorch_has() -> None:
    """Two OpenMP libraries in a process fight for the cores; ours has none of its own."""
    try:
        made = kernels.build(torch.float32)
    except kernels.Unavailable as error:
        pytest.skip(str(error))
    assert b"libgomp" not in made.read_bytes() and b"libomp" not in made.read_bytes()
    assert (kernels.in_process("GOMP_parallel") is not None) == (b"GOMP_parallel" in made.read_bytes())


def test_a_gradient_is_the_same_when_it_is_asked_for_twice() -> None:
    """The logits of a single slice are written over by the first backward pass; the second makes them again."""
    hidden = rounded(torch.float32, 30, 8).float().requires_grad_()
    weight, targets = rounded(torch.float32, 12, 8, seed=1).float(), torch.arange(30) % 12
    total = linear_logprobs(hidden, weight, targets).sum()
    (first,) = torch.autograd.grad(total, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(total, hidden)
    torch.testing.assert_close(first, second)
