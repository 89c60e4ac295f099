// The form on the side: made from the model's card, it knows what is wanted.

import { $, element, fresh, options, radios, slider } from "./dom.js";
import { Picture } from "./picture.js";

const MOST_SEED = 2 ** 32 - 1;
const KINDS = { rest: "as the rest", stored: "stored", random: "random", item: "item", exemplar: "a picture" };

/** What a person wants who has not said anything yet. */
export function initial(card) {
  return {
    target: card.domains.at(-1),
    source: "",
    kind: "own",
    samples: 4,
    seed: 0,
    styles: Object.fromEntries(Object.keys(card.style_classes).map((name) => [name, { kind: "rest", value: 0, mix: null, amount: 0.5 }])),
    format: "png",
    side: 0, // of the picture that is sent, its short one; 0: as it is
  };
}

/** Fill the form for a model; `changed()` is called whenever `wanted` is other than before. */
export function build(card, wanted, changed) {
  const set = (name) => (value) => {
    wanted[name] = value;
    changed();
  };
  targets(card, wanted, set("target"));
  sources(card, wanted, set("source"));
  style(card, wanted, changed);
  classes(card, wanted, changed);
  sizes(card, wanted, set("side"));
  $("format").addEventListener("change", (event) => set("format")(event.target.value));
}

function targets(card, wanted, chosen) {
  if (card.domains.length < 2) return;
  $("target").hidden = false;
  $("target").querySelector(".chips").replaceChildren(...radios("target", card.domains.map((name) => ({ value: name, label: name })), wanted.target, chosen));
}

function sources(card, wanted, chosen) {
  if (card.domains.length < 3) return; // with two, it is the other one
  $("source-row").hidden = false;
  options($("source"), [["", "the first other"], ...card.domains.map((name) => [name, name])], wanted.source);
  $("source").addEventListener("change", (event) => chosen(event.target.value));
}

function style(card, wanted, changed) {
  if (!card.random_styles) return;
  $("style").hidden = false;
  const kinds = [
    { value: "own", label: "The model's own", title: "The method's deterministic translation" },
    { value: "random", label: "Random", title: "Several styles, each drawn from its seed" },
  ];
  const shown = () => ($("random").hidden = wanted.kind !== "random");
  const choose = (kind) => {
    wanted.kind = kind;
    shown();
    changed();
  };
  $("style-kinds").replaceChildren(...radios("style", kinds, wanted.kind, choose));
  shown();
  $("samples").addEventListener("input", (event) => {
    wanted.samples = Number(event.target.value);
    $("samples-value").textContent = event.target.value;
    changed();
  });
  $("seed").addEventListener("input", (event) => {
    if (!event.target.checkValidity() || event.target.value === "") return;
    wanted.seed = Number(event.target.value);
    changed();
  });
  $("dice").addEventListener("click", () => {
    wanted.seed = crypto.getRandomValues(new Uint32Array(1))[0] % (MOST_SEED - 8);
    $("seed").value = wanted.seed;
    changed();
  });
}

function classes(card, wanted, changed) {
  const names = Object.keys(card.style_classes);
  if (!names.length) return;
  $("classes").hidden = false;
  $("classes").append(...names.map((name) => classRow(name, card.style_classes[name], wanted.styles[name], changed)));
}

/** One class: its style, and what it is mixed with. */
function classRow(name, items, style, changed) {
  const second = { kind: "", value: 1, picture: null };
  const mixed = element("div", { className: "mixed", hidden: true });
  const update = () => {
    mixed.hidden = style.kind === "rest";
    style.mix = second.kind && style.kind !== "rest" ? second : null;
    amount.hidden = !style.mix;
    changed();
  };
  const amount = slider("Amount", {
    min: 0,
    max: 100,
    value: 50,
    shown: (percent) => `${percent} %`,
    changed: (percent) => {
      style.amount = percent / 100;
      changed();
    },
  });
  amount.hidden = true;
  mixed.append(part("mixed with", ["", ...Object.keys(KINDS).slice(1)], items, second, update), amount);
  return element("div", { className: "class", role: "group", "aria-label": `Style of ${name}` }, part(name, Object.keys(KINDS), items, style, update), mixed);
}

/** A choice among kinds of style, and what goes with the kind: a number or a picture. */
function part(label, kinds, items, state, update) {
  const id = fresh("kind");
  const select = element("select", { id });
  options(select, kinds.map((kind) => [kind, KINDS[kind] ?? "nothing"]), state.kind);
  const parameter = element("div", { className: "parameter" });
  const changed = (value) => {
    state.value = value;
    update();
  };
  const fill = () => {
    parameter.replaceChildren();
    if (state.kind === "random") parameter.append(slider("Draw", { min: 0, max: 99, value: (state.value = state.value % 100), changed }));
    if (state.kind === "item") {
      state.value = Math.min(state.value, items - 1);
      if (items > 1) parameter.append(slider("Item", { min: 0, max: items - 1, value: state.value, shown: (item) => `${item + 1} of ${items}`, changed }));
    }
    if (state.kind === "exemplar") parameter.append(pictureField("Picture of the target domain", state, update));
  };
  select.addEventListener("change", () => {
    state.kind = select.value;
    fill();
    update();
  });
  return element("div", {}, element("div", { className: "row" }, element("label", { htmlFor: id }, label), select), parameter);
}

/** A field for a picture, shown small when it is there; it puts the picture into `state.picture`. */
export function pictureField(label, state, changed) {
  const id = fresh("picture");
  const input = element("input", { type: "file", id, accept: "image/png,image/jpeg,image/webp,image/bmp" });
  const shown = element("img", { alt: "", hidden: true });
  const show = () => {
    shown.hidden = !state.picture;
    if (state.picture) Object.assign(shown, { src: state.picture.url, alt: `The exemplar ${state.picture.name}` });
  };
  input.addEventListener("change", async () => {
    if (!input.files.length) return;
    state.picture = await Picture.of(input.files[0]);
    show();
    changed();
  });
  show();
  return element("div", { className: "picture-field" }, shown, element("label", { htmlFor: id }, label), input);
}

function sizes(card, wanted, chosen) {
  const sides = [card.size, 2 * card.size, 4 * card.size];
  options($("size"), [[0, "its own size"], ...sides.map((side, index) => [side, `${side} px, short side${index ? "" : " (as trained)"}`])], wanted.side);
  $("size").addEventListener("change", (event) => chosen(Number(event.target.value)));
}
