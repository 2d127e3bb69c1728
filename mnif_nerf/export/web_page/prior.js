// The latent prior: a denoiser that is asked at the sampler's times, and how rare what it draws is.

const silu = (value) => value / (1 + Math.exp(-value));

// A stored tensor as numbers.
function tensorOf({ data, precision, factor, shape }) {
  const values = numbersOf(data, precision);
  if (factor !== 1) for (let k = 0; k < values.length; k += 1) values[k] *= factor;
  values.shape = shape;
  return values;
}

// weight [out, in] times x [in], plus bias [out].
function linear(x, weight, bias) {
  const [outs, ins] = weight.shape;
  const y = new Float32Array(outs);
  for (let row = 0, at = 0; row < outs; row += 1) {
    let sum = bias ? bias[row] : 0;
    for (let column = 0; column < ins; column += 1, at += 1) sum += weight[at] * x[column];
    y[row] = sum;
  }
  return y;
}

function normalised(x, weight, bias) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  const scale = 1 / Math.sqrt(variance + 1e-5);
  return x.map((value, k) => (value - mean) * scale * weight[k] + bias[k]);
}

class Prior {
  // `kit`: what `drawing_kit` of the Python package wrote.
  constructor(kit) {
    this.kit = kit;
    this.tensors = new Map(Object.entries(kit.tensors).map(([name, stored]) => [name, tensorOf(stored)]));
  }

  get(name) {
    return this.tensors.get(name);
  }

  linear(x, name) {
    return linear(x, this.get(`${name}.weight`), this.get(`${name}.bias`));
  }

  normalised(x, name) {
    return normalised(x, this.get(`${name}.weight`), this.get(`${name}.bias`));
  }

  // What the denoiser is told of a label ({ attribute: value }; null or an empty one tells nothing).
  embedded(label) {
    const out = this.get("null") ? Float32Array.from(this.get("null")) : null;
    if (!out || !label) return out;
    out.fill(0);
    let numeric = 0;
    this.kit.attributes.forEach(({ name, classes, mean, deviation }, column) => {
      const table = this.get(`tables.${column}.weight`);
      const features = table.shape[1];
      const asked = label[name] !== undefined;
      let known = table.subarray(table.length - features);
      if (classes && asked) known = table.subarray(classes.indexOf(label[name]) * features).subarray(0, features);
      if (!classes && asked) {
        const value = (label[name] - mean) / deviation;
        const waves = this.kit.waves.map((wave) => wave * value);
        known = this.linear([value, ...waves.map(Math.sin), ...waves.map(Math.cos)], `numbers.${numeric}`);
      }
      if (!classes) numeric += 1;
      for (let k = 0; k < features; k += 1) out[k] += known[k];
    });
    return out;
  }

  // The denoiser's answer for a noisy latent in its evaluation `step`.
  denoised(noisy, step, told) {
    const times = this.get("times");
    const features = times.shape[1];
    const time = times.slice(step * features, (step + 1) * features);
    if (told) for (let k = 0; k < features; k += 1) time[k] += told[k];
    for (let k = 0; k < features; k += 1) time[k] = silu(time[k]);
    const hidden = this.linear(noisy, "input");
    const width = hidden.length;
    for (let block = 0; block < this.kit.blocks; block += 1) {
      const name = `blocks.${block}`;
      const change = this.linear(time, `${name}.modulation`);
      const inner = this.linear(this.normalised(hidden, `${name}.norm`).map(silu), `${name}.first`);
      for (let k = 0; k < width; k += 1) inner[k] = silu(inner[k] * (1 + change[k]) + change[width + k]);
      const more = this.linear(inner, `${name}.second`);
      for (let k = 0; k < width; k += 1) hidden[k] += more[k];
    }
    return this.linear(this.normalised(hidden, "norm").map(silu), "output");
  }

  // The latent that the sampler makes of noise. `wish`: { label, guidance }.
  latentOf(noise, wish) {
    const { label, guidance } = wish;
    const isTold = Boolean(label) && Object.keys(label).length > 0 && guidance !== 0;
    const [none, told] = [this.embedded(null), isTold ? this.embedded(label) : null];
    const guided = (noisy, step) => {
      const towards = isTold ? this.denoised(noisy, step, told) : null;
      if (isTold && guidance === 1) return towards;
      const plain = this.denoised(noisy, step, none);
      return isTold ? plain.map((value, k) => value + guidance * (towards[k] - value)) : plain;
    };
    const table = this.get("table");
    const parts = [noise];
    const size = table.shape[0];
    const mixed = (row) => {
      const out = new Float32Array(noise.length);
      for (let k = 0; k < out.length; k += 1) {
        let sum = 0;
        for (let j = 0; j < parts.length; j += 1) sum += table[row * size + j] * parts[j][k];
        out[k] = sum;
      }
      return out;
    };
    for (let step = 0; step + 1 < size; step += 1) parts.push(guided(mixed(step), step));
    return this.linear(mixed(size - 1), "latent");
  }

  // Of a latent the share of the training latents (with the label's classes) that lie less isolated: see `Rarity`.
  rarity(latent, label) {
    const { neighbours, leastAmong, labelRows, attributes } = this.kit;
    const isolation = this.get("isolation");
    if (isolation.length === 0) return 0;
    const asked = attributes.map(({ name, classes }) => (classes && label && name in label ? classes.indexOf(label[name]) : -1));
    const isAmong = (row) => !labelRows.length || asked.every((value, k) => value < 0 || labelRows[row][k] === value);
    const among = isolation.filter((_, row) => isAmong(row));
    if (among.length < leastAmong) return 0;
    const known = this.get("known");
    const size = latent.length;
    const squares = Array.from(isolation, (_, row) => {
      let sum = 0;
      for (let k = 0; k < size; k += 1) sum += (known[row * size + k] - latent[k]) ** 2;
      return sum;
    });
    const own = Math.sqrt(squares.sort((a, b) => a - b)[neighbours - 1]);
    return among.filter((value) => value < own).length / among.length;
  }

  // What `mnif-sample --seed` draws first: drawn again while it is too rare, else the least rare of all tries.
  // `seed`: a whole number from 0. Gives { latent, rarity, tries }.
  draw(seed, wish) {
    const { temperature, typical, tries, purpose } = this.kit;
    const count = this.get("input.weight").shape[1];
    let best = null;
    for (let attempt = 0; attempt <= (typical < 1 ? tries : 0); attempt += 1) {
      const own = attempt ? streamSeed(BigInt(seed), BigInt(purpose), [attempt]) : BigInt(seed);
      const noise = normalNumbers(own, count).map((value) => value * temperature);
      const latent = this.latentOf(noise, wish);
      const rarity = this.rarity(latent, wish.label);
      if (!best || rarity < best.rarity) best = { latent, rarity, tries: attempt + 1 };
      if (best.rarity <= typical) break;
    }
    return best;
  }

  // All weights and biases of a latent's network, layer by layer: the bases mixed by its coefficients.
  networkOf(latent) {
    const bases = this.get("bases");
    const [count, size] = bases.shape;
    const coefficients = this.linear(latent, "projection");
    const columns = coefficients.length / count;
    const first = this.get("first") || [];
    const out = new Float32Array(first.length + size);
    out.set(first);
    let from = 0;
    for (const [length, column] of this.kit.runs) {
      for (let basis = 0; basis < count; basis += 1) {
        const share = coefficients[basis * columns + column];
        const at = basis * size + from;
        for (let k = 0; k < length; k += 1) out[first.length + from + k] += share * bases[at + k];
      }
      from += length;
    }
    return out;
  }
}
