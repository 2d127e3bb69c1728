"""From observations and a model to what a search descends on: which kinds fit which model, and with what settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.geometry.hull import carve_scene, cell_centres
from mnif_nerf.data.observations.observations import (
    Cells,
    Kind,
    MeshShape,
    Observation,
    Photo,
    Picture,
    PosedViews,
    Scan,
)
from mnif_nerf.data.observations.observed_region import Region, SolidPoints, points_of_cells, points_of_scan
from mnif_nerf.errors import MNIFError
from mnif_nerf.latents.evidence import PointPool, ViewEvidence, view_rays
from mnif_nerf.pipelines.fit.distances import fit_to_cells, fit_to_mesh, fit_to_scan
from mnif_nerf.pipelines.fit.task import FitTask
from mnif_nerf.rendering import grids
from mnif_nerf.rendering.alpha import has_alpha
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.cell_distances import cell_distances

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel

_OPAQUE = "nothing of the picture is transparent: what lies behind the object is fitted as part of it."
_NO_NORMALS = "the cloud has no normals: they were estimated."
_SAMPLES = 16
_SAMPLES_WITHOUT_HULL = 32
_MESH_VIEWS, _MESH_PIXELS = 24, 64
# Weights of the prior, below, are the best of those tried for the demos' models (docs/fit.md): the less was seen, the
# more the prior has to say.
_KINDS: dict[type, Kind] = {
    PosedViews: "views",
    Photo: "photo",
    MeshShape: "mesh",
    Cells: "voxels",
    Scan: "cloud",
    Picture: "image",
}


def prepare(
    model: StoredModel, observation: Observation, region: Region, views: tuple[int, ...] = (), seed: int = 0
) -> FitTask:
    """Turn an observation into evidence.

    Args:
        model: with the latents of training instances.
        observation: in the scene box.
        region: what counts as seen of it.
        views: the posed pictures to fit to; the others are scored. All when empty.
        seed: random seed of the draws.

    Raises:
        MNIFError: an observation of another modality, a region that does not fit it or leaves nothing.
    """
    check_modality(model, observation)
    if isinstance(observation, Picture):
        return _picture(model, observation, region, seed)
    if isinstance(observation, (PosedViews, Photo)):
        if not region.everything:
            raise MNIFError("`half`, `box` and `mask` are for shapes and images; choose pictures with `views`.")
        if isinstance(observation, Photo):
            return FitTask(observation, None, None, False, model.kind.fitting.photo_weight)
        return prepare_views(model, observation, views, seed)
    if views:
        raise MNIFError("`views` chooses among posed pictures; leave it out here.")
    if isinstance(observation, Scan):
        return _scan(model, observation, region, seed)
    if isinstance(observation, MeshShape):
        task = _mesh(model, observation, region, seed)
        return replace(task, notes=(*observation.notes, *task.notes))
    return _cells(model, observation, region, seed)


def _mesh(model: StoredModel, mesh: MeshShape, region: Region, seed: int) -> FitTask:
    if "views" in model.kind.fitting.kinds and not model.kind.fitting.distances and region.everything:
        return prepare_views(model, render_mesh(mesh, model.camera["focal_over_width"]), (), seed)
    cells = voxelise(mesh, (model.grid or {}).get("resolution", 64))
    if model.kind.fitting.distances and region.mask is None:
        return fit_to_mesh(model, mesh, cells, region, seed)
    return _cells(model, cells, region, seed)


def check_modality(model: StoredModel, observation: Observation) -> None:
    """Refuse an observation that the model knows nothing of.

    Raises:
        MNIFError: see `Modality.check_observation`; also models and pictures that cannot be fitted for other reasons.
    """
    model.kind.check_observation(_KINDS[type(observation)])
    if model.field.spec.head == "radiance-authors":
        raise MNIFError("models imported from the authors' release cannot be fitted: their density has another form.")
    if isinstance(observation, Picture) and observation.pixels.shape[2] != model.field.spec.out_features:
        raise MNIFError(
            f"a picture of {observation.pixels.shape[2]} channels does not fit this model, which has "
            f"{model.field.spec.out_features}."
        )


def voxelise(observation: MeshShape, resolution: int) -> Cells:
    """The mesh as a solid, also where it is not closed.

    Raises:
        MNIFError: it fills no cell.
    """
    from mnif_nerf.data.geometry.voxel_meshes import voxelise_surface
    from mnif_nerf.data.readers.voxel_files import require_shape

    cells = voxelise_surface(observation.surface, resolution)
    require_shape(cells, f"the mesh at {resolution}^3 cells")
    return Cells(cells)


def render_mesh(observation: MeshShape, focal_over_width: float) -> PosedViews:
    """Pictures of a mesh from all around, lit as training meshes are."""
    from mnif_nerf.data.generate.scene_jobs import training_poses
    from mnif_nerf.data.geometry.raytrace import SurfaceRenderer
    from mnif_nerf.data.readers.images import composite_white

    camera = Intrinsics.default(_MESH_PIXELS, focal_over_width)
    poses = training_poses(_MESH_VIEWS, np.random.default_rng(0))
    renderer = SurfaceRenderer(observation.surface)
    pixels = np.stack([renderer.render(pose, camera) for pose in poses])
    intrinsics = np.tile(np.float32([camera.focal, camera.cx, camera.cy]), (len(poses), 1))
    names = tuple(f"view {k}" for k in range(len(poses)))
    return PosedViews(composite_white(pixels), pixels[..., 3] > 127, poses, intrinsics, names)


def photo_intrinsics(photo: Photo, focal_over_width: float, field_of_view: float | None) -> Intrinsics:
    """The camera of a single picture: the model's training cameras', unless a field of view is given.

    Args:
        photo: the picture.
        focal_over_width: focal length over width of the model.
        field_of_view: horizontal, degrees.

    Raises:
        MNIFError: no angle between 1 and 170 degrees.
    """
    height, width = photo.image.shape[:2]
    if field_of_view is not None:
        if not 1 <= field_of_view <= 170:
            raise MNIFError(f"`field_of_view` {field_of_view}: must be 1 to 170 degrees.")
        focal_over_width = 0.5 / float(np.tan(np.radians(field_of_view) / 2))
    return Intrinsics(focal_over_width * width, width / 2, height / 2, height, width)


def prepare_views(model: StoredModel, views: PosedViews, chosen: tuple[int, ...], seed: int) -> FitTask:
    """Evidence of posed pictures; the arguments are those of `prepare`.

    Raises:
        MNIFError: a number of a picture that is not there, or pictures that do not look into the scene box.
    """
    count = len(views.images)
    wrong = [view for view in chosen if not 0 <= view < count]
    if wrong:
        raise MNIFError(f"`views` {wrong[0]}: there are {count} pictures, numbered from 0.")
    used = np.array(sorted(set(chosen))) if chosen else np.arange(count)
    rest = np.setdiff1d(np.arange(count), used)
    seen, truth = views.take(used), views.take(rest) if len(rest) else None
    device, notes = model.latents.device, []
    cells, outside, samples = model.cells, None, _SAMPLES_WITHOUT_HULL
    if seen.silhouettes is None:
        notes.append("the background is neither white nor transparent: it is fitted as if it were part of the object.")
    else:
        hull = carve_scene(seen.silhouettes, seen.poses, seen.intrinsics)
        if not hull.fits:
            notes.append("the object reaches beyond the scene box; normalise it, or choose a smaller scale.")
        if hull.state != "full":
            cells, samples = torch.from_numpy(hull.cells), _SAMPLES
            centres = cell_centres()
            outside = torch.from_numpy(centres[~hull.cells.reshape(-1)]).to(device)
    rays = view_rays(
        torch.from_numpy(seen.images).to(device),
        None if seen.silhouettes is None else torch.from_numpy(seen.silhouettes).to(device),
        torch.from_numpy(seen.poses).to(device),
        torch.from_numpy(seen.intrinsics).to(device),
        None if cells is None else cells.to(device),
    )
    losses = model.encoding.losses(samples)
    if seen.silhouettes is None:
        losses = replace(losses, mask_weight=0.0)
    evidence = ViewEvidence(model.field, rays, losses, model.kind.view_losses, outside=outside, seed=seed)
    return FitTask(seen, evidence, truth, len(used) > 8, model.kind.fitting.view_weight, tuple(notes))


def _cells(model: StoredModel, given: Cells, region: Region, seed: int) -> FitTask:
    size = len(given.values)
    known = np.ones_like(given.values) if given.known is None else given.known
    seen = known if region.everything else known & region.cells(size)
    if not (given.values & seen).any():
        raise MNIFError("the observed region holds no cell that is inside, so there is nothing to go by; widen it.")
    if model.kind.fitting.distances:
        return fit_to_cells(model, given, seen, seed)
    surface_only = model.kind.fitting.surface_only
    complete = bool(seen.all())
    targets, cut = _distances(model, given.values) if complete else (None, 1.0)
    pools = _pools(points_of_cells(given.values, seen, surface_only, targets), model.latents.device)
    evidence = model.kind.point_evidence(model.field, pools, seed=seed, cut=cut)
    truth = given if given.known is None else None
    notes = ("only the shape is learned from it; the colours are those of the prior.",) if surface_only else ()
    weight = 1e-3 if surface_only or complete else 3e-2
    return FitTask(Cells(given.values & seen, seen), evidence, truth, complete, weight, notes)


def _distances(model: StoredModel, values: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Targets [G, G, G] of a field that learned distances, and where they are cut (`PointBatch.cut`); None of others.
    Where only a part is seen, what is not could be nearer, so that no distance is known."""
    settings = model.encoding
    cut = 2 * settings.cut_cells
    if cut <= 1:
        return None, 1.0
    half_cells = -2 * (settings.unit_cells or len(values)) / len(values) * cell_distances(values)
    return np.clip(half_cells, -cut, cut).astype(np.float32), cut


