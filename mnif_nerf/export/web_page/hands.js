// What hands do: pointers and keys.

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
