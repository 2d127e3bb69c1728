"""What a web page needs to draw new objects by itself: the latent prior, and the networks that a latent mixes.

`export/web_page/` has the other side, in JavaScript: `random.js` the random numbers, `prior.js` the denoiser, the
sampler and the weights of a latent's network. A seed gives the page the object that it gives `mnif-sample`, to the
rounding of the stored numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.web_numbers import Precision, base64_size, packed
from mnif_nerf.fields.modulations.mixture import as_mixture
from mnif_nerf.labels import GUIDANCE, MOST_GUIDANCE
from mnif_nerf.latents.rarity import LEAST_AMONG, NEIGHBOURS, TRIES, TYPICAL, Rarity
from mnif_nerf.priors.conditions import WAVES, ConditionalDenoiser, encode_labels
from mnif_nerf.priors.denoiser import Denoiser, time_embedding
from mnif_nerf.priors.linear_steps import MOST_EVALUATIONS, LinearSteps
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.schedulers import DEFAULT_STEPS, scheduler_from_config
from mnif_nerf.random import purpose_number

if TYPE_CHECKING:
    from mnif_nerf.pipelines.model_folder import StoredModel

_MOST_LATENTS = 1024  # training latents, evenly chosen, that the page compares a new one with


@dataclass(frozen=True)
class DrawSettings:
    """How the page draws: as `mnif-sample` with these options, but for integrity, which takes more than a page has.

    Attributes:
        seed: that the page offers first.
        sampler: a deterministic one; None for the prior's own.
        steps: evaluations of the denoiser; None for the sampler's own number.
        temperature: factor on the noise.
        typical: how rare what is drawn may be: see `mnif_nerf.latents.rarity`.
    """

    seed: int = 1
    sampler: str | None = None
    steps: int | None = None
    temperature: float = 1.0
    typical: float = TYPICAL


def check_drawable(model: StoredModel) -> LatentPrior:
    """The prior of a model of which a page can draw new objects.

    Raises:
        MNIFError: there is no prior, or it or the field is of a kind that the page's script does not know.
    """
    if model.prior is None:
        raise MNIFError("a page cannot draw new objects of a model without a latent prior; train one first.")
    as_mixture(model.field, "drawing new objects in a page")
    if not isinstance(model.prior.denoiser, Denoiser):
        raise MNIFError("a page can draw new objects with this package's own denoiser only, which this prior has not.")
    return model.prior


def estimate_drawing_bytes(model: StoredModel, precision: Precision) -> int:
    """About how much larger a page gets that can draw new objects.

    Raises:
        MNIFError: see `check_drawable`.
    """
    prior = check_drawable(model)
    numbers = sum(value.numel() for value in prior.denoiser.state_dict().values())
    numbers += model.field.spec.num_parameters + prior.whitening.basis.numel()
    numbers += min(len(model.latents), _MOST_LATENTS) * (prior.latent_dim + 1)
    return base64_size(numbers * (2 if precision == "float16" else 4)) + 8_000


@torch.no_grad()
def drawing_kit(model: StoredModel, settings: DrawSettings, precision: Precision) -> dict[str, Any]:
    """All that the page's script needs, JSON-ready.

    Args:
        model: with a prior.
        settings: how it draws. A sampler that adds noise, and more than 200 steps, are replaced by the prior's own.
        precision: of the stored numbers.

    Raises:
        MNIFError: see `check_drawable`; a sampler that does not go with the prior; NaNs.
    """
    prior = check_drawable(model)
    name, steps = _sampler(prior, settings)
    scheduler = scheduler_from_config(prior.scheduler, name, prior.denoiser.ddim_spacing)
    limit = int(scheduler.config.num_train_timesteps)
    sampler = LinearSteps.of(scheduler, min(steps, limit))
    tensors = {
        **_denoiser_tensors(prior, sampler.times),
        **_latent_tensors(prior),
        **_field_tensors(model),
    }
    known, rows = _known(model)
    tensors |= known
    return {
        "seed": settings.seed,
        "sampler": name,
        "steps": len(sampler.times),
        "temperature": settings.temperature,
        "typical": settings.typical,
        "tries": TRIES,
        "neighbours": NEIGHBOURS,
        "leastAmong": LEAST_AMONG,
        "purpose": str(purpose_number("typical")),
        "blocks": prior.denoiser.spec.blocks,
        "waves": WAVES,
        "attributes": [attribute.to_dict() for attribute in prior.attributes],
        "guidance": GUIDANCE,
        "mostGuidance": MOST_GUIDANCE,
        "runs": as_mixture(model.field, "drawing").runs,
        "labelRows": rows,
        "tensors": {"table": packed(sampler.table, "float32", "the sampler")}
        | {key: packed(value, precision, key) for key, value in tensors.items()},
    }


def _sampler(prior: LatentPrior, settings: DrawSettings) -> tuple[str, int]:
    own = prior.default_sampler
    name = own if settings.sampler not in ("ddim", own) else settings.sampler
    steps = settings.steps if name == settings.sampler or settings.sampler is None else None
    steps = DEFAULT_STEPS[name] if steps is None else steps
    return name, steps if steps <= MOST_EVALUATIONS else DEFAULT_STEPS[name]


def _denoiser_tensors(prior: LatentPrior, times: Tensor) -> Mapping[str, Tensor]:
    """The denoiser's parameters; its embedding of time as what it is at the sampler's times."""
    denoiser = prior.denoiser
    assert isinstance(denoiser, Denoiser)
    state = {name: value for name, value in denoiser.state_dict().items() if not name.startswith("time.")}
    embedded = time_embedding(times.to(prior.device), denoiser.spec.time_features)
    if isinstance(denoiser, ConditionalDenoiser):
        state |= {"null": denoiser.embed(torch.full((1, len(denoiser.spec.classes)), torch.nan, device=prior.device))}
    return {**state, "times": denoiser.time(embedded)}


def _latent_tensors(prior: LatentPrior) -> Mapping[str, Tensor]:
    """From what the sampler gives to latents, calibration and whitening in one."""
    spread = prior.whitening.basis.double() * prior.whitening.scale.double()
    gain, shift = prior.gain.double(), prior.shift.double()
    return {"latent.weight": spread * gain, "latent.bias": prior.whitening.mean.double() + spread @ shift}


def _field_tensors(model: StoredModel) -> Mapping[str, Tensor]:
    field = as_mixture(model.field, "drawing")
    weight, bias = field.affine_projection
    bases = torch.cat([gain * layer for gain, layer in zip(field.gains, field.bases)], dim=1)
    first = {"first": field.first_layer} if field.family.fixed_first else {}
    return {"projection.weight": weight, "projection.bias": bias, "bases": bases, **first}


def _known(model: StoredModel) -> tuple[Mapping[str, Tensor], list[list[int]]]:
    """Training latents with how isolated they lie, and the numbers of their classes (-1: not known, or a number)."""
    count = len(model.latents)
    rows = torch.linspace(0, count - 1, min(_MOST_LATENTS, count), dtype=torch.float64).round().long()
    latents = model.latents[rows.to(model.latents.device)]
    isolation = Rarity(latents).isolation
    classes: list[list[int]] = []
    attributes = () if model.prior is None else model.prior.attributes
    if attributes and model.labels is not None:
        numeric = torch.tensor([attribute.is_numeric for attribute in attributes])
        codes = encode_labels(model.labels.some(rows.tolist()), attributes)
        classes = codes.masked_fill(numeric, torch.nan).nan_to_num(-1).long().tolist()
    return {"known": latents, "isolation": isolation}, classes
