"""Asking for what you want: samples by label, and several answers to half of an object.

    python examples/07_labels_and_answers.py [FOLDER [PRIOR_STEPS]]

FOLDER (default outputs/voxels) is what 05_voxels.py wrote. It receives labelled/ (the model with a latent prior that
knows the bodies of the cars), bodies.png and answers.png. With a model of `mnif-train` and labelled data, all of it is
there already: only the last lines are needed.
"""

import dataclasses
import sys
from pathlib import Path

from mnif_nerf import LatentPrior, MNIFPipeline
from mnif_nerf.data.observations.observed_region import Region
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.export.pictures import contact_sheet, save_png
from mnif_nerf.labels import Labels
from mnif_nerf.priors.training import PriorConfig

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/voxels")
config = PriorConfig(steps=int(sys.argv[2])) if len(sys.argv) > 2 else PriorConfig()

# A label of each instance by attribute, words or numbers. These cars have their body in their name: 0005-suv.
pipe = MNIFPipeline.from_pretrained(folder / "model")
labels = Labels({"body": tuple(name.split("-")[1] for name in pipe.names)})
prior = LatentPrior.fit(pipe.latents, config, labels=labels)
labelled = MNIFPipeline(dataclasses.replace(pipe.model, prior=prior, labels=labels))
print(f"wrote {labelled.save_pretrained(folder / 'labelled')}: {labels.describe()}")

# From here on, for any model with labels.
pipe = MNIFPipeline.from_pretrained(folder / "labelled")
(body,) = pipe.prior.attributes
asked = {name: pipe(num_samples=4, seed=0, label={"body": name}) for name in body.classes[:4]}
sheet = contact_sheet(
    [[item.render(20, 45, 96) for item in items] for items in asked.values()],
    captions=[[f"{name} {k}" for k in range(len(items))] for name, items in asked.items()],
    title="samples by body",
)
print(f"wrote {save_png(sheet, folder / 'bodies.png')}")

# The front half of a car that the model never saw: the fit, then what the prior holds possible given that half.
unseen = open_grid_store(folder / "data", "test", "voxel")
front, kind = Region("front"), body.classes[0]
fit = pipe.fit(unseen.values(0), region=front)[0]
answers = pipe.fit(unseen.values(0), region=front, samples=3, label={"body": kind})
pictures = [item.render(20, 225, 96) for item in (fit, *answers)]
captions = ["fit", *(f"answer {k}, as {kind}" for k in range(len(answers)))]
print(f"wrote {save_png(contact_sheet([pictures], captions=[captions]), folder / 'answers.png')}")
