"""Checkpoints of the authors' release as models of this package; docs/import.md says what goes where.

Their coordinates differ from ours by an affine map per kind, which goes into the first layer:
`W (A x + c) + b = (W A) x + (W c + b)`, for every basis alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.modulations.mixture import MixtureField
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.pipelines.model_folder import StoredModel
from mnif_nerf.pipelines.official.files import finite, left_out, read_names, read_torch_file, shaped, state_dict, take
from mnif_nerf.pipelines.official.stage2 import map_prior

Matrix = tuple[tuple[float, ...], ...]
# The authors' inner loop at their batch of 32 (see `mnif_nerf.latents.meta`).
_META_LEARNING = {"method": "meta-learning", "inner_steps": 3, "inner_lr": 1.0 / 32, "first_order": False}
_RATES = "meta_sgd_lrs.meta_sgd_lrs"


@dataclass(frozen=True)
class OfficialKind:
    """What one of the authors' data sets implies.

    Attributes:
        modality: the name of one of `mnif_nerf.modalities`.
        out_features: number of outputs of the field.
        head, final_activation: of the field's specification.
        resolution: resolution of the training grid; None for radiance.
        meta_learned: whether latents come from their inner loop (and the file holds its rates).
        turn, shift: their coordinates are `turn @ ours + shift`.
    """

    modality: str
    out_features: int
    head: str
    final_activation: str
    resolution: int | None
    meta_learned: bool
    turn: Matrix
    shift: float = 0.0

    @property
    def in_features(self) -> int:
        """Coordinates of the field."""
        return len(self.turn)


# Their pixel i of n is at 2 i / (n - 1) - 1, ours at (2 i + 1) / n - 1: theirs are n / (n - 1) times ours.
_CORNERS = 64 / 63
KINDS = {
    "srn-cars": OfficialKind(
        "radiance", 4, "radiance-authors", "linear", None, False, ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ),
    # Their point p of 256 is at (p + 1) / 128 - 1, its centre at (p + 0.5) / 128 - 1.
    "shapenet": OfficialKind("voxel", 1, "signed", "sine", 64, True, ((1, 0, 0), (0, 1, 0), (0, 0, 1)), shift=1 / 256),
    "celeba-hq": OfficialKind("image", 3, "signed", "sine", 64, True, ((_CORNERS, 0), (0, _CORNERS))),
}


@dataclass
class Imported:
    """An imported model, and what is to be told about it, a line each."""

    model: StoredModel
    lines: list[str] = field(default_factory=list)


def import_official(
    checkpoint: Path,
    kind: str,
    contexts: Path | None = None,
    stage2: Path | None = None,
    w0: float | None = None,
    weights: str | None = None,
    names: Path | None = None,
) -> Imported:
    """Read the authors' files.

    Args:
        checkpoint: their stage 1, `metainits/epochN.pth`.
        kind: one of `KINDS`.
        contexts: the latents of the training instances, `contexts/context-epochN.pth`; None looks beside
            `metainits/`.
        stage2: their Lightning checkpoint, or None for a model without a prior.
        w0: the sine frequency, which is in none of the files; None takes that of the released configuration.
        weights: "ema" or "model", which of stage 2's weights; None prefers the averaged ones (ema).
        names: what the training instances are called, in the order of the authors' data set: a text file with one
            name a line, or a folder of instances, which they read in the order of their names. Commands that compare
            a model with its data, such as mnif-eval, need it; None numbers the instances.

    Raises:
        MNIFError: a file that is missing, not a checkpoint, of another kind, or incomplete.
    """
    if kind not in KINDS:
        raise MNIFError(f"`kind` {kind!r} is not known; choose one of {', '.join(KINDS)}.")
    if weights is not None and stage2 is None:
        raise MNIFError("`weights` chooses among the weights of a stage-2 checkpoint; give that with `stage2` too.")
    state = _stage1_state(checkpoint)
    mixture, rates, lines = map_field(state, kind, w0, str(checkpoint))
    contexts, found = _find_contexts(checkpoint, contexts)
    latents = read_contexts(contexts, mixture.spec.latent_dim)
    lines.append(f"{len(latents)} latents from {contexts}{' (found beside metainits/)' if found else ''}")
    if contexts.stem.endswith("-test"):
        lines.append("note: these are latents of test instances; the prior belongs to those of training instances")
    prior, chosen = None, None
    if stage2 is not None:
        prior, chosen, more = map_prior(stage2, latents, weights, state)
        lines += more
    settings = {"imported": "the authors' release", "kind": kind, "file": checkpoint.name, "stage2_weights": chosen}
    rule = KINDS[kind]
    grid = None if rule.resolution is None else {"resolution": rule.resolution, "channels": rule.out_features}
    model = StoredModel(
        field=mixture,
        latents=latents,
        names=read_names(names, len(latents)) or tuple(f"{kind}-{index:05d}" for index in range(len(latents))),
        training=settings,
        prior=prior,
        modality=rule.modality,
        grid=grid,
        rates=rates,
        adaptation=dict(_META_LEARNING) if rule.meta_learned else {"method": "auto-decoding"},
    )
    return Imported(model, lines)


def _stage1_state(path: Path) -> dict[str, Any]:
    content = read_torch_file(path)
    if isinstance(content, Tensor):
        raise MNIFError(
            f"{path}: holds one tensor of shape {list(content.shape)}, as their context files do; give it as "
            "`contexts`, and metainits/epochN.pth as the checkpoint."
        )
    if isinstance(content, dict) and "state_dict" in content:
        raise MNIFError(
            f"{path}: is a Lightning checkpoint, as of stage 2; give it as `stage2`, and metainits/epochN.pth as "
            "the checkpoint."
        )
    state = state_dict(content, path)
    if not any(name.startswith("model_param.") for name in state) and any(name.startswith("model.") for name in state):
        raise MNIFError(
            f"{path}: holds stage-1 weights averaged over training (ema-epochN.pth), which lack the bases' names and "
            "which the authors' code never evaluates; give the epochN.pth beside it."
        )
    return state


def _find_contexts(checkpoint: Path, contexts: Path | None) -> tuple[Path, bool]:
    if contexts is not None:
        return contexts, False
    checkpoint = checkpoint.absolute()  # a bare name has no parents to look at
    beside = checkpoint.parent.parent / "contexts" / f"context-{checkpoint.stem}.pth"
    if checkpoint.parent.name == "metainits" and beside.is_file():
        return beside, True
    raise MNIFError(
        "`contexts` is missing: a model needs the latents of its training instances, on which names, neighbours and "
        "the prior rest; give the authors' contexts/context-epochN.pth."
    )


def read_contexts(path: Path, latent_dim: int) -> Tensor:
    """The latents `[N, D]` float32 of a context file.

    Raises:
        MNIFError: not one table of finite latents of this size.
    """
    content = read_torch_file(path)
    if not isinstance(content, Tensor) or content.ndim != 2 or len(content) < 1:
        held = f"a tensor of shape {list(content.shape)}" if isinstance(content, Tensor) else "no single tensor"
        raise MNIFError(f"{path}: holds {held}, expected latents [instances, {latent_dim}]; give a context file.")
    if content.shape[1] != latent_dim:
        raise MNIFError(
            f"{path}: latents of {content.shape[1]} numbers, but the checkpoint takes {latent_dim}; the two come "
            "from different runs."
        )
    return finite(content, "the latents", str(path))


# --- stage 1 ----------------------------------------------------------------------------------------------


def map_field(
    state: dict[str, Any], kind: str, w0: float | None, place: str
) -> tuple[MixtureField, Tensor | None, list[str]]:
    """The field and the rates `[D]` (None where latents are not meta-learned) of a stage-1 state dict.

    Args:
        state: by the authors' names.
        kind: one of `KINDS`.
        w0: as in `import_official`.
        place: the file, for messages.

    Returns:
        field (evaluation mode), rates, and lines on what was read and what was left out.

    Raises:
        MNIFError: missing keys, shapes that do not fit each other or the kind, or numbers that are not finite.
    """
    rule = KINDS[kind]
    layers = _layer_tensors(state, kind, place)
    count, width = len(layers[0][0]), layers[0][0].shape[1]
    weight, bias, coefficients = _projection(state, count, len(layers), place)
    chosen, why = (w0, "as given") if w0 is not None else released_w0(kind, count, width)
    spec = FieldSpec(
        in_features=rule.in_features,
        out_features=rule.out_features,
        width=width,
        hidden_layers=len(layers) - 2,
        num_bases=count,
        latent_dim=weight.shape[1],
        w0=chosen,
        coefficients=coefficients,
        init="authors",
        final_activation=rule.final_activation,
        head=rule.head,
    )
    layers[0] = _our_coordinates(*layers[0], rule)
    ours = {f"bases.{layer}": torch.cat([w.flatten(1), b], dim=1) for layer, (w, b) in enumerate(layers)}
    with torch.device("meta"):
        mixture = MixtureField(spec)
    mixture.load_state_dict({**ours, "projection.weight": weight, "projection.bias": bias}, assign=True)
    used = {f"model_param.net.{k}.0.{part}" for k in range(len(layers)) for part in ("weight", "bias")}
    used |= {"latent_to_mixture.weight", "latent_to_mixture.bias"}
    rates = None
    if rule.meta_learned:
        rates = shaped(state, _RATES, (spec.latent_dim,), place).clamp(0.0, 1.0)  # as in their use of them
        used.add(_RATES)
    template = {name for name in state if name.startswith("model.net.")}
    lines = [
        f"{spec.num_bases} bases of {len(layers)} layers of width {spec.width}, latents of {spec.latent_dim} numbers",
        f"w0 {spec.w0:g}, {why}",
        *left_out(place, set(state) - used, {"model.net.*": (template, "a template that their code never evaluates")}),
    ]
    return mixture.eval().requires_grad_(False), rates, lines


def released_w0(kind: str, num_bases: int, width: int) -> tuple[float, str]:
    """The sine frequency of the released configuration of this size, and where it comes from."""
    if (kind, num_bases, width) == ("shapenet", 256, 64):
        return 50.0, "that of the released ShapeNet S (256 bases of width 64); the file does not say, `w0` overrides"
    return 30.0, "that of the released configurations but ShapeNet S; the file does not say, `w0` overrides"


def _layer_tensors(state: dict[str, Any], kind: str, place: str) -> list[tuple[Tensor, Tensor]]:
    """Weights `[K, out, in]` and biases `[K, out]` of every layer, checked against each other and the kind."""
    numbers = [int(match[1]) for name in state if (match := re.fullmatch(r"model_param\.net\.(\d+)\.0\.weight", name))]
    if not numbers:
        raise MNIFError(f"{place}: holds no basis networks (model_param.net.*); give their metainits/epochN.pth.")
    total = max(numbers) + 1
    first, last = (take(state, f"model_param.net.{k}.0.weight", place) for k in (0, total - 1))
    if first.ndim != 3 or last.ndim != 3 or total < 2:
        raise MNIFError(
            f"{place}: model_param.net.0.0.weight has shape {list(first.shape)} in a network of {total} layers, "
            "expected [bases, out, in] and two layers or more; it is not the authors' mixture."
        )
    rule, sizes = KINDS[kind], (int(first.shape[2]), int(last.shape[1]))
    if sizes != (rule.in_features, rule.out_features):
        fitting = [name for name, other in KINDS.items() if sizes == (other.in_features, other.out_features)]
        hint = f"give {fitting[0]} as `kind`" if fitting else f"no kind does (there are {', '.join(KINDS)})"
        raise MNIFError(f"{place}: its field maps {sizes[0]} coordinates to {sizes[1]} values, not {kind}'s; {hint}.")
    count, width = int(first.shape[0]), int(first.shape[1])
    ends = [rule.in_features, *[width] * (total - 1), rule.out_features]
    return [
        (
            shaped(state, f"model_param.net.{k}.0.weight", (count, ends[k + 1], ends[k]), place),
            shaped(state, f"model_param.net.{k}.0.bias", (count, ends[k + 1]), place),
        )
        for k in range(total)
    ]


def _projection(state: dict[str, Any], count: int, layers: int, place: str) -> tuple[Tensor, Tensor, str]:
    """The projection's weight `[K * L or K, D]` and bias: their rows are numbered k * L + layer, as ours are."""
    if "latent_to_mixture.0.weight" in state:
        raise MNIFError(
            f"{place}: its projection has two layers (mixture_type two-layers), which this package has not; only "
            "layerwise and all-layer models can be imported."
        )
    weight = take(state, "latent_to_mixture.weight", place)
    rows = count if weight.ndim == 2 and len(weight) == count else count * layers
    weight = shaped(state, "latent_to_mixture.weight", (rows, weight.shape[-1] if weight.ndim else 0), place)
    bias = shaped(state, "latent_to_mixture.bias", (rows,), place)
    return weight, bias, "network-wise" if rows == count else "layer-wise"


def _our_coordinates(weight: Tensor, bias: Tensor, rule: OfficialKind) -> tuple[Tensor, Tensor]:
    """The first layer for our coordinates; float64 keeps the rounding to one."""
    turn = torch.tensor(rule.turn, dtype=torch.float64)
    wide = weight.double()
    moved = bias.double() + rule.shift * wide.sum(dim=2)
    return (wide @ turn).float(), moved.float()
