// The server, as the page sees it.

/** What the server said instead of an answer. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.param = error?.param ?? null;
    this.code = error?.code ?? null;
  }
}

export class Api {
  /** `key` returns the API key, or an empty text. */
  constructor(key) {
    this.key = key;
  }

  headers() {
    const key = this.key();
    return key ? { Authorization: `Bearer ${key}` } : {};
  }

  async get(path) {
    const response = await fetch(path, { headers: this.headers(), cache: "no-store" });
    if (!response.ok) throw await failure(response);
    return response;
  }

  /** The model's card. */
  async model() {
    return (await (await this.get("v1/models")).json()).data[0];
  }

  /** Metric sums by name; labels are summed over, histograms left out. */
  async metrics() {
    const sums = new Map();
    for (const line of (await (await this.get("metrics")).text()).split("\n")) {
      const parts = /^([\w:]+)(?:\{.*\})? (\S+)$/.exec(line);
      if (parts) sums.set(parts[1], (sums.get(parts[1]) ?? 0) + Number(parts[2]));
    }
    return sums;
  }

  /** Streams an answer: yields the chunks' objects. Leaving the loop, or the signal, hangs up, which ends the work. */
  async *chat(body, signal) {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...this.headers() },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } }),
      signal,
    });
    if (!response.ok) throw await failure(response);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(response.status, chunk.error);
      yield chunk;
    }
    throw new ApiError(response.status, { message: "The connection ended before the answer did." });
  }
}

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  return new ApiError(response.status, body.error);
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const lines = held.split("\n");
      held = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
