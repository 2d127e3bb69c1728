"""New objects from a trained model: pictures, a mesh, an interpolation.

    python examples/03_generate.py MODEL_FOLDER [OUTPUT]

MODEL_FOLDER is what training wrote (`<run>/model`, a run folder, its config.yml, or a Hugging Face repository).
"""

import sys
from pathlib import Path

from mnif_nerf import MNIFPipeline
from mnif_nerf.export.pictures import contact_sheet, save_png

pipe = MNIFPipeline.from_pretrained(sys.argv[1])
output = Path(sys.argv[2] if len(sys.argv) > 2 else "outputs/example")

objects = pipe(num_samples=4, seed=0)
for new in objects:
    name, distance = pipe.nearest(new)
    print(f"{new.name}: nearest training instance {name}, at {distance:.2f} (0 is a copy)")

around = [new.views(4, resolution=96) for new in objects]
path = [step.render(elevation=20, azimuth=45, resolution=96) for step in pipe.interpolate(0, 1, num=4)]
save_png(contact_sheet([*around, path]), output / "objects.png")
print(f"wrote {output / 'objects.png'}: four new objects, and a path between two training instances")

mesh = objects[0].mesh(resolution=64, level=1.0)
mesh.export(str(output / "object.glb"))
print(f"wrote {output / 'object.glb'}: {len(mesh.faces):,} triangles, watertight: {mesh.is_watertight}")
