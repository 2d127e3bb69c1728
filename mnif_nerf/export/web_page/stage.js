// What is on the canvas: which object or blend from where, drawn coarsely while it moves and finely once it rests.

const MOVING_MS = 45; // aim for one frame while something moves
const REST_MS = 140; // without a change before finer pictures are begun
const SMOOTH_MS = 15000; // longest time that smoothing the outlines by more samples per pixel is worth
const PROGRESS_MS = 300; // between two looks at a picture that is being refined
const SLOW_MS = 2000; // a full picture that takes longer is preceded by one of a third of its edge
const SMALLEST = 48; // pixels along an edge while moving
const WHITE = [1, 1, 1];

class Stage {
  constructor(canvas, gl, model, options) {
    this.canvas = canvas;
    this.model = model;
    this.report = options.report; // called with what is shown
    this.renderer = new Renderer(gl, model, options.source);
    this.gl = gl;
    const [first] = model.objects;
    this.choice = { object: first, other: first, blend: 0 }; // entries of the model's objects
    this.view = { ...options.view };
    this.background = WHITE;
    this.version = 0;
    this.jobs = [];
    this.unpacked = new Map();
    this.pictured = -1; // id of the object whose weights live pictures are made of
    this.shown = { size: 0, fps: 0, final: false, current: false, id: -1 };
    this.wake = () => {};
  }

  // Something of `changes` ({ choice, view, background }) is new: draw again.
  change(changes) {
    Object.assign(this.choice, changes.choice);
    Object.assign(this.view, changes.view);
    if (changes.background) this.background = changes.background;
    this.version += 1;
    this.shown.final = false;
    this.shown.current = false;
    this.wake();
  }

  // A picture for measuring and tests, drawn as the page draws it but on white and of a size of its own:
  // { pixels: RGBA bytes with the top row first, size, milliseconds }; `quick` asks for what is drawn while moving.
  render(request) {
    return new Promise((resolve, reject) => {
      this.jobs.push({ request, resolve, reject });
      this.wake();
    });
  }

  async run() {
    await this.renderer.ready();
    let drawn = -1;
    while (!this.gl.isContextLost()) {
      if (this.jobs.length > 0) {
        await this.doJob(this.jobs.shift());
        drawn = -1;
      } else if (drawn !== this.version) {
        drawn = this.version;
        await this.drawMoving();
        if (await this.rested(drawn)) await this.refine(drawn);
      } else {
        await new Promise((resolve) => {
          this.wake = resolve;
        });
        this.wake = () => {};
      }
    }
  }

  async doJob({ request, resolve, reject }) {
    try {
      const always = () => true;
      const view = { ...this.view, ...request };
      const samples = request.samples || this.model.samples;
      const edge = request.size * samples;
      const camera = { ...orbitCamera(view, this.model.focal, WHITE), uQuick: request.quick ? 1 : 0 };
      this.load({ ...this.choice, ...request });
      if (request.quick) await this.makeQuickGrid();
      else await this.renderer.makeGrid(this.model.gridCells, always);
      const start = performance.now();
      await this.renderer.draw("job", edge, camera, always);
      const milliseconds = performance.now() - start;
      resolve({ pixels: average(this.renderer.pixels("job"), edge, samples), size: request.size, milliseconds });
    } catch (error) {
      reject(error);
    }
  }

  // The weights of an object as the shader wants them; the last few are kept.
  weightsOf(object) {
    let weights = this.unpacked.get(object.id);
    if (!weights) {
      weights = packed(weightsIn(object, this.model), this.renderer.layout);
      if (this.unpacked.size >= 64) this.unpacked.delete(this.unpacked.keys().next().value);
      this.unpacked.set(object.id, weights);
    }
    return weights;
  }

  // A network's weights are affine in the latent code, so mixing the weights is mixing the codes.
  load({ object, other, blend }) {
    const isMixed = blend > 0 && other !== object;
    const key = !isMixed ? `${object.id}` : blend >= 1 ? `${other.id}` : `${object.id} ${other.id} ${blend}`;
    if (key === this.renderer.loaded) return;
    if (!isMixed || blend >= 1) {
      this.renderer.load(key, this.weightsOf(isMixed ? other : object));
      return;
    }
    const [from, to] = [this.weightsOf(object), this.weightsOf(other)];
    this.renderer.load(key, from.map((value, k) => value + blend * (to[k] - value)));
  }

