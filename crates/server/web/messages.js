// The conversation on screen: one element a message, redrawn only where something changed.

import { render } from "./markdown.js";

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export function make(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

export function iconButton(name, label, onClick) {
  const button = make("button", "icon", icon(name));
  button.type = "button";
  button.title = label;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", onClick);
  return button;
}

/** Copies a text, also on pages without https, where browsers offer no clipboard to scripts. */
async function copy(text, button, done) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", "hidden", text);
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"), ...(done ? [done] : []));
  setTimeout(() => button.replaceChildren(...before), 1400);
}

/** The line above a block of code. */
function codeHead(language, code) {
  const button = make("button", "", icon("copy"), "Copy");
  button.type = "button";
  button.setAttribute("aria-label", "Copy this code");
  button.addEventListener("click", () => copy(code, button, "Copied"));
  return make("div", "code-head", make("span", "", language || "text"), button);
}

const STARTERS = [
  "Explain quantum entanglement to a curious twelve-year-old.",
  "请解释量子纠缠的基本原理，并用中文输出。",
  "Write a Rust function that reverses the words of a sentence, with a test.",
  "Compare TCP and QUIC in a table.",
];

export class Messages {
  /** `actions`: ask(text), regenerate(), edit(index, text), retry(). */
  constructor(root, thread, toBottom, actions) {
    this.root = root;
    this.thread = thread;
    this.actions = actions;
    this.live = null;
    this.following = true;
    this.top = 0;
    this.toBottom = toBottom;
    thread.addEventListener("scroll", () => this.noteScroll(), { passive: true });
    toBottom.addEventListener("click", () => this.follow());
  }

  /** Draws a conversation from scratch. */
  show(conversation, model) {
    this.live = null;
    this.root.replaceChildren();
    if (!conversation?.messages.length) {
      this.root.append(this.welcome(model));
    } else {
      if (conversation.system) this.root.append(make("div", "message system", make("b", "", "System prompt"), conversation.system));
      const last = conversation.messages.length - 1;
      const lastUser = conversation.messages.findLastIndex((message) => message.role === "user");
      conversation.messages.forEach((message, index) => {
        this.root.append(message.role === "user" ? this.user(message, index, index === lastUser) : this.assistant(message, index === last));
      });
    }
    this.follow();
  }

  welcome(model) {
    const starters = STARTERS.map((text) => {
      const button = make("button", "", text);
      button.type = "button";
      button.addEventListener("click", () => this.actions.ask(text));
      return button;
    });
    return make("section", "welcome",
      make("h2", "", model ? `Talk to ${model.split("/").pop()}` : "What would you like to know?"),
      make("p", "", "It runs on this server; what you write goes nowhere else."),
      make("div", "starters", ...starters));
  }

  user(message, index, editable) {
    const element = make("article", "message user");
    element.setAttribute("aria-label", "You");
    const actions = make("div", "actions", iconButton("copy", "Copy", (event) => copy(message.content, event.currentTarget)));
    if (editable) actions.append(iconButton("edit", "Edit and ask again", () => this.edit(element, message, index)));
    element.append(make("div", "text", message.content), actions);
    return element;
  }

