// What is there, and what follows from what. The rest is in the other files, one thing in each.

import { Api, ServerError } from "./api.js";
import { build, initial, spoken } from "./controls.js";
import { command } from "./curl.js";
import { $, copied, options } from "./dom.js";
import { listen, Picture, stem } from "./picture.js";
import { body, form } from "./request.js";
import { Stage } from "./results.js";

const WAIT_MS = 300; // after the last change, before it is translated again
const state = { card: null, wanted: null, original: null, sent: null, stage: new Stage(selected), asked: null, running: null, timer: 0 };
const api = new Api({ askToken, waiting: (seconds) => say(`The server is busy; trying again in ${seconds} s.`) });

function say(text) {
  $("status").textContent = text;
}

/** An error as the server says it; null takes it away. */
function complain(error) {
  $("alert").hidden = !error;
  if (!error) return;
  const known = error instanceof ServerError;
  const title = document.createElement("strong");
  title.textContent = known ? error.message : "This page has a fault.";
  const hint = document.createElement("span");
  hint.textContent = known ? error.hint : String(error);
  const code = document.createElement("code");
  code.textContent = known ? error.code : error.name;
  $("alert").replaceChildren(title, hint, code);
  if (!known) console.error(error);
}

// --- the token

function askToken(error) {
  const dialog = $("token-dialog");
  $("token-note").textContent = api.token ? `The server does not take this one: ${error.message}` : "Whoever runs it has one. It is kept until this tab is closed.";
  $("token").value = "";
  return new Promise((resolve) => {
    const done = (token) => {
      dialog.close();
      $("token-open").hidden = false;
      resolve(token);
    };
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      done($("token").value.trim());
    };
    $("token-cancel").onclick = () => done(null);
    dialog.oncancel = (event) => {
      event.preventDefault();
      done(null);
    };
    dialog.showModal();
  });
}

// --- the model

/** Ask for a model (empty: the server's first), and make the page its own. */
async function start(model = "") {
  say("Asking the server what it has ...");
  const of = model ? `?model=${encodeURIComponent(model)}` : "";
  let targets;
  try {
    const card = await api.json(`v1/model${of}`);
    targets = await api.json(`v1/domains${of}`);
    state.card = card;
  } catch (error) {
    complain(error);
    say("");
    return;
  }
  complain(null);
  const { card } = state;
  state.wanted = initial(card, targets, model);
  document.title = `${card.name} · Recollect`;
  $("about").textContent = card.models.length > 1 ? card.method : `${card.name} · ${card.method}`;
  $("about").title = `bundle ${card.digest}`;
  $("model").hidden = card.models.length < 2;
  options($("model"), card.models.map((name) => [name, name]), model || card.models[0]);
  $("limits").textContent = `PNG, JPEG, WebP or BMP, up to ${bytes(card.limits.max_bytes)} and ${megapixels(card.limits.max_pixels)}`;
  state.stage.classes = targets.classes;
  const thumbnails = build(card, targets, state.wanted, changed);
  if (Object.keys(targets.classes).length) api.json(`v1/items${of}`).then((told) => thumbnails.items(told.items), console.warn);
  $("token-open").hidden = !api.token;
  $("go").disabled = !state.original;
  say(state.original ? "Ready." : "Choose a picture to begin.");
  if (state.original) {
    state.stage.before(state.original);
    translate();
  }
}

const bytes = (count) => (count >= 2 ** 20 ? `${+(count / 2 ** 20).toFixed(1)} MB` : `${Math.floor(count / 2 ** 10)} kB`);
const megapixels = (count) => (count >= 1e5 ? `${+(count / 1e6).toFixed(1)} megapixels` : `${count} pixels`);

// --- the picture

async function given(file) {
  complain(null);
  const before = state.original;
  state.original = await Picture.of(file);
  if (before) URL.revokeObjectURL(before.url);
  if (!state.card) return;
  state.stage.before(state.original);
  $("go").disabled = false;
  translate();
}

/** The picture as it is sent: scaled where the server would refuse it for its pixels. */
async function prepared() {
  const { original, card } = state;
  if (!original.readable) return original;
  const { width, height } = original;
  const most = Math.floor(Math.min(width, height) * Math.sqrt(card.limits.max_pixels / (width * height)));
  return width * height > card.limits.max_pixels ? original.shrunk(most) : original;
}

// --- translating

function changed() {
  if (!state.original || !$("live").checked || !state.asked) return;
  clearTimeout(state.timer);
  state.timer = setTimeout(translate, WAIT_MS);
}

