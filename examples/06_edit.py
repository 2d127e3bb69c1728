"""Editing: objects made of other objects. Shape of one with the colour of another, averages, analogies.

    python examples/06_edit.py MODEL_FOLDER [OUTPUT [A B C]]

MODEL_FOLDER is what training wrote, as in 03_generate.py; A, B and C are names or numbers of training instances.
"""

import sys
from pathlib import Path

from mnif_nerf import MNIFPipeline
from mnif_nerf.export.pictures import contact_sheet, save_png

pipe = MNIFPipeline.from_pretrained(sys.argv[1])
output = Path(sys.argv[2] if len(sys.argv) > 2 else "outputs/example")
a, b, c = (pipe.instance(name) for name in (sys.argv[3:6] or ["0", "1", "2"]))

# Every layer of a network has mixture coefficients of its own, so layers can be taken from different objects.
# Here the first ones come from `a` and more and more of the last ones from `b`.
layers = len(pipe.model.field.spec.shapes)
by_layer = [
    pipe.mix_layers(a, b, [float(layer >= first) for layer in range(layers)], f"first {first} of A, rest of B")
    for first in range(layers - 1, 0, -1)
]
# In models of radiance fields the last layers hold the colours, to a good part.
painted = [pipe.mix_shape_and_color(x, y, name=name) for x, y, name in ((a, b, "A as B"), (b, a, "B as A"))]
_, left = pipe.project(painted[0])
print(f"{painted[0]!r}: the nearest latent leaves {left:.0%} of what sets it apart from the mean")


# Where all layers take the same shares, mixing networks is mixing latents, and the result has a latent.
# The average of a kind (names such as 0005-suv end in it) leaves out what is special about each.
def kind(item):
    ending = item.name.split("-")[-1]
    return pipe.average([name for name in pipe.names if name.split("-")[-1] == ending], name=f"average {ending}")


mixed = [
    pipe.average([a, b, c], name="average of A, B, C"),
    kind(a),
    kind(b),
    pipe.analogy(a, minus=kind(a), plus=kind(b), name="A as B's kind"),
    pipe.analogy(c, minus=kind(c), plus=kind(b), name="C as B's kind"),
]
for item in mixed:
    name, distance = pipe.nearest(item)
    print(f"{item.name}: nearest training instance {name}, at {distance:.2f}")

rows = [[a, b, c, *painted], by_layer, mixed]
captions = [["A", "B", "C", "A in B's colours", "B in A's colours"], *([x.name for x in row] for row in rows[1:])]
sheet = contact_sheet([[item.render(resolution=128) for item in row] for row in rows], captions)
save_png(sheet, output / "edited.png")
painted[0].save(output / "painted.safetensors")  # NeuralObject.load, mnif-render --latent-file
print(f"wrote {output / 'edited.png'} and {output / 'painted.safetensors'}")
