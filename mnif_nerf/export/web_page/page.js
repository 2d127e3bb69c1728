// The page: its controls, and whether it draws live or turns pictures.

const CONTEXT = { alpha: false, antialias: false, depth: false, powerPreference: "high-performance" };

function buildControls() {
  buildFilters();
  buildGallery();
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
  buildDrawing();
  buildDownload();
  buildCompare();
  listenToPointers(part("stage"));
  listenToKeys(part("stage"));
}

function notice(text) {
  part("notice").textContent = text;
  part("notice").hidden = false;
}

function useTurntable(reason) {
  stage = null;
  state.mode = "turntable";
  compare(false);
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
  part("drawing").hidden = true;
  part("readout").textContent = "";
  part("spin").disabled = still;
  describe();
}

function listenToSize(live) {
  const { canvas } = live;
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
  const gl = canvas.getContext("webgl2", CONTEXT);
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
buildLink();

// For tests and measurements; the page itself does not use it.
window.mnif = {
  model,
  state: () => ({ ...state, shown: stage && stage.shown, second: second && second.shown, weights: stage && stage.renderer.source.kind }),
  link: linkTo,
  file: async (resolution) => new Uint8Array(await (await fileOf(resolution)).blob.arrayBuffer()),
  draw: (seed, wish) => ask("draw", { kit, seed, wish }),
  render: (request) => {
    if (!stage) return Promise.reject(new Error("the live view is not running"));
    const [object, other] = ["object", "other"].map((name) => model.objects[request[name] ?? state[name]]);
    return stage.render({ size: 64, ...request, object, other });
  },
};
