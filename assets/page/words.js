// Tokens to words, with the probability of the least certain token of each word.

/** Below this probability a word is a place to check. */
export const UNSURE = 0.9;
/** Below this one it is more likely wrong than right. */
export const VERY_UNSURE = 0.5;

const SPACES = /\s+|\S+/g;
const encoder = new TextEncoder();

/**
 * Collects tokens (OpenAI's form: `{token, bytes, logprob, top_logprobs}`) into words.
 *
 * A word is `{space, text, probability, parts}`: the white space before it, its characters, the least probability of its tokens (null
 * if unknown), and its tokens as `{text, before, space, probability, alternatives}`: their characters in the word, those of the word
 * before them, and the white space with which the token began.
 * A token can be a part of a character, and can end one word and begin the next.
 */
export class Words {
	#decoder = new TextDecoder("utf-8", { ignoreBOM: true });
	#pending = [];
	#missing = 0;
	#open = null;
	#space = "";
	/** The words that are complete. */
	closed = [];

	/** Adds tokens. */
	push(tokens) {
		for (const token of tokens) {
			const bytes = Array.isArray(token.bytes) ? Uint8Array.from(token.bytes) : encoder.encode(token.token ?? "");
			const text = this.#decoder.decode(bytes, { stream: true });
			// Bytes that the decoder holds back belong to the next token's first character.
			this.#missing = Math.max(0, this.#missing + bytes.length - encoder.encode(text).length);
			const tokensOfText = [...this.#pending, token];
			this.#add(text, tokensOfText);
			this.#pending = this.#missing > 0 ? tokensOfText.slice(-4) : [];
		}
	}

	/** Adds text whose probabilities are unknown. */
	pushText(text) {
		this.#add(text, []);
	}

	#add(text, tokens) {
		for (const piece of text.match(SPACES) ?? []) {
			if (piece.trim() === "") {
				this.#close();
				this.#space += piece;
				continue;
			}
			this.#open ??= { space: this.#space, text: "", probability: null, parts: [] };
			this.#space = "";
			const word = this.#open;
			for (const token of tokens) {
				const probability = Math.exp(token.logprob);
				if (!Number.isFinite(probability)) continue;
				word.probability = Math.min(word.probability ?? 1, probability);
				word.parts.push({
					text: piece,
					before: word.text,
					space: /^\s*/.exec(text)[0],
					probability,
					alternatives: (token.top_logprobs ?? []).map(alternative),
				});
			}
			word.text += piece;
		}
	}

	#close() {
		if (this.#open) this.closed.push(this.#open);
		this.#open = null;
	}

	/** What follows the closed words: an incomplete word, or white space. */
	get tail() {
		return this.#open ? this.#open.space + this.#open.text : this.#space;
	}

	/** Closes the last word. */
	finish() {
		this.#close();
		this.#pending = [];
	}

	/** All text so far. */
	get text() {
		return this.closed.map((word) => word.space + word.text).join("") + this.tail;
	}

	/** Words to check. */
	get unsure() {
		return this.closed.filter(isUnsure);
	}
}

/** Whether a word is a place to check. */
export const isUnsure = (word) => word.probability !== null && word.probability < UNSURE;

function alternative(token) {
	const text = Array.isArray(token.bytes)
		? new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(token.bytes))
		: (token.token ?? "");
	return { text: text || token.token || "", probability: Math.exp(token.logprob) };
}

/** White space of a token made visible. */
export function visible(text) {
	return text
		.replace(/\r?\n/g, "⏎")
		.replace(/\t/g, "⇥")
		.replace(/^ +/, (spaces) => "␣".repeat(Math.min(spaces.length, 8)));
}

/**
 * The words of an answer. `text` is final and can be shorter than its tokens, where a repetition was cut: words beyond it are dropped.
 */
export function wordsOf(text, tokens) {
	const words = new Words();
	if (Array.isArray(tokens) && tokens.length > 0) {
		words.push(tokens);
		words.finish();
		if (words.text === text) return words;
		if (words.text.startsWith(text)) return shortened(words, text);
	}
	const plain = new Words();
	plain.pushText(text);
	plain.finish();
	return plain;
}

function shortened(words, text) {
	const result = new Words();
	let length = 0;
	for (const word of words.closed) {
		const end = length + word.space.length + word.text.length;
		if (end > text.length) break;
		result.closed.push(word);
		length = end;
	}
	result.pushText(text.slice(length));
	result.finish();
	return result;
}
