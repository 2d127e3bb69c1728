// A picture's own pixels at any resolution: RGBA bytes, colours straight, as `NeuralImage.image` has them.
function pictureOf(field, pixels) {
  const { constants, head } = field.facts;
  const [height, width] = constants.REACH.slice(0, 2).map((reach) => Math.max(1, Math.round(reach * pixels)));
  const out = new Uint8ClampedArray(4 * height * width).fill(255);
  const points = new Float32Array(2 * width);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      points[2 * column] = constants.REACH[0] * ((2 * row + 1) / height - 1);
      points[2 * column + 1] = constants.REACH[1] * ((2 * column + 1) / width - 1);
    }
    const raw = field.evaluate(points);
    for (let column = 0; column < width; column += 1) {
      const values = Array.from(raw.subarray(column * field.outputs, (column + 1) * field.outputs), (value) => colorOf(value, head));
      const at = 4 * (row * width + column);
      const alpha = values.length === 4 ? values[3] : 1;
      for (let k = 0; k < 3; k += 1) {
        const value = values.length === 1 ? values[0] : values[k];
        out[at + k] = 255 * (alpha > 0 ? Math.min(value / alpha, 1) : 0);
      }
      out[at + 3] = 255 * alpha;
    }
  }
  return { pixels: out, width, height };
}
