// The form on the side: made from the model's card, it knows what is wanted.

import { $, element, fresh, options, radios, slider } from "./dom.js";
import { blobOf, Picture } from "./picture.js";

const MOST_SEED = 2 ** 32 - 1;
const MOST_SAMPLES = 8;
const KINDS = { rest: "as the rest", stored: "stored", random: "random", item: "item", exemplar: "a picture" };

/** What a person wants of a model who has not said anything yet. `targets` is what /v1/domains tells. */
export function initial(card, targets, model) {
  return {
    model, // empty: the server's first
    target: targets.domains.length > 1 ? targets.domains.at(-1) : "",
    source: "",
    kind: "own",
    samples: 4,
    seed: 0,
    exemplar: { picture: null },
    attributes: {},
    styles: Object.fromEntries(Object.keys(targets.classes).map((name) => [name, { kind: "rest", value: 0, mix: null, amount: 0.5 }])),
    strength: null,
    size: 0, // of the answer, its longer side; 0: as the picture
    format: "png",
  };
}

/**
 * Fill the form for a model; `changed()` is called whenever `wanted` is other than before.
 * Returns {items(found)}, which shows what /v1/items told.
 */
export function build(card, targets, wanted, changed) {
  const set = (name) => (value) => {
    wanted[name] = value;
    changed();
  };
  const thumbnails = new Thumbnails(wanted);
  target(targets, wanted, (name) => {
    thumbnails.show();
    set("target")(name);
  });
  attributes(targets, wanted, changed);
  sources(targets, wanted, set("source"));
  style(card, wanted, changed);
  classes(targets.classes, wanted, thumbnails, changed);
  guidance(card, set("strength"));
  sizes(card, wanted, set("size"));
  $("format").onchange = (event) => set("format")(event.target.value);
  return thumbnails;
}

/** Names as people write them. */
export const spoken = (name) => name.replaceAll("_", " ");

function target({ domains }, wanted, chosen) {
  $("target").hidden = domains.length < 2;
  const choices = domains.map((name) => ({ value: name, label: spoken(name) }));
  $("target").querySelector(".chips").replaceChildren(...radios("target", choices, wanted.target, chosen));
}

function sources({ domains }, wanted, chosen) {
  $("source-row").hidden = domains.length < 3; // with two, it is the other one
  options($("source"), [["", "the first other"], ...domains.map((name) => [name, spoken(name)])], wanted.source);
  $("source").onchange = (event) => chosen(event.target.value);
}

/** Groups of which a picture has one, then single attributes. Where the domains are the attributes, the target says it all. */
function attributes({ attributes: names, exclusive, domains }, wanted, changed) {
  const legend = $("attributes").querySelector("legend");
  const own = names.filter((name) => !domains.includes(name));
  $("attributes").hidden = !own.length;
  const groups = exclusive.filter((group) => group.every((name) => own.includes(name)));
  const single = own.filter((name) => !groups.flat().includes(name));
  $("attributes").replaceChildren(legend, ...groups.map((group) => groupOf(group, wanted, changed)), ...single.map((name) => attribute(name, wanted, changed)));
}

function groupOf(group, wanted, changed) {
  let chosen = "";
  const set = (amount) => {
    for (const name of group) delete wanted.attributes[name];
    if (chosen) wanted.attributes[chosen] = amount / 100;
    changed();
  };
  const amount = slider("Amount", { min: 0, max: 100, value: 100, shown: (percent) => `${percent} %`, changed: set });
  amount.hidden = true;
  const choices = [["", "as it is"], ...group.map((name) => [name, spoken(name)])].map(([value, label]) => ({ value, label }));
  const chips = element("div", { className: "chips", role: "radiogroup", "aria-label": group.map(spoken).join(", ") });
  chips.append(
    ...radios(fresh("group"), choices, chosen, (name) => {
      chosen = name;
      amount.hidden = !name;
      set(Number(amount.querySelector("input").value));
    }),
  );
  return element("div", { className: "group" }, chips, amount);
}

function attribute(name, wanted, changed) {
  const id = fresh("attribute");
  const check = element("input", { type: "checkbox", id });
  const row = slider(spoken(name), {
    min: 0,
    max: 100,
    value: 100,
    shown: (percent) => `${percent} %`,
    changed: () => {
      check.checked = true;
      set();
    },
  });
  const range = row.querySelector("input");
  range.setAttribute("aria-label", `${spoken(name)}, how much`);
  row.querySelector("label").htmlFor = id;
  row.querySelector("label").title = "Unticked, it stays as it is in the picture";
  row.prepend(check);
  row.classList.add("attribute");
  const set = () => {
    row.classList.toggle("off", !check.checked);
    if (check.checked) wanted.attributes[name] = Number(range.value) / 100;
    else delete wanted.attributes[name];
    changed();
  };
  row.classList.add("off");
  check.addEventListener("change", set);
  return row;
}

