"""Parts of `gpu.py`: the machine, its data, the CUDA tests, the device against the CPU, its peaks, and rendering."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import gpu_steps
import numpy as np
import report
import torch
from gpu_report import Rows, Settings, pace, ratio
from PIL import Image
from recipe import RecipeTrainer
from torch import Tensor

from mnif_nerf.data.generate.points import make_procedural_points
from mnif_nerf.data.generate.procedural import make_procedural_cars, make_procedural_voxels
from mnif_nerf.data.generate.settings import CarCounts, ViewCounts
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.metrics.images import psnr
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.views import render_view

_ROOT = Path(__file__).resolve().parents[1]
# Float32 on two devices: a gradient sums thousands of products in another order.
_LOSS_TOLERANCE, _GRADIENT_TOLERANCE = 1e-4, 2e-3


def machine(settings: Settings, rows: Rows) -> None:
    """What this machine is; fails where the device does not compute."""
    rows.facts = report.machine(settings.seed)
    with contextlib.suppress(metadata.PackageNotFoundError):
        rows.facts["triton"] = metadata.version("triton")
    if settings.device == "cuda":
        if not torch.cuda.is_available():
            raise MNIFError("torch finds no CUDA device here; `--device cpu` runs the same on the processor.")
        properties = torch.cuda.get_device_properties(0)
        rows.facts |= {"cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count}
        rows.facts["device_gib"] = properties.total_memory / 2**30
    total = float(torch.ones(64, 64, device=settings.device).matmul(torch.ones(64, 64, device=settings.device)).sum())
    if total != 64.0**3:
        raise MNIFError(f"a product of ones sums to {total}; the device does not compute.")


def data(settings: Settings, rows: Rows) -> None:
    """Cars as pictures, voxels and points, and pictures of waves; facts: seconds of one car's pictures and packing."""
    folder, workers = settings.work / "data", settings.workers
    seed, pick = settings.seed, settings.of
    shared: dict[str, Any] = {"workers": workers, "progress": False}
    cars = pick(max(32, 2 * workers), 2)
    views = pick(ViewCounts(50, 8, 1, 128), ViewCounts(4, 2, 1, 16))
    start = time.perf_counter()
    make_procedural_cars(folder / "radiance", CarCounts(cars, 0, 0, seed), views, occupancy=False, **shared)
    open_store(folder / "radiance", "train", progress=False)
    open_store(folder / "radiance", "train_val", progress=False)
    took = time.perf_counter() - start
    rows.facts = {"core_seconds_per_car": took * workers / cars, "cars": cars}
    rows.add("cars drawn and packed", cars / took, "1/s", note=f"{cars} of {views.train_views} x {views.resolution}²")
    others = CarCounts(pick(32, 2), 0, 0, seed)
    wrong = []
    for make in (
        lambda: make_procedural_voxels(folder / "voxel", others, pick(64, 16), **shared),
        lambda: make_procedural_points(folder / "sdf", others, pick(20_000, 500), **shared),
        lambda: _waves(folder / "image", pick(64, 2), pick(64, 16), seed),
    ):
        try:  # the other methods have their data all the same
            make()
        except MNIFError as error:
            wrong.append(str(error))
    rows.add("all data", time.perf_counter() - start, "s")
    if wrong:
        raise MNIFError("; ".join(wrong))


def _waves(folder: Path, count: int, edge: int, seed: int) -> None:
    """Pictures of a few sines each."""
    random = np.random.default_rng(seed)
    target = folder / "train"
    target.mkdir(parents=True, exist_ok=True)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge)] * 2, indexing="ij"), axis=-1)
    for index in range(count):
        angles = places @ random.normal(0, 3, (2, 9)) + random.uniform(0, 6, 9)
        colors = np.sin(angles).reshape(edge, edge, 3, 3).mean(axis=-1)
        Image.fromarray((127.5 * (1 + colors)).astype(np.uint8)).save(target / f"{index:03d}.png")


