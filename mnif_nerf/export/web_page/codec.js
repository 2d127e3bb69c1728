// From the text in the page to numbers, and to how the shader wants them.

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k += 1) bytes[k] = text.charCodeAt(k);
  return bytes;
}

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function numbersOf(base64, precision) {
  const bytes = bytesOf(base64);
  if (precision === "float32") return new Float32Array(bytes.buffer);
  return Float32Array.from(new Uint16Array(bytes.buffer), halfToFloat);
}

// All weights and biases of an object: as they were drawn here, or as they lie in the file.
function weightsIn(object, model) {
  return object.numbers || numbersOf(object.weights, model.precision);
}

// Where each layer lies among the vec4s of the shader: first its matrix in blocks of 4 x 4, whose columns are four
// vec4s, then its biases. Layers are padded with zeros to multiples of four.
function layoutOf(sizes) {
  const layers = [];
  let at = 0;
  for (let layer = 0; layer + 1 < sizes.length; layer += 1) {
    const [fanIn, out] = [sizes[layer], sizes[layer + 1]];
    const [inBlocks, outBlocks] = [Math.ceil(fanIn / 4), Math.ceil(out / 4)];
    const vec4s = 4 * inBlocks * outBlocks + outBlocks;
    layers.push({ fanIn, out, inBlocks, outBlocks, at, vec4s });
    at += vec4s;
  }
  return { layers, vec4s: at };
}

// `numbers` (rows of each matrix [out, in], then its biases) in the order of `layoutOf`.
function packed(numbers, layout) {
  const out = new Float32Array(4 * layout.vec4s);
  let from = 0;
  for (const layer of layout.layers) {
    for (let row = 0; row < layer.out; row += 1) {
      for (let column = 0; column < layer.fanIn; column += 1) {
        const block = Math.floor(row / 4) * layer.inBlocks + Math.floor(column / 4);
        out[4 * (layer.at + 4 * block + (column % 4)) + (row % 4)] = numbers[from];
        from += 1;
      }
    }
    const biasesAt = layer.at + 4 * layer.inBlocks * layer.outBlocks;
    for (let row = 0; row < layer.out; row += 1) {
      out[4 * biasesAt + row] = numbers[from];
      from += 1;
    }
  }
  return out;
}

// Bits of a bool grid [G, G, G] (the last axis fastest, the highest bit first), as 0 and 255 at another resolution:
// a cell is set where it overlaps a set cell.
function cellsAt(bounds, resolution) {
  const out = new Uint8Array(resolution ** 3).fill(255);
  if (!bounds) return out;
  const bits = bytesOf(bounds.bits);
  const old = bounds.resolution;
  const span = Array.from({ length: resolution }, (_, k) => [
    Math.floor((k * old) / resolution),
    Math.floor(((k + 1) * old - 1) / resolution),
  ]);
  const isSet = (index) => (bits[index >> 3] >> (7 - (index & 7))) & 1;
  const any = (x, y, z) => {
    for (let i = x[0]; i <= x[1]; i += 1)
      for (let j = y[0]; j <= y[1]; j += 1)
        for (let k = z[0]; k <= z[1]; k += 1) if (isSet((i * old + j) * old + k)) return true;
    return false;
  };
  for (let index = 0; index < out.length; index += 1) {
    const [x, y] = [Math.floor(index / resolution ** 2), Math.floor(index / resolution) % resolution];
    if (!any(span[x], span[y], span[index % resolution])) out[index] = 0;
  }
  return out;
}
