// WebGL2: one object's weights on the graphics device, its occupancy grid, and pictures of it, a strip at a time.

const STRIP_MS = 24; // aim for one draw call, far below what a driver's watchdog allows
const FIRST_STRIP = 2048; // pixels, while nothing has been timed yet

class Renderer {
  constructor(gl, model, wantedSource) {
    this.gl = gl;
    this.model = model;
    this.layout = layoutOf(model.sizes);
    this.source = weightSource(gl, this.layout, wantedSource);
    this.msPerPixel = { picture: 0, quick: 0, cells: 0, grow: 0 };
    this.loaded = ""; // which weights are on the device
    this.found = {}; // by resolution: of which weights cells were found, and up to which row
    this.made = {}; // by resolution: of which weights the grid was made
    gl.bindVertexArray(gl.createVertexArray());
    gl.disable(gl.DITHER);
    const sources = fragmentSources(model, this.layout, this.source);
    this.programs = { show: this.program(SHOW_SOURCE), picture: this.program(sources.picture) };
    for (const name of ["cells", "grow"]) if (sources[name]) this.programs[name] = this.program(sources[name]);
    this.isDistance = model.modality === "distance";
    this.movingCost = this.isDistance ? "quick" : "picture"; // what a picture while moving is timed as
    this.targets = {};
    this.bounds = {};
    this.makeWeights();
  }

