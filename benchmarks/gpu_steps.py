"""Steps of the methods on one device, each against the re-stated recipe of the authors: parts of `gpu.py`.

Our step is that of `mnif-train`: drawing, losses, gradients and optimisers. The recipes' are `recipe.py` (radiance, 8
scenes x 32 views x 512 pixels x 32 samples) and `meta_recipe.py` (grids, three second-order inner steps, points drawn
beforehand). The authors have none for signed distances, which are set beside their voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import meta_step
import torch
from gpu_report import Rows, Settings, added_memory, facts_of, pace, ratio
from meta_recipe import SHAPENET_S
from recipe import RecipeConfig, RecipeTrainer

from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.fields.network import layer_shapes
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents.recording import Again
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.rendering.batch import PointBatch

_SRN = RecipeConfig(scenes=8, views=32, pixels=512)
_CELEBA = dataclasses.replace(SHAPENET_S, in_features=2, out_features=3, latent_dim=1024, w0=30.0)
METHODS: dict[str, RecipeConfig] = {
    "mnif": _SRN,
    "mnif-srn-cars-s": _SRN,
    "mnif-voxel": SHAPENET_S,
    "mnif-shapenet-s": SHAPENET_S,
    "mnif-image": _CELEBA,
    "mnif-sdf": SHAPENET_S,
}
_BATCH, _POINTS = 32, 4096  # of the authors' steps of grids


def small(config: RecipeConfig) -> RecipeConfig:
    """A recipe of tiny sizes."""
    shape = {"width": 8, "hidden_layers": 1, "num_bases": 3, "latent_dim": 2}
    return dataclasses.replace(config, **shape, scenes=2, views=2, pixels=8, samples=4)


@dataclass(frozen=True)
class Size:
    """What one step works on, and what that takes at least.

    Attributes:
        instances, rays, points: of a step, all instances together; rays are 0 for grids.
        gflop: of the products of layers and of mixing, forward and backward.
        gbyte: moved to and from memory where every layer reads its inputs and writes its outputs in each product, and
            Adam reads or writes eight numbers for each parameter: what a step without fusion moves.
    """

    instances: int
    rays: int
    points: int
    gflop: float
    gbyte: float


def _gbyte(shapes: Any, points: int, units: int, parameters: int) -> float:
    return 4e-9 * (units * points * sum(out + fan_in for out, fan_in in shapes) + 8 * parameters)


def new_run(
    settings: Settings, name: str, data: Path, device: str | None = None, steps: int = 0, most: int = 0
) -> TrainingRun:
    """A run of a method as `mnif-train` starts it, without its own reports; a small one where sizes are tiny.

    Args:
        settings: of the part.
        name: of the method.
        data: its data.
        device: where; that of the settings when None.
        steps: its length; that of the method where 0.
        most: rays or points of an instance, at most; those of the method where 0.
    """
    run = get_method(name).new_run()
    run.data, run.output_dir, run.vis = data, settings.work / "runs", "none"
    run.machine.device_type, run.machine.seed = device or settings.device, settings.seed  # type: ignore[assignment]
    if steps:
        run.max_num_iterations = steps
    manager: Any = run.pipeline.datamanager
    for key in ("rays_per_scene", "points_per_instance") if most else ():
        if hasattr(manager, key):
            setattr(manager, key, min(getattr(manager, key) or most, most))
    if settings.tiny:
        model: Any = run.pipeline.model
        model.width, model.hidden_layers, model.num_bases, model.latent_dim = 16, 1, 4, 6
        sizes = {"instances_per_step": 2, "points_per_instance": 64, "encode_points": 64, "resolution": 0}
        sizes |= {"scenes_per_step": 2, "rays_per_scene": 16, "carve_points": 8, "eval_num_scenes": 2}
        for key, value in sizes.items():
            if hasattr(manager, key):
                setattr(manager, key, value)
    made = TrainingRun(run, say=_tell)
    if made.device.type == "cpu":
        made.trainer.replay(_tell, Again())  # so that the same code runs
    return made


def _tell(line: str) -> None:
    """Why steps are not played is worth a line of the log; what else a run says is not."""
    if "CUDA graph" in line:
        print(line, flush=True)


def data_of(settings: Settings, name: str) -> Path:
    """Where the part "data" has put what a method trains on."""
    return settings.work / "data" / get_method(name).modality


def our_size(run: TrainingRun) -> Size:
    """The size of a step of ours."""
    model, data = run.model, run.data
    spec: FieldSpec = model.field.spec
    manager: Any = data.settings
    drawn = data.drawn_per_step()
    is_radiance = hasattr(manager, "rays_per_scene")
    each = manager.scenes_per_step if is_radiance else manager.instances_per_step
    instances = min(each, len(model.names))
    points, rays = drawn, 0
    if is_radiance:
        rays = drawn
        points = drawn * run.settings.pipeline.model.samples_per_ray + instances * manager.carve_points  # type: ignore[attr-defined]
    parameters = sum(p.numel() for p in model.field.parameters())
    if model.meta is None:
        gflop, units = common.step_gflop(spec.shapes, points, instances, spec.num_bases), 3
    else:
        gflop = meta_step.step_gflop(spec, instances, points // instances, model.meta.first_order)
        units = meta_step.layer_units(model.meta.first_order)
    return Size(instances, rays, points, gflop, _gbyte(spec.shapes, points, units, parameters))


class RadianceRecipe:
    """The authors' step on pictures."""

    def __init__(self, settings: Settings, config: RecipeConfig, data: Path) -> None:
        if settings.tiny:
            config = small(config)
        self.trainer = RecipeTrainer(open_store(data, "train", progress=False), config, settings.device, settings.seed)
        shapes = layer_shapes(3, config.width, config.hidden_layers, 4)
        points, scenes = self.trainer.points_per_step, self.trainer.scenes_per_step
        gflop = common.step_gflop(shapes, points, scenes, config.num_bases)
        parameters = sum(p.numel() for p in self.trainer.field.parameters())
        self.size = Size(scenes, self.trainer.rays_per_step, points, gflop, _gbyte(shapes, points, 3, parameters))

    def steps(self, count: int) -> None:
        """Take so many steps."""
        for _ in range(count):
            self.trainer.step()


