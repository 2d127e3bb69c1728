"""What a data set holds, and everything that is wrong with it: `mnif-data check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.readers.scene_reading import USUAL, SceneReading
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities import Modality, from_data

MAX_PROBLEMS = 20


@dataclass(frozen=True)
class DataReport:
    """What a check found.

    Attributes:
        modality: modality of the data.
        lines: that describe the data.
        problems: each by its path; none where the data is sound.
        max_problems: that `str` names.
    """

    modality: Modality
    lines: list[str]
    problems: list[str]
    max_problems: int = MAX_PROBLEMS

    def __str__(self) -> str:
        told = [*self.lines, f"problems: {len(self.problems) or 'none'}"]
        told += [f"  {problem}" for problem in self.problems[: self.max_problems]]
        if len(self.problems) > self.max_problems:
            told.append(f"  ... and {len(self.problems) - self.max_problems} more")
        return "\n".join(told)


def check(
    root: Path | str, progress: bool = True, max_problems: int = MAX_PROBLEMS, reading: SceneReading = USUAL
) -> DataReport:
    """Read a whole data set, every picture or grid included, and report on it.

    Args:
        root: the data.
        progress: whether to show bars.
        max_problems: that the report names.
        reading: how the files of cameras are read; only of data that has cameras.

    Raises:
        MNIFError: the folder is missing or holds data of no modality, or no split of it holds anything readable.
    """
    modality = from_data(root)
    if modality.by_instance and not reading.is_usual:
        raise MNIFError(
            f"{root}: holds {modality.nouns} without cameras; `poses`, `intrinsics` and `scale` are for pictures with "
            "cameras, so leave them out."
        )
    lines, problems = modality.check_data(Path(root), progress, reading)
    return DataReport(modality, lines, problems, max_problems)
