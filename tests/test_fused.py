"""The fused GPU kernel: right by Triton's interpreter, compiled for a card that is not there, and chosen with care."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnif_nerf.fields import FieldSpec, evaluate, fused
from mnif_nerf.fields import evaluate as evaluation
from mnif_nerf.fields.families import forward_reference
from mnif_nerf.fields.fused import Fused
from mnif_nerf.fields.network import num_parameters

HERE = Path(__file__).parent
FORM = FieldSpec(width=16, hidden_layers=1).form


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    with fused.forgotten():
        yield


def networks(batch: int = 2, count: int = 5) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    flat = [torch.randn(batch, num_parameters([shape]), generator=generator) for shape in FORM.shapes]
    return flat, torch.rand(batch, 3, count, generator=generator)


def run(*arguments: str, **variables: str) -> None:
    """A Python of its own: a process takes kernels either to interpret or to compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_values_and_all_derivatives_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    file = str(HERE / "fused_checks.py")
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mnif_nerf.fields import _siren_triton as kernels

width, hidden = 16, 1
sizes = {"IN": 3, "WIDTH": width, "HIDDEN": hidden, "OUT": 4, "FINAL_SINE": False, "D": 16, "DO": 16, "BLOCK": 16}
sizes |= {"PARAMETERS": 4 * width + hidden * (width + 1) * width + 4 * width + 4, "PRECISION": "tf32", "CURVED": True}
sizes["x_point"] = 1  # a launch makes constants of ones
for name in ("siren_values", "siren_gradient", "siren_second"):
    kernel = getattr(kernels, name)
    numbers = ("x_batch", "x_feature", "count")
    kinds = {a: "constexpr" if a in sizes else "i32" if a in numbers else "*fp32" for a in kernel.arg_names}
    constants = {(kernel.arg_names.index(a),): sizes[a] for a in kernel.arg_names if a in sizes}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 1})
    assert len(built.asm["cubin"]) > 1000
    assert built.metadata.shared < 100_000
"""


def test_the_kernels_compile_for_a_card(tmp_path: Path) -> None:
    """For compute capability 9.0, which needs no card: what the interpreter lets pass, the compiler may not."""
    pytest.importorskip("triton")
    run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))


def test_triton_is_not_imported_before_it_is_needed() -> None:
    program = "import sys, mnif_nerf.fields.point_loss, mnif_nerf.pipelines.run; assert 'triton' not in sys.modules"
    run("-c", program)


# --- the choice ----------------------------------------------------------------------------------------------------


def work_of(results: dict[Any, Any]) -> Callable[[Fused | None], list[Tensor]]:
    """Work with given results, or exceptions."""

    def work(backend: Fused | None) -> list[Tensor]:
        if isinstance(results[backend], Exception):
            raise results[backend]
        return [results[backend]]

    return work


A, B = Fused(16, 4), Fused(32, 4)
RIGHT, WRONG = torch.ones(3), torch.tensor([1.0, 1.0, 1.2])


@pytest.mark.parametrize(
    ("times", "results", "best"),
    [
        ([2.0, 1.0, 3.0], {A: RIGHT, B: RIGHT}, A),
        ([2.0, 1.5, 1.0], {A: RIGHT, B: RIGHT}, B),
        ([1.0, 2.0, 3.0], {A: RIGHT, B: RIGHT}, None),
        ([2.0, 1.0], {A: WRONG, B: RIGHT}, B),
        ([2.0, 1.0], {A: RuntimeError("out of resources"), B: RIGHT}, B),
        ([2.0], {A: ImportError("no Triton"), B: ImportError("no Triton")}, None),
        ([1.0], {A: torch.full((3,), torch.nan), B: WRONG}, None),
    ],
)
def test_the_fastest_that_is_right_is_taken(times: list[float], results: dict, best: Fused | None) -> None:
    clock = iter(times)
    assert fused.fastest([A, B], work_of({None: RIGHT, **results}), lambda _: next(clock)) == best
    assert list(clock) == []


def test_the_kernel_is_taken_where_torch_has_no_memory() -> None:
    results = {None: torch.cuda.OutOfMemoryError("too large"), A: RIGHT, B: torch.cuda.OutOfMemoryError("too large")}
    assert fused.fastest([A, B], work_of(results), lambda _: 1.0) == A


def test_why_it_is_not_taken_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    work = work_of({None: RIGHT, A: ImportError("No module named 'triton'\nand more"), B: WRONG})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert fused.fastest([A, B], work, lambda _: 1.0) is None
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "The fused GPU kernel of SIRENs is not used for some networks (ImportError: No module named 'triton'): torch "
        "computes instead.",
        "The fused GPU kernel of SIRENs is not used for some networks (its results are off by 1e-01): torch computes "
        "instead.",
    ]


@pytest.fixture
def as_if_on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Networks on the CPU are offered to the fused kernel; the list counts the measurements."""
    counted: list[int] = []
    monkeypatch.setenv("MNIF_KERNEL", "torch")
    monkeypatch.setattr(fused, "_LEAST_POINTS", 1)
    usable = fused.usable
    monkeypatch.setattr(fused, "usable", lambda *a: usable(*a, device="cpu"))
    monkeypatch.setattr(fused, "_seconds", lambda device, work: counted.append(1) or 1.0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return counted


def test_every_kind_of_work_is_measured_once(as_if_on_cuda: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "candidates", lambda form, twice: [])

    def ask(count: int, use: str = "values") -> None:
        flat, points = networks(count=count)
        assert fused.backend(FORM, flat, points, use, lambda _: [points]) is None

    for count, use, measured in [(5, "values", 1), (8, "values", 1), (9, "values", 2), (9, "mse", 3), (9, "mse", 3)]:
        ask(count, use)
        assert len(as_if_on_cuda) == measured
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    ask(1000)  # a graph is recorded: torch, and nothing is measured or kept
    assert len(as_if_on_cuda) == 3


def test_evaluation_without_triton_is_torchs(
    as_if_on_cuda: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(fused, "_kernels", missing)
    flat, points = networks()
    leaves = [part.requires_grad_() for part in flat]
    values = evaluation._on_cuda(FORM, leaves, points)
    torch.testing.assert_close(values, forward_reference(FORM, flat, points))
    values.sum().backward()
    assert all(part.grad is not None for part in leaves)
    assert "No module named 'triton'" in caplog.text


@pytest.mark.parametrize("change", ["family", "width", "points", "inputs", "gradient", "double"])
def test_what_the_kernel_does_not_take(as_if_on_cuda: list[int], change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form, (flat, points) = FORM, networks()
    assert fused.usable(form, flat, points)
    if change == "family":
        form = FieldSpec(width=16, hidden_layers=1, family="finer").form
    elif change == "width":
        form = FieldSpec(width=129, hidden_layers=1).form
        flat = [torch.zeros(2, num_parameters([shape])) for shape in form.shapes]
    elif change == "points":
        monkeypatch.setattr(fused, "_LEAST_POINTS", 11)
    elif change == "inputs":
        points = points[:, :2]
    elif change == "gradient":
        points.requires_grad_()
    else:
        flat, points = [part.double() for part in flat], points.double()
    assert not fused.usable(form, flat, points)


def test_a_cpu_never_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "backend", lambda *a, **k: pytest.fail("asked"))
    flat, points = networks()
    for kernel in ("torch", ""):
        monkeypatch.setenv("MNIF_KERNEL", kernel)
        assert evaluate.evaluate(FORM, flat, points).shape == (2, 4, 5)
