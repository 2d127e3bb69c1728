"""The report of a diagnosis: diagnosis.json, report.md and figures, made of sections apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.diagnosis import plots
from mnif_nerf.diagnosis.prior_ablation import ABLATION_NOTE, ablation_table
from mnif_nerf.export.document import Section, Table, write_document
from mnif_nerf.machine import describe
from mnif_nerf.metrics.bases import DEAD_BELOW

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mnif_nerf.diagnosis.bases import BasesDiagnosis, LayerDiagnosis
    from mnif_nerf.diagnosis.smoothness import SmoothnessDiagnosis
    from mnif_nerf.pipelines.generation import MNIFPipeline

FORMAT = "mnif_nerf.diagnosis"
FORMAT_VERSION = 1


def write_report(folder: Path, about: dict[str, Any], sections: Sequence[Section]) -> list[Path]:
    """Write all files of a report, each whole or not at all; diagnosis.json comes last, so it means all are there.

    Args:
        folder: where to.
        about: the model and the settings, JSON-ready.
        sections: in order.

    Returns:
        the files' paths.

    Raises:
        MNIFError: a folder that cannot be written.
    """
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, **about, "machine": describe()}
    return write_document(folder, "diagnosis", "Diagnosis", head, [_head(about)], sections)


def describe_model(pipe: MNIFPipeline) -> dict[str, Any]:
    """What was diagnosed, JSON-ready."""
    model = pipe.model
    return {
        "modality": pipe.modality,
        "instances": len(pipe.names),
        "field": model.field.spec.to_dict(),
        "grid": model.grid,
        "adaptation": model.adaptation,
        "has_prior": pipe.prior is not None,
        "versions": model.versions,
    }


def bases_section(diagnosis: BasesDiagnosis) -> Section:
    """The part of basis diversity."""
    outputs, everywhere = diagnosis.outputs, diagnosis.dead_everywhere
    rows = []
    for number, layer in enumerate(diagnosis.layers, start=1):
        weights, used, use = layer.weights, layer.coefficients, layer.use
        rows.append(
            [
                str(number),
                f"{weights.rank:.1f} ({weights.untrained_rank:.1f})",
                f"{weights.correlation:.2f} ({weights.untrained_correlation:.2f})",
                f"{used.rank:.1f} ({used.untrained_rank:.1f})",
                f"{used.correlation:.2f} ({used.untrained_correlation:.2f})",
                f"{int(use.dead().sum())}",
                f"{int(use.static().sum())}",
                f"{100 * use.latent_share:.1f} %",
                f"{100 * use.network_share:.1f} %",
            ]
        )
    columns = ["layer", "weights: rank", "correlation", "coefficients: rank", "correlation", "dead", "static"]
    columns += ["latent share of coefficients", "of weights"]
    count = len(diagnosis.output_correlations)
    text: list[str | Table] = [
        f"{count} bases, evaluated at {diagnosis.points} coordinates of the data. In brackets: a field of the same "
        "shape that was never trained, with the same latents; a number equal to it says nothing about training.",
        f"**Outputs of the bases.** Effective rank {outputs.rank:.1f} ({outputs.untrained_rank:.1f}) of at most "
        f"{count}, mean absolute correlation {outputs.correlation:.2f} ({outputs.untrained_correlation:.2f}). "
        f"Bases dead in every layer: {', '.join(map(str, everywhere)) or 'none'}.",
        Table(columns, rows),
        "The effective rank (Roy and Vetterli 2007) is the exponential of the entropy of the singular values' shares: "
        "of how many equally strong directions the rows are made. Bases are taken as they are (uncentred: copies of "
        "one have rank 1), coefficients around their mean (centred: only what differs between instances counts) and "
        f"times the norm of their basis; theirs is at most {diagnosis.most}. Correlation is Pearson's, over points, "
        "weights or instances.",
        f"A basis is *dead* in a layer where its root mean square contribution (coefficient times norm) is under "
        f"{DEAD_BELOW:g} of the layer's typical one, and *static* where only the contribution's spread over instances "
        "is: it belongs to what all instances share. The latent share is the part of the mean square that is spread: "
        "of the contributions, and of the mixed weights.",
        "What this cannot say: with layer-wise coefficients a basis network never appears as a whole, so its outputs "
        "alone (each layer scaled to the norm that mixtures have) only hint at what its layers do in a mixture. "
        "Correlated bases may still differ in what matters, and a small change of weights may change a shape much.",
    ]
    figures = {
        "bases_spectra": plots.plot_spectra(diagnosis),
        "bases_use": plots.plot_use(diagnosis),
        "bases_correlation": plots.plot_correlations(diagnosis),
    }
    dead, static = (sum(int(kind.sum()) for kind in kinds) for kinds in zip(*map(_dead_and_static, diagnosis.layers)))
    summary = (
        f"outputs of {count} bases have effective rank {outputs.rank:.1f}; of {count * len(diagnosis.layers)} bases in "
        f"all layers {dead} are dead, and {static} the same for every instance."
    )
    return Section("bases", "Basis diversity", summary, diagnosis.facts(), text, figures)


def smoothness_section(diagnosis: SmoothnessDiagnosis, strips: Image.Image) -> Section:
    """The part of latent smoothness."""
    facts = diagnosis.facts()
    text = [
        f"In whitened coordinates of the training latents ({diagnosis.dim} dimensions of unit variance) and in root "
        "mean squares of the values. Cells hold the median and, in brackets, the quartiles.",
        *(["**No prior, so no samples:** train one with mnif-train-prior."] if len(diagnosis.instances) < 2 else []),
        _instances_table(facts["instances"]),
        "The local Lipschitz constant is the largest singular value of the Jacobian: how far values move per standard "
        "deviation along the most sensitive direction. Sensitivity is the Jacobian's Frobenius norm: the change for a "
        "step of one standard deviation in every coordinate at once. The stable rank, the square of their ratio, "
        "says in how many directions values move about equally fast. All are of one point: they say nothing of "
        "larger steps.",
        _paths_table(facts["paths"]),
        "Along straight paths: the Lipschitz constant in the middle; the angle by which the path of the values turns "
        "per unit of its length (curvature) and in all; its length over the straight distance of its ends (detour). A "
        "detour of 1 is a cross-fade of the ends, which for solids is not the better path: a surface that *moves* "
        "takes values from one side to the other one after the other, so it must turn and go around. Compare models "
        "on the same data, or kinds of paths of one model; by themselves the numbers are neither good nor bad.",
        *_unresolved_text(facts["paths"]),
        *_quality_text(facts["paths"]),
        *_relations_text(facts["smoothness_against_quality"]),
    ]
    figures = {"smoothness_lipschitz": plots.plot_lipschitz(diagnosis), "smoothness_paths": plots.plot_paths(diagnosis)}
    medians = [f"{name} {plots.number(group['lipschitz']['median'], 2)}" for name, group in facts["instances"].items()]
    summary = f"median local Lipschitz constant of {' and of '.join(medians)}{_unresolved(facts['paths'])}."
    pictures = {"smoothness_strips": strips}
    return Section("smoothness", "Latent smoothness", summary, facts, text, figures, pictures)


def _head(about: dict[str, Any]) -> str:
    model = about["model"]
    field = model["field"]
    settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
    return (
        f"A model of modality {model['modality']}, trained on {model['instances']} instances: "
        f"{field['num_bases']} bases of width {field['width']}, latents of {field['latent_dim']} numbers, "
        f"{field['coefficients']} coefficients. Settings: {settings}. All numbers are in diagnosis.json."
    )


def _dead_and_static(layer: LayerDiagnosis) -> tuple[Tensor, Tensor]:
    return layer.use.dead(), layer.use.static()


def _cell(quartile: dict[str, Any] | None, digits: int = 2) -> str:
    if quartile is None or quartile["count"] == 0:
        return "-"
    q1, median, q3 = (plots.number(quartile[name], digits) for name in ("q1", "median", "q3"))
    return f"{median} ({q1} to {q3})"


def _percent(quartile: dict[str, Any]) -> str:
    return "-" if quartile["mean"] is None else f"{100 * quartile['mean']:.2f} %"


def _instances_table(groups: dict[str, Any]) -> Table:
    columns = ["", "Lipschitz constant", "sensitivity", "stable rank", "distance to the nearest training latent"]
    solid = any("loose" in group for group in groups.values())
    if solid:
        columns += ["with loose parts", "volume in them", "empty"]
    rows = []
    for name, group in groups.items():
        row = [name, *(_cell(group[key]) for key in ("lipschitz", "sensitivity", "stable_rank", "nearest"))]
        if solid:
            count = group["components"]["count"]
            row += [f"{group['with_loose_parts']} of {count}", _percent(group["loose"]), str(group["empty"])]
        rows.append(row)
    return Table(columns, rows)


def _paths_table(kinds: dict[str, Any]) -> Table:
    columns = ["path", "Lipschitz constant", "curvature", "turning in all (degrees)", "distance of the ends", "detour"]
    rows = [
        [
            name,
            _cell(facts["lipschitz_in_the_middle"]),
            _cell(facts["curvature"], 1),
            _cell(facts["turning_degrees"], 0),
            _cell(facts["chord"]),
            _cell(facts["detour"]),
        ]
        for name, facts in kinds.items()
    ]
    return Table(columns, rows)


def _unresolved(kinds: dict[str, Any]) -> str:
    count = sum(facts["unresolved"] for facts in kinds.values())
    total = sum(facts["detour"]["count"] for facts in kinds.values())
    return f"; {count} of {total} paths change too fast to be followed" if count else ""


def _unresolved_text(kinds: dict[str, Any]) -> list[str]:
    found = _unresolved(kinds).removeprefix("; ")
    if not found:
        return []
    return [
        f"**{found}:** their values jump between one position and the next, so turning and detour are rough. In a "
        "trained model that does not happen; look at its reconstructions, the training may have broken down.\n"
    ]


def _quality_text(kinds: dict[str, Any]) -> list[str | Table]:
    solid = any("loose_between" in facts for facts in kinds.values())
    columns = ["path", "nearest training latent: ends", "between"]
    if solid:
        columns += ["volume in loose parts: ends", "between", "parts: ends", "between", "largest change of volume"]
    rows = []
    for name, facts in kinds.items():
        row = [name, _cell(facts["nearest_at_ends"]), _cell(facts["nearest_between"])]
        if solid:
            row += [_percent(facts["loose_at_ends"]), _percent(facts["loose_between"])]
            row += [f"{facts[f'components_{where}']['mean'] or 0:.2f}" for where in ("at_ends", "between")]
            row.append(_cell(facts["largest_change_of_volume"]))
        rows.append(row)
    meaning = (
        "The distance is the root mean square per whitened dimension of the prior, as mnif-sample prints it. "
        "A path may leave the training latents without leaving good shapes, and the other way round."
    )
    if solid:
        meaning = (
            "Parts are connected cells (also at a corner); volume in loose parts is outside the largest one; both are "
            "given as means. The change of volume is the largest departure from a straight course between the ends, "
            "relative to their mean. These see floating pieces and holes in a path, and are blind to a wrong but whole "
            "shape. " + meaning
        )
    return ["**Quality along the paths.**\n", Table(columns, rows), meaning]


def _relations_text(relations: list[dict[str, Any]]) -> list[str | Table]:
    names = {"loose": "share of the volume in loose parts", "nearest": "distance to the nearest training latent"}
    rows = []
    for relation in relations:
        numbers = ["-", "-"] if relation["rho"] is None else [f"{relation['rho']:.2f}", f"{relation['p']:.3f}"]
        rows.append([relation["group"], names[relation["measure"]], *numbers, str(relation["count"])])
    if not rows:
        return []
    return [
        "**Smoothness against quality.** Spearman's rank correlation of the local Lipschitz constant with a measure of "
        "quality, over instances; p is the probability of one as strong by chance.",
        Table(["over", "measure", "rho", "p", "number"], rows),
        "A dash: too few instances, or all with the same value. With some dozens of instances only strong relations "
        "(rho above 0.4 or so) show, several tests are made at once, and none says what causes what.",
    ]


def ablation_section(rows: list[dict[str, Any]], settings: dict[str, Any]) -> Section:
    """The part of what each choice of the latent prior is worth."""
    text: list[str | Table] = [
        f"Priors trained on {settings['training']} latents ({settings['steps']} steps), one change from the default at "
        f"a time, and compared with these and with {settings['held_out']} latents that none of them saw. *Kernel* is "
        "the unbiased squared kernel discrepancy (0 for equal distributions), *Fréchet* that of Gaussians, *1-NNA* the "
        "share of points told apart by their nearest neighbour (0.5 is ideal). Novelty is the distance of samples to "
        "their nearest training latent over the training latents' own spacing; spread is the samples' deviation over "
        "theirs.",
        ablation_table(rows),
        ABLATION_NOTE,
        "What this cannot say: all is measured on latents, not on the objects they decode to; with few held-out "
        "latents differences of some hundredths in 1-NNA are noise.",
    ]
    scored = [row for row in rows if row["held_out_1nna"] is not None and row["change"] != "real latents"]
    best = min(scored, key=lambda row: abs(row["held_out_1nna"] - 0.5))
    summary = (
        f"of {len(scored)} variants, {best['change']} / {best['variant']} is hardest to tell from held-out latents."
    )
    facts = {**settings, "rows": rows}
    return Section("prior", "The prior's part", summary, facts, text)
