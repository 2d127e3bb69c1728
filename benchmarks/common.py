"""What the benchmarks share: our training step without nerfstudio, data, threads, memory and flop counts."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.stores.scene_store import PackedStore, open_store
from mnif_nerf.fields import kernel
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.table import LatentTable, RowAdam
from mnif_nerf.machine import tune_threads
from mnif_nerf.random import stream
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.occupancy import OccupancyGrid, dilate
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses
from mnif_nerf.rendering.views import render_view

CACHE = Path("outputs/benchmarks")


@dataclass(frozen=True)
class Method:
    """The settings of one `ns-train` method that decide what a step computes (tests compare them with
    configs.py).
    """

    name: str
    width: int
    hidden_layers: int
    num_bases: int
    latent_dim: int
    scenes_per_step: int
    rays_per_scene: int
    carve_points: int
    field_lr: float
    projection_lr: float
    latent_lr: float
    warmup_steps: int
    samples_per_ray: int = 8
    w0: float = 30.0
    coefficients: str = "layer-wise"
    init: str = "corrected"
    mask_weight: float = 0.02
    carve_weight: float = 0.1
    carve_length: float = 0.1
    latent_weight: float = 1e-3
    latent_noise: float = 0.0
    latent_init_std: float = 0.0
    grid_resolution: int = 48
    final_fraction: float = 0.03
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8

    @property
    def spec(self) -> FieldSpec:
        """The shape of the mixture field."""
        return FieldSpec(
            width=self.width,
            hidden_layers=self.hidden_layers,
            num_bases=self.num_bases,
            latent_dim=self.latent_dim,
            w0=self.w0,
            coefficients=self.coefficients,
            init=self.init,
        )

    @property
    def losses(self) -> LossConfig:
        """Weights of the losses."""
        return LossConfig(self.samples_per_ray, self.mask_weight, self.carve_weight, self.carve_length)


MNIF = Method(
    "mnif",
    width=64, hidden_layers=4, num_bases=256, latent_dim=128,
    scenes_per_step=32, rays_per_scene=128, carve_points=64,
    field_lr=5e-4, projection_lr=1e-4, latent_lr=5e-3, warmup_steps=500,
)  # fmt: skip
MNIF_LITE = Method(
    "mnif-lite",
    width=48, hidden_layers=3, num_bases=32, latent_dim=32,
    scenes_per_step=16, rays_per_scene=64, carve_points=64,
    field_lr=1e-3, projection_lr=1e-3, latent_lr=5e-3, warmup_steps=100,
)  # fmt: skip
METHODS = {method.name: method for method in (MNIF, MNIF_LITE)}


class OurTrainer:
    """`ns-train`'s step in plain Python: draw, forward, backward, and the three optimisers.

    Args:
        store: the packed training split.
        method: settings.
        device: where field and latents live.
        seed: of initialisation, draws and jitter.
        views: optional `[V]` bool, the views that may be drawn.
    """

    def __init__(
        self,
        store: PackedStore,
        method: Method,
        device: torch.device | str = "cpu",
        seed: int = 0,
        views: Tensor | None = None,
    ) -> None:
        self.store, self.method, self.seed = store, method, seed
        self.device = torch.device(device)
        self.field = MixtureField(method.spec, seed=seed).to(self.device)
        self.latents = LatentTable(store.num_scenes, method.latent_dim, method.latent_init_std, seed)
        self.latents.to(self.device)
        self.sampler = RayBatchSampler(
            store,
            method.scenes_per_step,
            method.rays_per_scene,
            method.carve_points,
            self.device,
            seed,
            views,
        )
        adam: dict[str, Any] = {"betas": method.betas, "eps": method.eps}
        self.optimizers = [
            torch.optim.Adam(self.field.bases.parameters(), lr=method.field_lr, fused=True, **adam),
            torch.optim.Adam(self.field.projection.parameters(), lr=method.projection_lr, fused=True, **adam),
            RowAdam(self.latents.parameters(), lr=method.latent_lr, **adam),
        ]
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self._bounds = hull_union(store)
        self.steps_taken = 0

    @property
    def rays_per_step(self) -> int:
        """Rays whose colour enters the loss of one step; all of them meet the object's hull."""
        return self.sampler.scenes_per_step * self.method.rays_per_scene

    @property
    def points_per_step(self) -> int:
        """Points at which the field is evaluated in one step: samples of the rays, and carve points."""
        per_scene = self.method.rays_per_scene * self.method.samples_per_ray + self.sampler.carve_points
        return self.sampler.scenes_per_step * per_scene

    def losses(self, batch: RayBatch, seed: int) -> dict[str, Tensor]:
        """The weighted losses of one step, as `MNIFModel.get_training_outputs` computes them."""
        generator = torch.Generator().manual_seed(seed)
        latents = codes = self.latents(batch.instances)
        if self.method.latent_noise > 0:
            noise = torch.randn(codes.shape, generator=generator).to(self.device)
            latents = codes + self.method.latent_noise * noise
        losses = radiance_losses(
            self.field.networks(latents),
            batch,
            self.method.losses,
            generator,
            head=self.field.spec.head,
        )
        if self.method.latent_weight > 0:
            losses["latent"] = self.method.latent_weight * codes.square().mean()
        return losses

    def gradient(self) -> Tensor:
        """Draw the batch of the next step and fill all gradients; returns the squared error."""
        batch = self.sampler.draw(self.steps_taken)
        losses = self.losses(batch, stream(self.seed, "jitter", self.steps_taken))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        return losses["rgb"].detach()

    def step(self, progress: float = 0.0) -> Tensor:
        """One training step; returns the squared error.

        Args:
            progress: how much of the run is behind, 0 to 1, which is where on the cosine its learning rates
                are.
        """
        warm = min(1.0, (self.steps_taken + 1) / self.method.warmup_steps)
        final = self.method.final_fraction
        factor = warm * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        for optimizer, rate in zip(self.optimizers, self._rates):
            optimizer.param_groups[0]["lr"] = rate * factor
        error = self.gradient()
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps_taken += 1
        return error

    def collapse(self, scene: int) -> CompactField:
        """The small network of a training scene."""
        return self.field.collapse(self.latents.weight[scene].detach()).to(self.device)

    def grid(self, field: CompactField) -> OccupancyGrid:
        """The occupancy grid that rendering skips empty space with."""
        return OccupancyGrid.from_field(field, self.method.grid_resolution, bounds=self._bounds, device=self.device)

    def render_view(self, scene: int, pose: Tensor, camera: Intrinsics) -> Tensor:
        """One view `[H, W, 3]` in [0, 1] of a training scene."""
        field = self.collapse(scene)
        return render_view(field, pose.to(self.device), camera, self.grid(field))["rgb"]


