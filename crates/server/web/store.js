// What the page remembers, all of it in this browser: conversations, settings, theme, key.

const CONVERSATIONS = "phalanx.conversations";
const SETTINGS = "phalanx.settings";
const MOST_CONVERSATIONS = 200;

/** Sampling fields as the API names them; an absent one is the model's default. */
export const SAMPLING = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];

function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise; // Someone else's text, or storage is switched off.
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export class Store {
  constructor() {
    this.conversations = read(CONVERSATIONS, []);
    this.settings = read(SETTINGS, {});
    this.current = null;
    // Another tab's changes: take them over rather than overwrite them.
    window.addEventListener("storage", (event) => {
      if (event.key === CONVERSATIONS) this.adopt(read(CONVERSATIONS, []));
      if (event.key === SETTINGS) this.settings = read(SETTINGS, {});
    });
    this.onChange = () => {};
  }

  adopt(conversations) {
    const current = this.current && this.conversations.find((one) => one.id === this.current);
    this.conversations = conversations.map((one) => (one.id === this.current && current ? current : one));
    this.onChange();
  }

  /** The conversation on screen; made when its first message is. */
  conversation() {
    return this.conversations.find((one) => one.id === this.current) ?? null;
  }

  begin(title) {
    const made = { id: crypto.randomUUID?.() ?? String(Math.random()), title, system: this.settings.system ?? "", messages: [], updated: Date.now() };
    this.conversations.unshift(made);
    this.conversations.length = Math.min(this.conversations.length, MOST_CONVERSATIONS);
    this.current = made.id;
    return made;
  }

  remove(id) {
    this.conversations = this.conversations.filter((one) => one.id !== id);
    if (this.current === id) this.current = null;
    this.save();
  }

  clear() {
    this.conversations = [];
    this.current = null;
    this.save();
  }

  /** Saves; when the browser's space is full, the oldest conversations make room. */
  save(conversation) {
    if (conversation) conversation.updated = Date.now();
    this.conversations.sort((a, b) => b.updated - a.updated);
    while (!write(CONVERSATIONS, this.conversations) && 1 < this.conversations.length) this.conversations.pop();
    this.onChange();
  }

  saveSettings() {
    write(SETTINGS, this.settings);
  }

  /** The sampling fields of a request. */
  sampling() {
    const chosen = SAMPLING.filter((name) => this.settings[name] !== undefined && this.settings[name] !== "");
    return Object.fromEntries(chosen.map((name) => [name, Number(this.settings[name])]));
  }
}

/** Groups conversations by age, newest first: `[heading, conversations]`. */
export function byAge(conversations, now = Date.now()) {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const day = 86_400_000;
  const groups = [["Today", midnight], ["Yesterday", midnight - day], ["Last seven days", midnight - 6 * day], ["Earlier", -Infinity]];
  let rest = [...conversations].sort((a, b) => b.updated - a.updated);
  return groups.map(([heading, since]) => {
    const group = rest.filter((one) => since <= one.updated);
    rest = rest.filter((one) => one.updated < since);
    return [heading, group];
  }).filter(([, group]) => group.length);
}
