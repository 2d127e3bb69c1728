// A field's surface as a closed mesh: surface nets (Gibson 1998) of patches on a grid that is dense near the surface only.

const ROOT3 = Math.sqrt(3);
// Along an edge of the box, of which only those near the surface are looked at closely: so small that the distances that
// fields have learned (0.03, in boxes of one unit) tell near from far.
const BLOCKS = 48;

// Values at the centres of `resolution`^3 cells of the scene box, with an empty layer around them, which closes what
// reaches the box: [resolution + 2]^3.
function gridValues(field, resolution) {
  const { halfExtent, bounds } = field.facts;
  const padded = resolution + 2;
  const values = new Float32Array(padded ** 3).fill(-field.deepest);
  const stride = Math.max(1, Math.floor(resolution / BLOCKS));
  const blocks = Math.ceil(resolution / stride);
  const blockStates = stride > 1 ? statesOf(field, blocks, stride / resolution) : new Uint8Array(blocks ** 3).fill(NEAR);
  const inBounds = cellsAt(bounds, resolution);
  const edge = (2 * halfExtent) / resolution;
  const places = [];
  const flush = () => {
    const points = new Float32Array(3 * places.length);
    places.forEach(([x, y, z], k) => points.set([x, y, z].map((n) => (n + 0.5) * edge - halfExtent), 3 * k));
    const found = field.insides(field.at(points));
    places.forEach(([x, y, z], k) => {
      values[((x + 1) * padded + y + 1) * padded + z + 1] = found[k];
    });
    places.length = 0;
  };
  for (let x = 0; x < resolution; x += 1)
    for (let y = 0; y < resolution; y += 1)
      for (let z = 0; z < resolution; z += 1) {
        if (!inBounds[(x * resolution + y) * resolution + z]) continue;
        const block = (Math.floor(x / stride) * blocks + Math.floor(y / stride)) * blocks + Math.floor(z / stride);
        const state = blockStates[block];
        if (state === FULL) values[((x + 1) * padded + y + 1) * padded + z + 1] = field.deepest;
        if (state !== NEAR) continue;
        places.push([x, y, z]);
        if (places.length === 4096) flush();
      }
  flush();
  return values;
}

const [FAR, NEAR, FULL] = [0, 1, 2];

// Of each of `count`^3 blocks whether it is empty, full, or has to be looked at, by the field at their centres.
// `share`: a block's edge, as a share of the box's.
function statesOf(field, count, share) {
  const { modality, halfExtent, constants, level } = field.facts;
  const points = new Float32Array(3 * count ** 3);
  const place = (n) => (n + 0.5) * 2 * halfExtent * share - halfExtent;
  for (let k = 0; k < count ** 3; k += 1)
    points.set([place(Math.floor(k / count ** 2)), place(Math.floor(k / count) % count), place(k % count)], 3 * k);
  const values = field.insides(field.at(points));
  if (modality === "distance") {
    // No surface is nearer than the distance says, of which a part is believed.
    const reach = (ROOT3 * halfExtent * share) / (constants.TRUST * constants.TRUNCATION);
    return Uint8Array.from(values, (v) => (Math.abs(v) <= Math.min(reach, 1) ? NEAR : v > 0 ? FULL : FAR));
  }
  const least = modality === "radiance" ? Math.log(constants.OCCUPIED_ABOVE / level) : constants.OCCUPIED_ABOVE;
  return Uint8Array.from(values, (_, k) => {
    let [some, all] = [false, true];
    const at = [Math.floor(k / count ** 2), Math.floor(k / count) % count, k % count];
    for (let step = 0; step < 27; step += 1) {
      const near = [Math.floor(step / 9) - 1, (Math.floor(step / 3) % 3) - 1, (step % 3) - 1].map((n, i) => n + at[i]);
      if (near.some((n) => n < 0 || n >= count)) {
        all = false;
        continue;
      }
      const value = values[(near[0] * count + near[1]) * count + near[2]];
      some = some || value > least;
      all = all && value > 0;
    }
    return all ? FULL : some ? NEAR : FAR;
  });
}