def _scan(model: StoredModel, scan: Scan, region: Region, seed: int) -> FitTask:
    inside = region.contains(scan.cloud.points)
    if not inside.any():
        raise MNIFError("the observed region holds no point of the cloud; widen it.")
    normals = None if scan.cloud.normals is None else scan.cloud.normals[inside]
    colors = None if scan.cloud.colors is None else scan.cloud.colors[inside]
    cloud = replace(scan.cloud, points=scan.cloud.points[inside], normals=normals, colors=colors)
    told = cloud.notes if cloud.normals is not None else (*cloud.notes, _NO_NORMALS)
    if model.kind.fitting.distances:
        return fit_to_scan(model, Scan(cloud, scan.scanner), told, seed, outline=bool(inside.all()))
    points, whole = points_of_scan(cloud, scan.scanner, seed)
    near = 0.7 if len(points.far) else 1.0
    pools = _pools(points, model.latents.device, near)
    evidence = model.kind.point_evidence(model.field, pools, seed=seed)
    notes = ["the scan encloses a volume: all outside it counts as empty." if whole else "the scan is partial."]
    notes.extend(told)
    weight = 1e-3 if model.kind.fitting.surface_only else 3e-2
    return FitTask(Scan(cloud, scan.scanner), evidence, None, whole, weight, tuple(notes))