  // Compiling is left to run beside the page where the browser can; `ready` waits for it.
  program(fragment) {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX_SOURCE], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    return program;
  }

  async ready() {
    const gl = this.gl;
    const parallel = gl.getExtension("KHR_parallel_shader_compile");
    for (const program of Object.values(this.programs)) {
      while (parallel && !gl.getProgramParameter(program, parallel.COMPLETION_STATUS_KHR)) await pause(20);
      if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
        const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
        throw new Error(`the shader did not compile: ${[...logs, gl.getProgramInfoLog(program)].join(" ")}`);
      }
      this.layout.layers.forEach((_, k) => {
        const index = gl.getUniformBlockIndex(program, `Layer${k}`);
        if (index !== gl.INVALID_INDEX) gl.uniformBlockBinding(program, index, k);
      });
    }
  }

  makeWeights() {
    const gl = this.gl;
    if (this.source.kind === "texture") {
      const rows = Math.ceil(this.layout.vec4s / WEIGHTS_WIDTH);
      this.weights = this.texture(gl.RGBA32F, WEIGHTS_WIDTH, rows, gl.NEAREST);
      this.padded = new Float32Array(4 * WEIGHTS_WIDTH * rows);
      return;
    }
    this.buffers = this.layout.layers.map((layer, k) => {
      const buffer = gl.createBuffer();
      gl.bindBufferBase(gl.UNIFORM_BUFFER, k, buffer);
      gl.bufferData(gl.UNIFORM_BUFFER, 16 * layer.vec4s, gl.DYNAMIC_DRAW);
      return buffer;
    });
  }

  texture(format, width, height, filter) {
    const gl = this.gl;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, filter);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
    return texture;
  }

  // A texture that can be drawn to, kept under a name and made anew when its size changes.
  target(name, format, width, height) {
    const gl = this.gl;
    const old = this.targets[name];
    if (old && old.width === width && old.height === height) return old;
    if (old) {
      gl.deleteTexture(old.texture);
      gl.deleteFramebuffer(old.framebuffer);
    }
    const texture = this.texture(format, width, height, format === gl.RGBA8 ? gl.LINEAR : gl.NEAREST);
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    this.targets[name] = { texture, framebuffer, width, height };
    return this.targets[name];
  }

  // Put the weights called `key` (packed by `packed`) on the device, unless they are there.
  load(key, weights) {
    if (this.loaded === key) return;
    const gl = this.gl;
    if (this.source.kind === "texture") {
      this.padded.set(weights);
      gl.bindTexture(gl.TEXTURE_2D, this.weights);
      const rows = this.padded.length / 4 / WEIGHTS_WIDTH;
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, WEIGHTS_WIDTH, rows, gl.RGBA, gl.FLOAT, this.padded);
    } else {
      this.layout.layers.forEach((layer, k) => {
        gl.bindBuffer(gl.UNIFORM_BUFFER, this.buffers[k]);
        gl.bufferSubData(gl.UNIFORM_BUFFER, 0, weights, 4 * layer.at, 4 * layer.vec4s);
      });
    }
    this.loaded = key;
  }

  boundsTexture(cells) {
    if (!this.bounds[cells]) {
      const gl = this.gl;
      const height = Math.ceil(cells ** 3 / GRID_WIDTH);
      const padded = new Uint8Array(GRID_WIDTH * height);
      padded.set(cellsAt(this.model.bounds, cells));
      this.bounds[cells] = this.texture(gl.R8, GRID_WIDTH, height, gl.NEAREST);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, GRID_WIDTH, height, gl.RED, gl.UNSIGNED_BYTE, padded);
    }
    return this.bounds[cells];
  }

  hasGrid(cells) {
    return this.made[cells] === this.loaded;
  }

  // Find the cells of the loaded weights that rays must sample, or the distances there: at the full resolution only near
  // the surface that half of it shows. False where `wanted` turned false meanwhile; what was
  // found till then is kept, and so are grids of other resolutions.
  async makeGrid(cells, wanted) {
    if (!this.programs.cells) return true;
    const gl = this.gl;
    const height = Math.ceil(cells ** 3 / GRID_WIDTH);
    const found = this.target(`found ${cells}`, gl.R8, GRID_WIDTH, height);
    const grid = this.programs.grow ? this.target(`grid ${cells}`, gl.R8, GRID_WIDTH, height) : found;
    if (!this.hasGrid(cells)) {
      const half = this.isDistance && cells === this.model.gridCells ? cells / 2 : 0;
      if (half && !this.hasGrid(half) && !(await this.makeGrid(half, wanted))) return false;
      delete this.made[cells];
      if (!this.found[cells] || this.found[cells].of !== this.loaded) this.found[cells] = { of: this.loaded, row: 0 };
      const begun = this.found[cells];
      const textures = { uBounds: this.boundsTexture(cells), uFound: found.texture };
      if (half) textures.uCoarse = this.targets[`found ${half}`].texture;
      const note = (row) => {
        begun.row = row;
      };
      const numbers = { uCells: cells, uHalf: half };
      if (!(await this.strips("cells", found, textures, numbers, wanted, note, begun.row))) return false;
      if (grid !== found && !(await this.strips("grow", grid, textures, { uCells: cells }, wanted))) return false;
      this.made[cells] = this.loaded;
    }
    this.grid = { texture: grid.texture, cells };
    return true;
  }

  // Draw the view into the target `name`, size x size; with `uQuick` 1 in the camera, distances by their grid alone.
  // False where `wanted` turned false meanwhile.
  async draw(name, size, camera, wanted, progress) {
    const target = this.target(name, this.gl.RGBA8, size, size);
    const textures = this.grid ? { uGrid: this.grid.texture } : {};
    const numbers = { uQuick: 0, ...camera, uSize: size };
    if (this.grid) numbers.uCells = this.grid.cells;
    return this.strips("picture", target, textures, numbers, wanted, progress);
  }

  async strips(programName, target, textures, numbers, wanted, progress, first = 0) {
    const cost = this.msPerPixel;
    const kind = numbers.uQuick ? this.movingCost : programName;
    let row = first;
    let rows = Math.max(1, Math.floor(FIRST_STRIP / target.width));
    while (row < target.height) {
      // At most twice the last strip: where the object begins, rows get many times as dear as above it.
      const affordable = cost[kind] > 0 ? STRIP_MS / (cost[kind] * target.width) : rows;
      rows = Math.max(1, Math.min(target.height - row, 2 * rows, Math.floor(affordable)));
      const start = performance.now();
      this.drawRows(programName, target, textures, numbers, row, rows);
      await finished(this.gl);
      const spent = (performance.now() - start) / (rows * target.width);
      cost[kind] = Math.max(spent, 0.8 * cost[kind]);
      row += rows;
      if (progress) progress(row);
      if (!wanted()) return false;
    }
    return true;
  }

  drawRows(programName, target, textures, numbers, row, rows) {
    const gl = this.gl;
    const program = this.programs[programName];
    gl.useProgram(program);
    this.bind(program, this.source.kind === "texture" ? { ...textures, uWeights: this.weights } : textures);
    for (const [name, value] of Object.entries(numbers)) {
      const place = gl.getUniformLocation(program, name);
      if (["uCells", "uHalf", "uSamples"].includes(name)) gl.uniform1i(place, value);
      else if (Array.isArray(value)) (value.length === 3 ? gl.uniform3fv : gl.uniform2fv).call(gl, place, value);
      else gl.uniform1f(place, value);
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, target ? target.framebuffer : null);
    const [width, height] = target ? [target.width, target.height] : [gl.canvas.width, gl.canvas.height];
    gl.viewport(0, 0, width, height);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(0, row, width, rows);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  bind(program, textures) {
    const gl = this.gl;
    Object.entries(textures).forEach(([name, texture], unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.uniform1i(gl.getUniformLocation(program, name), unit);
    });
    gl.activeTexture(gl.TEXTURE0 + 15); // where textures are made and filled, so that no binding above changes
  }

  // Put a drawn picture on the canvas, or its first `rows` rows only.
  show(name, samples, rows) {
    const gl = this.gl;
    const target = this.targets[name];
    const height = gl.canvas.height;
    const shown = rows === undefined ? height : Math.floor((rows * height) / target.height);
    const numbers = { uCanvas: [gl.canvas.width, height], uSamples: samples };
    this.drawRows("show", null, { uPicture: target.texture }, numbers, height - shown, shown);
  }

  // RGBA bytes of a drawn picture, the top row first.
  pixels(name) {
    const gl = this.gl;
    const { framebuffer, width, height } = this.targets[name];
    const out = new Uint8Array(4 * width * height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, out);
    return out;
  }
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

// Until the device has done what it was told. The page stays free meanwhile.
async function finished(gl) {
  const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
  gl.flush();
  for (let wait = 0; !gl.isContextLost(); wait = Math.min(wait + 1, 8)) {
    await pause(wait);
    const status = gl.clientWaitSync(fence, 0, 0);
    if (status === gl.ALREADY_SIGNALED || status === gl.CONDITION_SATISFIED) break;
  }
  gl.deleteSync(fence);
}

// The camera `orbit_pose` of the Python package: degrees, world z up, azimuth 0 in front (+x).
function orbitCamera(view, focal, background) {
  const [e, a] = [(view.elevation * Math.PI) / 180, (view.azimuth * Math.PI) / 180];
  const outward = [Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e)];
  const right = [-Math.sin(a), Math.cos(a), 0];
  const forward = outward.map((v) => -v);
  const down = [
    forward[1] * right[2] - forward[2] * right[1],
    forward[2] * right[0] - forward[0] * right[2],
    forward[0] * right[1] - forward[1] * right[0],
  ];
  return {
    uPosition: outward.map((v) => v * view.radius),
    uRight: right,
    uDown: down,
    uForward: forward,
    uFocal: focal,
    uBackground: background,
  };
}
