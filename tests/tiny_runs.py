"""Settings that make a run of milliseconds of every method, and data for it; nerfstudio is not needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnif_nerf.data.geometry.surface_points import (
    NEAR_NOISE,
    WIDE_NOISE,
    PointCounts,
    SurfacePoints,
    from_lattice,
    to_lattice,
)
from mnif_nerf.data.stores.surface_pack import encode, write_part
from mnif_nerf.data.stores.surface_store import write_store
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run_settings import RunSettings

# What makes steps of a millisecond of each method.
_RADIANCE = {
    "pipeline.datamanager.scenes_per_step": 2,
    "pipeline.datamanager.rays_per_scene": 16,
    "pipeline.datamanager.carve_points": 8,
    "pipeline.datamanager.encode_rays_per_scene": 32,
    "pipeline.datamanager.eval_num_scenes": 2,
    "pipeline.fit_rays_per_scene": 16,
    "pipeline.fit_samples_per_ray": 4,
    "pipeline.model.grid_resolution": 16,
}
_GRID = {
    "pipeline.datamanager.instances_per_step": 4,
    "pipeline.datamanager.points_per_instance": 64,
    "pipeline.datamanager.encode_points": 128,
    "pipeline.datamanager.eval_num_instances": 2,
    "pipeline.datamanager.picture_size": 16,
    "pipeline.fit_points": 64,
    "pipeline.inner_lr": 1 / 32,
}
_META = {**_GRID, "pipeline.model.parametrization": "plain", "pipeline.adaptation": "meta-learning"}
_SURFACE = {
    "pipeline.datamanager.instances_per_step": 4,
    "pipeline.datamanager.points_per_instance": 64,
    "pipeline.datamanager.encode_points": 128,
    "pipeline.datamanager.eval_num_instances": 2,
    "pipeline.datamanager.picture_size": 16,
    "pipeline.fit_points": 64,
    "pipeline.inner_lr": 1 / 32,
    "pipeline.model.grid_resolution": 16,
}
_SETTINGS = {
    "mnif-sdf-lite": _SURFACE,
    "mnif-lite": _RADIANCE,
    # Voxels stand for meta-learning in many tests; DISTANCES makes the method what it is.
    "mnif-voxel-lite": {
        **_META,
        "pipeline.model.grid_resolution": 16,
        "pipeline.model.head": "signed",
        "pipeline.datamanager.cut_cells": 0.5,
    },
    "mnif-image-lite": _META,
    "mnif-signal-lite": _GRID,
}


DISTANCES = {
    "pipeline.model.head": "distance",
    "pipeline.model.parametrization": "centred",
    "pipeline.datamanager.cut_cells": 2.0,
    "pipeline.adaptation": "auto-decoding",
}


def cut_down(config: Any, method: str, steps: int, changes: dict[str, Any]) -> Any:
    """Settings of a method, or nerfstudio's configuration of it, made small; `changes` are by dotted path."""
    config.machine.device_type = "cpu"
    config.max_num_iterations = steps
    config.pipeline.threads = 1
    config.pipeline.train_prior = False
    for group in config.optimizers.values():
        group["scheduler"] = dataclasses.replace(group["scheduler"], warmup_steps=2, max_steps=steps)
    settings = {
        "steps_per_save": 0,
        "steps_per_eval_all_images": 0,
        "pipeline.fit_steps": 3,
        "pipeline.model.width": 8,
        "pipeline.model.hidden_layers": 1,
        "pipeline.model.num_bases": 4,
        "pipeline.model.latent_dim": 4,
        **_SETTINGS[method],
        **changes,
    }
    for path, value in settings.items():
        *parents, last = path.split(".")
        target = config
        for parent in parents:
            target = getattr(target, parent)
        assert hasattr(target, last), path
        setattr(target, last, value)
    return config


def tiny_settings(
    data: Path, output: Path, steps: int = 20, name: str = "run", method: str = "mnif-lite", **changes: Any
) -> RunSettings:
    """A method of `mnif-train` cut down to steps of a millisecond."""
    settings = get_method(method).new_run()
    settings.output_dir, settings.timestamp, settings.experiment_name = output, name, "tiny"
    settings.pipeline.datamanager.data = data
    return cut_down(settings, method, steps, changes)


def write_tiny_shapes(root: Path, counts: dict[str, int], resolution: int = 12) -> Path:
    """Boxes of random sizes as .npy voxel grids, `<root>/<split>/shape000.npy`."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            low, high = (
                generator.integers(1, resolution // 3, 3),
                generator.integers(resolution // 2, resolution - 1, 3),
            )
            cells = np.zeros((resolution,) * 3, dtype=bool)
            cells[tuple(slice(a, b) for a, b in zip(low, high))] = True
            np.save(root / split / f"shape{index:03d}.npy", cells)
    return root


def write_tiny_surfaces(root: Path, counts: dict[str, int], color: bool = True) -> Path:
    """Balls of random sizes and colours as points with signed distance, `<root>/points/<split>`."""
    generator = np.random.default_rng(0)
    numbers = PointCounts(200, 100, 200, 100)
    kind = np.repeat(np.arange(4, dtype=np.uint8), numbers.by_kind)
    noise = np.array([0.0, WIDE_NOISE, NEAR_NOISE, 0.0])[kind, None]
    for split, count in counts.items():
        parts = {}
        for index in range(count):
            radius, paint = generator.uniform(0.2, 0.4), generator.random(3)
            way = generator.normal(size=(numbers.total, 3))
            way /= np.linalg.norm(way, axis=1, keepdims=True)
            points = radius * way + noise * generator.normal(size=way.shape)
            points[kind == 0] = generator.uniform(-0.5, 0.5, (numbers.uniform, 3))
            points = from_lattice(to_lattice(points))
            distance = (np.linalg.norm(points, axis=1) - radius).astype(np.float32)
            colors = np.tile(paint.astype(np.float32), (len(points), 1)) if color else None
            normals = np.where(kind[:, None] == 3, way, np.nan).astype(np.float32)
            parts[f"ball{index:03d}"] = root / f"{split}{index}.npz"
            write_part(parts[f"ball{index:03d}"], encode(SurfacePoints(points, distance, colors, kind, normals)))
        write_store(root / "points" / split, split, parts, numbers, color)
    return root


def write_tiny_pictures(root: Path, counts: dict[str, int], resolution: int = 12, channels: int = 3) -> Path:
    """Gradients of random colours as .png, `<root>/<split>/picture000.png`."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 1, resolution)[:, None, None] * np.linspace(1, 0.3, resolution)[None, :, None]
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        for index in range(count):
            first, last = generator.integers(0, 256, (2, channels))
            picture = (first + ramp * (last - first)).astype(np.uint8)
            Image.fromarray(picture[..., 0] if channels == 1 else picture).save(
                root / split / f"picture{index:03d}.png"
            )
    return root
