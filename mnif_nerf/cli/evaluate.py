"""mnif-eval: measure what a trained model gives back and what it makes, with yardsticks beside every number."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mnif_nerf.cli.generation_common import default_output, prepare_output
from mnif_nerf.cli.processes import speaks, start_processes, working_ranks
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.limits import MOST_SAMPLES, require_options
from mnif_nerf.names import quoted
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from mnif_nerf.latents.ranks import Ranks


@dataclass
class EvalOptions:
    """Measure a trained run: reconstruction, generated sets against unseen data, novelty.

    Writes metrics.json, report.md, report.html and figures. The same seed gives the same metrics.json. Long work is
    kept in a cache folder beside the report, so an interrupted evaluation goes on.
    """

    load_config: Path
    """The run's config.yml, the run folder or a model folder."""
    data: Path | None = None
    """The data folder; by default the one that config.yml names."""
    protocol: Literal["small", "standard", "paper"] = "small"
    """small: minutes on two cores. standard: 400 shapes a line, about an hour. paper: the sizes of the authors'
    evaluation, which for shapes means days of distances on a CPU; made for a GPU, or several."""
    num_samples: int | None = None
    """Generated objects per line, in place of the protocol's number."""
    seed: int = 0
    """Random seed of samples, points, subsets and resampling."""
    references: str | None = None
    """Splits to compare samples with, such as "test" or "val,test"; by default the protocol's."""
    lpips: bool = False
    """Score reconstructions by LPIPS too; its weights are fetched where torch's cache lacks them."""
    inception_weights: Path | None = None
    """File of FID's Inception network (weights-inception-2015-12-05-6726825d.pth). Without it, pictures are compared
    by a fixed random network, under other names than FID."""
    output: Path | None = None
    """Folder to write to; by default <run>/evaluation/<protocol and seed>."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""
    num_devices: int = 1
    """Processes that measure together on this machine, one per CUDA device (on a CPU as many as asked for)."""


def main(options: EvalOptions) -> Path:
    """Run the command; returns the report's folder.

    Raises:
        MNIFError: no model or data, data that does not belong to the model, or an option out of range.
    """
    require_options(options, num_samples=MOST_SAMPLES)
    left = "what was measured is kept, and the same command goes on"
    with working_ranks(options.device, left) as (ranks, device):
        return evaluate_together(options, ranks, device)


def evaluate_together(options: EvalOptions, ranks: Ranks, device: str | None) -> Path:
    """The command as one of the processes that share its work, on the device of this one."""
    from mnif_nerf.evaluation.protocols import choose_protocol
    from mnif_nerf.evaluation.run import check_output, evaluate
    from mnif_nerf.evaluation.target import load_target
    from mnif_nerf.machine import one_thread

    with ranks.one_first():  # which packs the data
        target = load_target(options.load_config, options.data, device)
    protocol = choose_protocol(options.protocol, target.kind, options.num_samples, options.seed)
    if options.references is not None:
        splits = tuple(name.strip() for name in options.references.split(",") if name.strip())
        if not splits:
            raise MNIFError("--references names no split; leave it out, or give for example test.")
        target.require_splits(splits)
        protocol = dataclasses.replace(protocol, references=splits)
    count = f"-{options.num_samples}" if options.num_samples is not None else ""
    name = f"{protocol.name}-seed{options.seed}{count}"
    output = options.output or default_output(str(options.load_config), "evaluation", name)
    if ranks.is_first:
        check_output(output)
        prepare_output(output)
    cache = output / "cache"
    lpips, weights = options.lpips, options.inception_weights
    with one_thread():
        outcome = evaluate(target, protocol, output, progress_bar, cache, lpips, weights, ranks)
    if not ranks.is_first:
        return output
    for sentence in (*outcome.notes, *outcome.summaries):
        print(sentence)
    print(f"wrote {output}/report.html, report.md, metrics.json and {len(outcome.paths) - 3} figures")
    print(f"next: mnif-diagnose --load-config {quoted(options.load_config)}")
    return output


def entrypoint() -> None:
    """The console script."""
    import tyro

    def run() -> None:
        options = tyro.cli(EvalOptions, console_outputs=speaks())
        start_processes(options.num_devices, "mnif_nerf.cli.evaluate")
        main(options)

    run_command(run, [EvalOptions])


if __name__ == "__main__":
    entrypoint()
