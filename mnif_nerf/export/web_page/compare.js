// Two side by side, seen from the same place: what is shown, and the other one.

let second = null; // the live view of the other one, made when it is first wanted

function makeSecond() {
  const canvas = part("canvas2");
  const gl = canvas.getContext("webgl2", CONTEXT);
  if (!gl) throw new Error("the browser gives no second WebGL2 view");
  const options = { report: reportSecond, source: given.get("weights"), view: HOME };
  second = new Stage(canvas, gl, model, options);
  listenToSize(second);
  listenToColors(second);
  listenToPointers(part("second"));
  second.run().catch((error) => stopComparing(error.message));
}

// The thumbnail below shows until there is a live picture.
function reportSecond({ current }) {
  if (current) part("canvas2").style.visibility = "visible";
}

function stopComparing(reason) {
  second = null;
  compare(false);
  part("compare").disabled = true;
  notice(`Two views at once do not work here (${reason}).`);
}

function compare(wanted) {
  state.compare = wanted && Boolean(stage);
  part("compare").setAttribute("aria-pressed", String(state.compare));
  part("second").hidden = !state.compare;
  part("views").classList.toggle("both", state.compare);
  try {
    if (state.compare && !second) makeSecond();
  } catch (error) {
    stopComparing(error.message);
    return;
  }
  describe();
}

// The second view follows all that changes.
function updateSecond() {
  if (!state.compare || !second) return;
  const { other } = chosen();
  if (second.choice.object !== other) part("canvas2").style.visibility = "hidden";
  showFrame(part("second"), other, 0);
  part("name2").textContent = other.name;
  second.change({ choice: { object: other, other, blend: 0 }, view: state.view });
}

function buildCompare() {
  part("compare").addEventListener("click", () => compare(!state.compare));
}
