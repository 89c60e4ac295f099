// From what is wanted to what is sent: the same fields as JSON and as a form.

/** Whether the samples are drawn from seeds. */
export const seeded = (wanted) => wanted.kind === "random";

/**
 * The fields of a request but for the picture, with a picture among them as the name of its part; and those pictures by part.
 *   seed: of one sample alone (what curl asks for), in place of all samples.
 */
export function fields(wanted, seed = undefined) {
  const pictures = new Map();
  const found = {};
  if (wanted.model) found.model = wanted.model;
  if (wanted.target) found.target = wanted.target;
  if (wanted.source) found.source = wanted.source;
  if (seeded(wanted)) {
    if (seed === undefined) Object.assign(found, { seed: wanted.seed, samples: wanted.samples, random_style: true });
    else found.seed = seed;
  }
  if (wanted.kind === "exemplar" && wanted.exemplar.picture) {
    found.exemplar = "exemplar";
    pictures.set("exemplar", wanted.exemplar.picture);
  } else if (Object.keys(wanted.attributes).length) found.attributes = wanted.attributes;
  const styles = Object.entries(wanted.styles).filter(([, style]) => style.kind !== "rest" && complete(style));
  if (styles.length) found.styles = Object.fromEntries(styles.map(([name, style]) => [name, styleOf(style, pictures)]));
  if (wanted.strength !== null) found.strength = wanted.strength;
  if (wanted.size) found.size = wanted.size;
  found.format = wanted.format;
  return { found, pictures };
}

// A picture that is still to be chosen asks for nothing yet.
const complete = (style) => [style, style.mix].every((part) => !part || part.kind !== "exemplar" || part.picture);

function styleOf(style, pictures) {
  const first = partOf(style, pictures);
  return style.mix ? { mix: [first, partOf(style.mix, pictures)], amount: style.amount } : first;
}

function partOf(part, pictures) {
  if (part.kind === "stored") return { stored: true };
  if (part.kind !== "exemplar") return { [part.kind]: part.value };
  const known = [...pictures].find(([, picture]) => picture === part.picture);
  const name = known ? known[0] : `style.${pictures.size + 1}`;
  pictures.set(name, part.picture);
  return { exemplar: name };
}

/** The body of a JSON request. */
export async function body(picture, wanted, extras) {
  const { found, pictures } = fields(wanted);
  const texts = new Map();
  for (const [name, each] of pictures) texts.set(name, await each.base64());
  const filled = JSON.parse(JSON.stringify(found), (key, value) => (key === "exemplar" && texts.has(value) ? texts.get(value) : value));
  return { image: await picture.base64(), ...filled, ...extras };
}

/** What a form that makes one sample has: [name, text] pairs, and [part, file's name] pairs. */
export function form(picture, wanted, seed) {
  const { found, pictures } = fields(wanted, seed);
  const texts = Object.entries(found).filter(([name, value]) => name !== "exemplar" && !(name === "format" && value === "png"));
  return {
    fields: texts.map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : String(value)]),
    files: [["image", picture.name], ...[...pictures].map(([part, each]) => [part, each.name])],
  };
}