class GridRecipe:
    """The authors' meta-learning step on points of grids."""

    def __init__(self, settings: Settings, config: RecipeConfig) -> None:
        batch, points = settings.of((_BATCH, _POINTS), (2, 64))
        if settings.tiny:
            config = small(config)
        data = _random_points(config, batch, points, settings.seed).to(settings.device)
        self.step = meta_step.RecipeStep(config, data, False, settings.seed)
        spec = meta_step.field_spec(config)
        gflop, units = meta_step.step_gflop(spec, batch, points, False), meta_step.layer_units(False)
        gbyte = _gbyte(spec.shapes, batch * points, units, spec.num_parameters)
        self.size = Size(batch, 0, batch * points, gflop, gbyte)

    def steps(self, count: int) -> None:
        """Take so many steps, all on the same points: drawing them costs the recipe nothing here."""
        for _ in range(count):
            self.step.step()


def _random_points(config: RecipeConfig, batch: int, points: int, seed: int) -> PointBatch:
    generator = torch.Generator().manual_seed(seed)
    if config.in_features == 3:
        return meta_step.ellipsoids(batch, points, seed)
    places = 2 * torch.rand(batch, config.in_features, points, generator=generator) - 1
    targets = 2 * torch.rand(batch, config.out_features, points, generator=generator) - 1
    return PointBatch(torch.arange(batch), places, targets)


class Ours:
    """Steps of a run, one after the other."""

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.taken = run, 0
        run.model.train()
        run.trainer.choose_threads(run.settings.pipeline.threads, lambda line: None)

    def steps(self, count: int) -> None:
        """Take so many steps."""
        self.run.trainer.train(self.taken, self.taken + count)
        self.taken += count


def busy(steps: Callable[[int], Any], count: int) -> float:
    """Seconds of a step in which the device computes, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        steps(count)
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in found.key_averages()) / 1e6 / count


def measure(settings: Settings, rows: Rows, name: str) -> None:
    """One method: ours, then the recipe, then the comparison."""
    recipe = METHODS[name]
    device, seconds = settings.device, settings.of(4.0, 0.02)
    ours = Ours(new_run(settings, name, data_of(settings, name)))
    size = our_size(ours.run)
    memory = added_memory(lambda: ours.steps(3), device)
    took = pace(ours.steps, device, seconds, warm=settings.of(20, 1))
    note = "played as one launch" if ours.run.trainer.plays else "not played as one launch; the log says why"
    rows.add(_described(size), 1e3 * took, "ms per step", note=note)
    if device == "cuda":
        try:
            share, note = 100 * busy(ours.steps, 20) / took, "kernels by the profiler, time without it"
        except RuntimeError as error:  # no counters on this machine: the other numbers count all the same
            share, note = None, f"not measured: {str(error)[:100]}"
        rows.add("device busy", share, "%", note=note)
    ours.run.trainer.play_no_more()
    singly = pace(ours.steps, device, seconds, warm=settings.of(5, 1))
    rows.add("the same step, its operations launched one by one", 1e3 * singly, "ms per step")
    is_radiance = get_method(name).modality == "radiance"
    theirs = RadianceRecipe(settings, recipe, data_of(settings, name)) if is_radiance else GridRecipe(settings, recipe)
    their_memory = added_memory(lambda: theirs.steps(1), device)
    recipe_took = pace(theirs.steps, device, seconds, warm=1)
    _compare(settings, rows, (size, took, memory), (theirs.size, recipe_took, their_memory))


def _described(size: Size) -> str:
    rays = f", {size.rays:,} rays" if size.rays else ""
    return f"step of {size.instances} instances{rays}, {size.points:,} points"


def _compare(settings: Settings, rows: Rows, ours: Any, theirs: Any) -> None:
    """The rows of both, from (size, seconds, MiB)."""
    (size, took, memory), (other, other_took, other_memory) = ours, theirs
    rows.add(f"recipe's {_described(other)}", None, "ms per step", 1e3 * other_took)
    for what in ("rays", "points", "instances"):
        mine, reference = getattr(size, what) / took, getattr(other, what) / other_took
        if mine:
            rows.add(f"{what}/s", mine, "1/s", reference, ratio(mine, reference))
    peaks = facts_of(settings, "peaks")
    for what, peak, mine, reference in (
        ("products", peaks.get("gflops"), size.gflop / took, other.gflop / other_took),
        ("traffic without fusion", peaks.get("gbytes"), size.gbyte / took, other.gbyte / other_took),
    ):
        unit = "% of matrix peak" if what == "products" else "% of copy bandwidth"
        shares = [None if not peak else 100 * value / peak for value in (mine, reference)]
        rows.add(what, shares[0], unit, shares[1], ratio(*shares))
    if memory is not None and other_memory is not None:
        rows.add("memory of a step", memory, "MiB", other_memory, ratio(other_memory, memory))
