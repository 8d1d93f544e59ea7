// The settings dialog and the theme: what is typed is saved at once.

import { SAMPLING } from "./store.js";

const KEY = "phalanx.key";
const THEME = "phalanx.theme";
const THEMES = { auto: "as the system", light: "light", dark: "dark" };

/** Reads a text that may not be there, or not be allowed to be read. */
function stored(name) {
  try {
    return localStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Without storage the value lasts as long as the page.
  }
}

export class Settings {
  /** `changed()` runs when the key or the system prompt changed. */
  constructor(store, changed, deleteAll) {
    this.store = store;
    this.apiKey = stored(KEY);
    this.dialog = document.getElementById("settings");
    this.form = document.getElementById("settings-form");
    document.getElementById("open-settings").addEventListener("click", () => this.open());
    this.form.addEventListener("input", (event) => this.take(event.target));
    this.dialog.addEventListener("close", changed);
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    // Enter in a field closes the dialog as Done does, not by the first button of the form.
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.target.nodeName !== "INPUT") return;
      event.preventDefault();
      this.dialog.close();
    });
    document.getElementById("reset-settings").addEventListener("click", () => {
      for (const name of SAMPLING) delete store.settings[name];
      this.setSystem("");
      store.saveSettings();
      this.fill();
    });
    document.getElementById("delete-all").addEventListener("click", () => {
      if (confirm("Delete all conversations of this browser?")) deleteAll();
    });
  }

  /** Opens the dialog, with the cursor in the field of this name. */
  open(field) {
    this.fill();
    if (!this.dialog.open) this.dialog.showModal();
    if (field) this.form.elements[field].focus();
  }

  fill() {
    const fields = this.form.elements;
    for (const name of SAMPLING) fields[name].value = this.store.settings[name] ?? "";
    fields.system.value = (this.store.conversation() ?? this.store.settings).system ?? "";
    fields.key.value = this.apiKey;
  }

  take(field) {
    if (field.name === "key") {
      this.apiKey = field.value.trim();
      keep(KEY, this.apiKey);
    } else if (field.name === "system") {
      this.setSystem(field.value);
    } else if (field.validity.valid) {
      this.store.settings[field.name] = field.value === "" ? undefined : Number(field.value);
    }
    this.store.saveSettings();
  }

  setSystem(text) {
    this.store.settings.system = text;
    const conversation = this.store.conversation();
    if (conversation) {
      conversation.system = text;
      this.store.save(conversation);
    }
  }
}

/** Applies the chosen theme, and lets the button go round light, dark and the system's own. */
export function themes(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => (stored(THEME) in THEMES ? stored(THEME) : "auto");
  let theme = chosen();
  const apply = () => {
    const dark = theme === "dark" || (theme === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.title = `Colours: ${THEMES[theme]}`;
    button.setAttribute("aria-label", button.title);
  };
  system.addEventListener("change", apply);
  button.addEventListener("click", () => {
    const order = system.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
    theme = order[(order.indexOf(theme) + 1) % order.length];
    keep(THEME, theme);
    apply();
  });
  apply();
}
