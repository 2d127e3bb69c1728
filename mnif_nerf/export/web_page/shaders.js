// The shaders, written out for the shape of this model's network.

const GRID_WIDTH = 512; // cells of the occupancy grid lie row by row in a texture of this width
const WEIGHTS_WIDTH = 256; // and so do weights, where they do not fit uniform blocks

// How the shader reads its weights. Graphics chips broadcast what lies in uniform blocks (one for each layer here), and
// are many times slower to fetch it from a texture; but software renderers are quicker with a texture, and blocks may
// be too small for wide layers (WebGL2 promises 16 KB, most devices have 64).
function weightSource(gl, layout, wanted) {
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const device = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  const isSoftware = /swiftshader|llvmpipe|softpipe|basic render|software/i.test(device);
  const largest = Math.max(...layout.layers.map((layer) => 16 * layer.vec4s));
  const fits =
    largest <= gl.getParameter(gl.MAX_UNIFORM_BLOCK_SIZE) &&
    layout.layers.length <= gl.getParameter(gl.MAX_FRAGMENT_UNIFORM_BLOCKS);
  if (fits && (wanted || (isSoftware ? "texture" : "blocks")) === "blocks") {
    return {
      kind: "blocks",
      declarations: layout.layers
        .map((layer, k) => `layout(std140) uniform Layer${k} { vec4 weights${k}[${layer.vec4s}]; };\n`)
        .join(""),
      at: (number, index) => `weights${number}[${index}]`,
    };
  }
  const mask = WEIGHTS_WIDTH - 1;
  const shift = Math.log2(WEIGHTS_WIDTH);
  return {
    kind: "texture",
    declarations:
      "uniform sampler2D uWeights;\n" +
      `vec4 weight(int k) { return texelFetch(uWeights, ivec2(k & ${mask}, k >> ${shift}), 0); }\n`,
    at: (number, index) => `weight(${layout.layers[number].at} + ${index})`,
  };
}

// What follows the first layer, and the other layers but the last, by the network's family.
function activations(model) {
  const sine = (sum) => `wave(${sum})`;
  const chirp = (sum) => `wave(chirp(${sum}))`;
  const families = {
    siren: [sine, sine],
    finer: [chirp, chirp],
    "fourier-relu": [sine, (sum) => `max(${sum}, 0.0)`],
  };
  return families[model.family];
}

// vec4 network(vec4): the small network. Four outputs at a time are one expression over all inputs; a loop goes over the
// outputs, since everything written out compiles for many seconds. w0 is already in the weights, so that the arguments
// of the sine are plain.
function networkSource(layout, model, source) {
  const [first, hidden] = activations(model);
  const most = Math.max(...layout.layers.map((layer) => layer.outBlocks));
  const lines = ["vec4 network(vec4 point) {", `  vec4 h[${most}];`, "  h[0] = point;"];
  layout.layers.forEach((layer, number) => {
    const last = number === layout.layers.length - 1;
    const inputs = Array.from({ length: layer.inBlocks }, (_, k) => `x${number}_${k}`);
    const terms = [source.at(number, `${4 * layer.inBlocks * layer.outBlocks} + o`)];
    for (let column = 0; column < layer.fanIn; column += 1) {
      terms.push(`${source.at(number, `k + ${column}`)} * ${inputs[column >> 2]}.${"xyzw"[column & 3]}`);
    }
    const sum = terms.join(" + ");
    lines.push(
      ...inputs.map((name, k) => `  vec4 ${name} = h[${k}];`),
      `  for (int o = 0; o < ${layer.outBlocks}; ++o) {`,
      `    int k = o * ${4 * layer.inBlocks};`,
      `    h[o] = ${last ? (model.finalSine ? `wave(${sum})` : sum) : (number ? hidden : first)(sum)};`,
      "  }",
    );
  });
  lines.push("  return h[0];", "}");
  return lines.join("\n");
}

// The sine by a polynomial after a reduction by multiples of pi: graphics chips are only held to an error of 2^-11,
// and only between -pi and pi. This one is within 1e-6 for the arguments that networks have (some hundreds at most).
const WAVE = `
vec4 wave(vec4 x) {
  vec4 k = round(x * 0.318309886);
  vec4 r = (x - k * 3.140625) - k * 9.67653590e-4;
  vec4 s = r * r;
  vec4 y = r + r * s * (-0.166666571 + s * (8.333017291e-3 + s * (-1.980661517e-4 + s * 2.600054714e-6)));
  return y * (1.0 - 4.0 * fract(0.5 * k));
}
`;

