"""The authors' stage 2, a denoiser of latents in a Lightning checkpoint, as a prior of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.pipelines.official.files import left_out, read_torch_file, state_dict
from mnif_nerf.priors.functa import FunctaDenoiser, authors_names, check_released_network, functa_from_authors
from mnif_nerf.priors.prior import LatentPrior, PriorConfig
from mnif_nerf.priors.whitening import Whitening

_COUNTS = ("model_ema.decay", "model_ema.num_updates")


def map_prior(
    path: Path, latents: Tensor, weights: str | None = None, stage1: dict[str, Any] | None = None
) -> tuple[LatentPrior, str, list[str]]:
    """The prior of a stage-2 checkpoint.

    Args:
        path: a Lightning checkpoint, or its state dict alone.
        latents: `[N, D]`, the contexts it was trained on; their mean and deviation are not in the file.
        weights: "ema", "model", or None for the averaged ones where there are any.
        stage1: the stage-1 state, which the copy in this file has to equal; None does not compare.

    Returns:
        prior, "ema" or "model", and lines on what was read and what was left out.

    Raises:
        MNIFError: not such a checkpoint, another network, another stage 1, or latents of another size.
    """
    content = read_torch_file(path)
    around = sorted(str(key) for key in content if key != "state_dict") if isinstance(content, dict) else []
    inner = isinstance(content, dict) and "state_dict" in content
    state = state_dict(content["state_dict"] if inner else content, path)
    chosen, denoiser, used = _denoiser(state, weights, path)
    if denoiser.spec.dim != latents.shape[1]:
        raise MNIFError(
            f"{path}: its denoiser is for latents of {denoiser.spec.dim} numbers, but the contexts have "
            f"{latents.shape[1]}; the two come from different runs."
        )
    settings = PriorConfig(
        whitening="per-dimension",
        prediction="sample",
        width=denoiser.spec.width,
        blocks=denoiser.spec.blocks,
        batch_size=64,
        learning_rate=1e-4,
        ema_decay=0.9999,
        calibrate=False,
    )
    prior = LatentPrior.adopt(denoiser, authors_whitening(latents), latents, settings)
    numbers = sum(value.numel() for value in denoiser.parameters())
    what = {"ema": "averaged (EMA) weights", "model": "weights as they were trained, not averaged"}[chosen]
    lines = [f"prior of {numbers / 1e6:.1f} M numbers from {path}: {what}"]
    network = authors_names(denoiser.spec.blocks)
    copy = {name for name in state if name.startswith("decoder.")}
    known = {
        "model.*": ({f"model.{name}" for name in network}, "the weights that were not chosen"),
        "model_ema.*": ({*map(_averaged, network), *_COUNTS}, "averaged weights not chosen, or their own counters"),
        "decoder.*": (copy, _check_same_stage1({k.removeprefix("decoder."): state[k] for k in copy}, stage1, path)),
    }
    lines += left_out(str(path), set(state) - used, known)
    if inner and around:
        lines.append(f"left out of {path}: {', '.join(around)} (Lightning's own records)")
    return prior, chosen, lines


def authors_whitening(latents: Tensor) -> Whitening:
    """Their normalisation: every dimension by its mean and deviation, none left out."""
    table = latents.double()
    scale = table.std(dim=0) + 1e-8 if len(table) > 1 else torch.ones(table.shape[1], dtype=torch.float64)
    return Whitening(table.mean(dim=0), torch.eye(table.shape[1]), scale, "per-dimension")


def _denoiser(state: dict[str, Any], weights: str | None, path: Path) -> tuple[str, FunctaDenoiser, set[str]]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    if not plain:
        raise MNIFError(f"{path}: holds no denoiser (model.*); give their stage-2 checkpoint.")
    blocks = len({name.split(".")[1] for name in plain if name.startswith("blocks.")})
    names = list(authors_names(blocks))
    found = [name for name in names if _averaged(name) in tensors]
    chosen = weights or ("ema" if found else "model")
    check_released_network(plain, str(path))
    if chosen == "model":
        return chosen, functa_from_authors(plain, str(path)), {f"model.{name}" for name in names}
    if len(found) < len(names):
        raise MNIFError(
            f"{path}: {len(names) - len(found)} of {len(names)} averaged weights (model_ema.*) are missing; give "
            '`weights` "model" to take those that are not averaged.'
        )
    averaged = {name: tensors[_averaged(name)] for name in names}
    return chosen, functa_from_authors(averaged, str(path)), {_averaged(name) for name in names}


def _averaged(name: str) -> str:
    """The key of a parameter's average: its name without the dots."""
    return "model_ema." + name.replace(".", "")


def _check_same_stage1(copy: dict[str, Any], stage1: dict[str, Any] | None, path: Path) -> str:
    """Refuse a stage 2 whose own copy of stage 1 is another network; returns what is to be said of the copy."""
    if stage1 is None:
        return "a copy of stage 1"
    shared = [
        name for name, value in stage1.items() if isinstance(value, Tensor) and isinstance(copy.get(name), Tensor)
    ]
    differs = next((name for name in shared if not torch.equal(copy[name], stage1[name])), None)
    if differs is not None:
        raise MNIFError(
            f"{path}: was trained on the latents of another stage 1 (decoder.{differs} differs from the checkpoint); "
            "give the checkpoint and the contexts of the epoch that it names."
        )
    return "a copy of stage 1, equal to the checkpoint" if shared else "nothing of stage 1 to compare"
