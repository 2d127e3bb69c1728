// What is shown, how that changes, and the pictures made beforehand that stand in for live ones.

const model = JSON.parse(document.getElementById("model").textContent);
const part = (id) => document.getElementById(id);
const isPicture = model.modality === "image";
const HOME = { elevation: isPicture ? 0 : 20, azimuth: isPicture ? 0 : 45, radius: model.radius };
const NEAREST = 0.55 * model.radius;
const FARTHEST = 2.5 * model.radius;
const DEGREES_PER_WIDTH = 200; // a drag across the whole stage
const MOST_PIXELS = 1024; // along an edge, on screens of high density

const state = { object: 0, other: Math.min(1, model.objects.length - 1), blend: 0, compare: false, view: { ...HOME }, mode: "" };
const PATIENCE_MS = 250; // without a live picture before one made beforehand stands in

model.shipped = [...model.objects]; // as they came, whatever is drawn here
model.objects.forEach((object, k) => {
  object.id = k; // drawn ones get higher ones; places in the list change, these do not
});

let stage = null; // the live view, or null on the turntable
let waiting = 0; // the timer of that patience
let spinning = false;
let turn = 0;

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

const framesOf = (object) => object.frames || model.turntable.frames;

// One frame of the strip of pictures of an object, as the background of an element. What was drawn here has no strip
// until its thumbnail is there.
function showFrame(element, object, frame) {
  const frames = framesOf(object);
  const shown = Math.min(frame, frames - 1);
  element.style.backgroundImage = object.strip ? `url("${object.strip}")` : "none";
  element.style.backgroundSize = `${100 * frames}% 100%`;
  element.style.backgroundPosition = `${frames > 1 ? (100 * shown) / (frames - 1) : 0}% 0`;
}

function nearestFrame() {
  const turn = (state.view.azimuth - model.turntable.firstAzimuth) / 360;
  const frames = model.turntable.frames;
  return ((Math.round(turn * frames) % frames) + frames) % frames;
}

// What is shown: { object, other, blend }.
function chosen() {
  return { object: model.objects[state.object], other: model.objects[state.other], blend: state.blend };
}

function update() {
  if (stage) {
    stage.change({ choice: chosen(), view: state.view });
    if (!waiting) waiting = setTimeout(standIn, stage.shown.size ? PATIENCE_MS : 0);
  }
  if (!stage || !part("cover").hidden) showTurntable();
  updateSecond();
  followState();
}

// The nearest pictures made beforehand; of a blend, one over the other.
function showTurntable() {
  const { object, other, blend } = chosen();
  showFrame(part("turntable"), object, nearestFrame());
  part("turntable").style.transform = `scale(${HOME.radius / state.view.radius})`;
  part("ahead").style.opacity = String(blend);
  showFrame(part("ahead"), other, nearestFrame());
}

// Slow devices take seconds for a live picture: until there is one of what is wanted now, the nearest of those made
// beforehand is shown in its place.
function standIn() {
  waiting = 0;
  const { object } = chosen();
  const isSeen = framesOf(object) === 1 && stage && stage.shown.id === object.id; // a still knows no other view
  if (!stage || stage.shown.current || isSeen) return;
  showTurntable();
  part("cover").hidden = false;
  const shown = object.drawn ? "a small picture; " : "a picture made beforehand; ";
  part("readout").textContent = `${object.strip ? shown : ""}drawing …`;
}

// Whether the live picture is now worth more than the one made beforehand, which is sharper than the first live ones
// where it shows just what is wanted.
function isBetterLive({ size, fps, final, current, id }) {
  if (fps * PATIENCE_MS > 1000 || final) return true;
  const { object } = chosen();
  const turn = ((state.view.azimuth - model.turntable.firstAzimuth) / 360) * framesOf(object);
  const isExact = state.blend === 0 && state.view.elevation === HOME.elevation && Math.abs(turn - Math.round(turn)) < 1e-6;
  const edge = object.drawn ? THUMB_PIXELS : model.turntable.edge;
  const isOfIt = current || (framesOf(object) === 1 && id === object.id);
  return isOfIt && (!isExact || !object.strip || size >= edge);
}

function describe() {
  const { object, other, blend } = chosen();
  const [from, to] = [object.name, other.name];
  const percent = Math.round(100 * blend);
  const isMixed = blend > 0 && other !== object;
  part("now").textContent = isMixed ? `${from} with ${percent} % of ${to}` : from;
  showFrame(part("from"), object, 0);
  showFrame(part("to"), other, 0);
  part("blend").value = String(percent);
  part("blend").setAttribute("aria-valuetext", `${percent} % of ${to}`);
  part("other").value = String(state.other);
  [...part("gallery").children].forEach((item, k) => {
    item.classList.toggle("chosen", k === state.object);
    item.querySelector("input").checked = k === state.object;
  });
  describeDrawing();
  update();
}

function pick(object) {
  state.object = object;
  state.blend = 0;
  if (state.other === object && model.objects.length > 1) state.other = (object + 1) % model.objects.length;
  describe();
}

function orbit(azimuth, elevation) {
  state.view.azimuth = (((state.view.azimuth + azimuth) % 360) + 360) % 360;
  state.view.elevation = clamp(state.view.elevation + elevation, -89, 89);
  update();
}

function zoom(factor) {
  state.view.radius = clamp(state.view.radius * factor, NEAREST, FARTHEST);
  update();
}

function reset() {
  state.view = { ...HOME };
  spin(false);
  update();
}

function spin(wanted) {
  part("spin").setAttribute("aria-pressed", String(wanted));
  if (wanted === spinning) return;
  spinning = wanted;
  turn += 1;
  const own = turn; // so that a loop that is stopped and started within a frame does not go on beside the new one
  let last = performance.now();
  const step = (now) => {
    if (!spinning || own !== turn) return;
    orbit((30 * Math.min(now - last, 250)) / 1000, 0);
    last = now;
    requestAnimationFrame(step);
  };
  if (spinning) requestAnimationFrame(step);
}