// A cell's edges: 4 * axis + side, where the bits of `side` say where they start along the next two axes.
const EDGES = Array.from({ length: 12 }, (_, k) => {
  const [axis, start] = [Math.floor(k / 4), [0, 0, 0]];
  start[(axis + 1) % 3] = k & 1;
  start[(axis + 2) % 3] = (k >> 1) & 1;
  return { axis, start };
});
// A cell's sides: the edges along the first of its two directions, then along the second, the lower ones first.
const SIDES = Array.from({ length: 6 }, (_, k) => {
  const [normal, side] = [k >> 1, k & 1];
  const [u, v] = [4 * ((normal + 1) % 3) + 2 * side, 4 * ((normal + 2) % 3) + side];
  return [u, u + 1, v, v + 2];
});

// Corners [n, 3] (in cells of the padded grid) and outward triangles of where values [size]^3 pass 0.
//
// A cell that the surface meets in two patches has two corners (Nielson 2004), so that what is a cell thin is closed too.
function surfaceNets(values, size) {
  const steps = [size * size, size, 1];
  const offsets = Array.from({ length: 8 }, (_, k) => (k & 1) * steps[0] + ((k >> 1) & 1) * steps[1] + (k >> 2));
  const firstOf = new Int32Array(values.length).fill(-1); // where in `patchOf` a cell's twelve edges begin
  const [patchOf, corners, quads, ends] = [[], [], [], new Float32Array(24)];
  for (let x = 0; x + 1 < size; x += 1)
    for (let y = 0; y + 1 < size; y += 1)
      for (let z = 0; z + 1 < size; z += 1) {
        const at = x * steps[0] + y * steps[1] + z;
        let inside = 0;
        for (const offset of offsets) if (values[at + offset] > 0) inside += 1;
        if (inside === 0 || inside === 8) continue;
        firstOf[at] = patchOf.length;
        EDGES.forEach(({ axis, start }, k) => {
          const from = at + start[0] * steps[0] + start[1] * steps[1] + start[2];
          ends[2 * k] = values[from];
          ends[2 * k + 1] = values[from + steps[axis]];
        });
        addPatches(ends, [x, y, z], corners, patchOf);
      }
  for (let at = 0; at < values.length; at += 1)
    for (let axis = 0; axis < 3; axis += 1) {
      const next = at + steps[axis];
      if (next >= values.length || values[at] > 0 === values[next] > 0) continue;
      const [u, v] = [steps[(axis + 1) % 3], steps[(axis + 2) % 3]];
      const cells = [[at, 0], [at - u, 1], [at - u - v, 3], [at - v, 2]]; // and which side of each the edge is
      const around = cells.map(([cell, side]) => patchOf[firstOf[cell] + 4 * axis + side]);
      quads.push(values[at] > 0 ? { around, inside: at } : { around: around.reverse(), inside: next });
    }
  const faces = triangulated(quads, corners);
  return { corners: Float32Array.from(corners), faces: Uint32Array.from(faces) };
}

// Appends the corners of a cell's patches, each the mean of where its edges pass 0, and the patch of each edge, or -1.
// `ends`: values at the ends of each edge, [24].
function addPatches(ends, place, corners, patchOf) {
  const group = new Int8Array(12);
  for (let k = 0; k < 12; k += 1) group[k] = ends[2 * k] > 0 === ends[2 * k + 1] > 0 ? -1 : k;
  const unite = (p, q) => {
    const [from, to] = [group[q], group[p]];
    for (let k = 0; k < 12; k += 1) if (group[k] === from) group[k] = to;
  };
  for (const side of SIDES) {
    const crossed = side.filter((k) => group[k] >= 0);
    if (crossed.length === 2) unite(crossed[0], crossed[1]);
    if (crossed.length < 4) continue;
    // Two corners inside lie across from each other: each is cut off by itself, in this cell as in the next.
    const [low, high, left, right] = side;
    const isInside = ends[2 * low] > 0;
    unite(low, isInside ? left : right);
    unite(high, isInside ? right : left);
  }
  const first = patchOf.length;
  for (let k = 0; k < 12; k += 1) patchOf.push(-1);
  for (let own = 0; own < 12; own += 1) {
    const sum = [0, 0, 0];
    let count = 0;
    for (let k = own; k < 12; k += 1) {
      if (group[k] !== group[own] || group[own] < 0 || patchOf[first + k] >= 0) continue;
      patchOf[first + k] = corners.length / 3;
      const { axis, start } = EDGES[k];
      for (let n = 0; n < 3; n += 1) sum[n] += n === axis ? ends[2 * k] / (ends[2 * k] - ends[2 * k + 1]) : start[n];
      count += 1;
    }
    if (count > 0) corners.push(...sum.map((value, n) => place[n] + value / count));
  }
}

