"""How well a model gives back what is there: training instances from their latents, unseen ones from found latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mnif_nerf.data.sampling.views import TrainingViews, ViewList, evenly_spaced
from mnif_nerf.errors import MNIFError
from mnif_nerf.evaluation.generated import EvaluationContext
from mnif_nerf.evaluation.target import Instances
from mnif_nerf.evaluation.view_pictures import unseen_scenes
from mnif_nerf.metrics.images import Lpips, psnr_each, ssim_each
from mnif_nerf.modalities import Modality
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.objects.stored_views import render_objects, render_views, takes_several
from mnif_nerf.pipelines.encoding import encode_instances

Scores = dict[str, float]
Pair = tuple[Any, Any]
Scene = tuple[str, NeuralObject, ViewList]
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
        latents = torch.stack(
            context.ranks.spread(
                chosen, lambda own: encode_instances(pipe.model, unseen.stores[0], own).cpu() if len(own) else own
            )
        ).to(pipe.latents.device)
        parts.append(("unseen", f"Unseen {nouns} (split {split}), their latents by {how}.", unseen, latents))
    groups = []
    for name, about, instances, latents in parts:
        objects = [pipe.decode(latent, label) for latent, label in zip(latents, instances.names)]

        def score(k: int, objects: list[Any] = objects, instances: Instances = instances) -> Scores:
            return target.kind.reconstruction_scores(objects[k], instances.value(k), lpips)

        scores = context.share_each(f"reconstruction: {name}", range(len(objects)), score)
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
        groups.append(_score_scenes(context, ("training", about), scenes, lpips, num_worst))
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
        groups.append(_score_scenes(context, ("unseen", about), scenes, lpips, num_worst))
    return groups


def _some(views: ViewList, count: int) -> ViewList:
    wanted = np.zeros(len(views), dtype=bool)
    wanted[evenly_spaced(len(views), count)] = True
    return views.where(wanted)


def _score_scenes(
    context: EvaluationContext,
    named: tuple[str, str],
    scenes: list[Scene],
    lpips: Lpips | None,
    num_worst: int,
) -> Reconstruction:
    """Scores of every scene, the mean over its views; the first view stands for it in pictures."""

    def score(some: Sequence[Scene], advance: Callable[[], None]) -> Iterator[tuple[Scores, Pair]]:
        for (_, _, views), rendered in zip(some, _rendered(some)):
            yield _score_scene(rendered, views, lpips)
            advance()

    found = context.share(f"reconstruction: {named[0]}", scenes, score)
    names, scores = [scene[0] for scene in scenes], [each for each, _ in found]
    worst = [(names[k], found[k][1]) for k in _worst(scores, num_worst)]
    return Reconstruction(*named, names, scores, worst)


def _rendered(scenes: Sequence[Scene]) -> Iterator[Iterable[torch.Tensor]]:
    """What objects look like through the cameras of their views: parts `[v, H, W, 3]` of each scene."""
    seen = (
        (item, (torch.from_numpy(np.array(views.store.poses[views.views])), torch.as_tensor(views.intrinsics)))
        for _, item, views in scenes
    )
    if not scenes:
        return
    size = (scenes[0][2].store.height, scenes[0][2].store.width)
    if takes_several(scenes[0][1]):
        yield from ([whole] for whole in render_objects(seen, size))
    else:
        yield from (render_views(item, *cameras, size) for item, cameras in seen)


def _score_scene(parts: Iterable[torch.Tensor], views: ViewList, lpips: Lpips | None) -> tuple[Scores, Pair]:
    """The mean scores of one scene, and the truth and the render of its first view; on the renders' device."""
    from mnif_nerf.export.pictures import to_image

    each: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": []}
    pair: Any = None
    first = 0
    for rendered in parts:
        stored = views.store.images[views.views[first : first + len(rendered)]]
        truth = torch.from_numpy(np.array(stored)).to(rendered.device).float() / 255
        first += len(rendered)
        pair = pair or (to_image(truth[0]), to_image(rendered[0]))
        each["psnr"].append(psnr_each(rendered, truth))
        each["ssim"].append(ssim_each(rendered, truth))
        if lpips is not None:
            scores = [lpips(mine, theirs) for mine, theirs in zip(rendered, truth)]
            each.setdefault("lpips", []).append(torch.tensor(scores))
    # Read out together: a GPU would be waited for at every view.
    values = {metric: torch.cat(found).double().cpu().numpy() for metric, found in each.items()}
    return {metric: float(np.mean(found)) for metric, found in values.items()}, pair


def _worst(scores: list[Scores], count: int) -> list[int]:
    """The instances of lowest IoU, or PSNR, the worst first."""
    key = "iou" if "iou" in scores[0] else "psnr"
    return sorted(range(len(scores)), key=lambda k: (scores[k][key], k))[:count]