// FINER's argument of the sine, which holds a factor w0 already.
const CHIRP = `
vec4 chirp(vec4 x) { return x * (1.0 + abs(x) / W0); }
`;

const COLORS = {
  radiance: "vec3 color(vec3 raw) { return 1.0 / (1.0 + exp(-raw)); }",
  sdf: "vec3 color(vec3 raw) { return 1.0 / (1.0 + exp(-raw)); }",
  logit: "vec3 color(vec3 raw) { return 1.0 / (1.0 + exp(-raw)); }",
  "radiance-authors": "vec3 color(vec3 raw) { return 0.5 * raw + 0.5; }", // VOLUME_MAIN clamps the pixel
  signed: "vec3 color(vec3 raw) { return clamp(0.5 * raw + 0.5, 0.0, 1.0); }",
};

const DENSITIES = {
  radiance: `
float density(float raw) {
  float x = DENSITY_GAIN * raw - DENSITY_SHIFT;
  return DENSITY_SCALE * (max(x, 0.0) + log(1.0 + exp(-abs(x))));
}`,
  "radiance-authors": `
float density(float raw) {
  return clamp((raw > 0.0 ? raw : 0.1 * (exp(min(raw, 0.0)) - 1.0)) + 0.1, 0.0, 10.0);
}`,
};

// How far inside a solid what the network says is: positive inside.
const VALUES = {
  signed: "float insideOf(vec4 raw) { return clamp(raw.x, -1.0, 1.0); }",
  logit: "float insideOf(vec4 raw) { return 1.0 - 2.0 / (1.0 + exp(clamp(raw.x, -60.0, 60.0))); }",
};
VALUES.distance = VALUES.signed;