async function translate() {
  clearTimeout(state.timer);
  state.running?.abort();
  const running = (state.running = new AbortController());
  const wanted = snapshot(state.wanted);
  document.body.classList.add("busy");
  say("Translating ...");
  try {
    const sent = await prepared();
    const extras = beside(state.card.extras);
    const started = performance.now();
    const answer = await api.json("v1/translate", await body(sent, wanted, extras), running.signal);
    if (running.signal.aborted) return;
    Object.assign(state, { sent, asked: wanted, seconds: (performance.now() - started) / 1000 });
    complain(null);
    await state.stage.show(answer, sent);
    say(done(answer, sent));
  } catch (error) {
    if (error.name === "AbortError") return;
    state.asked = wanted; // what was refused may be mended by a change
    complain(error);
    say("");
  } finally {
    if (state.running === running) {
      state.running = null;
      document.body.classList.remove("busy");
    }
  }
}

/** Everything that the model tells beside the pictures. */
function beside(told) {
  const found = Object.fromEntries(["memory_map", "attention_mask"].filter((name) => told.includes(name)).map((name) => [name, true]));
  return told.includes("neighbours") ? { ...found, neighbours: "thumbnails" } : found;
}

// Pictures among the styles stay the objects that they are.
function snapshot(wanted) {
  const copy = (value) => (value && Object.getPrototypeOf(value) === Object.prototype ? Object.fromEntries(Object.entries(value).map(([name, each]) => [name, copy(each)])) : value);
  return copy(wanted);
}

function done(answer, sent) {
  const count = answer.images.length;
  const scaled = sent.scaled ? ` The picture was scaled to ${sent.width} × ${sent.height} first.` : "";
  return `${count > 1 ? `${count} translations` : "Translated"} ${state.asked.target ? `to ${spoken(state.asked.target)} ` : ""}in ${state.seconds.toFixed(2)} s.${scaled}`;
}

// --- one of the translations

function selected(index) {
  const { answer, url } = state.stage;
  const { asked, sent } = state;
  const seed = answer.seeds?.[index];
  const name = `${stem(sent.name)}-${asked.target || "translated"}${seed === undefined ? "" : `-${seed}`}.${answer.format === "jpeg" ? "jpg" : answer.format}`.replace(/[^\w.-]+/g, "_");
  Object.assign($("download"), { href: url, download: name });
  $("facts").textContent = [`${answer.width} × ${answer.height} px`, seed === undefined ? "deterministic" : `seed ${seed}`, `${answer.model} ${answer.digest.slice(0, 8)}`].join(" · ");
  const { fields, files } = form(sent, asked, seed);
  $("curl").textContent = command({ url: new URL("v1/translate", document.baseURI).href, token: Boolean(api.token), fields, files, out: name });
  $("curl-note").hidden = !sent.scaled;
  $("curl-note").textContent = "The picture was scaled in this browser before it was sent; ";
  if (sent.scaled) {
    const link = document.createElement("a");
    Object.assign(link, { href: sent.url, download: sent.name, textContent: `save ${sent.name}` });
    $("curl-note").append(link, " for the command.");
  }
  $("actions").hidden = $("command").hidden = false;
}

// --- what is always there

listen($("file"), $("stage"), given);
$("another").addEventListener("click", () => $("file").click());
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.original && state.card) translate();
});
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && state.original && state.card) translate();
});
$("copy").addEventListener("click", async () => {
  const done = await copied($("curl").textContent);
  $("command").open ||= !done;
  say(done ? "The command is on the clipboard." : "The browser does not let this page use the clipboard; the command is below.");
});
$("token-open").addEventListener("click", async () => {
  const token = await askToken(new ServerError(401, "", "enter another one, or cancel.", ""));
  if (token !== null) api.token = token;
});
$("model").addEventListener("change", (event) => start(event.target.value));
themes();
start();

/** The colours: as the system has them, light, or dark; kept for the next visit. */
function themes() {
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const show = (theme) => {
    document.documentElement.style.colorScheme = theme === "auto" ? "light dark" : theme;
    $("theme").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[theme];
    $("theme").setAttribute("aria-label", `Colours: ${names[theme]}`);
  };
  let theme = localStorage.getItem("recollect-theme") ?? "auto";
  if (!names[theme]) theme = "auto";
  show(theme);
  $("theme").addEventListener("click", () => {
    const all = Object.keys(names);
    theme = all[(all.indexOf(theme) + 1) % all.length];
    localStorage.setItem("recollect-theme", theme);
    show(theme);
  });
}