// Triangles of quadrilaterals of corners `around` edges of the grid, whose ends `inside` are given. Two patches can meet
// along two lines, each between the edges of one end inside; a new corner on the second keeps their triangles apart.
function triangulated(quads, corners) {
  const known = corners.length / 3;
  const lineOf = (a, b) => Math.min(a, b) * known + Math.max(a, b);
  const uses = new Map();
  for (const { around } of quads)
    around.forEach((corner, k) => {
      const line = lineOf(corner, around[(k + 1) % 4]);
      uses.set(line, (uses.get(line) || 0) + 1);
    });
  const seconds = new Map(); // of doubled lines: the end of the first, and the corner on the second
  const between = (a, b, inside) => {
    const line = lineOf(a, b);
    if (uses.get(line) < 4) return [];
    if (!seconds.has(line)) seconds.set(line, { inside, corner: -1 });
    const found = seconds.get(line);
    if (found.inside === inside) return [];
    if (found.corner < 0) {
      found.corner = corners.length / 3;
      for (let axis = 0; axis < 3; axis += 1) corners.push(0.5 * (corners[3 * a + axis] + corners[3 * b + axis]));
    }
    return [found.corner];
  };
  const faces = [];
  for (const { around, inside } of quads) {
    const polygon = around.flatMap((corner, k) => [corner, ...between(corner, around[(k + 1) % 4], inside)]);
    if (polygon.length === 4) {
      faces.push(...triangles(polygon, corners));
      continue;
    }
    const start = polygon.findIndex((corner) => corner >= known);
    const [tip, ...others] = [...polygon.slice(start), ...polygon.slice(0, start)];
    for (let k = 0; k + 1 < others.length; k += 1) faces.push(tip, others[k], others[k + 1]);
  }
  return faces;
}

// A quadrilateral, cut along its shorter diagonal.
function triangles([a, b, c, d], corners) {
  const apart = (p, q) => [0, 1, 2].reduce((sum, k) => sum + (corners[3 * p + k] - corners[3 * q + k]) ** 2, 0);
  return apart(a, c) <= apart(b, d) ? [a, b, c, a, c, d] : [a, b, d, b, c, d];
}

// The shell that encloses most, as `mnif-export-mesh` keeps it.
function largestShell({ corners, faces }) {
  const parent = Int32Array.from({ length: corners.length / 3 }, (_, k) => k);
  const root = (k) => {
    let at = k;
    while (parent[at] !== at) {
      parent[at] = parent[parent[at]];
      at = parent[at];
    }
    return at;
  };
  for (let k = 0; k < faces.length; k += 3)
    for (const other of [faces[k + 1], faces[k + 2]]) parent[root(other)] = root(faces[k]);
  const volumes = new Map();
  for (let k = 0; k < faces.length; k += 3) {
    const [a, b, c] = [0, 1, 2].map((side) => corners.subarray(3 * faces[k + side], 3 * faces[k + side] + 3));
    const volume =
      a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
    const shell = root(faces[k]);
    volumes.set(shell, (volumes.get(shell) || 0) + volume);
  }
  const largest = [...volumes].reduce((best, pair) => (Math.abs(pair[1]) > Math.abs(best[1]) ? pair : best))[0];
  const numbers = new Int32Array(parent.length).fill(-1);
  const kept = [];
  parent.forEach((_, k) => {
    if (root(k) !== largest) return;
    numbers[k] = kept.length / 3;
    kept.push(...corners.subarray(3 * k, 3 * k + 3));
  });
  return { corners: Float32Array.from(kept), faces: faces.filter((k) => numbers[k] >= 0).map((k) => numbers[k]) };
}

