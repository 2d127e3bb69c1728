"""A folder of meshes becomes a data set of points with signed distance and colour."""

from __future__ import annotations

from pathlib import Path

from mnif_nerf.data.generate.meshes import MeshPlan, MeshSummary, plan_meshes
from mnif_nerf.data.generate.scene_jobs import run_jobs
from mnif_nerf.data.generate.settings import MeshFolderOptions
from mnif_nerf.data.generate.writer import MANIFEST, claim_output
from mnif_nerf.data.geometry.surface_points import POINTS, PointCounts
from mnif_nerf.data.readers.splits import GridSource
from mnif_nerf.data.stores.surface_jobs import PointJob, join_facts, make_part, wanting
from mnif_nerf.data.stores.surface_pack import parts_folder, remove_parts
from mnif_nerf.data.stores.surface_store import FOLDER, open_surface_store, packed_splits, write_store
from mnif_nerf.errors import require
from mnif_nerf.files import content_errors, read_record


def sample_mesh_folder(
    input: Path | str,
    output: Path | str,
    points: int = POINTS,
    options: MeshFolderOptions | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> MeshSummary:
    """Draw points of every mesh below a folder and write `<output>/points/{train,val,test}/` (see
    `mnif_nerf.data.stores.surface_store`).

    `mnif_nerf.data.geometry.closed_pieces` describes what meshes that are open, doubled or inside out stand for. Meshes
    that stand for nothing are skipped.

    Args:
        points: of every mesh, see `PointCounts.of`; the other arguments as in `render_mesh_folder`.

    Returns: what was written and what was skipped; its notes say what was done to meshes.

    Raises:
        MNIFError: see `render_mesh_folder`; a library is not installed.
    """
    input, output = Path(input), Path(output)
    counts, options = PointCounts.of(points), options or MeshFolderOptions()
    for module in ("igl", "manifold3d"):
        require(module, "meshes")
    plan = plan_meshes(input, output, options, workers, progress)
    settings = {**plan.settings, "points": points}
    if claim_output(output, "from-meshes-points", settings):
        plan.tell_changed()
        return _made_before(plan)
    place, jobs = output / FOLDER, {}
    for name, mesh in plan.inputs.items():
        split = plan.split_of[name]
        if not (place / split).exists():
            part = parts_folder(place, split) / f"{name}.npz"
            jobs[name] = PointJob(GridSource(name, mesh.path), part, counts, mesh)
    again = [name for name in plan.changed if name in jobs]
    for name in again:
        jobs[name].part.unlink(missing_ok=True)
    missing = wanting(jobs.values())
    reasons = run_jobs(make_part, missing, workers, progress, "Points of meshes")
    hopeless = {job.source.name: reason for job, reason in zip(missing, reasons) if reason is not None}
    plan.leave_out_hopeless(hopeless, list(hopeless.values()))
    for name in again:
        plan.record.note(plan.readable[name], None)
    plan.changed = [name for name in plan.changed if name not in again]
    parts = {name: job.part for name, job in jobs.items() if name not in hopeless}
    has_color, notes = join_facts(parts)
    plan.summary.notes += notes
    if again:
        plan.summary.notes.append(
            f"{len(again)} of the files have changed and were used again ({', '.join(again[:5])})."
        )
    plan.tell_changed()
    for split in packed_splits(output):  # packed before a run was stopped
        has_color = open_surface_store(output, split).has_color
    for split, names in plan.summary.splits.items():
        own = {name: parts[name] for name in names if name in parts}
        if own:
            write_store(place / split, split, own, counts, has_color, plan.labels_of(list(own)))
    for split in plan.summary.splits:
        remove_parts(parts_folder(place, split))
    return plan.finish("from-meshes-points", settings)


def _made_before(plan: MeshPlan) -> MeshSummary:
    """What a finished run says again."""
    summary = plan.summary
    place = summary.output / MANIFEST
    with content_errors(place, "remove the folder and run the command again"):
        found = read_record(place)
        summary.splits = {split: [str(name) for name in names] for split, names in found["splits"].items()}
        summary.skipped = [(Path(path), str(reason)) for path, reason in found["skipped"].items()]
        plan.write_labels()
        plan.tabulate()
    return summary
