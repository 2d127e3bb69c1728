"""Fitting a latent to observations that a model never saw, networks frozen, from several starts. No nerfstudio here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mnif_nerf.data.observations.files import detect_kind, read_observation
from mnif_nerf.data.observations.observations import (
    Kind,
    Observation,
    Photo,
    Placement,
    as_observation,
)
from mnif_nerf.data.observations.observed_region import Region
from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Wish
from mnif_nerf.latents.evidence import PointEvidence
from mnif_nerf.latents.fitting import frozen
from mnif_nerf.latents.meta import PointObjective, adapt
from mnif_nerf.latents.poses import Hypotheses, PhotoEvidence, PhotoSearch, PoseSearchConfig, Round
from mnif_nerf.latents.search import LatentSpace, Regulariser, SearchConfig, choose_starts, search
from mnif_nerf.limits import require_count
from mnif_nerf.pipelines.fit.answers import require_prior, with_answers
from mnif_nerf.pipelines.fit.posterior import MOST_ANSWERS, AnswerConfig
from mnif_nerf.pipelines.fit.preparation import check_modality, photo_intrinsics, prepare
from mnif_nerf.pipelines.fit.task import FitTask

if TYPE_CHECKING:
    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.decoder import Decoder

__all__ = ["Fit", "FitSettings", "fit_observation", "open_observation"]

_INNER_POINTS = 4096
# Times the largest mean square coordinate of a training latent: what lies beyond is far. In a model of cars unseen ones
# have 0.4 to 0.6 of it, an artist's toys 3 to 4 (docs/sdf.md).
_FAR = 2.0


@dataclass(frozen=True)
class FitSettings:
    """How a latent is searched.

    Attributes:
        restarts: number of starts: the mean, the training latents that explain most, samples of the prior. For a
            photo it is the number of pose and latent hypotheses that reach the last round.
        steps: gradient steps from each start; for a photo, of the last round.
        lr: rate, in standard deviations of the training latents.
        prior: what holds the latent, see `mnif_nerf.latents.search.SearchConfig`.
        prior_weight: None takes what was measured to suit the observation (docs/fit.md).
        seed: seed of draws and starts, 0 to 2^31 - 1.
        views: which posed pictures to fit to; the others are scored.
        region: what was seen of a shape or picture.
        field_of_view: a single picture's, horizontal, in degrees; the training cameras' when None.
        radius: distance of its camera; the training cameras' when None.
        samples: how many answers to draw from what the latent prior holds possible, 1 to 64; None draws none.
        wish: the label that answers shall have, and how strongly they are guided there. The fit itself goes by what was
            observed alone: of the prior it has no more than a place to start from.
    """

    restarts: int = 3
    steps: int = 200
    lr: float = 0.1
    prior: Regulariser = "whitened"
    prior_weight: float | None = None
    seed: int = 0
    views: tuple[int, ...] = ()
    region: Region = field(default_factory=Region)
    field_of_view: float | None = None
    radius: float | None = None
    samples: int | None = None
    wish: Wish | None = None

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise MNIFError(f"`restarts` {self.restarts} leaves nothing to do; use at least 1 (3 is usual).")
        if self.restarts > 64:
            raise MNIFError(f"`restarts` {self.restarts}: use at most 64.")
        if not 0 <= self.seed < 2**31:
            raise MNIFError(f"`seed` {self.seed}: must be 0 to {2**31 - 1}.")
        if self.radius is not None and not 0.5 < self.radius < float("inf"):
            raise MNIFError(f"`radius` {self.radius} puts the camera inside the object; use more than 0.5.")
        if self.samples is not None:
            require_count("`samples`", self.samples, 1, MOST_ANSWERS)
        elif self.wish is not None:
            raise MNIFError(
                "`label` is for answers, and the fit itself goes by what was observed alone; add `samples`, such as 6, "
                "or leave the label out."
            )
        self.search_config(0.0)

    def search_config(self, weight: float) -> SearchConfig:
        """Settings of the search, with the weight that suits the observation unless one was given."""
        return SearchConfig(self.steps, self.lr, weight if self.prior_weight is None else self.prior_weight, self.prior)


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        objects: one for each start, the best first.
        losses: `[K]` theirs, the prior's share included; what "best" means.
        starts: where each began.
        before: the mean object, which is what the model says without any observation.
        task: what was fitted to, and what is scored.
        poses: of a photo, the cameras `[K, 4, 4]` found with the objects; else None.
        seconds, cpu_seconds: of the search.
        answers: what the latent prior holds possible, where it was asked for; see `mnif_nerf.pipelines.fit.answers`.
    """

    objects: list[NeuralObject]
    losses: list[float]
    starts: list[str]
    before: NeuralObject
    task: FitTask
    poses: Tensor | None
    seconds: float
    cpu_seconds: float
    answers: list[NeuralObject] = field(default_factory=list)

    @property
    def best(self) -> NeuralObject:
        """The object of least loss."""
        return self.objects[0]


