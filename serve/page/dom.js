// Elements by id, and new ones.

export const $ = (id) => document.getElementById(id);

/** element("label", {htmlFor: "x", dataset: {class: "car"}}, "text", child): properties, not attributes; null children are left out. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "dataset") Object.assign(made.dataset, value);
    else if (name.startsWith("aria-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

let count = 0;
/** A new id, for labels. */
export const fresh = (stem) => `${stem}-${(count += 1)}`;

/** Radio buttons that look like a segmented control or like chips; `chosen(value)` is called when one is chosen. */
export function radios(name, choices, value, chosen) {
  return choices.map(({ value: own, label, title }) => {
    const input = element("input", { type: "radio", name, id: fresh(name), value: own, checked: own === value });
    input.addEventListener("change", () => chosen(own));
    return element("span", { className: "choice" }, input, element("label", { htmlFor: input.id, title: title ?? "" }, label));
  });
}

/** A range with its label and its value beside it. `shown` makes the text of a value. */
export function slider(label, { min, max, step = 1, value, shown = String, changed }) {
  const id = fresh("slider");
  const input = element("input", { type: "range", id, min, max, step });
  input.value = value; // after min and max, which it must obey
  const output = element("output", { for: id, "aria-hidden": "true" }); // the range itself says its value
  const show = () => input.setAttribute("aria-valuetext", (output.textContent = shown(Number(input.value))));
  show();
  input.addEventListener("input", () => {
    show();
    changed(Number(input.value));
  });
  return element("div", { className: "row" }, element("label", { htmlFor: id }, label), input, output);
}

/** Options of a select, from [value, text] pairs. */
export function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([own, text]) => element("option", { value: own, selected: own === value }, text)));
}

/** Text on the clipboard; false where the browser does not let us (a page over plain HTTP from another machine). */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { value: text, readOnly: true, className: "hidden" });
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus?.();
    return done;
  }
}
