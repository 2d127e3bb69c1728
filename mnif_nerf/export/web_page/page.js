// The page: what can be picked, dragged and typed, and the turntable where WebGL2 is missing.

const model = JSON.parse(document.getElementById("model").textContent);
const part = (id) => document.getElementById(id);
const isPicture = model.modality === "image";
const HOME = { elevation: isPicture ? 0 : 20, azimuth: isPicture ? 0 : 45, radius: model.radius };
const NEAREST = 0.55 * model.radius;
const FARTHEST = 2.5 * model.radius;
const DEGREES_PER_WIDTH = 200; // a drag across the whole stage
const MOST_PIXELS = 1024; // along an edge, on screens of high density

const state = { object: 0, other: Math.min(1, model.objects.length - 1), blend: 0, view: { ...HOME }, mode: "" };
const PATIENCE_MS = 250; // without a live picture before one made beforehand stands in

let stage = null; // the live view, or null on the turntable
let waiting = 0; // the timer of that patience
let spinning = false;
let turn = 0;

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

// One frame of the strip of pictures of an object, as the background of an element.
function showFrame(element, object, frame) {
  const { strip } = model.objects[object];
  const frames = model.turntable.frames;
  element.style.backgroundImage = `url("${strip}")`;
  element.style.backgroundSize = `${100 * frames}% 100%`;
  element.style.backgroundPosition = `${frames > 1 ? (100 * frame) / (frames - 1) : 0}% 0`;
}

function nearestFrame() {
  const turn = (state.view.azimuth - model.turntable.firstAzimuth) / 360;
  const frames = model.turntable.frames;
  return ((Math.round(turn * frames) % frames) + frames) % frames;
}

// --- what is shown -------------------------------------------------------------------------------------------

function update() {
  const { object, other, blend } = state;
  if (stage) {
    stage.change({ choice: { object, other, blend }, view: state.view });
    if (!waiting) waiting = setTimeout(standIn, stage.shown.size ? PATIENCE_MS : 0);
  }
  if (!stage || !part("cover").hidden) showTurntable();
}

// The nearest pictures made beforehand; of a blend, one over the other.
function showTurntable() {
  const { object, other, blend } = state;
  showFrame(part("turntable"), object, nearestFrame());
  part("turntable").style.transform = `scale(${HOME.radius / state.view.radius})`;
  part("ahead").style.opacity = String(blend);
  showFrame(part("ahead"), other, nearestFrame());
}

// Slow devices take seconds for a live picture: until there is one of what is wanted now, the nearest of those made
// beforehand is shown in its place.
function standIn() {
  waiting = 0;
  const still = model.turntable.frames === 1; // stands in for nothing but the first picture
  if (!stage || stage.shown.current || (still && stage.shown.size)) return;
  showTurntable();
  part("cover").hidden = false;
  part("readout").textContent = "a picture made beforehand; drawing …";
}

// Whether the live picture is now worth more than the one made beforehand, which is sharper than the first live ones
// where it shows just what is wanted.
function isBetterLive({ size, fps, final, current }) {
  if (fps * PATIENCE_MS > 1000 || final) return true;
  const turn = ((state.view.azimuth - model.turntable.firstAzimuth) / 360) * model.turntable.frames;
  const isExact = state.blend === 0 && state.view.elevation === HOME.elevation && Math.abs(turn - Math.round(turn)) < 1e-6;
  return current && (!isExact || size >= model.turntable.edge);
}

function describe() {
  const { object, other, blend } = state;
  const [from, to] = [model.objects[object].name, model.objects[other].name];
  const percent = Math.round(100 * blend);
  const isMixed = blend > 0 && other !== object;
  part("now").textContent = isMixed ? `${from} with ${percent} % of ${to}` : from;
  showFrame(part("from"), object, 0);
  showFrame(part("to"), other, 0);
  part("blend").value = String(percent);
  part("blend").setAttribute("aria-valuetext", `${percent} % of ${to}`);
  part("other").value = String(other);
  part("gallery").querySelectorAll("label").forEach((label, k) => {
    label.classList.toggle("chosen", k === object); // for browsers without :has
    label.firstChild.checked = k === object;
  });
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

// --- hands ---------------------------------------------------------------------------------------------------

function listenToPointers(element) {
  const pointers = new Map();
  const apart = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    spin(false);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const distance = pointers.size === 2 ? apart() : 0;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) {
      zoom(distance / Math.max(apart(), 1));
    } else if (pointers.size === 1) {
      const scale = DEGREES_PER_WIDTH / element.clientWidth;
      orbit(-(event.clientX - before.x) * scale, (event.clientY - before.y) * scale);
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    element.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const unit = event.deltaMode === 1 ? 16 : 1; // lines in some browsers, pixels in others
      zoom(Math.exp(clamp(event.deltaY * unit, -120, 120) * 0.0015));
    },
    { passive: false },
  );
}

function listenToKeys(element) {
  const count = model.objects.length;
  const keys = {
    ArrowLeft: () => orbit(-10, 0),
    ArrowRight: () => orbit(10, 0),
    ArrowUp: () => orbit(0, 10),
    ArrowDown: () => orbit(0, -10),
    "+": () => zoom(1 / 1.1),
    "=": () => zoom(1 / 1.1),
    "-": () => zoom(1.1),
    n: () => pick(nextShown(1)),
    p: () => pick(nextShown(-1)),
    Home: reset,
    " ": () => spin(!spinning),
  };
  element.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[key]) return;
    event.preventDefault();
    if (key !== " " || !event.repeat) keys[key]();
  });
}

// --- labels --------------------------------------------------------------------------------------------------

