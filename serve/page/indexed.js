// An indexed PNG as numbers. A canvas would only give its colours; the numbers are what the server means.

/** {width, height, indices: Uint8Array, colours: [[r, g, b], ...]} of a PNG with a palette, from its bytes. */
export async function readIndexed(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const compressed = [];
  let width, height, depth, colours = [];
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const start = at + 8;
    if (kind === "IHDR") {
      [width, height, depth] = [view.getUint32(start), view.getUint32(start + 4), bytes[start + 8]];
      if (bytes[start + 9] !== 3 || bytes[start + 12] !== 0) throw new Error("not a plain PNG with a palette");
    } else if (kind === "PLTE") {
      colours = Array.from({ length: length / 3 }, (_, index) => [...bytes.subarray(start + 3 * index, start + 3 * index + 3)]);
    } else if (kind === "IDAT") {
      compressed.push(bytes.subarray(start, start + length));
    }
    at = start + length + 4; // and the checksum
  }
  const inflated = new Response(new Blob(compressed).stream().pipeThrough(new DecompressionStream("deflate")));
  const rows = unfiltered(new Uint8Array(await inflated.arrayBuffer()), Math.ceil((width * depth) / 8), height);
  const indices = new Uint8Array(width * height);
  const stride = Math.ceil((width * depth) / 8);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const bit = x * depth;
      indices[y * width + x] = (rows[y * stride + (bit >> 3)] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
    }
  }
  return { width, height, indices, colours };
}

// PNG's five filters, undone; a pixel takes one byte or less here, so the byte to the left is one away.
function unfiltered(data, stride, height) {
  const rows = new Uint8Array(stride * height);
  for (let y = 0; y < height; y += 1) {
    const filter = data[y * (stride + 1)];
    for (let x = 0; x < stride; x += 1) {
      const at = y * stride + x;
      const left = x ? rows[at - 1] : 0;
      const up = y ? rows[at - stride] : 0;
      const corner = x && y ? rows[at - stride - 1] : 0;
      const guess = [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter];
      rows[at] = data[y * (stride + 1) + 1 + x] + guess;
    }
  }
  return rows;
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [a, b, c] = [left, up, corner].map((value) => Math.abs(guess - value));
  return a <= b && a <= c ? left : b <= c ? up : corner;
}
