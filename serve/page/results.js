// The stage: before and after, the samples, the memory map, the mask.

import { spoken } from "./controls.js";
import { $, element, radios } from "./dom.js";
import { readIndexed } from "./indexed.js";
import { blobOf } from "./picture.js";

const MASKED = [251, 191, 36]; // amber
const MODES = { slider: "Compare", side: "Both", memory: "Memory", mask: "Mask" };

/** Shows answers; `selected(index)` is called when another sample is chosen. */
export class Stage {
  constructor(selected) {
    Object.assign(this, { classes: {}, selected, mode: "slider", answer: null, index: 0, urls: [], found: [] });
    $("split").addEventListener("input", () => this.#split());
    $("opacity").addEventListener("input", () => this.#opacity());
    this.#split();
    this.#opacity();
    dragged($("canvas"), $("split"), () => this.mode === "slider" && this.answer);
  }

  /** A picture that has just been chosen. */
  before(picture) {
    this.#forget();
    $("drop").hidden = true;
    $("view").hidden = false;
    const image = $("before").querySelector("img");
    image.src = picture.url;
    image.hidden = !picture.readable;
    this.#size(picture);
    this.#layout();
  }

  /** An answer of the server for the picture that is shown. */
  async show(answer, picture) {
    this.#forget();
    this.answer = answer;
    this.index = Math.min(this.index, answer.images.length - 1);
    this.urls = answer.images.map((image) => URL.createObjectURL(blobOf(image, `image/${answer.format}`)));
    this.map = null;
    const memory = answer.extras.memory_map;
    if (memory) this.map = { ...(await readIndexed(bytesOf(memory.image))), cell: memory.cell };
    this.#size({ width: answer.width, height: answer.height, readable: true });
    this.#modes();
    this.#gallery();
    this.#choose(this.index);
  }

  get url() {
    return this.urls[this.index];
  }

  #forget() {
    for (const url of [...this.urls, ...this.found]) URL.revokeObjectURL(url);
    Object.assign(this, { urls: [], found: [], answer: null });
    $("after").querySelector("img").removeAttribute("src");
    for (const id of ["gallery", "actions", "command", "legend", "opacity-row", "neighbours"]) $(id).hidden = true;
    $("overlay").hidden = true;
    $("modes").hidden = true;
  }

  #size({ width, height, readable }) {
    const canvas = $("canvas");
    canvas.style.setProperty("--ratio", readable ? `${width} / ${height}` : "4 / 3");
    canvas.style.setProperty("--wide", readable ? width / height : 4 / 3);
    canvas.classList.toggle("pixels", readable && Math.min(width, height) <= 160); // few pixels are shown as they are
  }

