// What is shown, as a file: a mesh of a thing, a picture of a picture.

const FILES = isPicture
  ? { button: "Download PNG", sizes: [128, 256, 512, 1024], usual: 512, unit: "pixels" }
  : { button: "Download GLB", sizes: [64, 96, 144, 192], usual: 96, unit: "cells along an edge" };

// The weights of what is shown, blends as they are.
function shownNumbers() {
  const { object, other, blend } = chosen();
  const from = weightsIn(object, model);
  if (blend === 0 || other === object) return from;
  const to = weightsIn(other, model);
  return from.map((value, k) => value + blend * (to[k] - value));
}

// What the field of these objects is, without the objects.
function facts() {
  const { objects, prior, turntable, ...rest } = model;
  return rest;
}

// A promise of a file's content, a Blob, with what is said of it.
async function fileOf(resolution) {
  if (!isPicture) {
    const input = { facts: facts(), numbers: shownNumbers(), resolution };
    const { bytes, triangles, milliseconds } = await ask("mesh", input);
    const said = `${triangles.toLocaleString("en")} triangles, ${(milliseconds / 1000).toFixed(1)} s`;
    return { blob: new Blob([bytes], { type: "model/gltf-binary" }), said };
  }
  const { pixels, width, height } = await ask("picture", { facts: facts(), numbers: shownNumbers(), pixels: resolution });
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return { blob, said: `${width} x ${height} pixels` };
}

// What is shown as the name of a file: letters, digits, dots and dashes.
function fileName(ending) {
  const plain = part("now").textContent.replace(/[^\p{L}\p{N}.-]+/gu, "_").replace(/^[_.]+|_+$/g, "");
  return `${plain.slice(0, 80) || "object"}.${ending}`;
}

async function download() {
  const name = fileName(isPicture ? "png" : "glb");
  part("download").disabled = true;
  part("downloaded").textContent = "making the file …";
  try {
    const { blob, said } = await fileOf(Number(part("resolution").value));
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    part("downloaded").textContent = `${name}: ${said}, ${(blob.size / 1e6).toFixed(2)} MB.`;
  } catch (error) {
    part("downloaded").textContent = `No file: ${error.message}.`;
  }
  part("download").disabled = false;
}

function buildDownload() {
  part("download").textContent = FILES.button;
  part("resolution").append(...FILES.sizes.map((size) => new Option(String(size), String(size), false, size === FILES.usual)));
  part("unit").textContent = FILES.unit;
  part("download").addEventListener("click", download);
}
