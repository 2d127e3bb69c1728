"""Pictures on their way through feature networks: made in parts, seen by all networks at once, and let go again.

Of a line of very many pictures (the paper's protocol has 704 objects x 251 views) only sums are kept, and the features
of some pictures of every object, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling.views import evenly_spaced
from mnif_nerf.evaluation.cache import Arrays
from mnif_nerf.evaluation.generated import EvaluationContext, PictureSet
from mnif_nerf.latents.ranks import Ranks
from mnif_nerf.metrics.distributions import (
    ResamplingSettings,
    bootstrap_feature_scores,
    feature_scores,
    score_name,
)
from mnif_nerf.metrics.feature_sums import FeatureSet, FeatureSums, frechet_distance_of_sums
from mnif_nerf.metrics.features import FeatureNetwork

Score = tuple[float, float, float]
_KIND = "features"


def features_of(
    context: EvaluationContext, pictures: PictureSet, networks: list[FeatureNetwork], title: str, every: bool = False
) -> list[FeatureSet]:
    """The features of each network, kept in the cache under its name; pictures are made where one lacks them.

    Args:
        context: with cache and protocol.
        pictures: the pictures.
        networks: what sees them.
        title: of the progress bar.
        every: whether the features of all pictures are kept, however many there are.
    """
    most = None if every or not is_streamed(context, pictures) else context.protocol.kept_pictures
    limit = {} if most is None else {"kept": most}
    keys = [{"network": network.name, "pictures": pictures.key, **limit} for network in networks]
    found = [context.cache.find(_KIND, key) for key in keys]
    missing = [k for k, arrays in enumerate(found) if arrays is None]
    if missing:
        own = range(context.ranks.number, pictures.objects, context.ranks.size)
        with context.stage(title, len(own) * pictures.per_object) as advance:
            made = _seen(pictures, own, [networks[k] for k in missing], most, advance)
        for k, features in zip(missing, _together(context.ranks, made)):
            found[k] = context.cache.keep(_KIND, keys[k], _arrays(features))
    return [_feature_set(arrays, context.device) for arrays in found if arrays is not None]


def scores_of(context: EvaluationContext, real: FeatureSet, fake: FeatureSet, network: str) -> dict[str, Score]:
    """Scores by name: (value, low, high), without an interval where there are too few objects for halves of them.

    Where one side has more pictures than are kept, the Fréchet distance is that of all of them, and has no interval.
    """
    protocol, nothing = context.protocol, float("nan")
    streamed = real.sums is not None or fake.sums is not None
    if min(len(side.groups.unique()) for side in (real, fake)) < 2 * (protocol.neighbours + 1):
        values = feature_scores(real.rows, fake.rows, network, protocol.neighbours, protocol.seed)
        kept = {name: value for name, value in values.items() if not name.startswith("kd_dev")}
        scores = {name: (value, nothing, nothing) for name, value in kept.items()}
    else:
        settings = ResamplingSettings(protocol.resamples, protocol.seed, frechet=not streamed)
        groups = (real.groups, fake.groups)
        found = bootstrap_feature_scores(real.rows, fake.rows, network, protocol.neighbours, settings, groups)
        scores = {name: (score.value, score.low, score.high) for name, score in found.items()}
    if streamed:
        whole = frechet_distance_of_sums(real.all_sums, fake.all_sums)
        scores = {score_name("fd", network): (whole, nothing, nothing)} | {
            name: score for name, score in scores.items() if name != score_name("fd", network)
        }
    return scores


def is_streamed(context: EvaluationContext, pictures: PictureSet) -> bool:
    """Whether only sums of these pictures' features are kept, and the features of some."""
    return pictures.objects * pictures.per_object > context.protocol.most_pictures