def tests(settings: Settings, rows: Rows) -> None:
    """`tests/test_cuda*.py` in a process of their own; on a CPU all of them are skipped."""
    found = settings.work / "tests.xml"
    files = sorted(str(path.relative_to(_ROOT)) for path in (_ROOT / "tests").glob("test_cuda*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={found}"]
    environment = {**os.environ, "MNIF_MINIMAL": "1"}  # a missing extra is a skipped test
    done = subprocess.run([*command, *files], cwd=_ROOT, env=environment, capture_output=True, text=True)
    if not found.is_file():
        raise MNIFError(f"pytest did not run: {(done.stderr or done.stdout).strip()[-300:]}")
    cases = list(ElementTree.parse(found).getroot().iter("testcase"))
    wrong = [
        case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(wrong) - skipped
    rows.add("tests/test_cuda*.py passed", passed, f"of {len(cases)}", note=f"{skipped} skipped")
    if settings.device == "cuda" and not passed:
        raise MNIFError("none of the CUDA tests ran on this device")
    if wrong:
        print(done.stdout, flush=True)
        raise MNIFError(f"{len(wrong)} CUDA tests failed: {', '.join(wrong)}")


def agreement(settings: Settings, rows: Rows) -> None:
    """Losses and gradients of every method on this device against torch on the CPU, the same batch and weights."""
    wrong = []
    for name in gpu_steps.METHODS:
        try:
            _agree(settings, rows, name)
        except MNIFError as error:  # the other methods are compared all the same
            wrong.append(f"{name}: {error}")
    if wrong:
        raise MNIFError("; ".join(wrong))


def _agree(settings: Settings, rows: Rows, name: str) -> None:
    run = gpu_steps.new_run(settings, name, gpu_steps.data_of(settings, name), "cpu", most=256)
    batch = run.data.draw(0)[:4]
    run.model.train()
    reference = _gradients(run.model, batch, "cpu", reference=True)
    for mode in ("exact", "TF32") if settings.device == "cuda" else ("exact",):
        torch.backends.cuda.matmul.allow_tf32 = mode == "TF32"
        found = _gradients(run.model, batch, settings.device, reference=False)
        loss, gradient = _distance(found[:1], reference[:1]), _distance(found[1:], reference[1:])
        note = f"worst gradient of a parameter {gradient:.1e}"
        rows.add(f"{name}, {mode}: loss differs by", loss, "relative", note=note)
        if mode == "exact" and not (loss < _LOSS_TOLERANCE and gradient < _GRADIENT_TOLERANCE):
            raise MNIFError(f"{mode}, the device and the CPU differ by {loss:.1e} and {gradient:.1e}")


def _gradients(model: Stage1Model, batch: Any, device: str, reference: bool) -> list[Tensor]:
    """Losses of fixed codes without jitter, then the gradients of field and codes; all on the CPU."""
    model = copy.deepcopy(model).to(device)
    generator = torch.Generator().manual_seed(0)
    start = 0.1 * torch.randn(len(batch.instances), model.field.spec.latent_dim, generator=generator)
    codes = start.to(device).requires_grad_()

    def work() -> list[Tensor]:
        losses = model.objective(batch.to(device)).losses(codes)
        parameters = [codes, *model.field.parameters()]
        return [losses, *torch.autograd.grad(losses.sum(), parameters)]

    if reference:
        with kernel.reference_only():
            found = work()
    else:
        found = work()
    return [tensor.detach().cpu() for tensor in found]


def _distance(found: list[Tensor], reference: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm().clamp(min=1e-20)) for a, b in zip(found, reference))


def peaks(settings: Settings, rows: Rows) -> None:
    """What torch's matrix product and a copy reach; facts: "gflops" (in TF32 on CUDA) and "gbytes"."""
    device, seconds, size = settings.device, settings.of(0.5, 0.01), settings.of(8192, 128)
    kinds = {"float32": (torch.float32, False)}
    if device == "cuda":
        kinds |= {"TF32": (torch.float32, True), "bf16": (torch.bfloat16, True)}
    for kind, (dtype, tf32) in kinds.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        out = torch.empty_like(a)

        def products(count: int, a: Tensor = a, b: Tensor = b, out: Tensor = out) -> None:
            for _ in range(count):
                torch.mm(a, b, out=out)

        rate = 2 * size**3 / 1e9 / pace(products, device, seconds)
        rows.add(f"matrix product, {kind}", rate, "GFLOP/s", note=f"{size} x {size}, random numbers")
        if kind == ("TF32" if device == "cuda" else "float32"):
            rows.facts["gflops"] = rate
    source = torch.empty(settings.of(2**30, 2**16), device=device)
    target = torch.empty_like(source)

    def copies(count: int) -> None:
        for _ in range(count):
            target.copy_(source)

    rows.facts["gbytes"] = 2 * 4 * source.numel() / 1e9 / pace(copies, device, seconds)
    rows.add("copy", rows.facts["gbytes"], "GB/s", note="read and written bytes")


def rendering(settings: Settings, rows: Rows) -> None:
    """Frames per second of a field learned here, with and without its occupancy grid, and of the recipe."""
    device, place = settings.device, gpu_steps.data_of(settings, "mnif")
    run = gpu_steps.new_run(settings, "mnif", place, steps=settings.of(4000, 4))
    ours, start = gpu_steps.Ours(run), time.perf_counter()
    while ours.taken < run.settings.max_num_iterations and time.perf_counter() - start < settings.of(10.0, 1.0):
        ours.steps(settings.of(100, 2))
    run.model.eval()
    field, grid = run.fields(run.model.latents.weight[0].detach())
    size = settings.of(512, 24)
    camera = Intrinsics.default(size)
    poses = [orbit_pose(20.0, 30.0 + 60.0 * k).to(device) for k in range(settings.of(6, 2))]
    seconds = settings.of(1.0, 0.01)
    found: dict[str, float] = {}
    for what, used in (("skipping", grid), ("dense", None)):
        turns = []
        for pose in poses:

            def frames(count: int, pose: Tensor = pose, used: Any = used) -> None:
                for _ in range(count):
                    render_view(field, pose, camera, used)

            turns.append(pace(frames, device, seconds / len(poses), warm=1))
        found[what] = median(turns)
    views = [render_view(field, poses[0], camera, used)["rgb"] for used in (grid, None)]
    fit = f"PSNR to dense {float(psnr(*views)):.1f} dB"
    config = gpu_steps.METHODS["mnif"]
    config = settings.of(config, gpu_steps.small(config))
    recipe = RecipeTrainer(open_store(place, "train", progress=False), config, device, settings.seed)

    def theirs(count: int) -> None:
        for _ in range(count):
            recipe.render_view(0, poses[0], camera)

    theirs_took = pace(theirs, device, seconds, warm=1)
    for what, took in found.items():
        mine, reference = 1 / took, 1 / theirs_took
        note = f"{ours.taken} steps on {len(run.model.names)} cars; {fit}" if what == "skipping" else ""
        rows.add(f"{size} x {size}, {what}", mine, "frames/s", reference, ratio(mine, reference), note)