def open_observation(
    path: Path | str,
    pipe: Decoder,
    kind: Kind | Literal["auto"] = "auto",
    placement: Placement | None = None,
    scanner: tuple[float, float, float] | None = None,
) -> Observation:
    """Read an observation for a model.

    Args:
        path: file or folder.
        pipe: the model.
        kind: how to read it; by name and content when "auto".
        placement: how its coordinates become the scene box's.
        scanner: where a point cloud was scanned from, in the file's coordinates.

    Raises:
        MNIFError: unreadable, an observation of another modality, or a scanner where there is no point cloud.
    """
    path, placement = Path(path), placement or Placement()
    modality = pipe.model.kind
    found = detect_kind(path, modality.fitting.picture) if kind == "auto" else kind
    if found == "photo":  # a single picture, whatever it is to this model
        found = modality.fitting.picture
    modality.check_observation(found)
    observation = read_observation(path, found, placement, pipe.model.camera["radius"], pipe.model.grid, scanner)
    check_modality(pipe.model, observation)
    return observation


def fit_observation(
    pipe: Decoder,
    observation: Any,
    settings: FitSettings | None = None,
    name: str = "fit",
    on_step: Callable[[], None] | None = None,
) -> Fit:
    """Find the objects that explain an observation best.

    Args:
        pipe: the model; it is not changed.
        observation: an observation from `open_observation`, a path, or an array (see
            `mnif_nerf.data.observations.observations.as_observation`).
        settings: how.
        name: name of the best object.
        on_step: called `total_steps` times.

    Raises:
        MNIFError: what does not fit the model, or a search that diverged.
    """
    settings = settings or FitSettings()
    if isinstance(observation, (str, Path)):
        observation = open_observation(observation, pipe)
    given = settings.field_of_view if settings.radius is None else settings.radius
    if given is not None and not isinstance(as_observation(observation), Photo):
        which = "field_of_view" if settings.radius is None else "radius"
        raise MNIFError(f"`{which}` {given}: is of the camera of a single picture, and this is none; leave it out.")
    if settings.samples is not None:
        require_prior(pipe, settings.wish)
    task = prepare(pipe.model, as_observation(observation), settings.region, settings.views, settings.seed)
    config = settings.search_config(task.weight)
    space, wall, cpu = config.space(pipe.latents), time.perf_counter(), time.process_time()
    poses = None
    with frozen(pipe.model.field):
        if isinstance(task.seen, Photo):
            found = _search_photo(pipe, task.seen, settings, config, space, on_step)
            latents, losses, poses = found.latents, found.losses, found.poses
            starts = [f"pose hypothesis {k}" for k in range(len(latents))]
        else:
            (begin, starts), evidence = _starts(pipe, task, settings), task.evidence
            assert evidence is not None
            latents = search(evidence, begin, space, config, on_step)
            if settings.prior_weight is None and task.far_weight and _are_far(space, latents, pipe.latents):
                config = settings.search_config(task.far_weight)
                latents = search(evidence, begin, space, config)
                task = replace(task, notes=(*task.notes, _far_note(task)))
            losses = evidence.score(latents)
    held = config.penalty * space.coordinates(latents).square().mean(dim=1)
    losses = losses + held
    order = losses.argsort().tolist()
    result = Fit(
        [pipe.decode(latents[row], name if k == 0 else f"{name}-{k}") for k, row in enumerate(order)],
        [float(losses[row]) for row in order],
        [_start_name(pipe, starts[row]) for row in order],
        pipe.decode(pipe.latents.mean(dim=0), "mean"),
        task,
        None if poses is None else poses[order],
        time.perf_counter() - wall,
        time.process_time() - cpu,
    )
    return result if settings.samples is None else with_answers(pipe, result, settings, name, on_step)