const filters = new Map(); // attribute to the class that is shown, or "" for all

const labelText = ({ label = {} }) =>
  Object.entries(label)
    .map(([name, value]) => (typeof value === "number" ? `${name} ${Number(value.toPrecision(4))}` : value))
    .join(", ");

const isShown = ({ label = {} }) => [...filters].every(([name, value]) => !value || label[name] === value);

function nextShown(step) {
  const count = model.objects.length;
  for (let k = 1; k <= count; k += 1) {
    const place = (state.object + step * k + count * k) % count;
    if (isShown(model.objects[place])) return place;
  }
  return state.object;
}

function filterObjects() {
  [...part("gallery").children].forEach((label, k) => {
    label.hidden = !isShown(model.objects[k]);
  });
  if (!isShown(model.objects[state.object])) pick(nextShown(1));
}

function buildFilters() {
  const names = new Set(model.objects.flatMap(({ label = {} }) => Object.keys(label)));
  for (const name of names) {
    const found = model.objects.map(({ label = {} }) => label[name]).filter((value) => typeof value === "string");
    const classes = [...new Set(found)].sort();
    if (classes.length < 2) continue;
    const [label, select] = ["label", "select"].map((tag) => document.createElement(tag));
    select.append(new Option("all", ""), ...classes.map((value) => new Option(value, value)));
    select.addEventListener("change", () => {
      filters.set(name, select.value);
      filterObjects();
    });
    label.append(`${name} `, select);
    part("filters").append(label);
    part("filters").hidden = false;
  }
}

function buildControls() {
  const gallery = part("gallery");
  buildFilters();
  model.objects.forEach((object, k) => {
    const { name } = object;
    const [label, radio, thumb, text] = ["label", "input", "span", "small"].map((tag) => document.createElement(tag));
    Object.assign(radio, { type: "radio", name: "object", value: String(k) });
    radio.addEventListener("change", () => pick(k));
    thumb.className = "thumb";
    showFrame(thumb, k, 0);
    const said = labelText(object);
    text.textContent = said ? `${name}: ${said}` : name;
    label.title = text.textContent;
    label.append(radio, thumb, text);
    gallery.append(label);
    part("other").append(new Option(name, String(k)));
  });
  part("blend").addEventListener("input", (event) => {
    state.blend = Number(event.target.value) / 100;
    describe();
  });
  part("other").addEventListener("change", (event) => {
    state.other = Number(event.target.value);
    describe();
  });
  part("spin").addEventListener("click", () => spin(!spinning));
  part("reset").addEventListener("click", reset);
  if (model.objects.length < 2) part("blending").hidden = true;
  listenToPointers(part("stage"));
  listenToKeys(part("stage"));
}

// --- live, or the turntable ----------------------------------------------------------------------------------

function notice(text) {
  part("notice").textContent = text;
  part("notice").hidden = false;
}

function useTurntable(reason) {
  stage = null;
  state.mode = "turntable";
  state.blend = 0;
  const still = model.turntable.frames === 1;
  notice(
    `${reason} What you see are pictures made beforehand${still ? "" : "; turn the object by dragging it sideways"}. ` +
      "Blending needs WebGL2.",
  );
  part("lead").hidden = true; // it promises what is not there
  part("canvas").hidden = true;
  part("cover").hidden = false;
  part("blending").hidden = true;
  part("readout").textContent = "";
  part("spin").disabled = still;
  describe();
}

function listenToSize(live) {
  const canvas = part("canvas");
  const fit = () => {
    const width = canvas.clientWidth * Math.min(window.devicePixelRatio || 1, 2);
    const edge = clamp(Math.round(width), 64, MOST_PIXELS);
    if (canvas.width === edge) return;
    canvas.width = edge;
    canvas.height = edge;
    live.change({});
  };
  fit();
  new ResizeObserver(fit).observe(canvas);
}

function listenToColors(live) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    const text = getComputedStyle(document.documentElement).getPropertyValue("--stage").trim();
    live.change({ background: [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16) / 255) });
  };
  dark.addEventListener("change", read);
  read();
}

function report(shown) {
  const { size, fps, final } = shown;
  if (isBetterLive(shown)) part("cover").hidden = true;
  if (!part("cover").hidden) return;
  const rate = final || fps <= 0 ? "" : `, ${fps < 10 ? fps.toFixed(1) : Math.round(fps)} frames/s`;
  part("readout").textContent = `${size} x ${size}${rate}`;
}

function start() {
  buildControls();
  const canvas = part("canvas");
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, powerPreference: "high-performance" });
  if (!gl) {
    useTurntable("This browser has no WebGL2, which the live view needs.");
    return;
  }
  const source = new URLSearchParams(window.location.hash.slice(1)).get("weights");
  canvas.addEventListener("webglcontextlost", () => {
    useTurntable("The graphics driver stopped the live view; loading the page again starts it anew.");
  });
  part("readout").textContent = "preparing …";
  try {
    stage = new Stage(canvas, gl, model, { report, source, view: HOME });
  } catch (error) {
    useTurntable(`The live view could not start (${error.message}).`);
    return;
  }
  state.mode = "webgl2";
  listenToSize(stage);
  listenToColors(stage);
  describe();
  const live = stage;
  live.run().catch((error) => {
    if (stage === live) useTurntable(`The live view stopped (${error.message}).`);
  });
}

start();

// For tests and measurements; the page itself does not use it.
window.mnif = {
  model,
  state: () => ({ ...state, shown: stage && stage.shown, weights: stage && stage.renderer.source.kind }),
  render: (request) => {
    if (!stage) return Promise.reject(new Error("the live view is not running"));
    return stage.render({ size: 64, ...request });
  },
};
