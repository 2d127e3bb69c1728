"""How well a model gives back what is there: training instances from their latents, unseen ones from found latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mnif_nerf.data.sampling.views import TrainingViews, ViewList, evenly_spaced
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.generated import EvaluationContext
from mnif_nerf.evaluation.view_pictures import unseen_scenes
from mnif_nerf.metrics.images import Lpips, psnr, ssim
from mnif_nerf.modalities import Modality
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.objects.stored_views import render_view
from mnif_nerf.pipelines.encoding import encode_instances

Scores = dict[str, float]
Pair = tuple[Any, Any]
_PERCENTILES = {"p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95}
_SIZE = 128  # pixels of a picture of a solid


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
        """Mean, deviation and percentiles of every metric over the instances."""
        table = {}
        for metric in self.scores[0]:
            values = np.array([score[metric] for score in self.scores])
            table[metric] = {"mean": float(values.mean()), "std": float(values.std())}
            table[metric] |= {name: float(np.percentile(values, share)) for name, share in _PERCENTILES.items()}
        return table


def reconstruct(context: EvaluationContext, lpips: bool = False, num_worst: int = 6) -> list[Reconstruction]:
    """Scores of training instances, and of unseen ones where the data has some.

    Radiance fields are scored on held-out views of training scenes, and on views of unseen scenes whose latents were
    found from the protocol's conditioning views. Voxels and pictures are scored on whole grids, surfaces at points of
    their meshes.

    Args:
        context: model, data and sizes.
        lpips: whether pictures get the learned perceptual distance too.
        num_worst: how many pictures are kept.

    Raises:
        MNIFError: nothing is held out, or what LPIPS and fits raise.
    """
    score = Lpips() if lpips else None
    groups = (_instances if context.target.kind.by_instance else _radiance)(context, score, num_worst)
    if not groups:
        raise MNIFError(f"{context.target.data}: no view is held out and no instance unseen; nothing can be scored.")
    return groups


# ----------------------------------------------------------------------------------------- voxels, images, surfaces


def _instances(context: EvaluationContext, lpips: Lpips | None, num_worst: int) -> list[Reconstruction]:
    target, protocol = context.target, context.protocol
    pipe, nouns = target.pipe, target.kind.nouns
    how = "a fit with frozen networks"
    if pipe.model.inner_loop is not None:
        how = f"{pipe.model.inner_loop.inner_steps} inner steps"
    rows = target.training_rows(protocol.training_instances)
    parts = [
        (
            "training",
            f"Training {nouns} from their latents, {target.kind.scored}.",
            target.training(protocol.training_instances),
            pipe.latents[torch.from_numpy(rows)],
        )
    ]
    if "test" in target.splits or "val" in target.splits:
        split = "test" if "test" in target.splits else "val"
        unseen = target.references((split,), protocol.unseen_instances)
        chosen = torch.tensor([row for _, row in unseen.rows])
        latents = encode_instances(pipe.model, unseen.stores[0], chosen)
        parts.append(("unseen", f"Unseen {nouns} (split {split}), their latents by {how}.", unseen, latents))
    groups = []
    for name, about, instances, latents in parts:
        objects = [pipe.decode(latent, label) for latent, label in zip(latents, instances.names)]
        with context.stage(f"reconstruction: {name}", len(objects)) as advance:
            scores = []
            for item, truth in zip(objects, instances.each()):
                scores.append(target.kind.reconstruction_scores(item, truth, lpips))
                advance()
        worst = [
            (instances.names[k], _pair(target.kind, objects[k], instances.value(k))) for k in _worst(scores, num_worst)
        ]
        groups.append(Reconstruction(name, about, instances.names, scores, worst))
    return groups


def _pair(kind: Modality, item: NeuralObject, truth: Any) -> Pair:
    return kind.picture_of_data(truth, _SIZE), kind.beside_data(item, _SIZE)


# -------------------------------------------------------------------------------------------------------- radiance


def _radiance(context: EvaluationContext, lpips: Lpips | None, num_worst: int) -> list[Reconstruction]:
    target, protocol = context.target, context.protocol
    pipe, groups = target.pipe, []
    views = TrainingViews(target.data, target.heldout_views, target.pipe.model.reading)
    names = views.train.names
    rows = [names.index(pipe.names[int(i)]) for i in target.training_rows(protocol.training_instances)]
    held = [
        (names[row], pipe.instance(names[row]), _some(views.heldout(row), protocol.views_per_scene)) for row in rows
    ]
    scenes = [scene for scene in held if len(scene[2])]
    if scenes:
        about = "Views of training scenes that were held out from training."
        with context.stage("reconstruction: training", len(scenes)) as advance:
            groups.append(_score_scenes("training", about, scenes, lpips, num_worst, advance))
    found = unseen_scenes(context)
    if found is not None:
        unseen, latents = found
        scenes = [
            (name, pipe.decode(latents[k], name), unseen.scored.where(unseen.scored.scenes == k))
            for k, name in enumerate(unseen.names)
        ]
        given = len(unseen.conditioning) // max(1, len(unseen.names))
        split = unseen.scored.store.split
        about = f"Other views of unseen scenes (split {split}), their latents from {given} views each."
        with context.stage("reconstruction: unseen", len(scenes)) as advance:
            groups.append(_score_scenes("unseen", about, scenes, lpips, num_worst, advance))
    return groups


def _some(views: ViewList, count: int) -> ViewList:
    wanted = np.zeros(len(views), dtype=bool)
    wanted[evenly_spaced(len(views), count)] = True
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
    rendered = render_view(item, store.poses[view], views.intrinsics[position], (store.height, store.width))
    return torch.from_numpy(np.array(store.images[view])).float() / 255, rendered


def _worst(scores: list[Scores], count: int) -> list[int]:
    """The instances of lowest IoU, or PSNR, the worst first."""
    key = "iou" if "iou" in scores[0] else "psnr"
    return sorted(range(len(scores)), key=lambda k: (scores[k][key], k))[:count]