def hull_union(store: PackedStore) -> Tensor | None:
    """Where any object can be, bool `[G, G, G]`, grown by one cell; None without hulls."""
    union = store.hull_union()
    return None if union is None else dilate(torch.from_numpy(union))


def step_gflop(shapes: Sequence[tuple[int, int]], points: int, instances: int, bases: int) -> float:
    """GFLOP of one training step: layer products and mixing, forward and backward. Sines and the rest are not
    counted.

    A layer costs one product forward and two backward (the first layer one: points need no gradient); mixing
    costs one product forward and two backward.
    """
    products = [out * fan_in for out, fan_in in shapes]
    layers = 3 * sum(products) - products[0]
    mixed = sum(out * fan_in + out for out, fan_in in shapes)
    return 2 * (points * layers + 3 * instances * bases * mixed) / 1e9


# ------------------------------------------------------------------------------------------------------- data


def demo_data(root: Path | str, cars: int = 128, views: int = 16, resolution: int = 64, seed: int = 0) -> Path:
    """The data of `mnif-demo` (made by it or here), or whatever data set lies at `root` already."""
    root = Path(root)
    if not root.exists() or not any(root.iterdir()) or (root / "dataset.json").is_file():
        from mnif_nerf.data.generate.procedural import CAR_VIEWS, make_procedural_cars
        from mnif_nerf.data.generate.settings import CarCounts
        from mnif_nerf.files import read_json

        if not (root / "dataset.json").is_file() or not read_json(root / "dataset.json").get("complete"):
            pictures = dataclasses.replace(CAR_VIEWS, train_views=views, resolution=resolution)
            make_procedural_cars(root, CarCounts(num_train=cars, seed=seed), pictures)
    return root


