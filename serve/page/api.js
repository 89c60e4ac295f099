// The server, its errors, its token, and its "busy, try again".

const TRIES = 4; // of a request that is answered by a 429 or 503 with Retry-After
const KEPT = "recollect-token";

/** An answer other than 2xx, in the server's own words. */
export class ServerError extends Error {
  constructor(status, code, message, hint) {
    super(message);
    Object.assign(this, { status, code, hint });
  }
}

/**
 * Calls of the server that this page is from.
 *   askToken(error): a promise of a token, or of null when the person gives up.
 *   waiting(seconds): told before every pause.
 */
export class Api {
  constructor({ askToken, waiting }) {
    Object.assign(this, { askToken, waiting });
  }

  get token() {
    return sessionStorage.getItem(KEPT) ?? "";
  }

  set token(text) {
    if (text) sessionStorage.setItem(KEPT, text);
    else sessionStorage.removeItem(KEPT);
  }

  /** JSON from a path; `body` makes it a POST of JSON. Throws ServerError, and AbortError when `signal` says so. */
  async json(path, body = undefined, signal = undefined) {
    for (let attempt = 1; ; attempt += 1) {
      const answer = await this.#sent(path, body, signal);
      if (answer.ok) return answer.json();
      const error = await refusal(answer);
      if (answer.status === 401) {
        const token = await this.askToken(error);
        if (token === null) throw error;
        this.token = token;
        attempt = 0;
        continue;
      }
      const seconds = Number(answer.headers.get("Retry-After"));
      if (![429, 503].includes(answer.status) || !(seconds >= 0) || attempt >= TRIES) throw error;
      this.waiting(seconds || 1);
      await pause(seconds || 1, signal);
    }
  }

  async #sent(path, body, signal) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const asked = body === undefined ? { headers } : { headers: { ...headers, "Content-Type": "application/json" }, method: "POST", body: JSON.stringify(body) };
    try {
      return await fetch(path, { ...asked, signal, credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "unreachable", "The server does not answer.", "It may have been stopped, or the network is down. Try again.");
    }
  }
}

async function refusal(answer) {
  try {
    const { code, message, hint } = (await answer.json()).error;
    return new ServerError(answer.status, code, message, hint);
  } catch {
    return new ServerError(answer.status, "http_error", `The server answered ${answer.status} ${answer.statusText}.`.replace(" .", "."), "Something in front of it may have answered in its place.");
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}
