"""Several answers to a part: objects that a model's latent prior holds possible given an observation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf import modalities
from mnif_nerf.data.observations.observations import Cells, Photo, Picture, PosedViews
from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Label, Wish, label_text
from mnif_nerf.latents.evidence import PointEvidence
from mnif_nerf.latents.fitting import frozen
from mnif_nerf.latents.search import Evidence
from mnif_nerf.pipelines.fit.posterior import AnswerConfig, Answers
from mnif_nerf.pipelines.fit.preparation import photo_intrinsics, prepare_views
from mnif_nerf.pipelines.fit.scores import scores_of, unseen_truth
from mnif_nerf.pipelines.fit.task import FitTask

if TYPE_CHECKING:
    from mnif_nerf.pipelines.decoder import Decoder
    from mnif_nerf.pipelines.fit.fitting import Fit, FitSettings

__all__ = ["answer_scores", "draw", "require_prior", "with_answers"]

_POINTS = 512  # of a step: a quarter of what a fit takes, for each of several answers
_SHORT = 0.2  # of the way from the fit to the mean; see docs/answers.md
_COMPARED = 6  # answers that are compared with one another: 15 pairs


class Thinned:
    """Evidence that looks at fewer points in each step; pictures have few rays anyway."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def losses(self, latents: Tensor, step: int) -> Tensor:
        """See `Evidence`."""
        if isinstance(self.evidence, PointEvidence):
            return self.evidence.losses(latents, step, min(_POINTS, self.evidence.points_per_step))
        return self.evidence.losses(latents, step)

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """See `Evidence`."""
        return self.losses(latents, 0)


def require_prior(pipe: Decoder, wish: Wish | None = None) -> None:
    """Refuse a model that cannot draw answers.

    Raises:
        MNIFError: it has no latent prior, or one that does not know the label that is wished for.
    """
    if pipe.prior is None:
        raise MNIFError(
            "`samples` asks for answers that the latent prior holds possible, and this model has no prior yet; train "
            "one with mnif-train-prior --load-config, or leave it out."
        )
    if wish is not None:
        pipe.label_of(wish)


def with_answers(
    pipe: Decoder, fit: Fit, settings: FitSettings, name: str, on_step: Callable[[], None] | None = None
) -> Fit:
    """A fit with `settings.samples` answers, and a note where they show that what was seen speaks against their label.

    Args:
        pipe: the model.
        fit: what was found, and the task.
        settings: those of the fit.
        name: what answers are named after.
        on_step: called for each step of the search.

    Raises:
        MNIFError: no prior, or a search that diverged.
    """
    assert settings.samples is not None
    evidence, weight = _evidence(pipe, fit, settings), answer_weight(pipe, fit.task)
    latents = draw(pipe, evidence, settings, weight, on_step)
    answers = [pipe.decode(code, f"{name}-answer{k}") for k, code in enumerate(latents, start=1)]
    label = {} if settings.wish is None else pipe.label_of(settings.wish)
    for item in answers:
        item.label = label
    notes = (*fit.task.notes, *(_against(label, evidence, fit, latents) if label else []))
    return replace(fit, answers=answers, task=replace(fit.task, notes=notes))


def answer_weight(pipe: Decoder, task: FitTask) -> float:
    """How strongly answers are held to their draws: as the fit to the mean, and more by a few pictures, through whose
    rays all answers would be found at the same place."""
    few = isinstance(task.seen, (PosedViews, Photo)) and not task.complete
    return max(task.weight, pipe.kind.fitting.held_weight) if few else task.weight


def _against(label: Label, evidence: Evidence, fit: Fit, latents: Tensor) -> list[str]:
    """The sentence that what was seen speaks against a label, where it does.

    The fit is the search that no label holds. Answers explain what was seen a little less well than it does; how much
    is told in shares of the way from the fit to the mean, which is what the model says without any observation.
    """
    codes = torch.stack([fit.best.latent, fit.before.latent]).to(latents)
    own, none = evidence.score(codes).tolist()
    usual = float(evidence.score(latents).median())
    if usual <= own + _SHORT * max(none - own, 0.0):
        return []
    return [
        f"what was seen speaks against {label_text(label)}: such answers explain it clearly worse than the fit, which "
        f"knows no label (loss {usual:.3g} against {own:.3g}); leave the label out or ask for another."
    ]


def draw(
    pipe: Decoder,
    evidence: Evidence,
    settings: FitSettings,
    weight: float,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Latents `[settings.samples, D]` that explain some evidence; the other arguments are those of `with_answers`.

    Raises:
        MNIFError: no prior, one that does not know the label, or a search that diverged.
    """
    require_prior(pipe)
    prior = pipe.prior
    assert prior is not None
    assert settings.samples is not None
    config = settings.search_config(weight)

    def sample(count: int, seed: int) -> Tensor:
        return prior.sample(count, seed=seed, wish=settings.wish)

    answers = Answers(sample, Thinned(evidence), config.space(pipe.latents), config, AnswerConfig())
    with frozen(pipe.model.field):
        return answers.draw(settings.samples, settings.seed, on_step)


def _evidence(pipe: Decoder, fit: Fit, settings: FitSettings) -> Evidence:
    """What was observed; of a single picture, through the camera that the fit has found."""
    if fit.task.evidence is not None:
        return fit.task.evidence
    seen = fit.task.seen
    assert isinstance(seen, Photo)
    assert fit.poses is not None
    camera = photo_intrinsics(seen, pipe.model.camera["focal_over_width"], settings.field_of_view)
    views = PosedViews(
        seen.image[None],
        None if seen.silhouette is None else seen.silhouette[None],
        fit.poses[:1].cpu().numpy(),
        np.array([[camera.focal, camera.cx, camera.cy]], np.float32),
        ("photo",),
    )
    evidence = prepare_views(pipe.model, views, (), settings.seed).evidence
    assert evidence is not None
    return evidence


def answer_scores(
    fit: Fit, truth: PosedViews | Cells | Picture | None = None, field_of_view: float | None = None
) -> dict[str, Any]:
    """Numbers of the answers of a fit.

    Args:
        fit: with answers.
        truth: more than was observed; what the observation itself left over when None.
        field_of_view: as the fit of a photo was given it.

    Returns:
        `each`: what `scores` has of the fit, of every answer; `measure`: the likeness of two objects, in words, and
        `likeness`: its mean over pairs of answers (None of one); `to_fit`: its mean between an answer and the fit.
    """
    truth = unseen_truth(fit, truth)
    modality, some = modalities.get(fit.best.modality), fit.answers[:_COMPARED]
    pairs = [modality.likeness(a, b) for a, b in combinations(some, 2)]
    return {
        "each": [scores_of(item, fit, truth, field_of_view) for item in fit.answers],
        "measure": modality.fitting.measure,
        "likeness": float(np.mean(pairs)) if pairs else None,
        "to_fit": float(np.mean([modality.likeness(fit.best, item) for item in some])),
    }