function guidance(card, chosen) {
  const there = card.guides.includes("strength");
  $("guidance").hidden = !there;
  const legend = $("guidance").querySelector("legend");
  const how = slider("Strength", { min: 0, max: 100, value: 100, shown: (percent) => `${percent} %`, changed: (percent) => chosen(percent === 100 ? null : percent / 100) });
  $("guidance").replaceChildren(legend, ...(there ? [how] : []));
}

function style(card, wanted, changed) {
  const kinds = [
    { value: "own", label: "Own", title: "The model's own: one deterministic translation" },
    ...(card.random_styles ? [{ value: "random", label: "Random", title: "Several styles, each drawn from its seed" }] : []),
    ...(card.guides.includes("exemplar") ? [{ value: "exemplar", label: "Like a picture", title: "The style of a picture of the target domain" }] : []),
  ];
  $("style").hidden = kinds.length < 2;
  const shown = () => {
    $("random").hidden = wanted.kind !== "random";
    $("exemplar").hidden = wanted.kind !== "exemplar";
    $("attributes").disabled = wanted.kind === "exemplar"; // the picture says them too
  };
  const choose = (kind) => {
    wanted.kind = kind;
    shown();
    changed();
  };
  $("style-kinds").replaceChildren(...radios("style", kinds, wanted.kind, choose));
  $("exemplar").replaceChildren(pictureField("Picture whose style is taken", wanted.exemplar, changed));
  shown();
  $("samples").value = wanted.samples;
  $("samples-value").textContent = wanted.samples;
  $("seed").value = wanted.seed;
  $("samples").oninput = (event) => {
    wanted.samples = Number(event.target.value);
    $("samples-value").textContent = event.target.value;
    changed();
  };
  $("seed").oninput = (event) => {
    if (!event.target.checkValidity() || event.target.value === "") return;
    wanted.seed = Number(event.target.value);
    changed();
  };
  $("dice").onclick = () => {
    wanted.seed = crypto.getRandomValues(new Uint32Array(1))[0] % (MOST_SEED - MOST_SAMPLES);
    $("seed").value = wanted.seed;
    changed();
  };
}

function classes(counts, wanted, thumbnails, changed) {
  const names = Object.keys(counts);
  $("classes").hidden = !names.length;
  const fixed = [...$("classes").children].slice(0, 2); // the legend and the note
  $("classes").replaceChildren(...fixed, ...names.map((name) => classRow(name, counts[name], wanted.styles[name], thumbnails, changed)));
}

/** Pictures of memory items beside the sliders that choose them: those of the target domain. */
class Thumbnails {
  constructor(wanted) {
    Object.assign(this, { wanted, found: new Map(), urls: new Map(), shown: [] });
  }

  /** What /v1/items told. */
  items(items) {
    for (const item of items) this.found.set(`${item.label}/${item.number}`, item);
    this.show();
  }

  /** An image element for an item of a class; `number()` says which one. */
  image(label, number) {
    const image = element("img", { className: "item", hidden: true });
    const show = () => {
      const item = this.found.get(`${label}/${number()}`);
      const picture = item?.thumbnails[this.wanted.target];
      image.hidden = !picture;
      if (!picture) return;
      if (!this.urls.has(picture)) this.urls.set(picture, URL.createObjectURL(blobOf(picture, "image/png")));
      Object.assign(image, { src: this.urls.get(picture), alt: `What item ${number() + 1} of ${label} is nearest to` });
    };
    this.shown = this.shown.filter((each) => each.image.isConnected || each.image === image);
    this.shown.push({ image, show });
    show();
    return { image, show };
  }

  show() {
    for (const { show } of this.shown) show();
  }
}

/** One class: its style, and what it is mixed with. */
function classRow(name, items, style, thumbnails, changed) {
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
  const own = { name, items, thumbnails };
  mixed.append(part("mixed with", ["", ...Object.keys(KINDS).slice(1)], own, second, update), amount);
  return element("div", { className: "class", role: "group", "aria-label": `Style of ${spoken(name)}` }, part(spoken(name), Object.keys(KINDS), own, style, update), mixed);
}

/** A choice among kinds of style, and what goes with the kind: a number or a picture. */
function part(label, kinds, { name, items, thumbnails }, state, update) {
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
      const thumbnail = thumbnails.image(name, () => state.value);
      const choose = (value) => {
        changed(value);
        thumbnail.show();
      };
      parameter.append(slider("Item", { min: 0, max: items - 1, value: state.value, shown: (item) => `${item + 1} of ${items}`, changed: choose }));
      parameter.append(thumbnail.image);
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
  options($("size"), [[0, "as the picture"], ...sides.map((side, index) => [side, `${side} px, longer side${index ? "" : " (as trained)"}`])], wanted.size);
  $("size").onchange = (event) => chosen(Number(event.target.value));
}
