"""The README of a published model: what it was trained on and how, what it scores, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnif_nerf.errors import MNIFError, require
from mnif_nerf.export.document import Table
from mnif_nerf.pipelines.model_folder import StoredModel

METRICS_FORMAT = "mnif_nerf.evaluation"
# Settings of the training that say nothing to a reader of the card.
_SILENT = ("machine", "finished", "data", "steps", "seed")
# What the card shows of a generated set, and how it is read. The rest is in metrics.json.
_SET_SCORES = {
    "chamfer_l2sq_mean_sum/mmd": "Chamfer MMD (squared, lower is better)",
    "chamfer_l2sq_mean_sum/cov": "Chamfer coverage (higher is better)",
    "chamfer_l2sq_mean_sum/1nna": "Chamfer 1-NNA (0.5 is ideal)",
    "fid": "FID (lower is better)",
    "fd_random-conv": "Fréchet distance by a fixed random network (no FID; lower is better)",
    "recall_random-conv": "recall by that network (higher is better)",
    "novelty_ratio": "novelty ratio (far below 1: copies)",
    "suspicious_share": "share of samples suspiciously near a training instance",
}


@dataclass(frozen=True)
class CardOptions:
    """What a person adds to the facts.

    Attributes:
        title: the card's heading.
        repo_id: what `from_pretrained` is given in the example: owner/name, or a folder.
        license: an identifier of the hub ("mit", "cc-by-4.0"), or None where it is not said.
        about: sentences of the author's own, above all where the data comes from and what may be done with it.
        pictures: file name inside the published folder to a caption.
        metrics: what `mnif-eval` measured of this very model (metrics.json), or None.
    """

    title: str
    repo_id: str
    license: str | None = None
    about: str = ""
    pictures: Mapping[str, str] | None = None
    metrics: Mapping[str, Any] | None = None


def model_card(model: StoredModel, options: CardOptions) -> str:
    """The card in the hub's format: facts for machines (YAML), then Markdown.

    Raises:
        MNIFError: metrics that no evaluation of this package has written.
    """
    parts = [
        f"---\n{_front_matter(model, options)}\n---\n",
        f"# {_plain(options.title)}\n",
        _summary(model),
        options.about.strip(),
        *(f"![{_plain(caption)}]({file})\n\n*{_plain(caption)}*" for file, caption in (options.pictures or {}).items()),
        _usage(model, options),
        _training(model),
        "" if options.metrics is None else _metrics(options.metrics),
        "## Files\n\nsafetensors and JSON, no pickle: config.json, field.safetensors (basis networks and projection), "
        "latents.safetensors (one code per training instance), prior/ (the latent prior). The format is described in "
        "docs/formats.md of mnif_nerf.",
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _front_matter(model: StoredModel, options: CardOptions) -> str:
    hub = require("huggingface_hub", "hub")

    results = []
    if options.metrics is not None:
        data = str(options.metrics["data"]["name"])
        for name, value in _reconstruction(options.metrics).get("unseen", {}).items():
            results.append(hub.EvalResult("other", data, f"{data}, unseen instances", name, round(value, 4)))
    card = hub.ModelCardData(
        library_name="mnif_nerf",
        license=options.license,
        tags=[*model.kind.card.tags, "neural-fields", "mnif"],
        model_name=options.title if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _summary(model: StoredModel) -> str:
    spec, count = model.field.spec, len(model.names)
    trained = f" trained on {count:,} instances" if count else ""
    data = _plain(model.training.get("data") or "")
    prior = "new ones are drawn from a latent prior" if model.prior is not None else "without a latent prior yet"
    return (
        f"A generative model of {model.kind.card.what}{trained}{f' of {data}' if data else ''}: a mixture of neural "
        f"implicit functions (mNIF, arXiv 2310.19464). {spec.num_bases} basis networks of width {spec.width} are "
        f"averaged into one small network of {spec.parameters_per_instance:,} parameters per object, by a latent code "
        f"of {spec.latent_dim} numbers; {prior}."
    )


def _usage(model: StoredModel, options: CardOptions) -> str:
    if model.prior is None:
        last = f"pipe.instance(0).{model.kind.card.usage}"
    else:
        last = f"pipe(num_samples=4, seed=0)[0].{model.kind.card.usage}"
    return (
        "## Use\n\n```python\nfrom mnif_nerf import MNIFPipeline\n\n"
        f"pipe = MNIFPipeline.from_pretrained({json.dumps(options.repo_id)})\n{last}\n```"
    )


def _training(model: StoredModel) -> str:
    training, spec = model.training, model.field.spec
    machine = training.get("machine") or {}
    rows = {
        "data": training.get("data"),
        "instances": len(model.names) or None,
        "modality": model.modality,
        "context adaptation": model.adaptation["method"],
        "steps": training.get("steps"),
        "seed": training.get("seed"),
        "networks": f"{spec.family}, {len(spec.shapes)} layers, width {spec.width}",
        "modulation": spec.modulation,
        "basis networks": spec.num_bases if spec.modulation == "mixture" else None,
        "coefficients": spec.coefficients if spec.modulation == "mixture" else None,
        "prior": None if model.prior is None else f"predicts {model.prior.config.prediction}",
        "machine": ", ".join(str(machine[key]) for key in ("processor", "device") if key in machine) or None,
        "versions": ", ".join(f"{name} {version}" for name, version in model.versions.items()),
    }
    rows |= {key.replace("_", " "): value for key, value in training.items() if key not in _SILENT}
    lines = [f"| {_plain(key)} | {_plain(_number(value))} |" for key, value in rows.items() if value is not None]
    return "## Training\n\n| | |\n| --- | --- |\n" + "\n".join(lines)


def _metrics(metrics: Mapping[str, Any]) -> str:
    protocol, machine = metrics["protocol"], metrics.get("machine", {})
    parts = [
        "## Metrics\n",
        f"By `mnif-eval`, protocol {protocol['name']}, seed {protocol['seed']}, on {machine.get('processor', '?')}; "
        "all numbers, intervals and settings are in metrics.json.\n",
    ]
    reconstruction = _reconstruction(metrics)
    if reconstruction:
        names = list(next(iter(reconstruction.values())))
        rows = [[f"{split} instances", *(f"{s[name]:.4g}" for name in names)] for split, s in reconstruction.items()]
        parts.append(Table(["reconstruction, mean", *(name.upper() for name in names)], rows).markdown())
    for kind in ("shapes", "pictures", "pictures_inception"):
        table = _set_table(kind, metrics.get(kind))
        parts += [] if table is None else [table.markdown()]
    return "\n".join(parts)


def _set_table(kind: str, section: Mapping[str, Any] | None) -> Table | None:
    """Every line's scores that the card shows, beside those of a perfect model; None where there are none."""
    if not section:
        return None
    rows = section["lines"]
    shown = [name for name in _SET_SCORES if any(name in row["scores"] for row in rows)]
    if not shown:
        return None
    title = f"generated {kind.split('_')[0]} against {section['references']} unseen"

    def cells(row: Mapping[str, Any]) -> list[str]:
        scores = row["scores"]
        return [_plain(row["label"]), *(f"{scores[n]['value']:.3g}" if n in scores else "" for n in shown)]

    return Table([title, *(_SET_SCORES[name] for name in shown)], [cells(row) for row in rows])


def _reconstruction(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Mean scores of "training" and "unseen" instances, where they were measured."""
    try:
        parts = metrics["reconstruction"]
        return {
            split: {name: float(value["mean"]) for name, value in parts[split]["summary"].items()}
            for split in ("training", "unseen")
            if parts.get(split)
        }
    except (KeyError, TypeError) as error:
        raise MNIFError(f"the metrics lack {error}; measure again with mnif-eval.") from None


def _plain(text: Any) -> str:
    """Text on one line that Markdown shows letter by letter, also in a table."""
    return re.sub(r"([\\`*\[\]<>|~#])", r"\\\1", " ".join(str(text).split()))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
