"""mnif-diagnose: how diverse a trained model's bases are, and how smoothly its objects follow their latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.cli.generation_common import default_output, load_pipeline, prepare_output
from mnif_nerf.errors import run_command
from mnif_nerf.limits import require_memory, require_options
from mnif_nerf.names import quoted
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from mnif_nerf.diagnosis.smoothness import SmoothnessSettings
    from mnif_nerf.export.document import Section
    from mnif_nerf.pipelines.generation import MNIFPipeline

_LEAST = {"num_pairs": 1, "num_samples": 2, "points": 1, "resolution": 8, "ablation_steps": 1, "seed": 0}

_MOST = {"num_pairs": 10_000, "num_samples": 100_000, "points": 10_000_000, "ablation_steps": 1_000_000}
_POSITIONS = 34  # networks that are looked at together: of a path with both ends, twice


@dataclass
class DiagnoseOptions:
    """Measure the bases and the latent space of a trained run.

    Writes diagnosis.json (every number), report.md (tables, figures and what they mean), the figures as PNG and SVG,
    and interpolations as a picture.
    """

    load_config: str
    """The run's config.yml, the run folder, a model folder, or owner/name on the Hugging Face Hub."""
    num_pairs: int = 8
    """Straight paths of each kind: between training instances, between samples, and from one to the other."""
    num_samples: int = 40
    """Samples to look at, and as many training instances."""
    points: int = 1024
    """Coordinates at which bases and objects are evaluated."""
    resolution: int = 128
    """Pixels along an edge of an interpolation's picture."""
    ablate_prior: bool = False
    """Also train small priors on the latents, one change from the default at a time, and compare them (minutes)."""
    ablation_steps: int = 500
    """Training steps of each of these priors."""
    seed: int = 0
    """Same seed, same numbers."""
    output: Path | None = None
    """Folder to write to; by default <run>/diagnosis/seed<seed>."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""


def main(options: DiagnoseOptions) -> Path:
    """Run the command; returns the output folder.

    Raises:
        MNIFError: an option out of range, a model without training latents or with fewer than 2 of them, matplotlib
            missing, or a folder that cannot be written.
    """
    require_options(options, _LEAST, **_MOST)
    from mnif_nerf.diagnosis.bases import check_instances
    from mnif_nerf.diagnosis.report import describe_model, write_report
    from mnif_nerf.export.figures import check_matplotlib
    from mnif_nerf.machine import one_thread

    check_matplotlib()
    pipe = load_pipeline(options.load_config, options.device)
    check_instances(pipe)
    _check_room(options, pipe)
    output = prepare_output(options.output or default_output(options.load_config, "diagnosis", f"seed{options.seed}"))
    if pipe.prior is None:
        print("no latent prior yet, so samples are left out; train one with mnif-train-prior.")
    with one_thread():
        sections = []
        for title, steps, run in _parts(pipe, options):
            with progress_bar(title, steps) as advance:
                sections.append(run(advance))
        about = {"model": describe_model(pipe), "settings": _settings(options)}
        write_report(output, about, sections)
    for section in sections:
        print(f"{section.title}: {section.summary}")
    print(f"wrote {output}/report.html, report.md, diagnosis.json and figures (PNG and SVG)")
    print(f"next: mnif-eval --load-config {quoted(options.load_config)}")
    return output


def _parts(
    pipe: MNIFPipeline, options: DiagnoseOptions
) -> Iterator[tuple[str, int, Callable[[Callable[[], None]], Section]]]:
    """Title, steps and work of every section, in the order of the report."""
    from mnif_nerf.diagnosis.bases import bases_steps
    from mnif_nerf.diagnosis.plots import strips_steps
    from mnif_nerf.diagnosis.smoothness import SmoothnessSettings, smoothness_steps
    from mnif_nerf.fields.modulations.mixture import MixtureField

    if isinstance(pipe.model.field, MixtureField):
        yield "bases", bases_steps(pipe), lambda advance: _bases(pipe, options, advance)
    settings = SmoothnessSettings(options.num_pairs, options.num_samples, options.points, options.seed)
    steps = smoothness_steps(pipe, settings) + strips_steps(pipe, settings)
    yield "smoothness", steps, lambda advance: _smoothness(pipe, settings, options.resolution, advance)
    if options.ablate_prior:
        from mnif_nerf.diagnosis.prior_ablation import num_variants

        yield "prior ablation", num_variants(), lambda advance: _ablation(pipe, options, advance)


def _bases(pipe: MNIFPipeline, options: DiagnoseOptions, advance: Callable[[], None]) -> Section:
    from mnif_nerf.diagnosis.bases import diagnose_bases
    from mnif_nerf.diagnosis.report import bases_section

    return bases_section(diagnose_bases(pipe, options.points, options.seed, advance))


def _smoothness(
    pipe: MNIFPipeline, settings: SmoothnessSettings, resolution: int, advance: Callable[[], None]
) -> Section:
    from mnif_nerf.diagnosis.plots import interpolation_strips
    from mnif_nerf.diagnosis.report import smoothness_section
    from mnif_nerf.diagnosis.smoothness import diagnose_smoothness

    diagnosis = diagnose_smoothness(pipe, settings, advance)
    return smoothness_section(diagnosis, interpolation_strips(pipe, diagnosis, resolution, advance))


def _ablation(pipe: MNIFPipeline, options: DiagnoseOptions, advance: Callable[[], None]) -> Section:
    from mnif_nerf.diagnosis.prior_ablation import AblationConfig, run_ablation
    from mnif_nerf.diagnosis.report import ablation_section
    from mnif_nerf.priors.training import PriorConfig

    base = PriorConfig(steps=options.ablation_steps, explained_variance=pipe.model.prior_variance)
    config = AblationConfig(base, seed=options.seed)
    rows = run_ablation(pipe.latents, config, advance)
    held_out = round(config.held_out * len(pipe.latents))
    settings = {"steps": options.ablation_steps, "training": len(pipe.latents) - held_out, "held_out": held_out}
    return ablation_section(rows, settings)


def _check_room(options: DiagnoseOptions, pipe: MNIFPipeline) -> None:
    """Refuse points that the memory cannot hold the features of, at every basis network or position of a path."""
    spec = pipe.model.field.spec
    numbers = options.points * (spec.num_bases * spec.out_features + _POSITIONS * spec.width)
    require_memory(4 * numbers, f"{options.points:,} `points` at every basis network", "use fewer")


def _settings(options: DiagnoseOptions) -> dict[str, Any]:
    settings = dataclasses.asdict(options)
    settings.pop("output")
    settings.pop("device")
    return settings


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(DiagnoseOptions)), [DiagnoseOptions])


if __name__ == "__main__":
    entrypoint()