def _picture(model: StoredModel, picture: Picture, region: Region, seed: int) -> FitTask:
    height, width = picture.pixels.shape[:2]
    known = np.ones((height, width), dtype=bool) if picture.known is None else picture.known
    seen = known if region.everything else known & region.pixels((height, width))
    rows, columns = np.nonzero(seen)
    places = grids.cell_centres((height, width)).T[torch.from_numpy(seen.flatten())].contiguous()
    targets = picture.pixels[rows, columns].astype(np.float32) * (2.0 / 255.0) - 1.0
    device = model.latents.device
    pool = PointPool(places.to(device), torch.from_numpy(targets).to(device), 1.0)
    evidence = model.kind.point_evidence(model.field, [pool], min(1024, max(1, len(rows))), seed=seed)
    truth = picture if picture.known is None else None
    complete = bool(seen.all())
    opaque = has_alpha(picture.pixels) and bool((picture.pixels[seen, 3] == 255).all())
    weight, notes = 1e-4 if complete else 3e-2, (_OPAQUE,) if opaque else ()
    return FitTask(Picture(picture.pixels, seen), evidence, truth, complete, weight, notes)


def _pools(points: SolidPoints, device: Any, near: float = 0.5) -> list[PointPool]:
    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return [
        PointPool(tensor(points.near), tensor(points.near_targets)[:, None], near),
        PointPool(tensor(points.far), tensor(points.far_targets)[:, None], 1.0 - near),
    ]
