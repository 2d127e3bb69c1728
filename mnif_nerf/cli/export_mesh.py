"""mnif-export-mesh: objects of a trained run as meshes and voxels."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mnif_nerf.cli.generation_common import (
    LabelOption,
    check_choice,
    choice_name,
    chosen_objects,
    default_output,
    load_pipeline,
    prepare_output,
)
from mnif_nerf.errors import MNIFError, flag_paths, run_command, with_flags
from mnif_nerf.latents.rarity import TYPICAL
from mnif_nerf.names import file_names, shown
from mnif_nerf.progress import plain_console, progress_bar

if TYPE_CHECKING:
    from mnif_nerf.export.assets import AssetOptions
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject

FORMATS = ("glb", "ply", "obj", "stl", "binvox", "npz")
_VOXELS = ("binvox", "npz")
_LONGEST_NUMBER = 12  # digits of triangles
_MUCH_LOST = 0.05  # of an object's volume: more is said
ARGUMENTS = {"max_faces": "faces"}  # as the library calls it


@dataclass
class ExportOptions:
    """Write objects as meshes (glb, ply, obj, stl) or voxels (binvox, npz), and report.json about them.

    GLB and OBJ have y up and +z forward, as glTF asks; PLY and STL z up and +x forward. Voxels keep the library's
    axes: [x, y, z], z up, +x forward.
    """

    load_config: str
    """The run's config.yml, the run folder, a model folder, or owner/name on the Hugging Face Hub."""
    num_samples: int = 8
    """How many objects (of --source samples, or the first of --source training without --instance)."""
    format: str = "glb"
    """One or more of glb, ply, obj, stl, binvox, npz, separated by commas."""
    resolution: int = 128
    """Cells along an edge of the scene box; 256 is fine on most machines."""
    source: Literal["samples", "training", "latent"] = "samples"
    """New samples, training instances, or latents from --latent-file."""
    instance: tuple[str, ...] = ()
    """With --source training: names or numbers (from 0) of the instances."""
    latent_file: Path | None = None
    """With --source latent: a .safetensors with "latents" [n, D] as mnif-sample writes, or what NeuralObject.save
    wrote."""
    seed: int = 0
    """Seed of the samples."""
    sampler: str | None = None
    """As in mnif-sample."""
    steps: int | None = None
    """As in mnif-sample."""
    temperature: float = 1.0
    """As in mnif-sample."""
    typical: float = TYPICAL
    """Draw again what is rarer than this share of the training instances, as in mnif-sample; 1 takes all."""
    label: LabelOption = ()
    """What samples shall be, as attribute=value, as in mnif-sample; several times for several attributes."""
    guidance: float | None = None
    """How strongly they are drawn to their label, as in mnif-sample."""
    redraw: int | None = None
    """Draw a sample that looks broken again, at most so many times, as in mnif-sample."""
    level: float | None = None
    """What counts as surface: a density (1/world unit; by default 22.2), of voxels an occupancy between 0 and 1 (by
    default 0.5): lower is fatter. Of signed distances, how far outside the object it is drawn (by default 0): higher is
    fatter."""
    smooth: int = 0
    """Smoothing steps that do not shrink the mesh; 10 is visible."""
    faces: Annotated[int | None, tyro.conf.arg(aliases=("--max-faces",))] = None
    """Decimate to at most this many triangles, before colours are taken from the field; formerly --max-faces."""
    lods: str = ""
    """Levels of detail in one call, triangles of each, descending: 20000,5000,1000 writes <name>_lod0, _lod1, _lod2."""
    texture: int | None = None
    """Bake colours into a picture of so many texels along an edge (glb, obj), in place of colours at vertices. 2,000
    triangles with --texture 1024 carry the field's detail; unwrapping takes 2 s for 20,000."""
    scale: float | None = None
    """Length of the object's longest side in mesh files (metres in glTF); by default the scene's units, in which the
    diagonal of an object of the training data is 1."""
    up: Literal["y", "z"] | None = None
    """The upward axis in obj, ply and stl files; by default y for glb and obj, z for ply and stl."""
    origin: Literal["bottom", "centre"] | None = None
    """Put the middle of the bounding box's lowest face, or its centre, at the origin of mesh files; by default the
    origin is the scene's."""
    keep: Literal["largest", "all"] = "largest"
    """Keep the largest connected shell, or everything. What throws away more than 5 % of an object's volume is said."""
    output: Path | None = None
    """Folder to write to; by default <run>/meshes/<source>."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""


def main(options: ExportOptions) -> Path:
    """Run the command; returns the output folder.

    Raises:
        MNIFError: an option out of range, an unknown instance or format, a model without a prior, a
            resolution that does not fit, a folder that cannot be written, or not one object with a surface.
    """
    formats = parse_formats(options.format)
    wanted = _check(options, formats)
    pipe = load_pipeline(options.load_config, options.device)
    _check_model(options, pipe)
    objects = chosen_objects(pipe, options)
    output = options.output or default_output(options.load_config, "meshes", choice_name(options))
    prepare_output(output)
    reports: list[dict[str, Any]] = []
    with progress_bar("exporting", len(objects)) as advance:
        for item, name in zip(objects, file_names(item.name for item in objects)):
            reports.append(_export(item, formats, output / name, wanted))
            advance()
    _write_report(reports, output, options)
    _say(reports, output)
    _say_about_formats(formats, wanted, pipe.model.field.spec.out_features > 1, reports)
    failures = [report["error"] for report in reports if "error" in report]
    if len(failures) == len(reports):
        raise MNIFError(failures[0])
    return output


def parse_formats(text: str) -> tuple[str, ...]:
    """Formats from a comma-separated list.

    Raises:
        MNIFError: an unknown format, or none.
    """
    formats = tuple(dict.fromkeys(part.strip().lower().lstrip(".") for part in text.split(",") if part.strip()))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        what = f"unknown format {unknown[0]!r}" if unknown else "no format"
        raise MNIFError(f"--format {text}: {what}; use one or more of {', '.join(FORMATS)}.")
    return formats


def parse_lods(text: str) -> tuple[int, ...]:
    """Numbers of triangles from a comma-separated list.

    Raises:
        MNIFError: something that is no whole number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isascii() or not part.isdigit() or len(part) > _LONGEST_NUMBER]
    if wrong:
        raise MNIFError(f"--lods {text}: {wrong[0]} is no number of triangles; write them as in 20000,5000,1000.")
    return tuple(map(int, parts))


