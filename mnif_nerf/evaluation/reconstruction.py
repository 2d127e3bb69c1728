"""How well a model gives back what is there: training instances from their latents, unseen ones from found latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mnif_nerf.data.sampling.views import TrainingViews, ViewList, spread
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.generated import Bench, unseen_scenes
from mnif_nerf.evaluation.target import Instances
from mnif_nerf.metrics.grids import accuracy, iou, occupancy_psnr
from mnif_nerf.metrics.images import Lpips, psnr, ssim
from mnif_nerf.objects.radiance import NeuralObject
from mnif_nerf.pipelines.encoding import encode_store
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.grids import cell_centres
from mnif_nerf.rendering.plane import render_image
from mnif_nerf.rendering.views import render_view

Scores = dict[str, float]
Pair = tuple[Any, Any]
_PERCENTILES = {"p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95}
_SIZE = 128  # pixels of a picture of a solid
_ANGLES, _RADIUS = (25.0, 40.0), 1.05


@dataclass(frozen=True)
class Reconstruction:
    """Scores of some instances.

    Attributes:
        name: "training" or "unseen".
        about: one sentence on what was measured.
        names: `[K]` of the instances.
        scores: `[K]`, one of each.
        worst: `(name, (truth, reconstruction))`, pictures of the worst ones, the worst first.
    """

    name: str
    about: str
    names: list[str]
    scores: list[Scores]
    worst: list[tuple[str, Pair]]

    def table(self) -> dict[str, dict[str, float]]:
        """Of every metric: mean, deviation and percentiles over the instances."""
        table = {}
        for metric in self.scores[0]:
            values = np.array([score[metric] for score in self.scores])
            table[metric] = {"mean": float(values.mean()), "std": float(values.std())}
            table[metric] |= {name: float(np.percentile(values, share)) for name, share in _PERCENTILES.items()}
        return table


def reconstruct(bench: Bench, lpips: bool = False, num_worst: int = 6) -> list[Reconstruction]:
    """Scores of training instances, and of unseen ones where the data has some.

    Of radiance: held-out views of training scenes, and views of unseen scenes whose latents were found from the
    protocol's conditioning views. Of voxels and pictures: whole grids.

    Args:
        bench: model, data and sizes.
        lpips: whether pictures get the learned perceptual distance too.
        num_worst: how many pictures are kept.

    Raises:
        MNIFError: nothing is held out, or what LPIPS and fits raise.
    """
    score = Lpips() if lpips else None
    if bench.subject.modality == "radiance":
        groups = _radiance(bench, score, num_worst)
    else:
        groups = _grids(bench, score, num_worst)
    if not groups:
        raise MNIFError(f"{bench.subject.data}: no view is held out and no instance unseen; nothing can be scored.")
    return groups


# -------------------------------------------------------------------------------------------------- voxels, images


def _grids(bench: Bench, lpips: Lpips | None, num_worst: int) -> list[Reconstruction]:
    subject, protocol = bench.subject, bench.protocol
    pipe, kind = subject.pipe, {"voxel": "shapes", "image": "pictures"}[subject.modality]
    how = "a fit with frozen networks"
    if pipe.model.adaptation["method"] == "meta-learning":
        how = f"{pipe.model.adaptation['inner_steps']} inner steps"
    rows = subject.training_rows(protocol.training_instances)
    parts = [
        (
            "training",
            f"Training {kind} from their latents, over the whole grid.",
            subject.training(protocol.training_instances),
            pipe.latents[torch.from_numpy(rows)],
        )
    ]
    if "test" in subject.splits or "val" in subject.splits:
        split = "test" if "test" in subject.splits else "val"
        unseen = subject.references((split,), protocol.unseen_instances)
        chosen = torch.tensor([row for _, row in unseen.rows])
        latents = encode_store(pipe.model, unseen.stores[0], chosen)
        parts.append(("unseen", f"Unseen {kind} (split {split}), their latents by {how}.", unseen, latents))
    groups = []
    for name, about, instances, latents in parts:
        objects = [pipe.decode(latent, label) for latent, label in zip(latents, instances.names)]
        with bench.stage(f"reconstruction: {name}", len(objects)) as advance:
            groups.append(_score_grids(name, about, instances, objects, lpips, num_worst, advance))
    return groups


def _score_grids(
    name: str,
    about: str,
    instances: Instances,
    objects: list[NeuralObject],
    lpips: Lpips | None,
    num_worst: int,
    advance: Callable[[], None],
) -> Reconstruction:
    values, scores = instances.values(), []
    for item, truth in zip(objects, values):
        scores.append(_score_shape(item, truth) if item.modality == "voxel" else _score_picture(item, truth, lpips))
        advance()
    order = _worst(scores, num_worst)
    worst = [(instances.names[k], _grid_pictures(objects[k], values[k])) for k in order]
    return Reconstruction(name, about, instances.names, scores, worst)


@torch.no_grad()
def _score_shape(item: Any, truth: np.ndarray) -> Scores:
    cells = torch.from_numpy(truth).flatten()
    centres = cell_centres(len(truth), 3, item.latent.device).T * item.half_extent
    occupancy = 0.5 + 0.5 * torch.cat([item.value(part) for part in centres.split(1 << 15)]).cpu()
    inside = torch.from_numpy(item.occupancy(len(truth))).flatten()
    return {
        "iou": float(iou(inside, cells)),
        "accuracy": float(accuracy(inside, cells)),
        "psnr": float(occupancy_psnr(occupancy, cells)),
    }


def _score_picture(item: Any, truth: np.ndarray, lpips: Lpips | None) -> Scores:
    rendered = render_image(item.field, len(truth)).cpu()
    picture = torch.from_numpy(truth).float() / 255
    scores = {"psnr": float(psnr(rendered, picture))}
    if len(truth) >= 3:
        scores["ssim"] = float(ssim(rendered, picture))
    if lpips is not None:
        scores["lpips"] = lpips(rendered.expand(-1, -1, 3), picture.expand(-1, -1, 3))
    return scores


def _grid_pictures(item: NeuralObject, truth: np.ndarray) -> Pair:
    from mnif_nerf.export.pictures import to_image
    from mnif_nerf.rendering.cameras import orbit_pose
    from mnif_nerf.rendering.voxel_faces import render_cells

    if item.modality == "image":
        return to_image(truth), item.render(resolution=len(truth))
    cells = render_cells(torch.from_numpy(truth), orbit_pose(*_ANGLES, _RADIUS), Intrinsics.default(_SIZE))
    return to_image(cells), item.render(*_ANGLES, _SIZE, _RADIUS)


# -------------------------------------------------------------------------------------------------------- radiance


def _radiance(bench: Bench, lpips: Lpips | None, num_worst: int) -> list[Reconstruction]:
    subject, protocol = bench.subject, bench.protocol
    pipe, groups = subject.pipe, []
    views = TrainingViews(subject.data)
    names = views.train.names
    rows = [names.index(pipe.names[int(i)]) for i in subject.training_rows(protocol.training_instances)]
    held = [
        (names[row], pipe.instance(names[row]), _some(views.heldout(row), protocol.views_per_scene)) for row in rows
    ]
    scenes = [scene for scene in held if len(scene[2])]
    if scenes:
        about = "Views of training scenes that were held out from training."
        with bench.stage("reconstruction: training", len(scenes)) as advance:
            groups.append(_score_scenes("training", about, scenes, lpips, num_worst, advance))
    found = unseen_scenes(bench)
    if found is not None:
        unseen, latents = found
        scenes = [
            (name, pipe.decode(latents[k], name), unseen.scored.where(unseen.scored.scenes == k))
            for k, name in enumerate(unseen.names)
        ]
        given = len(unseen.conditioning) // max(1, len(unseen.names))
        split = unseen.scored.store.split
        about = f"Other views of unseen scenes (split {split}), their latents from {given} views each."
        with bench.stage("reconstruction: unseen", len(scenes)) as advance:
            groups.append(_score_scenes("unseen", about, scenes, lpips, num_worst, advance))
    return groups


def _some(views: ViewList, count: int) -> ViewList:
    wanted = np.zeros(len(views), dtype=bool)
    wanted[spread(len(views), count)] = True
    return views.where(wanted)


def _score_scenes(
    name: str,
    about: str,
    scenes: list[tuple[str, NeuralObject, ViewList]],
    lpips: Lpips | None,
    num_worst: int,
    advance: Callable[[], None],
) -> Reconstruction:
    """Scores of every scene, the mean over its views; the first view stands for it in pictures."""
    from mnif_nerf.export.pictures import to_image

    scores, pictures = [], []
    for _, item, views in scenes:
        each = []
        for position in range(len(views)):
            truth, rendered = view_pair(item, views, position)
            score = {"psnr": float(psnr(rendered, truth)), "ssim": float(ssim(rendered, truth))}
            if lpips is not None:
                score["lpips"] = lpips(rendered, truth)
            each.append(score)
            if position == 0:
                pictures.append((to_image(truth), to_image(rendered)))
        scores.append({metric: float(np.mean([score[metric] for score in each])) for metric in each[0]})
        advance()
    names = [scene for scene, _, _ in scenes]
    worst = [(names[k], pictures[k]) for k in _worst(scores, num_worst)]
    return Reconstruction(name, about, names, scores, worst)


def view_pair(item: NeuralObject, views: ViewList, position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A stored view `[H, W, 3]` in [0, 1], and the object seen by the same camera."""
    store, view = views.store, int(views.views[position])
    focal, cx, cy = (float(v) for v in views.intrinsics[position])
    camera = Intrinsics(focal, cx, cy, store.height, store.width)
    pose = torch.from_numpy(np.array(store.poses[view])).to(item.latent.device)
    rendered = render_view(item.field, pose, camera, item.grid, item.half_extent)["rgb"].cpu()
    return torch.from_numpy(np.array(store.images[view])).float() / 255, rendered


def _worst(scores: list[Scores], count: int) -> list[int]:
    """The instances of lowest IoU, or PSNR, the worst first."""
    key = "iou" if "iou" in scores[0] else "psnr"
    return sorted(range(len(scores)), key=lambda k: (scores[k][key], k))[:count]