const HEADER = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
out vec4 result;
`;

const CAMERA = `
uniform vec3 uPosition, uRight, uDown, uForward, uBackground;
uniform float uSize, uFocal;
vec3 rayDirection() {
  vec2 at = (gl_FragCoord.xy - 0.5 * uSize) / (uFocal * uSize);
  return normalize(uRight * at.x + uDown * at.y + uForward);
}
`;

const BOX = `
vec2 boxInterval(vec3 o, vec3 d) {
  vec3 slopes = 1.0 / mix(d, vec3(1e-9), lessThan(abs(d), vec3(1e-9)));
  vec3 a = (-HALF_EXTENT - o) * slopes, b = (HALF_EXTENT - o) * slopes;
  vec3 low = min(a, b), high = max(a, b);
  return vec2(max(max(low.x, max(low.y, low.z)), 0.0), min(high.x, min(high.y, high.z)));
}
`;

const GRID = `
uniform sampler2D uGrid;
uniform int uCells;
bool occupied(vec3 p) {
  ivec3 c = ivec3(clamp((p + HALF_EXTENT) * (float(uCells) / (2.0 * HALF_EXTENT)), 0.0, float(uCells) - 1.0));
  int index = (c.x * uCells + c.y) * uCells + c.z;
  return texelFetch(uGrid, ivec2(index % GRID_WIDTH, index / GRID_WIDTH), 0).r > 0.5;
}
`;

// Samples a fixed step apart from where the ray enters the box, left out in empty cells, until nothing more can be
// seen (an optical depth of 6 lets 0.25 % of the light through).
const VOLUME_MAIN = `
void main() {
  vec3 o = uPosition, d = rayDirection();
  vec2 span = boxInterval(o, d);
  vec3 light = vec3(0.0);
  float depth = 0.0;
  int k = 0;
  while (depth < 6.0) {
    float t = span.x + (float(k) + 0.5) * STEP;
    while (t < span.y && !occupied(o + t * d)) {
      k += 1;
      t = span.x + (float(k) + 0.5) * STEP;
    }
    if (t >= span.y) break;
    vec4 raw = network(vec4(o + t * d, 0.0));
    float more = density(raw.w) * STEP;
    light += exp(-depth) * (1.0 - exp(-more)) * color(raw.xyz);
    depth += more;
    k += 1;
  }
  result = vec4(clamp(light + exp(-depth) * uBackground, 0.0, 1.0), 1.0);
}
`;

const SHADE = `
vec3 shade(vec3 n, vec3 d, vec3 paint) {
  vec3 up = vec3(0.0, 0.0, 1.0);
  vec3 key = normalize(-0.7 * d + 0.9 * up + 0.6 * cross(up, d));
  float lit = max(0.7 * dot(n, key) + 0.3, 0.0);
  float gloss = pow(max(dot(n, normalize(key - d)), 0.0), 24.0);
  float light = AMBIENT + SKY * (0.5 + 0.5 * n.z) + KEY * lit;
  return clamp(light * paint + GLOSS * gloss, 0.0, 1.0);
}
vec3 boxSide(vec3 q) {
  vec3 size = abs(q);
  return size.x >= max(size.y, size.z) ? vec3(sign(q.x), 0.0, 0.0)
    : size.y >= size.z ? vec3(0.0, sign(q.y), 0.0) : vec3(0.0, 0.0, sign(q.z));
}
`;

// How far a ray can go on from a point without asking the network, 0 where it has to: through cells that hold nothing,
// or as far as a grid of distances says.
const CELL_LEAPS = `
float leap(vec3 p) { return occupied(p) ? 0.0 : HALF_EXTENT / float(uCells); }
float stepAfter(float v) { return HALF_EXTENT / float(uCells); }
bool gridMeets(vec3 p, out vec3 slope) { return false; }
`;

// How far inside a solid a point is by a grid of distances, as a share of TRUNCATION.
const DISTANCE_GRID = `
float storedAt(sampler2D grid, int cells, ivec3 c) {
  int index = (c.x * cells + c.y) * cells + c.z;
  return texelFetch(grid, ivec2(index % GRID_WIDTH, index / GRID_WIDTH), 0).r;
}
float storedInside(sampler2D grid, int cells, vec3 p) {
  vec3 at = clamp((p + HALF_EXTENT) * (float(cells) / (2.0 * HALF_EXTENT)) - 0.5, 0.0, float(cells) - 1.001);
  ivec3 c = ivec3(at);
  vec3 f = at - vec3(c);
  vec4 x;
  for (int k = 0; k < 4; ++k) {
    ivec3 corner = c + ivec3(0, k / 2, k % 2);
    x[k] = mix(storedAt(grid, cells, corner), storedAt(grid, cells, corner + ivec3(1, 0, 0)), f.x);
  }
  vec2 y = mix(x.xy, x.zw, f.y);
  return 2.0 * mix(y.x, y.y, f.z) - 1.0;
}
`;

// A distance between the grid's points is at most half a cell's diagonal off, besides what TRUST takes off. While
// something moves (uQuick), the grid alone says where the surface is and how it lies.
const DISTANCE_LEAPS = `
uniform sampler2D uGrid;
uniform int uCells;
uniform float uQuick;
float gridDistance(vec3 p) { return -TRUNCATION * storedInside(uGrid, uCells, p); }
float leap(vec3 p) {
  float away = TRUST * gridDistance(p);
  if (uQuick > 0.5) return away > 0.0 ? max(away, LEAST_STEP) : 0.0;
  away -= 1.7320508 * HALF_EXTENT / float(uCells);
  return away > LEAST_STEP ? away : 0.0;
}
float stepAfter(float v) { return max(TRUST * TRUNCATION * min(-v, 1.0), LEAST_STEP); }
bool gridMeets(vec3 p, out vec3 slope) {
  if (uQuick < 0.5) return false;
  vec3 side = vec3(HALF_EXTENT / float(uCells), 0.0, 0.0);
  for (int k = 0; k < 3; ++k, side = side.zxy) slope[k] = gridDistance(p - side) - gridDistance(p + side);
  return true;
}
`;

// Walks to the first sample inside, refines the crossing by false position (Illinois), takes colour and gradient there
// (one-sided differences), and shades. One loop asks the network for all of it, since a network written out four times
// compiles four times as long: `phase` says what the next value is for.
const SURFACE_MAIN = `
const int WALK = 0, ENTER = 1, REFINE = 2, FOUND = 6, MEET = 7, SLOPE = 8, DONE = 11;
void main() {
  vec3 o = uPosition, d = rayDirection();
  vec2 span = boxInterval(o, d);
  result = vec4(uBackground, 1.0);
  float t = span.x, low = t, high = t, outside = -1.0, inside = 1.0, last = 0.0, middle = 0.0;
  bool asked = false; // whether \`outside\` is what the network says at \`low\`
  vec3 slope = vec3(0.0), paint = vec3(0.0);
  int phase = WALK;
  while (phase != DONE) {
    vec3 axis = vec3(0.0);
    if (phase == WALK) {
      for (float far = leap(o + t * d); t < span.y && far > 0.0; far = leap(o + t * d)) {
        low = t;
        asked = false;
        t += far;
      }
      if (t >= span.y) return;
      if (gridMeets(o + t * d, slope)) phase = MEET;
    } else if (phase == ENTER) {
      t = low;
    } else if (phase <= FOUND) {
      t = low + clamp(outside / min(outside - inside, -1e-9), 0.0, 1.0) * (high - low);
      if (phase == FOUND) phase = MEET;
    } else {
      axis[phase - SLOPE] = 1.0;
    }
    vec4 raw = network(vec4((o + t * d + NUDGE * axis) / HALF_EXTENT, 0.0));
    float v = insideOf(raw);
    if (phase == WALK) {
      if (v > 0.0) {
        high = t;
        inside = v;
        phase = asked ? REFINE : ENTER;
      } else {
        low = t;
        outside = v;
        asked = true;
        t += stepAfter(v);
      }
    } else if (phase == ENTER) {
      outside = v;
      phase = REFINE;
      if (v > 0.0) { // the box cuts the solid open
        slope = -boxSide(o + t * d);
        paint = paintOf(raw);
        phase = DONE;
      }
    } else if (phase < FOUND) {
      if (v > 0.0) {
        high = t;
        inside = v;
        if (last > 0.0) outside *= 0.5;
      } else {
        low = t;
        outside = v;
        if (last < 0.0) inside *= 0.5;
      }
      last = v > 0.0 ? 1.0 : -1.0;
      phase = abs(v) < 0.002 ? FOUND : phase + 1;
    } else if (phase == MEET) {
      middle = v;
      paint = paintOf(raw);
      phase = slope == vec3(0.0) ? SLOPE : DONE;
    } else {
      slope += axis * (v - middle);
      phase += 1;
    }
  }
  result = vec4(shade(-slope / max(length(slope), 1e-9), d, paint), 1.0);
}
`;

const PLANE_MAIN = `
void main() {
  vec3 o = uPosition, d = rayDirection();
  float t = -o.x / d.x;
  vec3 p = o + t * d;
  vec2 at = vec2(-p.z, p.y) / HALF_EXTENT;
  bool hit = t > 0.0 && all(lessThanEqual(abs(at), REACH.xy));
  result = vec4(uBackground, 1.0);
  if (hit) {
    vec4 raw = network(vec4(at, 0.0, 0.0));
    result.rgb = SEEN;
  }
}
`;

// What is seen of a picture's raw outputs, by their number. Of four the last is alpha, and colours are times alpha.
const SEEN = {
  1: "color(raw.xxx)",
  3: "color(raw.xyz)",
  4: "min(color(raw.xyz), color(raw.www)) + (1.0 - color(raw.www)) * uBackground",
};

// What a cell of a grid of distances holds. Where a grid of half its resolution says that no surface can be near, that
// will do.
const DISTANCE_CELL = `
uniform sampler2D uCoarse;
uniform int uHalf; // 0 without one
float cellOf(vec3 p) {
  float v = uHalf > 0 ? storedInside(uCoarse, uHalf, p) : 0.0;
  if (abs(v) * TRUNCATION <= 1.7320508 * HALF_EXTENT / (TRUST * float(max(uHalf, 1))))
    v = clamp(insideOf(network(vec4(p / HALF_EXTENT, 0.0))), -1.0, 1.0);
  return 0.5 + 0.5 * v;
}
`;

// Which cells of the grid may hold something, by the field at their centres; or the distances there.
const CELLS_MAIN = `
uniform sampler2D uBounds;
uniform int uCells;
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  int index = at.y * GRID_WIDTH + at.x;
  result = vec4(0.0);
  if (index >= uCells * uCells * uCells || texelFetch(uBounds, at, 0).r < 0.5) return;
  vec3 cell = vec3(float(index / (uCells * uCells)), float(index / uCells % uCells), float(index % uCells));
  vec3 p = (cell + 0.5) * (2.0 * HALF_EXTENT / float(uCells)) - HALF_EXTENT;
  result.r = CELL;
}
`;

// Grows the cells by one in every direction, within the bounds.
const GROW_SOURCE = `${HEADER}
uniform sampler2D uFound, uBounds;
uniform int uCells;
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  int index = at.y * ${GRID_WIDTH} + at.x;
  result = vec4(0.0);
  if (index >= uCells * uCells * uCells || texelFetch(uBounds, at, 0).r < 0.5) return;
  ivec3 cell = ivec3(index / (uCells * uCells), index / uCells % uCells, index % uCells);
  ivec3 low = max(cell - 1, 0), high = min(cell + 1, uCells - 1);
  for (int x = low.x; x <= high.x; ++x)
    for (int y = low.y; y <= high.y; ++y)
      for (int z = low.z; z <= high.z; ++z) {
        int k = (x * uCells + y) * uCells + z;
        if (texelFetch(uFound, ivec2(k % ${GRID_WIDTH}, k / ${GRID_WIDTH}), 0).r > 0.5) result.r = 1.0;
      }
}
`;

const SHOW_SOURCE = `${HEADER}
uniform sampler2D uPicture;
uniform vec2 uCanvas;
uniform int uSamples; // texels along an edge of a pixel, or 0 to enlarge smoothly
void main() {
  vec2 at = vec2(gl_FragCoord.x, uCanvas.y - gl_FragCoord.y);
  if (uSamples == 0) {
    result = texture(uPicture, at / uCanvas);
    return;
  }
  ivec2 first = ivec2(at) * uSamples;
  vec3 sum = vec3(0.0);
  for (int y = 0; y < uSamples; ++y)
    for (int x = 0; x < uSamples; ++x) sum += texelFetch(uPicture, first + ivec2(x, y), 0).rgb;
  result = vec4(sum / float(uSamples * uSamples), 1.0);
}
`;

const VERTEX_SOURCE = `#version 300 es
void main() { gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0); }
`;

function glslNumber(number) {
  const text = String(number);
  return /[.e]/.test(text) ? text : `${text}.0`;
}

// Fragment shaders of the model: { picture, cells, grow }; the second null where there is no grid, and the third where
// it holds more than yes and no.
function fragmentSources(model, layout, source) {
  const constants = { HALF_EXTENT: model.halfExtent, ...model.constants };
  const defines = Object.entries(constants)
    .map(([name, number]) =>
      Array.isArray(number)
        ? `#define ${name} vec3(${number.map(glslNumber).join(", ")})\n`
        : `#define ${name} ${glslNumber(number)}\n`,
    )
    .join("");
  const outputs = model.sizes[model.sizes.length - 1];
  const grey = outputs === 1;
  const cell = {
    radiance: "density(network(vec4(p, 0.0)).w) > OCCUPIED_ABOVE ? 1.0 : 0.0",
    voxel: "insideOf(network(vec4(p / HALF_EXTENT, 0.0))) > OCCUPIED_ABOVE ? 1.0 : 0.0",
    distance: "cellOf(p)",
  };
  const names =
    `#define GRID_WIDTH ${GRID_WIDTH}\n#define SEEN ${SEEN[outputs]}\n#define W0 ${glslNumber(model.w0)}\n` +
    `#define CELL (${cell[model.modality] || "1.0"})\n`;
  const head = {
    radiance: COLORS[model.head] + DENSITIES[model.head],
    voxel: `${VALUES[model.head]}\nvec3 paintOf(vec4 raw) { return PAINT; }\n`,
    distance:
      `${COLORS[model.head]}\nvec3 paintOf(vec4 raw) { return ${grey ? "PAINT" : "color(raw.xyz)"}; }\n` +
      `float insideOf(vec4 raw) { return raw.${grey ? "x" : "w"} * (DISTANCE_SCALE / TRUNCATION); }\n`,
    image: COLORS[model.head],
  }[model.modality];
  const waves = WAVE + (model.family === "finer" ? CHIRP : "");
  const field = [HEADER, defines, names, source.declarations, waves, head, networkSource(layout, model, source)];
  const main = {
    radiance: BOX + GRID + VOLUME_MAIN,
    voxel: BOX + GRID + CELL_LEAPS + SHADE + SURFACE_MAIN,
    distance: BOX + DISTANCE_GRID + DISTANCE_LEAPS + SHADE + SURFACE_MAIN,
    image: PLANE_MAIN,
  };
  const cells = { radiance: CELLS_MAIN, voxel: CELLS_MAIN, distance: DISTANCE_GRID + DISTANCE_CELL + CELLS_MAIN };
  return {
    picture: [...field, CAMERA, main[model.modality]].join("\n"),
    cells: model.modality === "image" ? null : [...field, cells[model.modality]].join("\n"),
    grow: ["image", "distance"].includes(model.modality) ? null : GROW_SOURCE,
  };
}
