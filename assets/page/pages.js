// A page: a file of the user, how it is shown, and how it is sent.

import { ApiError } from "./api.js";

const TYPES = /\.(png|jpe?g|webp|tiff?|bmp|gif)$/i;
const THUMB = 96;
/** Below the server's default limit of 20 MiB. */
const MAX_ROTATED_BYTES = 18 * 1024 * 1024;

let last = 0;
let drawing = Promise.resolve();

export class Page {
	constructor(file, name) {
		last += 1;
		this.id = last;
		this.file = file;
		this.name = name || "page";
		/** Degrees clockwise. */
		this.rotation = 0;
		/** By task: the last reading, and the last comparison. */
		this.readings = { extract: null, analyze: null };
		this.comparisons = { extract: null, analyze: null };
		this.url = URL.createObjectURL(file);
		this.thumbnail = document.createElement("canvas");
		this.thumbnail.width = THUMB;
		this.thumbnail.height = THUMB;
		/** False once the browser could not decode it. */
		this.viewable = true;
		this.refusal = refusal(file, this.name);
	}

	get isTiff() {
		return /^image\/tiff/.test(this.file.type) || /\.tiff?$/i.test(this.name);
	}

	/** Draws the thumbnail, rotated as the page; one after the other, since each file is decoded whole. */
	drawThumbnail() {
		drawing = drawing.then(() => this.#draw());
	}

	async #draw() {
		let bitmap;
		try {
			// Decoded at the size of the thumbnail: full pages would fill the memory.
			bitmap = await createImageBitmap(this.file, { resizeWidth: THUMB * 2, resizeQuality: "medium" });
		} catch {
			this.viewable = false;
			return;
		}
		const context = this.thumbnail.getContext("2d");
		const scale = THUMB / Math.max(bitmap.width, bitmap.height);
		context.setTransform(1, 0, 0, 1, 0, 0);
		context.clearRect(0, 0, THUMB, THUMB);
		context.translate(THUMB / 2, THUMB / 2);
		context.rotate((this.rotation * Math.PI) / 180);
		context.drawImage(bitmap, (-bitmap.width * scale) / 2, (-bitmap.height * scale) / 2, bitmap.width * scale, bitmap.height * scale);
		bitmap.close();
	}

	/** What is sent: the file as it is, or a PNG of the rotated page. */
	async encoded() {
		if (this.rotation === 0) return { blob: this.file, name: this.name, rotation: 0 };
		const bitmap = await createImageBitmap(this.file);
		try {
			let blob = await rotated(bitmap, this.rotation, 1);
			if (blob && blob.size > MAX_ROTATED_BYTES) {
				blob = await rotated(bitmap, this.rotation, Math.sqrt(MAX_ROTATED_BYTES / blob.size) * 0.9);
			}
			if (!blob) throw new ApiError("The page is too large to be rotated in this browser. Rotate the file, or send it as it is.");
			return { blob, name: `${stem(this.name)}.png`, rotation: this.rotation };
		} finally {
			bitmap.close();
		}
	}

	/** Frees the file. */
	close() {
		URL.revokeObjectURL(this.url);
	}
}

/** A file name without its extension. */
export const stem = (name) => name.replace(/\.[^.]{1,5}$/, "") || "page";

function refusal(file, name) {
	if (file.size === 0) return "The file is empty.";
	if (file.type.startsWith("image/") && !file.type.startsWith("image/svg")) return null;
	if (TYPES.test(name)) return null;
	return "Not an image. Pages are read from PNG, JPEG, WebP, TIFF, BMP and GIF files.";
}

function rotated(bitmap, degrees, scale) {
	const [width, height] = [Math.round(bitmap.width * scale), Math.round(bitmap.height * scale)];
	const canvas = document.createElement("canvas");
	const sideways = degrees % 180 !== 0;
	canvas.width = sideways ? height : width;
	canvas.height = sideways ? width : height;
	const context = canvas.getContext("2d");
	if (!context) return null;
	context.translate(canvas.width / 2, canvas.height / 2);
	context.rotate((degrees * Math.PI) / 180);
	context.drawImage(bitmap, -width / 2, -height / 2, width, height);
	return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
