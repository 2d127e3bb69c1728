"""What a checkpoint says beside its weights, and whether a model can take it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.spec import FieldSpec

CHECKPOINT_VERSION = 1


def describe_checkpoint(names: Sequence[str], spec: FieldSpec, adaptation: str) -> dict[str, Any]:
    """What a checkpoint must know beside the weights: above all the names that go with the latents.

    They are one text: torch takes 6 s to read a list of a million.
    """
    return {
        "version": CHECKPOINT_VERSION,
        "names": json.dumps(list(names)),
        "field": spec.to_dict(),
        "adaptation": adaptation,
    }


def names_in(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that `describe_checkpoint` was given; of older checkpoints, which have a list, too."""
    names = extra["names"]
    return tuple(json.loads(names) if isinstance(names, str) else names)


def check_checkpoint(state: Mapping[str, Any], spec: FieldSpec, adaptation: str, variational: bool = False) -> None:
    """Refuse a checkpoint (a model's state) that was written for another model.

    Args:
        state: state of the model, with what `describe_checkpoint` gave as `_extra_state`.
        spec: specification of the field that shall take the weights.
        adaptation: how that model's latents are found.
        variational: whether they are Gaussians rather than points.

    Raises:
        MNIFError: the checkpoint is of another version, of a field of another shape, or of the other way to
            find latents.
    """
    extra = state.get("_extra_state")
    extra = extra if isinstance(extra, dict) else {}
    version = extra.get("version")
    if version != CHECKPOINT_VERSION:
        raise MNIFError(
            f"the checkpoint has format {version}, this mnif_nerf reads {CHECKPOINT_VERSION}; "
            "use the version that trained it, or train again."
        )
    stored, own = FieldSpec.from_dict(extra["field"]).to_dict(), spec.to_dict()
    if stored != own:
        different = ", ".join(f"{key} {stored[key]}, here {own[key]}" for key in own if stored[key] != own[key])
        raise MNIFError(
            f"the checkpoint's field ({different}) does not fit the configuration; pass the settings it was "
            "trained with."
        )
    found = extra.get("adaptation", "auto-decoding")  # of 0.1.0, which does not say
    if found != adaptation:
        raise MNIFError(
            f"the checkpoint was trained by {found}, the configuration says {adaptation}; pass `adaptation` {found}."
        )
    gaussians = "latents.log_spread" in state
    if adaptation == "auto-decoding" and gaussians != variational:
        were, pass_on = ("Gaussians", "above 0") if gaussians else ("points", "0")
        raise MNIFError(f"the checkpoint's latents are {were}; pass a `latent_kl` {pass_on}, as it was trained with.")
