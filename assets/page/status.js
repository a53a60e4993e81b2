// The header: what is loaded, how much memory it takes, and whether the API answers.

import { $, announce, h, setText } from "./dom.js";
import { getJson, hasKey } from "./api.js";
import { memory } from "./format.js";

const READY_MS = 5000;
const BUSY_MS = 2000;
const LOADING_MS = 1500;
const TIMEOUT_MS = 10_000;
const MAX_BACKOFF_SECONDS = 30;

export class Status {
	#timer = null;
	#polling = null;
	#failures = 0;
	#waiting = new Set();
	#known = false;
	/** connecting, loading, ready, unreachable or key. */
	state = "connecting";
	/** From v1/models. */
	models = [];

	/** `changed` is called when the models or the state changed. */
	constructor(changed) {
		this.changed = changed;
		$("retry").addEventListener("click", async () => {
			// A question that is under way asks for no key.
			await this.#polling;
			this.poll(true);
		});
		document.addEventListener("visibilitychange", () => {
			if (!document.hidden) this.poll();
		});
	}

	/** Asks the API for its state now; the next question follows by itself. Resolves when the state is known. */
	poll(interactive = false) {
		clearTimeout(this.#timer);
		this.#polling ??= this.#ask(interactive).finally(() => {
			this.#polling = null;
		});
		return this.#polling;
	}

	/** Asks with a key that has just come. */
	async tryKey() {
		await this.#polling;
		// Everyone may ask for the health: the models tell whether the key is right.
		this.#known = false;
		await this.poll(true);
	}

	async #ask(interactive) {
		let next = READY_MS;
		try {
			const health = await getJson("health", { interactive, timeout: TIMEOUT_MS });
			this.#failures = 0;
			this.#showMemory(health);
			if (health.model_loaded && !this.#known) await this.#loadModels(interactive);
			const waiting = Math.max(0, (health.requests_admitted ?? 0) - 1);
			if (!health.model_loaded) {
				this.#enter("loading", "Loading the model");
				next = LOADING_MS;
			} else if (waiting > 0) this.#enter("ready", `${waiting} waiting`, "busy");
			else if (health.requests_admitted > 0) this.#enter("ready", "Reading", "busy");
			else this.#enter("ready", "Ready");
			if (health.requests_admitted > 0) next = BUSY_MS;
		} catch (error) {
			if (isRefusal(error)) {
				this.#enter("key", error.status === 401 ? "Needs a key" : "Needs another key");
				next = MAX_BACKOFF_SECONDS * 1000;
			} else {
				this.#failures += 1;
				next = null;
			}
		}
		if (next === null) this.#countDown(Math.min(MAX_BACKOFF_SECONDS, 2 ** Math.min(this.#failures, 5)));
		else this.#timer = setTimeout(() => this.#again(), next);
	}

	#again() {
		// A page that nobody sees asks nothing; it asks when it is seen again.
		if (!document.hidden || this.#waiting.size > 0) this.poll();
	}

	#countDown(left) {
		this.#enter("unreachable", left > 0 ? `Unreachable, next try in ${left} s` : "Unreachable, trying");
		if (left === 0) this.poll();
		else this.#timer = setTimeout(() => this.#countDown(left - 1), 1000);
	}

	#enter(state, text, look = state) {
		const before = this.state;
		this.state = state;
		$("status").dataset.state = look;
		setText($("status-text"), text);
		$("retry").hidden = state !== "unreachable" && state !== "key";
		setText($("retry"), state === "key" ? "Enter key" : "Try now");
		if (before === state) return;
		if (state === "unreachable") {
			announce("The API cannot be reached.");
			// What comes back may be another model.
			this.#known = false;
		}
		if (before === "unreachable") announce("The API answers again.");
		if (state === "ready") for (const resolve of this.#waiting) resolve();
		this.changed();
	}

	/** Resolves when the API can be reached, as far as is known. */
	reachable(signal) {
		if (this.state !== "unreachable") return Promise.resolve();
		return new Promise((resolve, reject) => {
			const finish = (end) => () => {
				this.#waiting.delete(ready);
				end(signal.reason);
			};
			const ready = finish(resolve);
			this.#waiting.add(ready);
			signal.addEventListener("abort", finish(reject), { once: true });
		});
	}

	async #loadModels(interactive) {
		try {
			const list = await getJson("v1/models", { interactive, timeout: TIMEOUT_MS });
			this.models = (list.data ?? []).filter((model) => typeof model.id === "string" && model.medvision);
			this.#known = true;
		} catch (error) {
			if (isRefusal(error)) throw error;
			return;
		}
		this.showModel((this.models.find((model) => model.medvision.default) ?? this.models[0])?.medvision);
		this.changed();
	}

	/** Shows what is loaded, or what an answer was read with. */
	showModel(info) {
		if (!info) return;
		const figures = { Model: info.model_name, Precision: info.precision, Adapter: info.lora_adapter ?? "none", Device: info.device };
		$("model").replaceChildren(
			...Object.entries(figures).map(([name, value]) =>
				h("div", {}, h("dt", {}, name), h("dd", { title: String(value ?? "") }, String(value ?? "n/a"))),
			),
		);
	}

	#showMemory(health) {
		const gpu = health.gpu_available && health.total_vram_mb > 0;
		const used = gpu ? health.current_vram_usage_mb : health.resident_memory_mb;
		const total = gpu ? health.total_vram_mb : health.total_memory_mb;
		const known = Number.isFinite(used) && total > 0;
		$("memory").hidden = !known;
		if (!known) return;
		const text = `${memory(used)} of ${memory(total)}`;
		setText($("memory-name"), gpu ? "GPU memory" : "Memory");
		setText($("memory-text"), text);
		const bar = $("memory-bar");
		const share = Math.min(100, (used / total) * 100);
		bar.setAttribute("aria-valuenow", share.toFixed(0));
		bar.setAttribute("aria-valuetext", text);
		bar.classList.toggle("high", share > 90);
		bar.firstElementChild.style.width = `${Math.max(1, share)}%`;
	}
}

/** Whether there is no key, a wrong one, or one for other routes. */
const isRefusal = (error) => error.status === 401 || (error.status === 403 && hasKey());

/** Value of the field `adapter` that selects a model. */
export const adapterOf = (model) => (model.medvision.lora_adapter ? model.id : "none");

/** What a model is called in lists. */
export const modelLabel = (model) => (model.medvision.lora_adapter ? model.id : `${model.id} (base)`);
