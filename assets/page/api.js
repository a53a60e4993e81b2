// Calls of the API. All addresses are relative to the page, so that it works below any prefix.

/** An answer that is an error, or no answer (`status` 0). */
export class ApiError extends Error {
	constructor(message, status = 0, retryAfter = null) {
		super(message);
		this.status = status;
		/** Seconds, from Retry-After. */
		this.retryAfter = retryAfter;
	}

	/** Whether the API itself could not be reached: directly, or by the server of this page. */
	get unreachable() {
		return this.status === 0 || this.status === 502;
	}
}

/** The whole address of a route of the API. */
export const address = (route) => new URL(`api/${route}`, document.baseURI).href;

// In memory only: gone when the page is closed.
let key = null;
let asking = null;
let ask = async () => null;

/** Whether requests carry a key. */
export const hasKey = () => key !== null;

/** Whether a text can be a key: a header can hold visible ASCII alone; fetch would throw on anything else. */
export const isKey = (text) => /^[\x21-\x7e]{1,1024}$/.test(text);

/** Takes the key that the address of the page carries behind `#key=`, and removes it from there. Returns whether there was one. */
export function takeKey() {
	if (!location.hash.startsWith("#key=")) return false;
	const given = location.hash.slice("#key=".length);
	history.replaceState(history.state, "", location.pathname + location.search);
	try {
		const text = decodeURIComponent(given);
		if (!isKey(text)) return false;
		key = text;
		return true;
	} catch {
		// A stray per cent sign.
		return false;
	}
}

/** Sets what asks the user for a key: gets why the last one was refused, or null; returns the new one or null. */
export function onKeyNeeded(callback) {
	ask = callback;
}

/** Asks for a key, once for all requests that wait for one. Returns false if the user declined. */
async function askForKey(reason) {
	const before = key;
	asking ??= ask(key === null ? null : reason).finally(() => {
		asking = null;
	});
	const answer = await asking;
	if (answer !== null) key = answer;
	// Or the address brought one while the dialog was open.
	return answer !== null || key !== before;
}

/**
 * Sends a request and returns the response, if its status is a success. `timeout` is of one try, milliseconds. With `interactive`, a key that is missing, wrong or
 * for other routes (403) is asked for, and the request is sent again.
 */
export async function send(route, { body, signal, timeout, interactive = true } = {}) {
	for (;;) {
		const used = key;
		let response;
		try {
			response = await fetch(address(route), {
				method: body ? "POST" : "GET",
				headers: used === null ? {} : { Authorization: `Bearer ${used}` },
				body,
				signal: timeout ? AbortSignal.timeout(timeout) : signal,
				cache: "no-store",
				credentials: "same-origin",
			});
		} catch (error) {
			if (signal?.aborted) throw error;
			throw new ApiError("The API cannot be reached. Check that the server runs.");
		}
		if (response.ok) return response;
		const error = await asError(response);
		if (!interactive || !(response.status === 401 || (response.status === 403 && used !== null))) throw error;
		// Another request may have brought the key in the meantime.
		if (used === key && !(await askForKey(response.status === 401 ? "The API refused this key." : error.message))) throw error;
		signal?.throwIfAborted();
	}
}

/** As `send`, with the JSON of the answer. */
export async function getJson(route, options) {
	const response = await send(route, options);
	try {
		return await response.json();
	} catch {
		options?.signal?.throwIfAborted();
		throw new ApiError(`The answer of ${route} is not JSON.`, response.status);
	}
}

/** A form with fields and a file. FormData would send each line break of a prompt as two characters, CR and LF. */
export function form(fields, file, fileName) {
	const boundary = `form-${Array.from({ length: 4 }, () => Math.random().toString(36).slice(2)).join("")}`;
	const head = (name) => `--${boundary}\r\nContent-Disposition: form-data; name="${name}"`;
	const quoted = fileName.replace(/["\r\n]/g, encodeURIComponent);
	return new Blob(
		[
			...fields.map(([name, value]) => `${head(name)}\r\n\r\n${value}\r\n`),
			`${head("file")}; filename="${quoted}"\r\nContent-Type: ${file.type || "application/octet-stream"}\r\n\r\n`,
			file,
			`\r\n--${boundary}--\r\n`,
		],
		{ type: `multipart/form-data; boundary=${boundary}` },
	);
}

async function asError(response) {
	const after = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
	let message = "";
	try {
		const body = JSON.parse((await response.text()).slice(0, 100_000));
		message = body.detail ?? body.error?.message ?? "";
	} catch {
		// Not JSON: a proxy's page, whose text would not help.
	}
	if (typeof message !== "string" || message === "") message = `The server answered ${response.status}.`;
	return new ApiError(message, response.status, Number.isFinite(after) ? Math.min(Math.max(after, 1), 300) : null);
}
