"""Metrics of many shapes as a GPU takes them, here on the CPU: equal to the processor's ways, in chunks or whole."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from mnif_nerf.metrics import device_clouds
from mnif_nerf.metrics.clouds import distance_matrix, one_minus_iou
from mnif_nerf.metrics.device_clouds import chamfer_matrix, one_minus_iou_of_bits, plain_nearest
from mnif_nerf.metrics.device_pictures import nearest_pictures
from mnif_nerf.metrics.sets import Distances, bootstrap

CPU = torch.device("cpu")


def clouds(seed: int, count: int, points: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return list(generator.uniform(-0.5, 0.5, (count, points, 3)).astype(np.float32))


@pytest.mark.parametrize("points", [(40, 40), (37, 50)])
def test_chamfer_on_a_device_is_the_processors(points: tuple[int, int]) -> None:
    rows, columns = clouds(0, 5, points[0]), clouds(1, 7, points[1])
    columns[3] = np.concatenate([rows[2]] * 2)[: points[1]]  # a copy, as far as there is room
    seen: list[int] = []
    found = distance_matrix(rows, columns, advance=lambda: seen.append(1), device=CPU)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, distance_matrix(rows, columns), rtol=1e-5, atol=1e-9)
    assert len(seen) == len(rows)
    among = distance_matrix(rows, rows, device=CPU)
    np.testing.assert_allclose(among, distance_matrix(rows, rows), rtol=1e-5)
    assert np.array_equal(among, among.T)
    if points[0] == points[1]:
        assert found[2, 3] == 0.0


@pytest.mark.parametrize("memory", [1, 20_000, 1 << 26])
def test_chunks_of_clouds_are_the_whole(memory: int) -> None:
    rows, columns = (
        torch.from_numpy(np.stack(side)).transpose(1, 2).contiguous() for side in (clouds(0, 4, 33), clouds(1, 6, 21))
    )
    whole = chamfer_matrix(rows, columns)
    assert torch.equal(chamfer_matrix(rows, columns, memory=memory), whole)
    assert torch.equal(chamfer_matrix(rows, columns, memory=memory, chosen=[2, 0]), whole[[2, 0]])


def test_a_chunk_keeps_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No distances are held beyond what is allowed, however many clouds there are."""
    largest = 0
    plain = torch.Tensor.square_

    def watched(values: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, 4 * values.numel())
        return plain(values)

    monkeypatch.setattr(torch.Tensor, "square_", watched)
    rows = torch.rand(3, 3, 64)
    for count in (2, 40):
        chamfer_matrix(rows, torch.rand(count, 3, 64), memory=60_000)
        assert 0 < largest <= 10_000


def test_clouds_that_a_device_does_not_take_go_the_processors_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_clouds, "chamfer_matrix", None)
    uneven = [*clouds(0, 2, 20), *clouds(0, 1, 30)]
    double = [cloud.astype(np.float64) + 1e-12 for cloud in clouds(0, 2, 20)]
    for given in (uneven, double):
        assert np.array_equal(distance_matrix(given, given, device=CPU), distance_matrix(given, given))


@pytest.mark.parametrize("memory", [1, 3000, 1 << 26])
def test_cells_counted_from_bits(memory: int) -> None:
    generator = np.random.default_rng(0)
    rows, columns = generator.random((6, 5, 5, 5)) < 0.3, generator.random((9, 5, 5, 5)) < 0.6
    rows[0] = columns[0] = False
    columns[1] = rows[1]
    bits = [np.packbits(side.reshape(len(side), -1), axis=1, bitorder="little") for side in (rows, columns)]
    found = one_minus_iou_of_bits(*bits, CPU, memory)
    assert np.array_equal(found, one_minus_iou(rows, columns))


def test_intervals_of_halves_gathered_on_a_device() -> None:
    generator = np.random.default_rng(0)
    # Whole numbers, so that there are ties, and copies at distance 0.
    sides = generator.integers(0, 4, (2, 21, 2)).astype(np.float64)
    made, real = sides

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.abs(a[:, None] - b[None]).sum(axis=2)

    distances = Distances(apart(made, real), apart(made, made), apart(real, real))
    expected = bootstrap(distances, 30, seed=3)
    found = bootstrap(distances, 30, seed=3, device=CPU)
    for name, bounds in expected.items():
        assert found[name] == pytest.approx(bounds, abs=1e-12), name


@pytest.mark.parametrize("memory", [1, 4000, 1 << 26])
def test_nearest_pictures_are_exact(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnif_nerf.metrics.device_pictures._CHANNELS_AT_A_TIME", 50)
    generator = np.random.default_rng(0)
    rows, columns = (generator.integers(0, 256, (count, 192), dtype=np.uint8) for count in (5, 11))
    columns[4] = columns[7] = rows[2]
    columns[9] = rows[3]
    columns[9, 0] ^= 1
    index, distance = nearest_pictures(rows, columns, CPU, memory)
    apart = cdist(rows.astype(np.float64), columns.astype(np.float64)) / (255 * 192**0.5)
    assert index.tolist() == apart.argmin(axis=1).tolist()
    assert index[2] == 4
    np.testing.assert_allclose(distance, apart.min(axis=1), rtol=1e-12)
    assert distance[2] == 0
    assert distance[3] == pytest.approx(1 / (255 * 192**0.5), rel=1e-12)


def test_a_kernel_that_fails_is_told_and_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class _Device:
        type = "cuda"

        def __hash__(self) -> int:
            return 7

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    for kernel, why in ((broken, "no compiler here"), (lambda *_: torch.zeros(2, 300), "off by")):
        device_clouds._has_kernel.cache_clear()
        monkeypatch.setattr(device_clouds, "_fused_nearest", kernel)
        with caplog.at_level(logging.WARNING):
            assert not device_clouds._has_kernel(_Device())  # type: ignore[arg-type]
        assert why in caplog.text
    device_clouds._has_kernel.cache_clear()


def test_the_kernel_by_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    program = [sys.executable, str(Path(__file__)), "interpreted"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_kernel_compiles_for_a_card_that_is_not_there() -> None:
    pytest.importorskip("triton")
    program = [sys.executable, str(Path(__file__)), "compiled"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "ptx" in done.stdout


def _interpreted() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, m in ((130, 70), (5, 33), (128, 32)):
        one, many = (torch.rand(count, 3, size, generator=generator) for count, size in ((1, n), (3, m)))
        for asked, others in ((one, many), (many, one), (many, many.flip(0))):
            found = device_clouds._fused_nearest(asked, others, 0)
            torch.testing.assert_close(found, plain_nearest(asked, others, 1 << 24))


def _compiled() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = device_clouds._kernel().nearest
    names = kernel.arg_names
    kinds = ["*fp32"] * 3 + ["i32"] * 4 + ["constexpr"] * 2
    sizes = {"BLOCK": device_clouds._BLOCK, "TILE": device_clouds._TILE}
    source = ASTSource(kernel, dict(zip(names, kinds)), {(names.index(name),): size for name, size in sizes.items()})
    print(sorted(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm))


if __name__ == "__main__":
    {"interpreted": _interpreted, "compiled": _compiled}[sys.argv[1]]()