def small_cars(folder: Path | str, cars: int, views: int, resolution: int, seed: int = 0) -> Path:
    """A few procedural cars, training split alone: what `tiled_store` repeats."""
    from mnif_nerf.data.generate.procedural import make_procedural_cars
    from mnif_nerf.data.generate.settings import CarCounts, ViewCounts

    target = Path(folder) / f"cars_{cars}x{views}x{resolution}_seed{seed}"
    counts, pictures = CarCounts(cars, 0, 0, seed), ViewCounts(views, heldout_views=0, resolution=resolution)
    return make_procedural_cars(target, counts, pictures, occupancy=False, progress=False)


_PER_VIEW = ("images", "silhouettes", "touching")


def write_tiles(base: PackedStore, scenes: int, folder: Path) -> None:
    """Write the large arrays of a store of `scenes` scenes, which repeats those of `base`, as .npy files."""
    views = base.num_views // base.num_scenes
    for name in (*_PER_VIEW, "hulls"):
        array = getattr(base, name)
        if array is None:
            continue
        count = scenes * (views if name in _PER_VIEW else 1)
        target = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (count, *array.shape[1:]))
        for first in range(0, count, len(array)):
            target[first : first + len(array)] = array[: count - first]
        target.flush()


def tiled_store(base: PackedStore, scenes: int, folder: Path | None = None) -> PackedStore:
    """A store of `scenes` scenes that repeats those of `base`.

    Args:
        base: scenes of equally many views each.
        scenes: how many to pretend.
        folder: where `write_tiles` has been; the arrays are mapped from there. None repeats them in memory.
    """
    views = base.num_views // base.num_scenes
    picks = np.arange(scenes) % base.num_scenes
    view_picks = (picks[:, None] * views + np.arange(views)).ravel()
    large: dict[str, Any] = {}
    for name in (*_PER_VIEW, "hulls"):
        array = getattr(base, name)
        if array is not None and folder is not None:
            large[name] = np.load(folder / f"{name}.npy", mmap_mode="c")
        elif array is not None:
            large[name] = np.asarray(array)[view_picks if name in _PER_VIEW else picks]
    return dataclasses.replace(
        base,
        names=tuple(f"{base.names[pick]}-{k}" for k, pick in enumerate(picks)),
        view_offsets=np.arange(scenes + 1, dtype=np.int64) * views,
        poses=base.poses[view_picks],
        intrinsics=base.intrinsics[view_picks],
        **large,
    )


def open_tiled(data: str, scenes: int, folder: str | None = None) -> PackedStore:
    """The tiled store over the training split at `data`."""
    return tiled_store(open_store(data, "train", progress=False), scenes, None if folder is None else Path(folder))


# ------------------------------------------------------------------------------------------ threads and clock


def set_threads(threads: dict[str, int]) -> None:
    """Set what `choose_threads` returned."""
    torch.set_num_threads(threads["torch"])
    kernel.set_num_threads(threads["kernel"])


def choose_threads(step: Callable[[], object], wanted: int = 0, repeats: int = 3) -> dict[str, int]:
    """Threads of torch and of our kernel: `wanted` of both, or (0) what `tune_threads` finds faster for
    `step`.
    """
    if wanted > 0:
        set_threads({"torch": wanted, "kernel": wanted})
    else:
        tune_threads(step, repeats)
    return {"torch": torch.get_num_threads(), "kernel": kernel.num_threads()}


def threads_text(threads: dict[str, int]) -> str:
    """How many threads torch has, and how many the compiled kernel: "2/2"."""
    return f"{threads['torch']}/{threads['kernel']}"


def num_cores() -> int:
    """Cores that this process may use, or OMP_NUM_THREADS where it is set."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdecimal() and int(wish) > 0:
        return int(wish)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has done what it was asked to."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def spent(device: torch.device | str) -> float:
    """CPU-seconds of this process, all threads together; on CUDA wall seconds."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(work: Callable[[], object], device: torch.device | str) -> float:
    """Wall seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