  camera() {
    return orbitCamera(this.view, this.model.focal, this.background);
  }

  // A grid of half the resolution takes an eighth of the time; the fine one is made once the object stays.
  async makeQuickGrid() {
    const fine = this.model.gridCells;
    await this.renderer.makeGrid(this.renderer.hasGrid(fine) ? fine : fine / 2, () => true);
  }

  async drawMoving() {
    await new Promise((resolve) => requestAnimationFrame(resolve));
    const start = performance.now();
    const full = this.canvas.width;
    const version = this.version;
    this.load(this.choice);
    this.pictured = this.choice.object.id;
    await this.makeQuickGrid();
    const cost = this.renderer.msPerPixel[this.renderer.movingCost];
    const affordable = cost > 0 ? Math.floor(Math.sqrt(MOVING_MS / cost)) : SMALLEST;
    const size = Math.min(full, Math.max(SMALLEST, affordable));
    await this.renderer.draw("moving", size, { ...this.camera(), uQuick: 1 }, () => true);
    this.renderer.show("moving", size === full ? 1 : 0);
    this.say(size, 1000 / Math.max(performance.now() - start, 1), false, version);
  }

  async rested(version) {
    const end = performance.now() + REST_MS;
    while (performance.now() < end) {
      if (this.version !== version || this.jobs.length > 0) return false;
      await pause(10);
    }
    return true;
  }

  async refine(version) {
    const wanted = () => this.version === version && this.jobs.length === 0 && !this.gl.isContextLost();
    const full = this.canvas.width;
    if (!(await this.renderer.makeGrid(this.model.gridCells, wanted))) return;
    const third = Math.floor(full / 3);
    if (third > this.shown.size && full ** 2 * this.renderer.msPerPixel.picture > SLOW_MS) {
      if (!(await this.renderer.draw("moving", third, this.camera(), wanted))) return;
      this.renderer.show("moving", 0);
      this.say(third, this.shown.fps, false, version);
    }
    for (let samples = 1; samples <= this.model.samples; samples += 1) {
      const start = performance.now();
      const name = `fine ${samples}`;
      const below = samples === 1 ? ["moving", this.shown.size === full ? 1 : 0] : [`fine ${samples - 1}`, samples - 1];
      let shownAt = start;
      const progress = (rows) => {
        if (performance.now() - shownAt < PROGRESS_MS || rows === full * samples) return;
        shownAt = performance.now();
        this.renderer.show(...below);
        this.renderer.show(name, samples, rows);
      };
      if (!(await this.renderer.draw(name, full * samples, this.camera(), wanted, progress))) return;
      this.renderer.show(name, samples);
      const dearer = ((samples + 1) / samples) ** 2 * (performance.now() - start);
      const last = samples === this.model.samples || dearer > SMOOTH_MS;
      this.say(full, this.shown.fps, last, version);
      if (last) return;
    }
  }

  // `version`: of what was asked when the picture was begun; where it is the newest, the picture is `current`. `id`: of
  // the object in it.
  say(size, fps, final, version) {
    this.shown = { size, fps, final, current: version === this.version, id: this.pictured };
    this.report(this.shown);
  }
}

// Means over blocks of `samples` x `samples` pixels.
function average(pixels, edge, samples) {
  if (samples === 1) return pixels;
  const size = edge / samples;
  const out = new Uint8Array(4 * size * size);
  for (let index = 0; index < out.length; index += 1) {
    const [channel, x, y] = [index % 4, Math.floor(index / 4) % size, Math.floor(index / 4 / size)];
    let sum = 0;
    for (let j = 0; j < samples; j += 1)
      for (let i = 0; i < samples; i += 1) sum += pixels[4 * ((y * samples + j) * edge + x * samples + i) + channel];
    out[index] = Math.round(sum / samples ** 2);
  }
  return out;
}