def _check(options: ExportOptions, formats: tuple[str, ...]) -> AssetOptions:
    """Refuse what cannot be done, before anything is loaded; returns what the library is asked for."""
    from mnif_nerf.export.assets import AssetOptions, check_assets

    check_choice(options)
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(AssetOptions)}
    wanted = AssetOptions(**{**shared, "lods": parse_lods(options.lods)})
    meshes = [kind for kind in formats if kind not in _VOXELS]
    check_assets(wanted, meshes or ("obj",))
    given = [name for name in ("faces", "lods", "texture", "scale", "up", "origin") if getattr(wanted, name)]
    if given and not meshes:
        raise MNIFError(f"--{given[0]} is for meshes, and --format {options.format} writes none; add glb.")
    return wanted


def _check_model(options: ExportOptions, pipe: MNIFPipeline) -> None:
    """Refuse what does not fit this model, before any work is done."""
    kind = pipe.model.kind
    if not kind.has_surface:
        raise MNIFError(f"{options.load_config}: a model of {kind.nouns} has no surface to export; use mnif-sample.")
    kind.check_level(options.level)


def _export(item: NeuralObject, formats: tuple[str, ...], place: Path, wanted: AssetOptions) -> dict[str, Any]:
    """Write one object as `place` with the ending of every format; a surface that cannot be made is reported, not
    raised."""
    from mnif_nerf.export.assets import make_assets
    from mnif_nerf.export.mesh import mesh_report
    from mnif_nerf.export.voxels import write_voxels
    from mnif_nerf.objects.solid import require_solid

    start = time.perf_counter()
    report: dict[str, Any] = {"name": item.name, "files": []}
    mesh_formats = [kind for kind in formats if kind not in _VOXELS]
    voxel_formats = [kind for kind in formats if kind in _VOXELS]
    assets = []
    try:
        if mesh_formats:
            assets = make_assets(require_solid(item), wanted)
            report.update(mesh_report(assets[0].mesh))
        if voxel_formats:
            occupancy = require_solid(item).occupancy(wanted.resolution, wanted.level)
            report["occupied_voxels"] = int(occupancy.sum())
            if not occupancy.any():
                raise MNIFError(f"{item.name}: not one voxel reaches the level; lower it with `level`.")
    except MNIFError as error:
        return {**report, "error": str(error)}
    for asset in assets:
        report["files"] += [path.name for path in asset.write(place, mesh_formats, wanted.up)]
    if wanted.lods:
        report["lods"] = [mesh_report(asset.mesh) for asset in assets]
    for kind in voxel_formats:
        report["files"].append(write_voxels(occupancy, place.with_name(f"{place.name}.{kind}"), item.half_extent).name)
    report["seconds"] = round(time.perf_counter() - start, 2)
    return report


