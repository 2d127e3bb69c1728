// What takes long, and so is done beside the page where the browser can: by a worker that runs this same script.

const kits = new Map(); // one prior, unpacked when it is first needed

function priorOf(kit) {
  if (!kits.has("prior")) kits.set("prior", new Prior(kit));
  return kits.get("prior");
}

const tasks = {
  // A new object: { numbers, latent, rarity, tries, milliseconds }.
  draw({ kit, seed, wish }) {
    const prior = priorOf(kit);
    const start = performance.now();
    const drawn = prior.draw(seed, wish);
    return { ...drawn, numbers: prior.networkOf(drawn.latent), milliseconds: performance.now() - start };
  },

  // A GLB file: { bytes, triangles, milliseconds }.
  mesh({ facts, numbers, resolution }) {
    const start = performance.now();
    const mesh = meshOf(new Field(numbers, facts), resolution);
    const bytes = glbOf(mesh, facts.generator);
    return { bytes, triangles: mesh.faces.length / 3, milliseconds: performance.now() - start };
  },

  // The pixels of a picture: { pixels, width, height }.
  picture({ facts, numbers, pixels }) {
    return pictureOf(new Field(numbers, facts), pixels);
  },
};

// Answer messages { id, task, input } of the page.
function serve(scope) {
  scope.onmessage = ({ data: { id, task, input } }) => {
    try {
      scope.postMessage({ id, result: tasks[task](input) });
    } catch (error) {
      scope.postMessage({ id, error: error.message });
    }
  };
}
