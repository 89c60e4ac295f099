// A command that makes the picture that is shown.

/** Text as one word of a POSIX shell. */
export const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** A file's name as curl's -F wants it: in double quotes where it has letters that would end it. */
const named = (name) => (/[;,"\\\s]/.test(name) ? `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"` : name);

/**
 * The command.
 *   url: of the endpoint; token: whether the server asks for one; out: what the answer is written to.
 *   fields: [name, text] pairs; files: [part, file's name] pairs.
 */
export function command({ url, token, fields, files, out }) {
  const words = ["curl -f"];
  if (token) words.push('-H "Authorization: Bearer $RECOLLECT_TOKEN"');
  for (const [part, name] of files) words.push(`-F ${quoted(`${part}=@${named(name)}`)}`);
  // -F would read @, < and ;type= in a value; --form-string takes it as it is.
  for (const [name, text] of fields) words.push(`${/^[\w.-]+$/.test(text) ? "-F" : "--form-string"} ${quoted(`${name}=${text}`)}`);
  words.push(`-o ${quoted(out)}`, quoted(url));
  return words.join(" \\\n  ");
}
