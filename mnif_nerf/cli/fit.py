"""mnif-fit: the object of a trained model that explains observations it never saw."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnif_nerf.cli.answers import MEASURES, clear_answers, next_of_answers, report_answers, say_answers, write_answers
from mnif_nerf.cli.generation_common import (
    LabelOption,
    default_output,
    label_names,
    label_wish,
    load_pipeline,
    prepare_output,
)
from mnif_nerf.errors import MNIFError, disk_errors, run_command
from mnif_nerf.limits import require_options
from mnif_nerf.names import file_name, quoted, shown
from mnif_nerf.progress import plain_console, progress_bar

if TYPE_CHECKING:
    from mnif_nerf.data.observations.observations import Cells, Observation, Picture, PosedViews
    from mnif_nerf.data.observations.observed_region import Region
    from mnif_nerf.pipelines.fit.fitting import Fit, FitSettings
    from mnif_nerf.pipelines.generation import MNIFPipeline


@dataclass
class FitOptions:
    """Find the latent of something the model never saw, with its networks as they are.

    The input is a scene folder (SRN: rgb/, pose/, intrinsics.txt; or nerfstudio's transforms.json), one picture (its
    pose is searched), a mesh, voxels (.npy, .npz, .binvox; NaN is unknown), a point cloud (.ply, .xyz, .npy, ...), or,
    for a model of images, a picture. Coordinates are the scene box's, half extent 0.5, z up, +x forward; meshes are
    centred and scaled to a diagonal of 1. Writes latent.safetensors, before_after.png, views/*.png, mesh.glb and
    report.json.
    """

    load_config: str
    """The run's config.yml, the run folder, a model folder, or owner/name on the Hugging Face Hub."""
    input: Path
    """What was observed: a file, or a scene folder."""
    kind: Literal["auto", "views", "photo", "mesh", "voxels", "cloud", "image"] = "auto"
    """What the input is; by default by its name and content."""
    views: tuple[int, ...] = ()
    """Numbers (from 0) of the posed pictures to fit to; the others are scored. All by default."""
    observed_half: Literal["front", "back", "left", "right", "top", "bottom"] | None = None
    """Only this half of the shape (or picture) counts as seen; the other half is completed."""
    observed_box: tuple[float, float, float, float, float, float] | None = None
    """Only this box (x0 y0 z0 x1 y1 z1, scene box coordinates) counts as seen."""
    observed_mask: Path | None = None
    """Only these cells (the input's grid; for a mesh, the model's) or pixels (the model's size, white is seen)."""
    scanner: tuple[float, float, float] | None = None
    """Where a point cloud was scanned from: what lies between is empty, and normals point there."""
    truth: Path | None = None
    """The whole thing, to score against: a scene folder for pictures; a mesh or voxels (of the input's size) for
    shapes; a picture."""
    restarts: int = 3
    """Starts (the mean, near training instances, prior samples), the best of which is kept."""
    steps: int = 200
    """Gradient steps from each start."""
    lr: float = 0.1
    """Rate, in standard deviations of the training latents."""
    prior: Literal["whitened", "per-dimension", "none"] = "whitened"
    """What holds the latent: a Gaussian along principal directions, one along the latents' own axes, or nothing."""
    prior_weight: float | None = None
    """Weight of the prior; by default what was measured for this kind of observation. More: nearer to the typical."""
    samples: int | None = None
    """Draw so many answers (1 to 64) besides: objects that the latent prior holds possible given what was seen. They
    agree with it about as well as the fit does, and differ where nothing was seen."""
    label: LabelOption = ()
    """What the answers of --samples shall be, as attribute=value; as in mnif-sample."""
    guidance: float | None = None
    """How strongly they are drawn to their label; as in mnif-sample."""
    seed: int = 0
    """Same seed, same fit, same answers."""
    up: Literal["auto", "x", "y", "z"] = "auto"
    """The file's up axis; by default y for .glb, .gltf and .obj meshes, z for all else."""
    forward: Literal["auto", "+x", "-x", "+y", "-y", "+z", "-z"] = "auto"
    """The file's forward axis; by default +z where y is up, else +x."""
    normalise: Literal["auto", "yes", "no"] = "auto"
    """Centre and scale: a mesh or cloud to a diagonal of 1, cameras to the model's distance. By default meshes only."""
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """This point of the file becomes the origin; for a normalised mesh, this point of the scene box."""
    scale: float = 1.0
    """The file's coordinates times this, after --centre."""
    fov: float | None = None
    """Horizontal field of view of a single picture, in degrees; by default the training cameras'."""
    radius: float | None = None
    """Distance of a single picture's camera from the object; by default the training cameras'. It is refined."""
    mesh_resolution: int = 128
    """Cells along an edge of the box for mesh.glb; 0 writes none."""
    resolution: int = 256
    """Pixels along an edge of the pictures in views/."""
    output: Path | None = None
    """Folder to write to; by default <run>/fits/<name of the input, and what was chosen>."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""


def main(options: FitOptions) -> Path:
    """Run the command; returns the output folder.

    Raises:
        MNIFError: an option out of range, an observation that cannot be read or that the model knows nothing of, a
            fit that diverged, or a folder that cannot be written.
    """
    settings = _settings(options)
    if not options.input.exists():
        raise MNIFError(f"{options.input}: no such file or folder.")
    pipe = load_pipeline(options.load_config, options.device)
    from mnif_nerf.objects.base import check_pixels
    from mnif_nerf.pipelines.fit.answers import require_prior
    from mnif_nerf.pipelines.fit.fitting import fit_observation, open_observation, total_steps

    if settings.samples is not None:
        require_prior(pipe, settings.wish)
    observation = open_observation(options.input, pipe, options.kind, _placement(options), options.scanner)
    truth = _truth(options, pipe, observation)
    check_pixels(options.resolution, pipe.model.kind.rays_per_pixel)
    output = options.output or default_output(options.load_config, "fits", _run_name(options))
    prepare_output(output)
    with progress_bar("fitting", total_steps(observation, settings)) as advance:
        fit = fit_observation(pipe, observation, settings, file_name(options.input.stem), advance)
    report = _report(pipe, fit, truth, options)
    if fit.answers:
        report["answers"] = report_answers(fit, truth, options.fov)
    _write(fit, truth, report, output, options)
    _say(report, output, options)
    return output


def _settings(options: FitOptions) -> FitSettings:
    from mnif_nerf.data.observations.observed_region import Region
    from mnif_nerf.pipelines.fit.fitting import FitSettings

    if options.resolution < 1:
        raise MNIFError(f"--resolution {options.resolution} leaves nothing to see; use at least 1.")
    require_options(options)
    if options.mesh_resolution < 0:
        raise MNIFError(f"--mesh-resolution {options.mesh_resolution}: use 0 for no mesh, or 8 and more.")
    region: Region = Region(options.observed_half, options.observed_box, options.observed_mask)
    return FitSettings(
        options.restarts, options.steps, options.lr, options.prior, options.prior_weight, options.seed, options.views,
        region, options.fov, options.radius, options.samples, label_wish(options.label, options.guidance),
    )  # fmt: skip


def _placement(options: FitOptions) -> Any:
    from mnif_nerf.data.observations.observations import Placement

    up = None if options.up == "auto" else options.up
    forward = None if options.forward == "auto" else options.forward
    return Placement(up, forward, options.centre, options.scale, options.normalise)


def _truth(options: FitOptions, pipe: MNIFPipeline, observation: Observation) -> PosedViews | Cells | Picture | None:
    """What to score against, of a kind and size that can be."""
    if options.truth is None:
        return None
    from mnif_nerf.data.observations.files import PLACED, detect_kind
    from mnif_nerf.data.observations.observations import Cells, MeshShape, Picture, PosedViews
    from mnif_nerf.pipelines.fit.fitting import open_observation
    from mnif_nerf.pipelines.fit.preparation import voxelise
    from mnif_nerf.pipelines.fit.scores import require_same_size

    placed = detect_kind(options.truth, pipe.model.kind.fitting.picture) in PLACED
    found = open_observation(options.truth, pipe, placement=_placement(options) if placed else None)
    # A mesh to fit to becomes as many cells as the model's grid has.
    usual = int((pipe.model.grid or {"resolution": 64})["resolution"])
    size = len(observation.values) if isinstance(observation, Cells) else usual
    if isinstance(found, MeshShape):
        found = voxelise(found, size)
    if not isinstance(found, (PosedViews, Cells, Picture)):
        raise MNIFError(f"--truth {options.truth}: cannot be scored against; give a scene folder, voxels or a mesh.")
    part = (options.observed_half, options.observed_box, options.observed_mask) != (None, None, None)
    voxelised = isinstance(observation, MeshShape) and (part or "views" not in pipe.model.kind.fitting.kinds)
    if isinstance(found, Cells) and (isinstance(observation, Cells) or voxelised):
        try:
            require_same_size(found, size)
        except MNIFError as error:
            raise MNIFError(f"--truth {options.truth}: {error}") from None
    return found


_NAMED = (
    "kind", "views", "observed_half", "observed_box", "observed_mask", "scanner", "restarts", "steps", "lr", "prior",
    "prior_weight", "samples", "seed", "up", "forward", "normalise", "centre", "scale", "fov", "radius",
)  # fmt: skip
"""Options that make another fit of the same input; what differs from the default is in the folder's name."""
_LONGEST_NAME = 100


def _run_name(options: FitOptions) -> str:
    """The input's name, then whatever of `_NAMED` was chosen, so that runs do not overwrite one another."""
    path, usual = options.input.resolve(), {item.name: item.default for item in dataclasses.fields(FitOptions)}
    if path.name == "transforms.json":
        first = path.parent.name
    elif path.parent.name == "rgb":  # pictures of SRN scenes are numbered alike in all of them
        first = f"{path.parent.parent.name}-{path.name}"
    else:
        first = path.name
    parts = [file_name(first).replace(".", "-") if path.is_file() else file_name(first)]
    for name in _NAMED:
        value = getattr(options, name)
        if value == usual[name]:
            continue
        words = "-".join(map(str, value)) if isinstance(value, tuple) else str(getattr(value, "name", value))
        plain = words if name == "observed_half" else name.replace("observed_", "").replace("_", "-") + words
        parts.append(file_name(plain))
    parts += label_names(options.label, options.guidance)
    whole = "-".join(parts)
    if len(whole) <= _LONGEST_NAME:
        return whole
    return f"{whole[:_LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _report(pipe: MNIFPipeline, fit: Fit, truth: Any, options: FitOptions) -> dict[str, Any]:
    from mnif_nerf.export.document import rounded
    from mnif_nerf.pipelines.fit.scores import agreement, scores

    settings = {
        key: [str(part) for part in value]
        if isinstance(value, list)
        else str(value)
        if isinstance(value, Path)
        else value
        for key, value in dataclasses.asdict(options).items()
        if key not in ("output", "device")
    }
    nearest = pipe.nearest(fit.best) if pipe.names else None
    scored, notes = scores(fit, truth, options.fov), list(fit.task.notes)
    if truth is not None and not {"psnr_unseen", "iou", "iou_unseen"} & set(scored["fit"]):
        notes.append("--truth was not scored: it is of another kind than the observation, or shows nothing more.")
    starts = [{"start": start, "loss": loss} for start, loss in zip(fit.starts, fit.losses)]
    report = {
        "settings": settings,
        "observation": type(fit.task.seen).__name__,
        "complete": fit.task.complete,
        "scores": scored,
        "starts": starts,
        "agreement": agreement(fit),
        "nearest_training_instance": None if nearest is None else nearest[0],
        "distance": None if nearest is None else nearest[1],
        "poses": None if fit.poses is None else fit.poses.tolist(),
        "notes": notes,
        "seconds": fit.seconds,
        "cpu_seconds": fit.cpu_seconds,
    }
    return dict(rounded(report))


def _write(fit: Fit, truth: Any, report: dict[str, Any], output: Path, options: FitOptions) -> None:
    """Every file whole or not at all; the report comes last, and what an earlier run left goes first."""
    from mnif_nerf import modalities
    from mnif_nerf.export.mesh_files import write_mesh
    from mnif_nerf.export.pictures import save_png
    from mnif_nerf.files import write_json
    from mnif_nerf.objects.solid import require_solid
    from mnif_nerf.pipelines.fit.pictures import before_and_after
    from mnif_nerf.tensor_files import write_tensors

    with disk_errors(output):
        for name in ("report.json", "mesh.glb"):
            (output / name).unlink(missing_ok=True)
        clear_answers(output)
    write_tensors(output / "latent.safetensors", {"latent": fit.best.latent.float()})
    save_png(before_and_after(fit, truth, options.fov), output / "before_after.png")
    answers = write_answers(fit, truth, report, output, options)
    if not modalities.get(fit.best.modality).has_views:
        save_png(fit.best.own_picture(options.resolution), output / "fit.png")
        report["files"] = ["latent.safetensors", "before_after.png", "fit.png", *answers]
        write_json(output / "report.json", report)
        return
    report["files"] = ["latent.safetensors", "before_after.png", "views/", *answers]
    for k, picture in enumerate(require_solid(fit.best).views(4, options.resolution)):
        save_png(picture, output / "views" / f"{k}.png")
    if options.mesh_resolution:
        try:
            write_mesh(require_solid(fit.best).mesh(options.mesh_resolution), output / "mesh.glb")
            report["files"].append("mesh.glb")
        except MNIFError as error:
            report["notes"].append(f"no mesh: {error}")
    write_json(output / "report.json", report)


def _say(report: dict[str, Any], output: Path, options: FitOptions) -> None:
    from rich.table import Table

    table = Table("", "start (mean)", "fit")
    for key, (words, form) in MEASURES.items():
        before, after = (report["scores"][side].get(key) for side in ("before", "fit"))
        if after is not None:
            table.add_row(words, "-" if before is None else form.format(before), form.format(after))
    plain_console().print(table)
    for note in report["notes"]:
        print(f"note: {note}")
    best, others = report["starts"][0], len(report["starts"]) - 1
    print(f"best start: {best['start']} (loss {best['loss']:.4g}), {report['seconds']:.1f} s")
    agree = report["agreement"]
    if agree["spread"] is not None:
        why = "the model knows no such object well" if report["complete"] else "what was seen allows different objects"
        told = "they agree" if agree["agree"] else f"they DISAGREE: {why}"
        how = f"{agree['measure']}: {agree['spread']:.3g}"
        print(f"{agree['equally_good']} starts explain it about as well; {told} ({how})")
    elif others:
        print(f"the other {others} explain it clearly less well")
    if report["nearest_training_instance"] is not None:
        print(f"nearest training instance: {shown(report['nearest_training_instance'])} at {report['distance']:.2f}")
    if "answers" in report:
        say_answers(report)
    print(f"wrote {', '.join(report['files'])} and report.json to {output}")
    if "answers" in report:
        print(next_of_answers(report, output, options.load_config))
    elif "fit.png" in report["files"]:
        print(f"next: look at {output / 'before_after.png'}, or complete a part with --observed-half top")
    else:
        print(
            f"next: mnif-export-mesh --load-config {quoted(options.load_config)} --source latent --latent-file "
            f"{quoted(output / 'latent.safetensors')} --resolution 256"
        )


# What the library calls these options.
ARGUMENTS = {
    "half": "observed_half",
    "box": "observed_box",
    "mask": "observed_mask",
    "weight": "prior_weight",
    "regulariser": "prior",
    "field_of_view": "fov",
}


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(FitOptions)), [FitOptions], ARGUMENTS)


if __name__ == "__main__":
    entrypoint()