def _are_far(space: LatentSpace, latents: Tensor, known: Tensor) -> bool:
    """Whether all of some latents `[K, D]` lie far beyond all training latents `[N, D]`."""
    found, usual = (space.coordinates(codes).square().mean(dim=1) for codes in (latents, known))
    return bool(found.min() > _FAR * usual.max())


def _far_note(task: FitTask) -> str:
    return (
        "it lies far outside of what the model was trained on, so the fit was held to that "
        f"{task.far_weight / task.weight:.0f} times as strongly as usual; --prior-weight {task.weight:g} follows the "
        "observation further, in mottled paint."
    )


def total_steps(observation: Observation, settings: FitSettings) -> int:
    """Steps that `fit_observation` reports."""
    own = _pose_config(settings).total_steps() if isinstance(observation, Photo) else settings.steps
    return own + (0 if settings.samples is None else AnswerConfig().steps)


def _starts(pipe: Decoder, task: FitTask, settings: FitSettings) -> tuple[Tensor, list[str]]:
    """Where the searches start; after meta-learning the inner loop's result first, where all was observed.

    Given only a part of an object, the inner loop lands far from what the model knows, and a search that starts there
    stays there (docs/fit.md). The search therefore starts from the mean. It also starts from the mean where the inner
    loop of training takes other data than points: that of radiance fields takes rays.
    """
    count, evidence = settings.restarts, task.evidence
    assert evidence is not None
    first: list[Tensor] = []
    as_trained = isinstance(evidence, PointEvidence) and evidence.in_training
    inner_loop, rates = pipe.model.inner_loop, pipe.model.rates
    if task.complete and as_trained and inner_loop is not None:
        assert isinstance(evidence, PointEvidence)
        assert rates is not None
        objective = PointObjective(pipe.model.field, evidence.draw(1, 0, _INNER_POINTS))
        first.append(adapt(objective, 1, rates, inner_loop))
    samples = pipe.latents.new_zeros(0, pipe.latents.shape[1])
    if pipe.prior is not None and count > 2:
        samples = pipe.sample_latents(count // 2, settings.seed, typical=1.0)
    rest = count - len(first)
    if rest == 0:
        return torch.cat(first), ["inner loop"]
    starts, names = choose_starts(evidence, pipe.latents, samples, rest, settings.seed)
    return torch.cat([*first, starts]), ["inner loop"] * len(first) + names


def _start_name(pipe: Decoder, start: str) -> str:
    word, _, row = start.partition(" ")
    return f"training instance {pipe.names[int(row)]}" if word == "nearest" and pipe.names else start


def _pose_config(settings: FitSettings) -> PoseSearchConfig:
    """The default schedule, widened where more hypotheses are to reach the last round than it would let through."""
    keep, usual = settings.restarts, PoseSearchConfig()
    schedule = tuple(replace(item, hypotheses=max(item.hypotheses, keep)) for item in usual.schedule)
    return replace(usual, schedule=schedule, last=Round(keep, max(settings.steps, 1), 256, 32, moving=True))


def _search_photo(
    pipe: Decoder,
    photo: Photo,
    settings: FitSettings,
    config: SearchConfig,
    space: LatentSpace,
    on_step: Callable[[], None] | None,
) -> Hypotheses:
    model, device = pipe.model, pipe.latents.device
    mask = None if photo.silhouette is None else torch.from_numpy(photo.silhouette).to(device)
    evidence = PhotoEvidence(
        torch.from_numpy(photo.image.copy()).to(device).float() / 255,
        mask,
        photo_intrinsics(photo, model.camera["focal_over_width"], settings.field_of_view),
        model.camera["radius"] if settings.radius is None else settings.radius,
        model.kind.view_losses,
    )
    searcher = PhotoSearch(model.field, evidence, space, config, _pose_config(settings), settings.seed)
    return searcher.run(pipe.latents.mean(dim=0, keepdim=True), settings.restarts, on_step)