// One step of corners towards the surface by the field's slope, at most half a cell and not out of the box. Gives the
// outward normals [n, 3]: the field's own, or those of the triangles around where it says none.
function settle(field, points, faces, edge) {
  const { halfExtent } = field.facts;
  const values = field.insides(field.at(points));
  const step = halfExtent / 512;
  const normals = new Float32Array(points.length);
  for (let axis = 0; axis < 3; axis += 1) {
    const ahead = field.insides(field.at(points.map((value, k) => (k % 3 === axis ? value + step : value))));
    for (let k = 0; k < values.length; k += 1) normals[3 * k + axis] = (values[k] - ahead[k]) / step;
  }
  const flat = faceNormals(points, faces);
  for (let at = 0; at < points.length; at += 3) {
    const [own, around] = [normals, flat].map((vectors) => Array.from(vectors.subarray(at, at + 3)));
    const steepness = Math.max(Math.hypot(...own), 1e-6);
    const far = clip(values[at / 3] / steepness, -0.5 * edge, 0.5 * edge);
    own.forEach((value, axis) => {
      points[at + axis] = clip(points[at + axis] + (far * value) / steepness, -halfExtent, halfExtent);
    });
    // On a side of the box, or in a fold, the field's slope says nothing of the mesh.
    const agrees = own[0] * around[0] + own[1] * around[1] + own[2] * around[2] > 0;
    const direction = agrees ? own : Math.hypot(...around) > 0 ? around : [0, 0, 1];
    const length = Math.hypot(...direction);
    normals.set(direction.map((value) => value / length), at);
  }
  return normals;
}

function faceNormals(points, faces) {
  const out = new Float32Array(points.length);
  for (let k = 0; k < faces.length; k += 3) {
    const [a, b, c] = [0, 1, 2].map((side) => points.subarray(3 * faces[k + side], 3 * faces[k + side] + 3));
    const [p, q] = [b, c].map((end) => [0, 1, 2].map((axis) => end[axis] - a[axis]));
    const normal = [p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]];
    for (let side = 0; side < 3; side += 1)
      for (let axis = 0; axis < 3; axis += 1) out[3 * faces[k + side] + axis] += normal[axis];
  }
  return out;
}

// Colours [n, 3] (sRGB, 0 to 1) at points on the surface; null of a field without. A radiance field's colour is
// learned a little under its surface, so it is composited along the way inwards, as `surface_colors` does.
function surfaceColors(field, points, normals) {
  const { modality, head, constants, thickness } = field.facts;
  if (field.outputs === 1) return null;
  const out = new Float32Array(points.length);
  if (modality === "distance") {
    const raw = field.at(points);
    return out.map((_, k) => colorOf(raw[Math.floor(k / 3) * field.outputs + (k % 3)], head));
  }
  const samples = 4;
  const step = thickness / samples;
  const weights = new Float32Array(points.length / 3);
  const before = new Float32Array(points.length / 3);
  for (let sample = 0; sample < samples; sample += 1) {
    const raw = field.at(points.map((value, k) => value - (sample + 0.5) * step * normals[k]));
    for (let k = 0; k < weights.length; k += 1) {
      const optical = step * densityOf(raw[4 * k + 3], head, constants);
      const weight = Math.exp(-before[k]) * -Math.expm1(-optical) + 1e-6;
      for (let axis = 0; axis < 3; axis += 1) out[3 * k + axis] += weight * colorOf(raw[4 * k + axis], head);
      weights[k] += weight;
      before[k] += optical;
    }
  }
  return out.map((value, k) => clip(value / weights[Math.floor(k / 3)], 0, 1));
}

// The mesh of a field: { points, normals, colors, faces } in the world's own axes (z up, x forward).
function meshOf(field, resolution) {
  const values = gridValues(field, resolution);
  const found = surfaceNets(values, resolution + 2);
  if (found.faces.length === 0) throw new Error("there is no surface in it");
  const { corners, faces } = largestShell(found);
  const edge = (2 * field.facts.halfExtent) / resolution;
  const points = corners.map((value) => (value - 0.5) * edge - field.facts.halfExtent);
  const normals = settle(field, points, faces, edge);
  return { points, normals, faces, colors: surfaceColors(field, points, normals) };
}
