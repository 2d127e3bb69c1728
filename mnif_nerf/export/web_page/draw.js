// Drawing new objects from the prior that came with the page.

const THUMB_PIXELS = 96;
const MOST_SEED = 2 ** 53 - 1;

const kit = model.prior; // null where the page came without
let drawings = Promise.resolve(); // one after the other

function wishField({ name, classes, low, high }) {
  const label = document.createElement("label");
  const field = document.createElement(classes ? "select" : "input");
  const any = classes && classes.includes("any") ? "(any)" : "any"; // a class may be called so
  if (classes) field.append(new Option(any, ""), ...classes.map((value) => new Option(value, value)));
  else Object.assign(field, { type: "number", min: low, max: high, step: "any", placeholder: "any" });
  field.dataset.attribute = name;
  label.append(`${name} `, field);
  return label;
}

// What is asked for: { label, guidance }.
function wished() {
  const label = {};
  for (const field of part("wishes").querySelectorAll("[data-attribute]")) {
    if (field.value === "") continue;
    label[field.dataset.attribute] = field.type === "number" ? Number(field.value) : field.value;
  }
  return { label, guidance: Number(part("guidance").value) };
}

// How often a thing as far out is met, in words that promise nothing.
function saidOf({ rarity, tries, milliseconds }) {
  const again = tries > 1 ? ` Drawn ${tries} times: what came before lay too far out.` : "";
  const out = kit.tensors.isolation.shape[0]
    ? `Its code lies farther out than those of ${Math.round(100 * rarity)} % of the training ${model.nouns}; ` +
      "far out, more comes out broken."
    : "";
  return `${out}${again} ${(milliseconds / 1000).toFixed(milliseconds < 100 ? 2 : 1)} s.`.trim();
}

function dropPassing() {
  model.objects.filter(({ drawn, kept }) => drawn && !kept).forEach(removeObject);
}

async function addThumbnail(object) {
  const wanted = { object, other: object, blend: 0, size: THUMB_PIXELS, samples: 1, quick: true, ...HOME };
  const { pixels, size } = await stage.render(wanted);
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), size, size);
  canvas.getContext("2d").putImageData(image, 0, 0);
  object.strip = canvas.toDataURL();
  showThumbnail(object);
  describe();
}

// Draw what a seed gives, show it, and put it before the others. A promise of the object.
function drawNew(seed, wish) {
  const work = async () => {
    const found = await ask("draw", { kit, seed, wish });
    const isAsked = Object.keys(wish.label).length > 0;
    const object = {
      name: `seed ${seed}`,
      label: wish.label,
      frames: 1,
      drawn: { seed, ...(isAsked ? wish : { label: {}, guidance: wish.guidance }), latent: found.latent },
      kept: false,
      numbers: found.numbers,
      said: saidOf(found),
    };
    dropPassing();
    addObject(object);
    addThumbnail(object).catch(() => {}); // a thumbnail is a convenience
    return object;
  };
  drawings = drawings.catch(() => {}).then(work);
  return drawings;
}

async function drawNext() {
  const seed = part("seed");
  const number = Number(seed.value);
  if (seed.value === "" || !Number.isInteger(number) || number < 0 || number > MOST_SEED) {
    part("drawn").textContent = `Seeds are whole numbers from 0 to ${MOST_SEED}.`;
    return;
  }
  const invalid = [...part("wishes").querySelectorAll("input")].find((field) => !field.checkValidity());
  if (invalid) {
    const { attribute } = invalid.dataset;
    part("drawn").textContent = `${attribute || "guidance"}: a number from ${invalid.min} to ${invalid.max}.`;
    return;
  }
  part("draw").disabled = true;
  part("drawn").textContent = "drawing …";
  try {
    await drawNew(number, wished());
    seed.value = String(number + 1);
  } catch (error) {
    part("drawn").textContent = `That did not work (${error.message}).`;
  }
  part("draw").disabled = false;
}

// Let the fields say what a thing was drawn by, and the next draw be that of the seed after it.
function showWish({ seed, label, guidance }) {
  part("seed").value = String(seed + 1);
  for (const field of part("wishes").querySelectorAll("[data-attribute]")) {
    field.value = label[field.dataset.attribute] ?? "";
  }
  if (Object.keys(label).length > 0) part("guidance").value = String(guidance);
}

function keepShown() {
  const { object } = chosen();
  object.kept = true;
  buildGallery();
  describe();
}

function describeDrawing() {
  if (!kit) return;
  const { object } = chosen();
  part("keep").disabled = !object.drawn || object.kept;
  part("drawn").textContent = object.drawn ? object.said : "";
}

function buildDrawing() {
  part("drawing").hidden = !kit;
  if (!kit) return;
  part("wishes").prepend(...kit.attributes.map(wishField));
  part("wishes").hidden = kit.attributes.length === 0;
  part("guidance").value = String(kit.guidance);
  part("guidance").max = String(kit.mostGuidance);
  part("seed").value = String(kit.seed);
  part("draw").addEventListener("click", drawNext);
  part("keep").addEventListener("click", keepShown);
  part("seed").addEventListener("keydown", (event) => {
    if (event.key === "Enter") drawNext();
  });
}
