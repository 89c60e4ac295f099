// Pictures that a person gives: chosen, dropped or pasted; and their way into a request.

/** A picture: its bytes as a File or Blob, its name, its size where the browser can read it, and a URL to show it. */
export class Picture {
  constructor(blob, name, width, height) {
    Object.assign(this, { blob, name, width, height, scaled: false, url: URL.createObjectURL(blob) });
  }

  /** From a file. One that the browser cannot read has no size; the server will say what is wrong with it. */
  static async of(file, name = file.name || "picture.png") {
    try {
      const bitmap = await createImageBitmap(file);
      const picture = new Picture(file, name, bitmap.width, bitmap.height);
      bitmap.close();
      return picture;
    } catch {
      return new Picture(file, name, 0, 0);
    }
  }

  get readable() {
    return this.width > 0;
  }

  /** The same picture with `side` pixels on its short side, as a new PNG; itself where it is not larger. */
  async shrunk(side) {
    if (!this.readable || Math.min(this.width, this.height) <= side) return this;
    const factor = side / Math.min(this.width, this.height);
    const [width, height] = [this.width, this.height].map((length) => Math.max(1, Math.round(length * factor)));
    const bitmap = await createImageBitmap(this.blob, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // the server lays transparency over white too
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    const small = new Picture(blob, `${stem(this.name)}-${width}x${height}.png`, width, height);
    small.scaled = true;
    return small;
  }

  /** Base64, as JSON requests have it. */
  async base64() {
    const bytes = new Uint8Array(await this.blob.arrayBuffer());
    let text = "";
    for (let start = 0; start < bytes.length; start += 0x8000) text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
    return btoa(text);
  }
}

/** A file's name without its kind. */
export const stem = (name) => name.replace(/\.[^.]+$/, "") || "picture";

/** The bytes behind base64, as a Blob. */
export function blobOf(base64, kind) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: kind });
}

/** Calls `given(file)` for the first picture that is chosen in `input`, dropped anywhere on the page, or pasted. */
export function listen(input, zone, given) {
  input.addEventListener("change", () => {
    if (input.files.length) given(input.files[0]);
    input.value = ""; // the same file may be chosen again
  });
  let inside = 0;
  const holds = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (change) => {
    inside = Math.max(0, inside + change);
    zone.classList.toggle("over", inside > 0);
  };
  addEventListener("dragenter", (event) => holds(event) && mark(1));
  addEventListener("dragleave", (event) => holds(event) && mark(-1));
  addEventListener("dragover", (event) => holds(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    mark(-inside);
    if (event.dataTransfer.files.length) given(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    given(file);
  });
}