  /** Turns the last question into a text box. */
  edit(element, message, index) {
    const before = [...element.childNodes];
    const area = make("textarea", "");
    area.value = message.content;
    area.setAttribute("aria-label", "Edit your message");
    const cancel = () => {
      element.classList.remove("editing");
      element.replaceChildren(...before);
    };
    const send = () => area.value.trim() && this.actions.edit(index, area.value.trim());
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
      event.stopPropagation();
    });
    const button = (name, text, run) => {
      const made = make("button", name, text);
      made.type = "button";
      made.addEventListener("click", run);
      return made;
    };
    element.classList.add("editing");
    element.replaceChildren(make("div", "edit", area, make("div", "", button("quiet", "Cancel", cancel), button("primary", "Ask again", send))));
    area.style.height = `${Math.min(area.scrollHeight + 4, 320)}px`;
    area.focus();
  }

  assistant(message, last) {
    const element = make("article", "message assistant");
    element.setAttribute("aria-label", "Answer");
    if (message.content) element.append(make("div", "text markdown", render(message.content, codeHead)));
    if (message.error) element.append(this.failure(message.error, last));
    element.append(this.assistantActions(message, last));
    return element;
  }

  assistantActions(message, last) {
    const actions = make("div", "actions");
    if (message.content) actions.append(iconButton("copy", "Copy the answer", (event) => copy(message.content, event.currentTarget)));
    if (last && !message.error) actions.append(iconButton("again", "Answer again", () => this.actions.regenerate()));
    if (message.stats) actions.append(stats(message.stats));
    return actions;
  }

  failure(error, last) {
    const box = make("div", "failure", make("b", "", error.title), make("span", "", error.message));
    box.setAttribute("role", "alert");
    if (error.detail) box.append(document.createElement("br"), make("code", "", error.detail));
    if (last) {
      const again = make("button", "quiet", "Try again");
      again.type = "button";
      again.addEventListener("click", () => this.actions.regenerate());
      box.append(make("div", "", again));
    }
    return box;
  }

  /** Opens the place where an answer grows. */
  beginAnswer() {
    this.live = make("article", "message assistant streaming", make("div", "waiting", make("i"), make("i"), make("i")), make("div", "actions", make("span", "stats")));
    this.live.setAttribute("aria-label", "Answer");
    this.live.setAttribute("aria-busy", "true");
    this.root.append(this.live);
    this.follow();
  }

  /** Redraws the growing answer, at most once a frame, and rarer when a redraw is slow. */
  growAnswer(message) {
    this.pending = message;
    if (this.frame) return;
    const wait = Math.max(0, (this.drawn ?? 0) + 4 * (this.cost ?? 0) - performance.now());
    this.frame = setTimeout(() => requestAnimationFrame(() => {
      this.frame = null;
      if (!this.live) return;
      const started = performance.now();
      const text = make("div", "text markdown", render(this.pending.content, codeHead));
      this.live.firstChild.replaceWith(this.pending.content ? text : this.live.firstChild);
      this.live.lastChild.replaceChildren(stats(this.pending.stats));
      if (this.following) this.thread.scrollTop = this.thread.scrollHeight;
      this.drawn = performance.now();
      this.cost = this.drawn - started;
    }), wait);
  }

  /** Replaces the growing answer by the whole one. */
  endAnswer(message) {
    const following = this.following;
    this.live?.replaceWith(this.assistant(message, true));
    this.live = null;
    if (following) this.follow();
  }

  noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.thread;
    // Only the reader scrolls up; the text growing under the view is no reason to stop following it.
    if (scrollHeight - clientHeight - scrollTop < 48) this.following = true;
    else if (scrollTop < this.top) this.following = false;
    this.top = scrollTop;
    this.toBottom.hidden = this.following;
  }

  follow() {
    this.following = true;
    this.thread.scrollTop = this.thread.scrollHeight;
    this.toBottom.hidden = true;
  }
}

/** An answer's figures in words. */
function stats(figures) {
  const line = make("span", "stats");
  if (!figures) return line;
  const add = (text, title, className) => {
    const part = make("span", className ?? "", text);
    part.title = title;
    line.append(part);
  };
  if (figures.tokens) add(`${figures.tokens} ${figures.tokens === 1 ? "token" : "tokens"}`, `The prompt had ${figures.prompt ?? "?"} tokens, ${figures.cached ?? 0} of them from the prefix cache.`);
  if (figures.rate) add(`${figures.rate < 10 ? figures.rate.toFixed(1) : Math.round(figures.rate)} tok/s`, "Tokens a second after the first.");
  if (figures.first) add(`first after ${figures.first < 1 ? `${Math.round(figures.first * 1000)} ms` : `${figures.first.toFixed(1)} s`}`, "From sending to the first token.");
  if (figures.finish === "length") add("cut off at the longest length", "The answer reached the most tokens allowed; raise that in the settings.", "notable");
  if (figures.finish === "stopped") add("stopped", "You stopped this answer.");
  return line;
}