def _write_report(reports: list[dict[str, Any]], output: Path, options: ExportOptions) -> None:
    from mnif_nerf.files import write_json

    settings = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("output", "device")}
    settings["latent_file"] = None if options.latent_file is None else str(options.latent_file)
    ours = "z up, +x forward, +y left"
    axes = {"glb, obj": "y up, +z forward, +x left", "ply, stl": ours, "voxels": f"[x, y, z], {ours}"}
    write_json(output / "report.json", {"settings": settings, "axes": axes, "objects": reports})


def _say(reports: list[dict[str, Any]], output: Path) -> None:
    from rich.table import Table

    table = Table("object", "triangles", "watertight", "volume", "shells kept / found", "formats", "s")
    for report in reports:
        if "error" in report:
            table.add_row(shown(report["name"], 60), "none: see below")
            continue
        volume, known = report.get("volume"), "triangles" in report
        table.add_row(
            shown(report["name"], 60),
            ", ".join(f"{lod['triangles']:,}" for lod in report.get("lods", [report]))
            if known
            else f"{report['occupied_voxels']:,} voxels",
            ("yes" if report["watertight"] else "no") if known else "",
            "" if volume is None else f"{volume:.4f}",
            f"{report['components']} / {report['components_found']}" if known else "",
            " ".join(dict.fromkeys(Path(name).suffix[1:] for name in report["files"])),
            f"{report['seconds']:.1f}",
        )
    plain_console().print(table)
    for report in reports:
        if "error" in report:
            print(
                with_flags(
                    f"{shown(report['name'])}: not written, {report['error']}", flag_paths(ExportOptions), ARGUMENTS
                )
            )
    for report in reports:
        if report.get("volume_lost", 0.0) > _MUCH_LOST:
            print(
                f"{shown(report['name'])}: keeping the largest of {report['components_found']} shells threw away "
                f"{report['volume_lost']:.0%} of its volume; keep everything with --keep all"
            )
    files = [file for report in reports for file in report["files"]]
    print(f"wrote {len(files)} files and report.json to {output}")
    if files:
        print("next: open a .glb in Blender, Windows 3D Viewer, or any glTF viewer")


def _say_about_formats(
    formats: tuple[str, ...], wanted: AssetOptions, colored: bool, reports: list[dict[str, Any]]
) -> None:
    """Say what other programs will not see of the files, and the option that helps."""
    from mnif_nerf.export.mesh_files import TEXTURED_FORMATS

    without = [kind for kind in formats if kind not in (*TEXTURED_FORMATS, *_VOXELS)]
    if wanted.texture is not None and without:
        print(f"no picture in {' and '.join(without)}: PLY has the colours at its vertices, STL has none")
    at_vertices = [kind for kind in formats if kind in ("obj", "ply")]
    if wanted.texture is None and colored and at_vertices:
        print(
            f"{' and '.join(at_vertices)}: colours are at the vertices, which Blender and game engines show in grey "
            "until a material uses them; --texture 1024 writes a picture (glb, obj)"
        )
    sizes = [max(report["extent"]) for report in reports if "extent" in report]
    if "stl" in formats and wanted.scale is None and sizes:
        print(
            f"stl: slicers read its numbers as millimetres, so the longest side is {max(sizes):.2f} mm; "
            "--scale 100 makes it 100 mm"
        )


def entrypoint() -> None:
    """The console script."""
    run_command(lambda: main(tyro.cli(ExportOptions)), [ExportOptions], ARGUMENTS)


if __name__ == "__main__":
    entrypoint()
