// The objects by their thumbnails: which are there, which of them are shown by their labels.

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
  [...part("gallery").children].forEach((item, k) => {
    item.hidden = !isShown(model.objects[k]);
  });
  if (!isShown(model.objects[state.object])) pick(nextShown(1));
}

// Show all of them, such as to see what was just drawn.
function clearFilters() {
  filters.clear();
  part("filters").querySelectorAll("select").forEach((select) => {
    select.value = "";
  });
  filterObjects();
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

function itemOf(object) {
  const [item, label, radio, thumb, text] = ["div", "label", "input", "span", "small"].map((tag) => document.createElement(tag));
  item.className = "item";
  Object.assign(radio, { type: "radio", name: "object" });
  radio.addEventListener("change", () => pick(model.objects.indexOf(object)));
  thumb.className = "thumb";
  showFrame(thumb, object, 0);
  const said = labelText(object);
  text.textContent = said ? `${object.name}: ${said}` : object.name;
  label.title = text.textContent;
  label.append(radio, thumb, text);
  item.append(label);
  if (object.drawn) {
    const remove = document.createElement("button");
    Object.assign(remove, { type: "button", className: "remove", textContent: "×", title: "Remove" });
    remove.setAttribute("aria-label", `Remove ${object.name}`);
    remove.addEventListener("click", () => removeObject(object));
    item.append(remove);
    item.classList.toggle("passing", !object.kept);
  }
  return item;
}

function buildGallery() {
  part("gallery").replaceChildren(...model.objects.map(itemOf));
  part("other").replaceChildren(...model.objects.map(({ name }, k) => new Option(name, String(k))));
  part("blending").hidden = model.objects.length < 2 || state.mode === "turntable";
  filterObjects();
}

// Built anew, the list would lose the keyboard's focus, and a click that is under way.
function showThumbnail(object) {
  const item = part("gallery").children[model.objects.indexOf(object)];
  if (item) showFrame(item.querySelector(".thumb"), object, 0);
}

// Put an object before all others, and show it.
function addObject(object) {
  object.id = 1 + Math.max(...model.objects.map(({ id }) => id));
  model.objects.unshift(object);
  state.object += 1;
  state.other += 1;
  if (!isShown(object)) clearFilters();
  buildGallery();
  pick(0);
}

function removeObject(object) {
  const place = model.objects.indexOf(object);
  if (place < 0 || model.objects.length < 2) return;
  const last = model.objects.length - 2;
  const moved = (k) => Math.min(k > place ? k - 1 : k, last);
  if (state.object === place || state.other === place) state.blend = 0;
  model.objects.splice(place, 1);
  [state.object, state.other] = [moved(state.object), moved(state.other)];
  if (state.other === state.object) state.other = (state.object + 1) % model.objects.length;
  buildGallery();
  describe();
}