class _Kept:
    """What is kept of the features of one network."""

    def __init__(self, network: FeatureNetwork, streamed: bool) -> None:
        self.network = network
        self.rows: list[Tensor] = []
        self.groups: list[Tensor] = []
        self.sums = FeatureSums(network.dim, network.device) if streamed else None

    def add(self, batch: Tensor, groups: Tensor, kept: Tensor) -> None:
        """Take pictures `[B, 3, H, W]`, the objects that they show `[B]`, and whose features are kept, bool `[B]`."""
        features = self.network.batch(batch)
        if self.sums is not None:
            self.sums.add(features)
            chosen = kept.nonzero().flatten()
            features, groups = features[chosen.to(features.device)], groups[chosen]
        self.rows.append(features)
        self.groups.append(groups)

    def whole(self) -> FeatureSet:
        """All of it; features that are no numbers are refused."""
        rows = torch.cat(self.rows) if self.rows else torch.empty(0, self.network.dim, dtype=torch.float64)
        self.network.require_finite(rows)
        groups = torch.cat(self.groups) if self.groups else torch.empty(0, dtype=torch.int64)
        return FeatureSet(rows, groups, self.sums)


def _seen(
    pictures: PictureSet,
    objects: Sequence[int],
    networks: list[FeatureNetwork],
    most: int | None,
    advance: Callable[[], None],
) -> list[FeatureSet]:
    """The features of some objects by each network; of all their pictures, or sums and their part of `most`."""
    kept = [_Kept(network, most is not None) for network in networks]
    size = min(network.batch_size for network in networks)
    for images, groups, chosen in _batches(pictures, objects, most or 1, size):
        for each in kept:
            each.add(images.permute(0, 3, 1, 2), groups, chosen)
        for _ in range(len(images)):
            advance()
    return [each.whole() for each in kept]


def _together(ranks: Ranks, own: list[FeatureSet]) -> list[FeatureSet]:
    """What all processes have seen, in the order of objects, on the CPU where they are several."""
    if ranks.size == 1:
        return own
    parts = ranks.collect([_arrays(features) for features in own])
    whole = []
    for each in zip(*parts):
        sides = [_feature_set(arrays, None) for arrays in each]
        groups = torch.cat([side.groups for side in sides])
        order = torch.argsort(groups, stable=True)
        sums = None
        for side in sides:
            if side.sums is not None:
                sums = sums or FeatureSums(side.rows.shape[1])
                sums.merge(side.sums)
        whole.append(FeatureSet(torch.cat([side.rows for side in sides])[order], groups[order], sums))
    return whole


def _batches(
    pictures: PictureSet, objects: Sequence[int], most: int, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pictures uint8 `[size, H, W, C]`, of as many objects as that takes, numbers of these, and which are kept.

    Kept are `most` at about the most, spread evenly over objects and over the pictures of each.
    """
    shown = set(evenly_spaced(pictures.objects, most).tolist())
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []
    count = 0
    for k, images in zip(objects, pictures.each(objects)):
        kept = torch.zeros(len(images), dtype=torch.bool)
        if k in shown:
            kept[evenly_spaced(len(images), max(1, most // pictures.objects))] = True
        waiting.append((images, torch.full((len(images),), k), kept))
        count += len(images)
        while count >= size:
            parts = [torch.cat(part) for part in zip(*waiting)]
            yield parts[0][:size], parts[1][:size], parts[2][:size]
            waiting = [(parts[0][size:], parts[1][size:], parts[2][size:])]
            count -= size
    if count:
        images, groups, kept = (torch.cat(part) for part in zip(*waiting))
        yield images, groups, kept


def _arrays(features: FeatureSet) -> Arrays:
    arrays = {"features": features.rows.cpu().numpy(), "groups": features.groups.numpy()}
    if features.sums is not None:
        sums = features.sums
        arrays |= {"count": np.array([sums.count]), "mean": sums.mean.cpu().numpy()}
        arrays["scatter"] = sums.scatter.cpu().numpy()
    return arrays


def _feature_set(arrays: Arrays, device: torch.device | None) -> FeatureSet:
    rows = torch.from_numpy(arrays["features"]).to(device or "cpu")
    sums = None
    if "count" in arrays:
        sums = FeatureSums(rows.shape[1], rows.device)
        sums.count = int(arrays["count"][0])
        sums.mean, sums.scatter = (torch.from_numpy(arrays[name]).to(rows) for name in ("mean", "scatter"))
    return FeatureSet(rows, torch.from_numpy(arrays["groups"]), sums)
