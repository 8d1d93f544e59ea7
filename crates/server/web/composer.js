// The box one writes in: grows with its text, sends on Enter, becomes a stop button while an answer comes.

import { icon } from "./messages.js";

export class Composer {
  /** `actions`: ask(text), stop(). */
  constructor(form, input, button, actions) {
    this.input = input;
    this.button = button;
    this.busy = false;
    this.actions = actions;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.busy) actions.stop();
      else this.send();
    });
    input.addEventListener("input", () => this.fit());
    input.addEventListener("keydown", (event) => {
      // While an input method composes (Chinese, Japanese), Enter chooses a word.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.busy) this.send();
    });
    this.fit();
  }

  send() {
    const text = this.input.value.trim();
    if (!text) return;
    this.input.value = "";
    this.fit();
    this.actions.ask(text);
  }

  fit() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
    this.button.disabled = !this.busy && !this.input.value.trim();
  }

  setBusy(busy) {
    this.busy = busy;
    this.button.classList.toggle("stop", busy);
    this.button.setAttribute("aria-label", busy ? "Stop the answer" : "Send");
    this.button.replaceChildren(icon(busy ? "stop" : "send"));
    this.fit();
  }

  focus() {
    // On a phone, focus opens the keyboard over the answer.
    if (matchMedia("(hover: hover)").matches) this.input.focus();
  }
}
