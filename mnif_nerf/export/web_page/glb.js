// Binary glTF 2.0 of a mesh: y up, normals, colours in linear light, and a rough material that is no metal.

const [FLOAT, UNSIGNED_INT, VERTICES, INDICES] = [5126, 5125, 34962, 34963]; // glTF's numbers
const NEUTRAL = [0.5, 0.54, 0.6, 1]; // as `mnif_nerf.export.glb` has it, for what has no colours

const linearLight = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);

// From the world's axes (z up, x forward) to glTF's: (x, y, z) becomes (y, z, x).
const turned = (vectors) => vectors.map((_, k) => vectors[3 * Math.floor(k / 3) + ((k + 1) % 3)]);

function glbOf({ points, normals, faces, colors }, generator) {
  const parts = [];
  const tree = { accessors: [], bufferViews: [] };
  let size = 0;
  const add = (array, target, accessor) => {
    tree.bufferViews.push({ buffer: 0, byteOffset: size, byteLength: array.byteLength, target });
    tree.accessors.push({ bufferView: tree.bufferViews.length - 1, ...accessor });
    parts.push(array);
    size += array.byteLength; // all of them hold numbers of four bytes
    return tree.accessors.length - 1;
  };
  const positions = turned(points);
  const vectors = { componentType: FLOAT, type: "VEC3", count: points.length / 3 };
  const bound = (choose, start) =>
    [0, 1, 2].map((axis) => positions.reduce((best, value, k) => (k % 3 === axis ? choose(best, value) : best), start));
  const bounds = { min: bound(Math.min, Infinity), max: bound(Math.max, -Infinity) };
  const attributes = {
    POSITION: add(positions, VERTICES, { ...vectors, ...bounds }),
    NORMAL: add(turned(normals), VERTICES, vectors),
  };
  if (colors) attributes.COLOR_0 = add(colors.map(linearLight), VERTICES, vectors);
  const indices = add(faces, INDICES, { componentType: UNSIGNED_INT, type: "SCALAR", count: faces.length });
  Object.assign(tree, {
    asset: { version: "2.0", generator },
    scene: 0,
    scenes: [{ nodes: [0] }],
    nodes: [{ mesh: 0, name: "object" }],
    meshes: [{ name: "object", primitives: [{ attributes, indices, material: 0, mode: 4 }] }],
    materials: [
      {
        name: colors ? "vertex colours" : "neutral",
        pbrMetallicRoughness: { baseColorFactor: colors ? [1, 1, 1, 1] : NEUTRAL, metallicFactor: 0, roughnessFactor: 1 },
      },
    ],
    buffers: [{ byteLength: size }],
  });
  return container(new TextEncoder().encode(JSON.stringify(tree)), parts, size);
}

// The two chunks of a GLB file, each filled up to a multiple of four.
function container(text, parts, size) {
  const padded = 4 * Math.ceil(text.length / 4);
  const file = new Uint8Array(28 + padded + size).fill(0x20);
  const view = new DataView(file.buffer);
  const words = [0x46546c67, 2, file.length, padded, 0x4e4f534a]; // "glTF", version, length; length, "JSON"
  words.forEach((word, k) => view.setUint32(4 * k, word, true));
  file.set(text, 20);
  view.setUint32(20 + padded, size, true);
  view.setUint32(24 + padded, 0x004e4942, true); // "BIN"
  let at = 28 + padded;
  for (const part of parts) {
    file.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), at);
    at += part.byteLength;
  }
  return file;
}
