"""mnif-sweep: train a grid of small models and draw how bases, latent size and coefficients change what they can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnif_nerf import modalities
from mnif_nerf.cli.generation_common import prepare_output
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.limits import require_options
from mnif_nerf.names import quoted
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from mnif_nerf.diagnosis.sweep import SweepConfig
    from mnif_nerf.export.document import Section, Table
    from mnif_nerf.modalities import Modality


@dataclass
class SweepOptions:
    """Train small models over a grid of sizes, on voxels, pictures or points of meshes, and compare them.

    Writes sweep.json, report.md, report.html and curves (PNG and SVG). Finished grid points are kept, so an
    interrupted sweep resumes.
    """

    data: Path
    """A data folder of voxels, pictures or points of meshes with a split test or val."""
    modality: str = ""
    """What the data is: voxel, image or sdf; empty asks the folder."""
    resolution: int | None = None
    """Cells or pixels along an edge; by default the files' own for pictures, else 32 (points of meshes are compared as
    sets on that grid, and learned as they are)."""
    bases: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of basis networks."""
    latent_dims: tuple[int, ...] = (4, 16, 64)
    """Sizes of the latent code."""
    coefficients: tuple[Literal["layer-wise", "network-wise"], ...] = ("layer-wise", "network-wise")
    """Kinds of mixture coefficients."""
    steps: int = 400
    """Training steps of every model."""
    seed: int = 0
    """Seed of everything that is random."""
    output: Path | None = None
    """Folder to write to; by default outputs/sweep/<data's name>."""


def main(options: SweepOptions) -> Path:
    """Run the command; returns the output folder.

    Raises:
        MNIFError: no data of that modality, no unseen split, or an option out of range.
    """
    from mnif_nerf.diagnosis.sweep import SweepConfig, run_sweep
    from mnif_nerf.export.document import write_document
    from mnif_nerf.export.figures import check_matplotlib
    from mnif_nerf.machine import describe

    check_matplotlib()
    require_options(options, dict.fromkeys(("resolution", "bases", "latent_dims", "steps"), 1), steps=10_000_000)
    config = SweepConfig(
        options.bases, options.latent_dims, options.coefficients, steps=options.steps, seed=options.seed
    )
    kind = _modality(options)
    _ = kind.sweep  # there may be none
    split = next((name for name in ("test", "val") if name in kind.splits(options.data)), None)
    if split is None:
        raise MNIFError(f"{options.data}: no split test or val to measure on; add one.")
    train, unseen = (kind.open_sweep(options.data, name, options.resolution) for name in ("train", split))
    output = prepare_output(options.output or Path("outputs") / "sweep" / options.data.name)
    with progress_bar("models", len(config.points)) as advance:
        rows = run_sweep(train, unseen, output / "points", config, advance)
    about = {
        "format": "mnif_nerf.sweep",
        "format_version": 1,
        "data": options.data.name,
        "machine": {name: value for name, value in describe().items() if name != "threads"},
    }
    section = _section(rows, config)
    paths = write_document(output, "sweep", f"Sweep over models of {options.data.name}", about, [], [section])
    print(section.summary)
    print(f"wrote {output}/report.html, report.md, sweep.json and {len(paths) - 3} figures")
    print(f"next: ns-train {kind.method}-lite --data {quoted(options.data)} --pipeline.model.num-bases N")
    return output


def _modality(options: SweepOptions) -> Modality:
    """What was asked for; else what the folder holds, and of pictures with cameras the solids beside them."""
    if options.modality:
        return modalities.get(options.modality, "--modality")
    kind = modalities.from_data(options.data)
    if kind.solids in (None, kind.name):
        return kind
    print(f"There is no sweep over models of {kind.nouns}; the solids beside their pictures are taken.")
    return modalities.get(kind.solids)


def _section(rows: list[dict[str, Any]], config: SweepConfig) -> Section:
    import dataclasses

    from mnif_nerf.diagnosis.sweep_curves import draw_curves, draw_relations, relations, relations_table, sweep_table
    from mnif_nerf.export.document import Section

    table, yardstick = sweep_table(rows)
    metric = modalities.get(rows[0]["modality"]).sweep.reconstruction
    best = max(rows, key=lambda row: row[metric])
    body: list[str | Table] = [
        f"Every model is trained by auto-decoding for {config.steps} steps on the same batches; unseen instances get "
        "their latents by a fit with frozen networks, and as many samples are drawn from a small prior.",
        table,
        yardstick,
        "How the diversity of bases goes with quality over the grid (points with more than one basis):",
        relations_table(rows),
        "What this cannot say: models this small, trained this briefly, may rank otherwise than large ones; a rank "
        "correlation over a grid mixes the effect of the grid's own axes with that of diversity.",
    ]
    return Section(
        "sweep",
        "Number of bases, latent size, coefficients",
        f"best {metric.replace('_', ' ')}: {best[metric]:.4g} with {best['bases']} bases, latents of "
        f"{best['latent_dim']}, {best['coefficients']} coefficients",
        {"settings": dataclasses.asdict(config), "rows": rows, "relations": relations(rows)},
        body,
        {"sweep_curves": draw_curves(rows), "sweep_relations": draw_relations(rows)},
    )


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(SweepOptions)), [SweepOptions])


if __name__ == "__main__":
    entrypoint()
