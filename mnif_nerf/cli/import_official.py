"""mnif-import-official: a checkpoint of the authors' release as a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.limits import require_options
from mnif_nerf.names import quoted

if TYPE_CHECKING:
    from mnif_nerf.pipelines.official.convert import Imported


@dataclass
class ImportOptions:
    """Turn checkpoints of the authors' mNIF release (github.com/tackgeun/mNIF) into a model folder.

    Files are read as tensors only; what is not mapped is named. docs/import.md says what goes where.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Their stage 1: metainits/epochN.pth."""
    kind: Literal["srn-cars", "shapenet", "celeba-hq"]
    """What it was trained on, which settles coordinates and output."""
    output: Path
    """The model folder to write; a model there is replaced."""
    contexts: Path | None = None
    """Their latents of the training instances: contexts/context-epochN.pth. Found by itself beside metainits/."""
    stage2: Path | None = None
    """Their stage-2 checkpoint (.ckpt), for a model that can sample."""
    w0: float | None = None
    """The sine frequency, which their files do not hold; by default that of the released configuration."""
    weights: Literal["ema", "model"] | None = None
    """Which weights of stage 2; by default the averaged ones (ema) where there are any. Theirs sample "model"."""
    names: Path | None = None
    """Names of the training instances, one a line, or the folder of a data set's training split: for mnif-eval."""


def main(options: ImportOptions) -> Path:
    """Run the command; returns the model folder.

    Raises:
        MNIFError: a file that is missing, damaged, of another kind or incomplete, or an output folder that
            holds something else or cannot be written.
    """
    require_options(options)
    output = options.output
    if output.exists() and not output.is_dir():
        raise MNIFError(f"{output}: is a file; choose a folder with --output.")
    from mnif_nerf.pipelines.generation import MNIFPipeline
    from mnif_nerf.pipelines.official.convert import import_official

    o = options
    imported = import_official(o.checkpoint, o.kind, o.contexts, o.stage2, o.w0, o.weights, o.names)
    folder = MNIFPipeline(imported.model).save_pretrained(output)
    _say(imported, folder)
    return folder


def _say(imported: Imported, folder: Path) -> None:
    for line in imported.lines:
        print(line)
    print(f"wrote {folder}")
    if imported.model.prior is None:
        print(f"next: mnif-train-prior --load-config {quoted(folder)}")
    else:
        print(f"next: mnif-sample --load-config {quoted(folder)} --num-samples 16 --seed 0")


def entrypoint() -> None:
    """The console script."""
    run_command(lambda: main(tyro.cli(ImportOptions)), [ImportOptions])


if __name__ == "__main__":
    entrypoint()
