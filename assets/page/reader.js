// The reader: pages on the left, what was read from them on the right; one run of readings at a time.

import { $, announce, download, isEditable, setText } from "./dom.js";
import { count, integer } from "./format.js";
import { Comparison } from "./compare.js";
import { takeFiles } from "./intake.js";
import { Page } from "./pages.js";
import { Popover } from "./popover.js";
import { Reading, pause } from "./reading.js";
import { Results } from "./results.js";
import { Settings } from "./settings.js";
import { Strip, summary } from "./strip.js";
import { Transcript } from "./transcript.js";
import { Viewer } from "./viewer.js";

const MAX_PAGES = 200;

export class Reader {
	#pages = [];
	#current = null;
	#task = "extract";
	#comparing = false;
	#run = null;
	#offered = null;

	constructor(status) {
		this.status = status;
		this.popover = new Popover();
		this.results = new Results();
		this.viewer = new Viewer(() => this.render());
		this.transcript = new Transcript(this.popover, (at) => this.#placesChanged(at));
		this.comparison = new Comparison(() => this.#placesChanged());
		this.settings = new Settings(() => this.render());
		this.strip = new Strip(
			(page) => this.#choose(page),
			(page) => this.#remove(page),
		);
		this.#wire();
		takeFiles((files) => this.add(files));
		this.render();
	}

	#wire() {
		$("read").addEventListener("click", () => (this.#run ? this.stop() : this.#read()));
		$("compare").addEventListener("click", () => {
			this.#comparing = !this.#comparing;
			this.render();
		});
		$("rotate-left").addEventListener("click", () => this.#rotate(270));
		$("rotate-right").addEventListener("click", () => this.#rotate(90));
		$("remove").addEventListener("click", () => this.#remove(this.#current));
		$("save-all").addEventListener("click", () => this.#saveAll());
		for (const id of ["compare-a", "compare-b"]) {
			$(id).addEventListener("change", () => {
				this.render();
				if (!$("compare-same").hidden) announce($("compare-same").textContent);
			});
		}
		document.addEventListener("keydown", (event) => this.#key(event));
	}

	/** Adds files. On the tab Extraction they are read at once; a question has to be asked first. */
	add(files) {
		const room = MAX_PAGES - this.#pages.length;
		const pages = files.slice(0, Math.max(0, room)).map((file) => new Page(file, file.name));
		if (files.length > room) announce(`Only ${MAX_PAGES} pages can be open at once.`);
		if (pages.length === 0) return;
		// Dropped on the benchmarks: shown where it can be read.
		if ($("reader").hidden) $("tab-extract").click();
		this.#pages.push(...pages);
		this.#current = pages[0];
		this.#comparing = false;
		for (const page of pages) if (!page.refusal) page.drawThumbnail();
		const readable = pages.filter((page) => !page.refusal);
		const leaves = $("empty").contains(document.activeElement);
		if (readable.length === 0) announce(pages[0].refusal);
		if (this.#task === "extract" && this.settings.valid("extract")) this.#start(readable.map((page) => this.#reading(page)));
		this.render();
		if (leaves) this.#focusPage();
	}

	#choose(page) {
		this.#current = page;
		this.render();
	}

	#remove(page) {
		if (!page) return;
		const index = this.#pages.indexOf(page);
		this.#pages.splice(index, 1);
		if (this.#run) {
			this.#run.queue = this.#run.queue.filter((reading) => reading.request.page !== page);
			if (this.#run.now?.request.page === page) this.#run.now.cancel();
		}
		if (this.#current === page) this.#current = this.#pages[Math.min(index, this.#pages.length - 1)] ?? null;
		this.render();
		page.close();
		this.#focusPage();
	}

	/** After what had the focus is gone. */
	#focusPage() {
		const view = $("viewer").hidden ? $("add") : $("viewer");
		(this.#current ? view : $("choose")).focus({ preventScroll: true });
	}

	#rotate(by) {
		const page = this.#current;
		page.rotation = (page.rotation + by) % 360;
		page.drawThumbnail();
		this.viewer.rotated();
		announce(`Rotated to ${page.rotation} degrees`);
		this.render();
	}

	/** Called when another tab is chosen. */
	setTask(task) {
		this.#task = task;
		this.render();
	}

	#reading(page, adapter) {
		const task = this.#task;
		const reading = new Reading({ task, page, fields: this.settings.fields(task, adapter) });
		reading.listeners.add((what) => {
			if (what !== "text") this.render();
		});
		if (adapter === undefined) {
			reading.previous = page.readings[task];
			page.readings[task] = reading;
		}
		return reading;
	}

	/** Pages that the button reads: all that were not read yet, else the shown one again. */
	#targets() {
		const readable = this.#pages.filter((page) => !page.refusal);
		const unread = readable.filter((page) => page.readings[this.#task]?.state !== "read");
		// A failed or stopped page is read again by itself when it is the shown one.
		if (unread.length > 1 || this.#current?.refusal) return unread;
		return this.#current ? [this.#current] : unread;
	}

	#read() {
		if (!this.settings.valid(this.#task)) return;
		if (this.#task === "analyze") this.settings.remember($("prompt").value);
		if (this.#comparing) {
			const page = this.#current;
			const selects = [$("compare-a"), $("compare-b")];
			const readings = selects.map((select) => this.#reading(page, select.value));
			page.comparisons[this.#task] = { names: selects.map((select) => select.selectedOptions[0].textContent), readings };
			this.#start(readings);
		} else this.#start(this.#targets().map((page) => this.#reading(page)));
		this.render();
	}

	/** Reads these, after what is already waiting. */
	#start(readings) {
		if (readings.length === 0) return;
		if (this.#run) {
			this.#run.queue.push(...readings);
			return;
		}
		this.#run = { queue: [...readings], now: null, finished: [], controller: new AbortController() };
		setText($("summary"), "");
		$("save-all").hidden = true;
		this.#work(this.#run);
	}

	async #work(run) {
		const ticking = setInterval(() => this.#tick(), 200);
		const { signal } = run.controller;
		while (run.queue.length > 0 && !signal.aborted) {
			const reading = run.queue.shift();
			run.now = reading;
			try {
				await this.status.reachable(signal);
			} catch {
				run.queue.unshift(reading);
				break;
			}
			await reading.run(signal);
			run.finished.push(reading);
			this.#finished(run, reading);
			// Whether the API is gone has to be known before the next page is sent.
			if (reading.error?.unreachable) await Promise.race([this.status.poll(), pause(10_000, signal)]).catch(() => {});
		}
		clearInterval(ticking);
		for (const reading of run.queue) this.#withdraw(reading);
		this.#run = null;
		announce([run.news, this.#summarise(run)].filter(Boolean).join(". "));
		this.render();
	}

	/** A reading that never began leaves what was there before. */
	#withdraw(reading) {
		const { task, page } = reading.request;
		if (page.readings[task] === reading) page.readings[task] = reading.previous;
		if (page.comparisons[task]?.readings.includes(reading)) page.comparisons[task] = null;
	}

	#finished(run, reading) {
		this.settings.refuse(reading);
		const total = run.finished.length + run.queue.length;
		const name = total > 1 ? `Page ${run.finished.length} of ${total}` : "Page";
		if (reading.state === "read") {
			this.status.showModel(reading.answer.model_info);
			const unsure = reading.unsure.length;
			run.news = `${name} read, ${unsure === 0 ? "nothing to check" : `${count(unsure, "place")} to check`}`;
		} else run.news = reading.state === "failed" ? `${name} failed: ${reading.error.message.replace(/\.$/, "")}` : `${name} stopped`;
		// The last one is told together with the summary: two sentences at once would lose the first.
		if (run.queue.length > 0) announce(run.news);
	}

	#summarise(run) {
		const compared = run.finished.some((reading) => reading.request.page.comparisons[reading.request.task]?.readings.includes(reading));
		if (this.#pages.length < 2 || run.finished.length < 2 || compared) return null;
		const refused = this.#pages.filter((page) => page.refusal).length;
		const text = summary(run.finished, refused);
		setText($("summary"), text);
		$("save-all").hidden = !run.finished.some((reading) => reading.state === "read");
		return text;
	}

	#saveAll() {
		const lines = this.#pages
			.map((page) => ({ page, reading: page.readings[this.#task] }))
			.filter(({ reading }) => reading?.done)
			.map(({ page, reading }) => JSON.stringify({ file: page.name, ...reading.json }));
		download("pages.jsonl", `${lines.join("\n")}\n`, "application/x-ndjson");
	}

	/** Ends the run; what came is kept. */
	stop() {
		this.#run?.controller.abort();
	}

	#tick() {
		const reading = this.#shown();
		if (reading && !reading.done) this.results.render(reading, this.#current, this.#task, this.#comparing);
	}

	#key(event) {
		if (document.querySelector("dialog[open]")) return;
		if (event.key === "Escape") {
			// There it closes a list of choices, or ends an input method.
			if (event.isComposing || event.target instanceof HTMLSelectElement) return;
			if (this.popover.isOpen) this.popover.close();
			else this.stop();
			return;
		}
		if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && $("ask").contains(event.target)) {
			if (!this.#run && !$("read").disabled) this.#read();
			return;
		}
		if (event.ctrlKey || event.metaKey || event.altKey || !this.settings.shortcuts || isEditable(event.target) || $("reader").hidden) return;
		if (event.key === "n" || event.key === "p") {
			event.preventDefault();
			this.results.step(event.key === "n" ? 1 : -1);
		}
	}

	/** The reading whose figures are shown. */
	#shown() {
		const page = this.#current;
		if (!page) return null;
		if (!this.#comparing) return page.readings[this.#task];
		const readings = page.comparisons[this.#task]?.readings ?? [];
		return readings.find((reading) => !reading.done) ?? readings.at(-1) ?? null;
	}

	#placesChanged(at) {
		if (!this.transcript || !this.comparison) return;
		if (at !== undefined) {
			this.results.at(at);
			return;
		}
		const view = this.#comparing ? this.comparison : this.transcript;
		const reading = this.#shown();
		const unsure = view.places.length;
		const label = this.#comparing
			? view.summary
			: reading && (unsure > 0 || reading.done) && reading.text !== ""
				? `${unsure === 0 ? "Nothing" : count(unsure, "place")} to check`
				: "";
		this.results.setPlaces({ list: () => view.places, go: (index) => view.go(index) }, label);
	}

	/** Shows the state of everything but the texts, which follow their readings by themselves. */
	render() {
		if (!this.settings) return;
		const [page, task] = [this.#current, this.#task];
		if (this.status.models !== this.#offered) {
			this.#offered = this.status.models;
			this.settings.offer(this.#offered);
			return;
		}
		this.strip.render(this.#pages, page, task);
		this.#renderPage(page);
		$("ask").hidden = task !== "analyze";
		this.#renderActions(page, task);
		const reading = this.#shown();
		this.results.render(reading, page, task, this.#comparing);
		$("transcript").hidden = this.#comparing || reading === null || (reading.done && reading.text === "");
		$("comparison").hidden = !this.#comparing;
		this.transcript.show(this.#comparing ? null : reading);
		this.comparison.show(this.#comparing ? (page?.comparisons[task] ?? null) : null);
		const shown = `${page?.id} ${task} ${this.#comparing} ${reading?.state}`;
		if (shown !== this.lastShown) {
			this.lastShown = shown;
			this.#placesChanged();
		}
	}

	#renderPage(page) {
		$("empty").hidden = page !== null;
		$("viewer").hidden = page === null || !page.viewable || page.refusal !== null;
		this.viewer.show(page?.refusal ? null : page);
		$("page-tools").hidden = page === null;
		setText($("page-name"), page?.name ?? "");
		const missing = page !== null && (!page.viewable || page.refusal !== null);
		$("not-viewable").hidden = !missing;
		if (missing) {
			setText(
				$("not-viewable-text"),
				page.refusal ??
					(page.isTiff
						? "This browser cannot show TIFF files. The page is sent and read all the same."
						: "This browser cannot show the file. It is sent all the same."),
			);
		}
		for (const id of ["zoom-in", "zoom-out", "zoom-fit", "zoom-full", "rotate-left", "rotate-right"]) $(id).disabled = missing;
	}

	#renderActions(page, task) {
		const running = this.#run !== null;
		const targets = this.#comparing && page ? [page] : this.#targets();
		const verb = task === "analyze" ? "Ask" : "Read";
		const again = !this.#comparing && targets.length === 1 && targets[0].readings[task]?.done;
		const label = running
			? "Stop"
			: this.#comparing
				? "Compare both"
				: targets.length > 1
					? `${verb} ${integer(targets.length)} pages`
					: again
						? `${verb} again`
						: verb;
		setText($("read-label"), label);
		$("read-key").hidden = !running;
		$("read").classList.toggle("stop", running);
		const two = this.status.models.length > 1;
		const same = this.#comparing && two && $("compare-a").value === $("compare-b").value;
		$("read").disabled = !running && (targets.length === 0 || !this.settings.valid(task) || (this.#comparing && (!two || same || page?.refusal)));
		$("compare-same").hidden = !same || running;
		$("compare").setAttribute("aria-pressed", String(this.#comparing));
		$("compare").disabled = page === null;
		$("compare-choice").hidden = !this.#comparing || !two;
		$("compare-missing").hidden = !this.#comparing || two;
	}
}
