// A link to what is shown: the address after its "#" says which objects, how they are blended, and from where.
//
//   show=3            the object number 3 of the page, from 0; or show=seed 7, with "label.<attribute>" and "guidance"
//   with=1, mix=0.35  what it is blended with or compared with, and how much of it
//   view=45,20,1.3    azimuth and elevation (degrees), and the camera's distance
//   compare=1         both beside one another

const LINK_REST_MS = 400; // without a change before the address follows; browsers take no hundred changes a minute

const given = new URLSearchParams(window.location.hash.slice(1));
let following = 0;
let restoring = true; // until what the address says is shown, it is not written over

const nameOfPlace = (object) => String(model.shipped.indexOf(object));

// What tells an object from all others, for an address: the number of a shipped one, the wish of one drawn here.
function writeObject(parameters, name, object) {
  if (!object.drawn) {
    parameters.set(name, nameOfPlace(object));
    return;
  }
  const { seed, label, guidance } = object.drawn;
  parameters.set(name, `seed ${seed}`);
  const asked = Object.entries(label);
  asked.forEach(([attribute, value]) => parameters.set(`${name}.label.${attribute}`, value));
  if (asked.length) parameters.set(`${name}.guidance`, guidance);
}

// The value of a label as the prior knows it; null where it does not.
function knownValue(attribute, text) {
  const found = kit.attributes.find(({ name }) => name === attribute);
  if (!found) return null;
  if (found.classes) return found.classes.includes(text) ? text : null;
  const number = Number(text);
  return text !== "" && number >= found.low && number <= found.high ? number : null;
}

// A promise of the object that an address means; null where the page has none such.
async function readObject(parameters, name) {
  const text = parameters.get(name) || "";
  if (/^\d+$/.test(text)) return model.shipped[Number(text)] || null;
  const seed = Number((/^seed (\d+)$/.exec(text) || [])[1]);
  if (!kit || state.mode === "turntable" || !Number.isSafeInteger(seed)) return null;
  const label = {};
  for (const [key, value] of parameters) {
    if (!key.startsWith(`${name}.label.`)) continue;
    const attribute = key.slice(`${name}.label.`.length);
    label[attribute] = knownValue(attribute, value);
    if (label[attribute] === null) return null;
  }
  const asked = parameters.has(`${name}.guidance`) ? Number(parameters.get(`${name}.guidance`)) : kit.guidance;
  if (!(asked >= 0 && asked <= kit.mostGuidance)) return null;
  const wish = { label, guidance: asked };
  const isSame = ({ drawn }) => drawn && JSON.stringify([drawn.seed, drawn.label]) === JSON.stringify([seed, label]) &&
    (drawn.guidance === asked || Object.keys(label).length === 0);
  const object = model.objects.find(isSame) || (await drawNew(seed, wish));
  object.kept = true;
  return object;
}

const rounded = (value, digits) => String(Number(value.toFixed(digits)));

// The address of what is shown now.
function linkTo() {
  const { object, other, blend } = chosen();
  const parameters = new URLSearchParams();
  writeObject(parameters, "show", object);
  if (blend > 0 || state.compare) writeObject(parameters, "with", other);
  if (blend > 0) parameters.set("mix", rounded(blend, 2));
  const { azimuth, elevation, radius } = state.view;
  parameters.set("view", [rounded(azimuth, 1), rounded(elevation, 1), rounded(radius, 3)].join(","));
  if (state.compare) parameters.set("compare", "1");
  if (given.get("weights")) parameters.set("weights", given.get("weights"));
  return `${window.location.href.split("#")[0]}#${parameters}`;
}

// Let the address follow what is shown, once it rests.
function followState() {
  if (restoring) return;
  clearTimeout(following);
  following = setTimeout(() => {
    if (spinning) return;
    try {
      history.replaceState(null, "", linkTo());
    } catch {
      // Some browsers forbid that for files; the button works all the same.
    }
  }, LINK_REST_MS);
}

async function copyLink() {
  const link = linkTo();
  let isCopied = false;
  try {
    await navigator.clipboard.writeText(link);
    isCopied = true;
  } catch {
    const field = Object.assign(document.createElement("textarea"), { value: link });
    document.body.append(field);
    field.select();
    isCopied = document.execCommand("copy");
    field.remove();
  }
  part("link").textContent = isCopied ? "Copied" : "Not copied";
  setTimeout(() => {
    part("link").textContent = "Copy link";
  }, 1500);
}

function restoreView(parameters) {
  const [azimuth, elevation, radius] = (parameters.get("view") || "").split(",").map(Number);
  if (![azimuth, elevation, radius].every(Number.isFinite)) return;
  const turned = ((azimuth % 360) + 360) % 360;
  state.view = { azimuth: turned, elevation: clamp(elevation, -89, 89), radius: clamp(radius, NEAREST, FARTHEST) };
}

// Show what an address says.
async function restore(parameters) {
  restoring = true;
  restoreView(parameters);
  update();
  const other = parameters.has("with") ? await readObject(parameters, "with") : null;
  const object = parameters.has("show") ? await readObject(parameters, "show") : null;
  const isMissing = (parameters.has("show") && !object) || (parameters.has("with") && !other);
  if (isMissing) notice("The link means something that this page does not have.");
  if (object) pick(model.objects.indexOf(object));
  if (object && object.drawn) showWish(object.drawn);
  if (other) state.other = model.objects.indexOf(other);
  const mix = Number(parameters.get("mix"));
  if (object && other && mix > 0 && state.mode !== "turntable") state.blend = Math.min(mix, 1);
  buildGallery();
  compare(parameters.get("compare") === "1");
  restoring = false;
}

function buildLink() {
  part("link").addEventListener("click", copyLink);
  window.addEventListener("hashchange", () => restore(new URLSearchParams(window.location.hash.slice(1))));
  restore(given).catch((error) => {
    restoring = false;
    notice(`The link could not be followed (${error.message}).`);
  });
}
