"""Publishing: a model folder with a card, and its way to the Hugging Face Hub. Works without nerfstudio."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnif_nerf.errors import MNIFError, first_line, require
from mnif_nerf.export.pictures import save_png
from mnif_nerf.files import atomic_folder, write_json
from mnif_nerf.pipelines.model_folder import StoredModel, check_replaceable, write_model
from mnif_nerf.pipelines.publish.model_card import CardOptions, model_card


def publish(
    model: StoredModel,
    folder: Path | str,
    options: CardOptions,
    pictures: Mapping[str, tuple[str, Any]] | None = None,
) -> Path:
    """Write a folder to share: the model, README.md (its card), pictures and metrics.json; whole or not at all.

    Args:
        model: the model.
        folder: where to; an older model there is replaced as a whole.
        options: what the card says beyond the facts; its `metrics` are written beside it.
        pictures: file name (.png) to a caption and a picture.

    Raises:
        MNIFError: `folder` holds something that is not a model, or the disk cannot take it.
    """
    folder, pictures = Path(folder), pictures or {}
    check_replaceable(folder, ("README.md", "metrics.json", *pictures))
    captions = {name: caption for name, (caption, _) in pictures.items()}
    card = model_card(model, dataclasses.replace(options, pictures=captions))
    with atomic_folder(folder, replace=True) as temporary:
        write_model(model, temporary)
        for name, (_, picture) in pictures.items():
            save_png(picture, temporary / name)
        if options.metrics is not None:
            write_json(temporary / "metrics.json", options.metrics)
        (temporary / "README.md").write_text(card, encoding="utf-8", errors="replace")
    return folder


def upload(folder: Path, repo_id: str, private: bool = False, commit_message: str = "Upload mNIF model") -> str:
    """Upload a published folder to the Hugging Face Hub (log in first: `hf auth login`); returns its address.

    Raises:
        MNIFError: the hub refuses or cannot be reached.
    """
    api = require("huggingface_hub", "hub").HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=commit_message)
    except Exception as error:  # the hub's client lets its HTTP library's own errors through
        reason = first_line(error)
        raise MNIFError(f"{repo_id}: could not be uploaded ({reason}); check the name and log in.") from error
    return f"{api.endpoint}/{repo_id}"