  #modes() {
    const there = { slider: true, side: true, memory: this.map, mask: this.answer.extras.attention_masks };
    if (!there[this.mode]) this.mode = "slider";
    const choices = Object.keys(MODES).filter((mode) => there[mode]).map((mode) => ({ value: mode, label: MODES[mode], title: mode === "side" ? "Side by side" : "" }));
    const legend = $("modes").querySelector("legend");
    $("modes").replaceChildren(legend, ...radios("mode", choices, this.mode, (mode) => {
      this.mode = mode;
      this.#layout();
    }));
    $("modes").hidden = false;
  }

  #gallery() {
    const { images, seeds } = this.answer;
    const legend = $("gallery").querySelector("legend");
    const names = images.map((_, index) => (seeds ? `seed ${seeds[index]}` : "translation"));
    const made = radios("sample", names.map((name, index) => ({ value: String(index), label: name })), String(this.index), (value) => this.#choose(Number(value)));
    made.forEach((choice, index) => choice.querySelector("label").prepend(element("img", { src: this.urls[index], alt: "" })));
    $("gallery").replaceChildren(legend, ...made);
    $("gallery").hidden = images.length < 2;
  }

  #choose(index) {
    this.index = index;
    $("after").querySelector("img").src = this.url;
    this.#neighbours();
    this.#layout();
    this.selected(index);
  }

  #layout() {
    const mode = this.answer ? this.mode : "before";
    $("canvas").dataset.mode = mode;
    const overlaid = mode === "memory" || mode === "mask";
    $("overlay").hidden = !overlaid;
    $("opacity-row").hidden = !overlaid;
    $("legend").hidden = mode !== "memory";
    if (mode === "memory") this.#memory();
    if (mode === "mask") this.#mask();
  }

  /** The map over the translation, and which items it reads. `only` leaves the cells of one item. */
  #memory(only = null) {
    const { width, height, indices, colours, cell } = this.map;
    const canvas = $("overlay");
    Object.assign(canvas, { width, height });
    const image = new ImageData(width, height);
    indices.forEach((item, at) => image.data.set([...colours[item], only === null || only === item ? 255 : 0], 4 * at));
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
    // cells at the right and bottom may go beyond the picture
    canvas.style.width = `${(100 * width * cell) / this.answer.width}%`;
    canvas.style.height = `${(100 * height * cell) / this.answer.height}%`;
    canvas.classList.add("cells");
    if (only === null) this.#legend();
  }

  #legend() {
    const { indices, colours } = this.map;
    const counts = new Map();
    for (const item of indices) counts.set(item, (counts.get(item) ?? 0) + 1);
    const rows = [...counts].sort((one, other) => other[1] - one[1]).map(([item, count]) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = `rgb(${colours[item].join(" ")})`;
      const button = element("button", { type: "button", className: "quiet" }, swatch, `${this.#itemName(item)} · ${share(count / indices.length)}`);
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") === "false";
        for (const other of $("legend").querySelectorAll("button")) other.setAttribute("aria-pressed", String(on && other === button));
        this.#memory(on ? item : null);
      });
      return element("li", {}, button);
    });
    $("legend").replaceChildren(...rows);
  }

  #itemName(item) {
    let first = 0;
    for (const [name, count] of Object.entries(this.classes)) {
      if (item < first + count) return `${spoken(name)} ${item - first + 1}`;
      first += count;
    }
    return `item ${item + 1}`;
  }

  /** Where the translation was drawn anew, in colour; what was kept is darkened. */
  async #mask() {
    const mask = this.answer.extras.attention_masks[this.index];
    const bitmap = await createImageBitmap(blobOf(mask, "image/png"));
    const canvas = $("overlay");
    Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
    canvas.style.width = canvas.style.height = "100%";
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const image = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < image.data.length; at += 4) {
      const drawn = image.data[at];
      image.data.set([(MASKED[0] * drawn) / 255, (MASKED[1] * drawn) / 255, (MASKED[2] * drawn) / 255, 255], at);
    }
    context.putImageData(image, 0, 0);
  }

  #neighbours() {
    const found = this.answer.extras.neighbours?.[this.index];
    $("neighbours").hidden = !found?.length;
    if (!found) return;
    for (const url of this.found.splice(0)) URL.revokeObjectURL(url);
    const rows = found.map(({ id, distance, thumbnail }) => {
      const image = element("img", { alt: `Neighbour ${id}` });
      if (thumbnail) this.found.push((image.src = URL.createObjectURL(blobOf(thumbnail, "image/png"))));
      return element("li", {}, image, element("span", { title: id }, id), element("span", {}, distance === null ? "drawn at random" : `distance ${distance.toFixed(2)}`));
    });
    $("neighbours").querySelector("ol").replaceChildren(...rows);
  }

  #split() {
    const percent = $("split").value;
    $("canvas").style.setProperty("--split", `${percent}%`);
    $("split").setAttribute("aria-valuetext", `${percent} % before`);
  }

  #opacity() {
    const percent = $("opacity").value;
    $("overlay").style.opacity = percent / 100;
    $("opacity-value").textContent = `${percent} %`;
  }
}

const share = (part) => (part < 0.01 ? "under 1 %" : `${Math.round(100 * part)} %`);
const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** Dragging anywhere on the canvas moves the range, so that the whole picture is its handle. */
function dragged(canvas, range, active) {
  const move = (event) => {
    const box = canvas.getBoundingClientRect();
    range.value = (100 * (event.clientX - box.left)) / box.width;
    range.dispatchEvent(new Event("input"));
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (!active() || event.button !== 0) return;
    event.preventDefault();
    range.focus({ preventScroll: true, focusVisible: false });
    canvas.setPointerCapture(event.pointerId);
    move(event);
  });
  canvas.addEventListener("pointermove", (event) => canvas.hasPointerCapture(event.pointerId) && move(event));
}
