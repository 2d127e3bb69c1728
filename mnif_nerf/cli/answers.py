"""What mnif-fit --samples writes and says of the answers to a part."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.names import quoted
from mnif_nerf.progress import plain_console

if TYPE_CHECKING:
    from mnif_nerf.cli.fit import FitOptions
    from mnif_nerf.pipelines.fit.fitting import Fit

LATENTS, SHEET, FOLDER = "answers.safetensors", "answers.png", "answers"
MEASURES = {
    "psnr_seen": ("PSNR, observed", "{:.1f} dB"),
    "psnr_unseen": ("PSNR, not observed", "{:.1f} dB"),
    "iou_seen": ("IoU, observed cells", "{:.3f}"),
    "iou_unseen": ("IoU, other cells", "{:.3f}"),
    "iou": ("IoU, whole", "{:.3f}"),
    "color_seen": ("colour of the observed surface", "{:.1f} dB"),
    "distance_seen": ("distance of the points from the surface", "{:.4f}"),
}


def clear_answers(output: Path) -> None:
    """Remove what an earlier fit left in its folder."""
    for name in (LATENTS, SHEET):
        (output / name).unlink(missing_ok=True)
    if (output / FOLDER).is_dir():
        shutil.rmtree(output / FOLDER)


def report_answers(fit: Fit, truth: Any, field_of_view: float | None) -> dict[str, Any]:
    """What report.json has of the answers."""
    from mnif_nerf.export.document import rounded
    from mnif_nerf.pipelines.fit.answers import answer_scores

    return dict(rounded(answer_scores(fit, truth, field_of_view)))


def write_answers(fit: Fit, truth: Any, report: dict[str, Any], output: Path, options: FitOptions) -> list[str]:
    """Write answers.safetensors (all latents), answers.png, and of each answer its latent and mesh or picture.

    Returns:
        what was written, for the report; nothing of a fit without answers.
    """
    if not fit.answers:
        return []
    import torch

    from mnif_nerf import modalities
    from mnif_nerf.export.mesh_files import write_mesh
    from mnif_nerf.export.pictures import save_png
    from mnif_nerf.objects.solid import require_solid
    from mnif_nerf.pipelines.fit.pictures import answers_sheet
    from mnif_nerf.tensor_files import write_tensors

    (output / FOLDER).mkdir(exist_ok=True)
    write_tensors(output / LATENTS, {"latents": torch.stack([item.latent.float() for item in fit.answers])})
    solid = modalities.get(fit.best.modality).has_views
    for k, item in enumerate(fit.answers, start=1):
        stem = output / FOLDER / str(k)
        write_tensors(stem.with_suffix(".safetensors"), {"latent": item.latent.float()})
        if not solid:
            save_png(item.own_picture(options.resolution), stem.with_suffix(".png"))
        elif options.mesh_resolution:
            try:
                write_mesh(require_solid(item).mesh(options.mesh_resolution), stem.with_suffix(".glb"))
            except MNIFError as error:
                report["notes"].append(f"no mesh of answer {k}: {error}")
    save_png(answers_sheet(fit, truth, options.fov), output / SHEET)
    return [LATENTS, SHEET, f"{FOLDER}/"]


def say_answers(report: dict[str, Any]) -> None:
    """The fit beside the answers: the worst, the median and the best of them."""
    import numpy as np
    from rich.table import Table

    answers = report["answers"]
    table = Table("", "fit", f"{len(answers['each'])} answers: least", "median", "most")
    for key, (words, form) in MEASURES.items():
        values = [found[key] for found in answers["each"] if key in found]
        if values:
            own = report["scores"]["fit"].get(key)
            cells = [form.format(value) for value in (min(values), float(np.median(values)), max(values))]
            table.add_row(words, "-" if own is None else form.format(own), *cells)
    plain_console().print(table)
    if answers["likeness"] is not None:
        among, to_fit, what = answers["likeness"], answers["to_fit"], answers["measure"].replace(" to the best", "")
        print(f"likeness of two answers: {among:.3g}, of an answer and the fit: {to_fit:.3g} ({what})")
    if report["complete"]:
        print("note: all of it was seen, so the answers hardly differ; choose a part with --observed-half or a mask.")


def next_of_answers(report: dict[str, Any], output: Path, load_config: str) -> str:
    """The sentence with the next command."""
    if "fit.png" in report["files"]:
        return f"next: look at {output / SHEET}, or draw others with --seed 1"
    return (
        f"next: look at {output / SHEET}, then mnif-export-mesh --load-config {quoted(load_config)} --source latent "
        f"--latent-file {quoted(output / LATENTS)} --resolution 256"
    )
