"""What a prior's folder says of itself, and whether its parts agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json
from mnif_nerf.priors.schedulers import described_prediction
from mnif_nerf.priors.training import PriorConfig

FORMAT = "mnif_nerf.prior"
FORMAT_VERSION = 1


def checked_header(path: Path) -> dict[str, Any]:
    """The content of a prior.json.

    Raises:
        MNIFError: it is missing, of something else, or of another format version.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise MNIFError(f"{path}: not the description of a latent prior; train one with mnif-train-prior.")
    if content.get("format_version") != FORMAT_VERSION:
        raise MNIFError(
            f"{path}: format version {content.get('format_version')}, this package reads {FORMAT_VERSION}; "
            "train the prior again with mnif-train-prior."
        )
    return content


def check_prediction(content: dict[str, Any], scheduler: dict[str, Any], config: PriorConfig) -> None:
    """Refuse a scheduler that takes the denoiser's output for something else than it was trained to be.

    Args:
        content: of prior.json.
        scheduler: content of scheduler_config.json.
        config: settings of the training, as prior.json has them.

    Raises:
        MNIFError: the two contradict each other.
    """
    found = described_prediction(scheduler)
    if "training" in content and found != config.prediction:
        raise MNIFError(
            f"the denoiser was trained to predict {config.prediction}, and scheduler_config.json says {found}; the two "
            "come from different priors."
        )
