// The small network outside of a shader: raw outputs at points, and what they mean.

const BATCH = 256; // points at a time, whose activations stay in the processor's cache

// The sine within 1e-9, by its series after a reduction by multiples of pi: ten times as quick as Math.sin.
function wave(x) {
  const turns = Math.floor(x / Math.PI + 0.5);
  const r = x - turns * Math.PI;
  const s = r * r;
  const series = 1 / 120 - s * (1 / 5040 - s * (1 / 362880 - s * (1 / 39916800 - s / 6227020800)));
  const y = r - r * s * (1 / 6 - s * series);
  return turns & 1 ? -y : y;
}

function applied(act, values, from, to, w0) {
  for (let k = from; k < to; k += 1) values[k] = act(values[k], w0);
}

const chirp = (x, w0) => wave(x * (1 + Math.abs(x) / w0));
const ACTIVATIONS = { siren: [wave, wave], finer: [chirp, chirp], "fourier-relu": [wave, (x) => Math.max(x, 0)] };
const up4 = (count) => 4 * Math.ceil(count / 4);

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const clip = (x, low, high) => Math.min(high, Math.max(low, x));

class Field {
  // `numbers`: all weights and biases, layer by layer; `facts`: what the page knows of its model.
  constructor(numbers, facts) {
    this.facts = facts;
    this.outputs = facts.sizes[facts.sizes.length - 1];
    const [first, hidden] = ACTIVATIONS[facts.family];
    let at = 0;
    this.layers = facts.sizes.slice(1).map((outs, k) => {
      const ins = facts.sizes[k];
      // Rows and columns are filled up with zeros to multiples of four.
      const weight = new Float32Array(up4(outs) * up4(ins));
      for (let row = 0; row < outs; row += 1, at += ins) weight.set(numbers.subarray(at, at + ins), row * up4(ins));
      const bias = new Float32Array(up4(outs));
      bias.set(numbers.subarray(at, at + outs));
      at += outs;
      const last = k + 2 === facts.sizes.length;
      const act = last ? (facts.finalSine ? wave : null) : k ? hidden : first;
      return { ins: up4(ins), outs: up4(outs), weight, bias, act };
    });
  }

  // Raw outputs [n, out] at points [n, in] in the network's own coordinates.
  evaluate(points) {
    const [inputs] = this.facts.sizes;
    const count = points.length / inputs;
    const result = new Float32Array(count * this.outputs);
    const widest = up4(Math.max(...this.facts.sizes));
    let [from, to] = [new Float32Array(widest * BATCH), new Float32Array(widest * BATCH)];
    for (let start = 0; start < count; start += BATCH) {
      const size = Math.min(BATCH, count - start);
      from.fill(0, 0, up4(inputs) * BATCH);
      for (let k = 0; k < size; k += 1)
        for (let i = 0; i < inputs; i += 1) from[i * BATCH + k] = points[(start + k) * inputs + i];
      for (const layer of this.layers) {
        this.runLayer(layer, from, to, size);
        [from, to] = [to, from];
      }
      for (let k = 0; k < size; k += 1)
        for (let o = 0; o < this.outputs; o += 1) result[(start + k) * this.outputs + o] = from[o * BATCH + k];
    }
    return result;
  }

  // Four outputs of four inputs at a time: sixteen products for twelve loads and stores.
  runLayer({ ins, outs, weight: w, bias, act }, from, to, size) {
    const { w0 } = this.facts;
    for (let row = 0; row < outs; row += 4) {
      const [p, q, r, s] = [0, 1, 2, 3].map((k) => (row + k) * BATCH);
      [p, q, r, s].forEach((start, k) => to.fill(bias[row + k], start, start + size));
      for (let column = 0; column < ins; column += 4) {
        let at = row * ins + column;
        const a0 = w[at], a1 = w[at + 1], a2 = w[at + 2], a3 = w[at + 3];
        at += ins;
        const b0 = w[at], b1 = w[at + 1], b2 = w[at + 2], b3 = w[at + 3];
        at += ins;
        const c0 = w[at], c1 = w[at + 1], c2 = w[at + 2], c3 = w[at + 3];
        at += ins;
        const d0 = w[at], d1 = w[at + 1], d2 = w[at + 2], d3 = w[at + 3];
        const x = column * BATCH;
        for (let k = 0; k < size; k += 1) {
          const x0 = from[x + k];
          const x1 = from[x + BATCH + k];
          const x2 = from[x + 2 * BATCH + k];
          const x3 = from[x + 3 * BATCH + k];
          to[p + k] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3;
          to[q + k] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3;
          to[r + k] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3;
          to[s + k] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3;
        }
      }
    }
    if (act) for (let row = 0; row < outs; row += 1) applied(act, to, row * BATCH, row * BATCH + size, w0);
  }

  // How far inside [n] (0 on the surface, positive inside, within +-`deepest`) raw outputs [n, out] are.
  insides(raw) {
    const { modality, head, constants, level } = this.facts;
    const deepest = this.deepest;
    const of = {
      radiance: (at) => Math.log(Math.max(densityOf(raw[at + 3], head, constants), 1e-9) / level),
      voxel: (at) => (head === "logit" ? Math.tanh(0.5 * raw[at]) : raw[at]),
      distance: (at) => (raw[at + this.outputs - 1] * constants.DISTANCE_SCALE) / constants.TRUNCATION,
    }[modality];
    const out = new Float32Array(raw.length / this.outputs);
    for (let k = 0; k < out.length; k += 1) out[k] = clip(of(k * this.outputs), -deepest, deepest);
    return out;
  }

  get deepest() {
    return this.facts.modality === "radiance" ? 6 : 1; // of radiance, in logarithms
  }

  // Raw outputs at points of the world [n, 3].
  at(points) {
    if (this.facts.modality === "radiance") return this.evaluate(points);
    return this.evaluate(points.map((value) => value / this.facts.halfExtent));
  }
}

function densityOf(raw, head, constants) {
  if (head === "radiance-authors") return clip((raw > 0 ? raw : 0.1 * (Math.exp(raw) - 1)) + 0.1, 0, 10);
  const x = constants.DENSITY_GAIN * raw - constants.DENSITY_SHIFT;
  return constants.DENSITY_SCALE * (Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))));
}

function colorOf(raw, head) {
  if (head === "signed" || head === "radiance-authors") return clip(0.5 * raw + 0.5, 0, 1);
  return sigmoid(raw);
}
