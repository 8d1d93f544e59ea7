// The page's conductor: questions out, answers in, and which conversation is on screen.

import { Api } from "./api.js";
import { Composer } from "./composer.js";
import { Messages, iconButton, make } from "./messages.js";
import { Settings, themes } from "./settings.js";
import { Status } from "./status.js";
import { Store, byAge } from "./store.js";

const byId = (id) => document.getElementById(id);

themes(byId("theme"));
const store = new Store();
const settings = new Settings(store, () => (status.refresh(), show()), () => (stop(), store.clear(), show()));
const api = new Api(() => settings.apiKey);
const messages = new Messages(byId("messages"), byId("thread"), byId("to-bottom"), { ask, regenerate, edit });
const composer = new Composer(byId("composer"), byId("input"), byId("send"), { ask, stop });
const status = new Status(api, (model) => store.conversation() || messages.show(null, model.id), () => settings.open("key"));

/** The answer in the making: its way to be stopped. */
let running = null;

store.onChange = list;
list();
messages.show(null);
composer.focus();

/** Asks something new. */
function ask(text) {
  if (running) return;
  const conversation = store.conversation() ?? store.begin(text.split("\n")[0].slice(0, 80));
  conversation.messages.push({ role: "user", content: text });
  store.save(conversation);
  messages.show(conversation);
  answer(conversation);
}

/** Asks the last question again. */
function regenerate() {
  const conversation = store.conversation();
  if (running || !conversation) return;
  if (conversation.messages.at(-1)?.role === "assistant") conversation.messages.pop();
  messages.show(conversation);
  answer(conversation);
}

/** Asks another question in place of one, and forgets what came after. */
function edit(index, text) {
  stop();
  const conversation = store.conversation();
  conversation.messages.length = index;
  if (index === 0) conversation.title = text.split("\n")[0].slice(0, 80);
  ask(text);
}

function stop() {
  running?.abort();
  running = null;
}

/** Has the conversation answered, and shows the answer as it comes. */
async function answer(conversation) {
  const mine = (running = new AbortController());
  const message = { role: "assistant", content: "", stats: {} };
  const sent = performance.now();
  const onScreen = () => store.current === conversation.id;
  composer.setBusy(true);
  messages.beginAnswer();
  try {
    for await (const chunk of api.chat(request(conversation), mine.signal)) {
      // A chunk that was already here when the answer was stopped or replaced.
      if (mine.signal.aborted) break;
      take(chunk, message, sent);
      if (onScreen()) messages.growAnswer(message);
    }
  } catch (error) {
    if (!mine.signal.aborted) message.error = inWords(error);
    if (error.status === 401) settings.open("key");
  }
  if (mine.signal.aborted) message.stats.finish = "stopped";
  if (running === mine) running = null;
  composer.setBusy(running !== null);
  if (!store.conversations.includes(conversation)) return;
  // An edit may have put another question where this answer would go.
  if (conversation.messages.at(-1)?.role === "user" && (message.content || message.error) && running === null) {
    conversation.messages.push(message);
  }
  store.save(conversation);
  if (!onScreen() || running) return;
  if (message.content || message.error) messages.endAnswer(message);
  else messages.show(conversation);
  composer.focus();
}

/**
 * The request for the next message. Failed answers are not part of the conversation, nor are questions that the server
 * refused: one that was too long would have every question after it refused.
 */
function request(conversation) {
  const { messages } = conversation;
  const counts = (message, index) => message.content && !messages[index + 1]?.error?.refused;
  const said = messages.filter(counts).map(({ role, content }) => ({ role, content }));
  const system = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  return { messages: [...system, ...said], ...store.sampling() };
}

/** Adds a chunk to the answer and its figures. */
function take(chunk, message, sent) {
  const figures = message.stats;
  const choice = chunk.choices[0];
  const now = performance.now();
  if (chunk.usage) {
    figures.tokens = chunk.usage.completion_tokens;
    figures.prompt = chunk.usage.prompt_tokens;
    figures.cached = chunk.usage.prompt_tokens_details?.cached_tokens;
  }
  if (choice?.delta.content) {
    message.content += choice.delta.content;
    figures.first ??= (now - sent) / 1000;
    const since = (now - sent) / 1000 - figures.first;
    if (1 < figures.tokens && 0 < since) figures.rate = (figures.tokens - 1) / since;
  }
  if (choice?.finish_reason) figures.finish = choice.finish_reason;
}

/** A failure as the reader is told it. */
function inWords(error) {
  if (!error.status) return { title: "The server did not answer", message: "It may have stopped, or the network is down." };
  const titles = { 400: "The server refused this", 401: "The server wants an API key", 404: "Not found", 413: "Too large", 429: "The server is full", 503: "The server is not available" };
  const detail = [error.param && `field ${error.param}`, error.code].filter(Boolean).join(", ");
  const refused = error.status === 400 || error.status === 413;
  return { title: titles[error.status] ?? "The answer failed", message: error.message, detail, refused };
}

/** Draws the conversation on screen. */
function show() {
  if (running) return;
  messages.show(store.conversation(), status.model?.id);
}

/** Draws the list of conversations. */
function list() {
  const entries = byAge(store.conversations).flatMap(([heading, group]) => [make("li", "", make("h2", "", heading)), ...group.map(entry)]);
  byId("conversations").replaceChildren(...entries);
}

function entry(conversation) {
  const open = make("button", "open", conversation.title);
  open.title = conversation.title;
  open.addEventListener("click", () => go(conversation.id));
  const current = conversation.id === store.current;
  if (current) open.setAttribute("aria-current", "true");
  const bin = iconButton("bin", `Delete “${conversation.title}”`, () => {
    if (conversation.id === store.current) stop();
    store.remove(conversation.id);
    show();
  });
  bin.classList.add("bin");
  return make("li", current ? "entry current" : "entry", open, bin);
}

/** Shows another conversation, or with `null` an empty one. An answer in the making ends with what there is of it. */
function go(id) {
  stop();
  store.current = id;
  list();
  show();
  byId("layout").classList.remove("drawer");
  composer.focus();
}

byId("new-chat").addEventListener("click", () => go(null));
byId("toggle-sidebar").addEventListener("click", () => {
  const narrow = matchMedia("(max-width: 860px)").matches;
  byId("layout").classList.toggle(narrow ? "drawer" : "closed");
});
byId("close-sidebar").addEventListener("click", () => byId("layout").classList.remove("drawer"));
byId("scrim").addEventListener("click", () => byId("layout").classList.remove("drawer"));

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    byId("layout").classList.remove("drawer");
    stop();
  }
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    go(null);
  }
});
