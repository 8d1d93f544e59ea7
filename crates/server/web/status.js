// The header: which model, is it well, how busy is it.

const EVERY_MS = 2000;
const HIDDEN_EVERY_MS = 15000;

export class Status {
  /** `onModel(card)` runs when the model is known, `onKeyWanted()` when the server refuses us for want of a key. */
  constructor(api, onModel, onKeyWanted) {
    this.api = api;
    this.onModel = onModel;
    this.onKeyWanted = onKeyWanted;
    this.model = null;
    this.last = null;
    this.poll();
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
  }

  /** Looks now, rather than at the next beat. */
  refresh() {
    clearTimeout(this.timer);
    this.poll();
  }

  async poll() {
    // Only the newest poll may plan the next one.
    const mine = (this.round = (this.round ?? 0) + 1);
    try {
      await this.look();
    } catch (error) {
      this.fail(error);
    }
    if (mine === this.round) this.timer = setTimeout(() => this.poll(), document.hidden ? HIDDEN_EVERY_MS : EVERY_MS);
  }

  async look() {
    if (!this.model) {
      this.model = await this.api.model();
      document.getElementById("model-name").textContent = this.model.id;
      document.getElementById("model-name").title = `${this.model.id}, ${this.model.max_model_len} tokens of context`;
      document.title = `${this.model.id.split("/").pop()} · Phalanx`;
      this.onModel(this.model);
    }
    await this.api.get("health/ready");
    this.gauges(await this.api.metrics());
    this.set("ready", "ready");
  }

  fail(error) {
    document.getElementById("gauges").hidden = true;
    this.last = null;
    if (error.status === 401) {
      this.set("key", "wants an API key");
      if (!this.asked) this.onKeyWanted();
      this.asked = true;
    } else {
      this.set("down", error.status ? error.message : "not reachable");
    }
  }

  set(state, text) {
    const health = document.getElementById("health");
    if (health.dataset.state === state && health.title === text) return;
    health.dataset.state = state;
    health.title = text;
    document.getElementById("health-text").textContent = text;
  }

  gauges(metrics) {
    const value = (name) => metrics.get(name) ?? 0;
    const share = value("vllm:kv_cache_usage_perc");
    const text = (id, content) => (document.getElementById(id).textContent = content);
    text("g-running", value("vllm:num_requests_running"));
    text("g-waiting", value("vllm:num_requests_waiting"));
    text("g-kv", `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`);
    document.getElementById("g-bar").style.transform = `scaleX(${share})`;
    const now = { at: performance.now(), tokens: value("vllm:generation_tokens_total") };
    // A restarted server counts from zero again.
    const grown = this.last ? Math.max(0, now.tokens - this.last.tokens) : 0;
    text("g-rate", this.last ? Math.round((1000 * grown) / (now.at - this.last.at)) : 0);
    this.last = now;
    document.getElementById("gauges").hidden = false;
  }
}
