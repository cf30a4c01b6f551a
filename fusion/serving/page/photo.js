// The photo of a post: chosen in the file dialogue, dropped, pasted, or taken with the camera.

import { element } from "./answer.js";

const THUMBNAIL = 112; // pixels
const $ = (id) => document.getElementById(id);

/** 20971520 -> "20 MiB" */
export function size(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  return bytes < 1 << 20 ? `${Math.round(bytes / 1024)} KiB` : `${Number((bytes / (1 << 20)).toFixed(1))} MiB`;
}

export class PhotoField {
  current = null; // {blob, name, address, thumbnail}
  #changes = 0;
  #readiness;
  #complain;

  /** `readiness` gives, in a promise, what GET /model says; `complain` shows a message, or none for "". */
  constructor(readiness, complain) {
    this.#readiness = readiness;
    this.#complain = complain;
    for (const [button, input] of [["choose", "file"], ["replace", "file"], ["take", "camera"]]) {
      $(button).addEventListener("click", () => $(input).click());
    }
    for (const input of [$("file"), $("camera")]) {
      input.addEventListener("change", () => {
        this.choose(input.files[0]);
        input.value = ""; // the same file can be chosen again
      });
    }
    $("remove").addEventListener("click", () => {
      this.set(null);
      complain("");
      $("choose").focus();
    });
    $("preview").addEventListener("load", () => this.#keepThumbnail());
    $("preview").addEventListener("error", () => {
      $("preview").hidden = true;
      $("no-preview").hidden = false;
    });
    for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => this.#drop(event));
    document.addEventListener("paste", (event) => this.#paste(event));
  }

  /** Take a file as the photo. Its bytes are copied now, so that a file that changes or goes does no harm. */
  async choose(file) {
    if (!file) return;
    const change = ++this.#changes;
    this.#complain("");
    const { reads, limits } = await this.#readiness();
    if (!reads.image || change !== this.#changes) return;
    if (file.size > limits.bytes) {
      this.#complain(`Not sent: ${file.name} has ${size(file.size)}; this server takes up to ${size(limits.bytes)}.`);
      return;
    }
    try {
      const blob = new Blob([await file.arrayBuffer()], { type: file.type });
      if (change === this.#changes) this.set(blob, file.name);
    } catch {
      if (change === this.#changes) this.#complain(`${file.name} cannot be read.`);
    }
  }

  /** Show these bytes as the photo; without any, there is none. */
  set(blob, name) {
    this.#changes += 1;
    if (this.current) URL.revokeObjectURL(this.current.address);
    this.current = blob && { blob, name, address: URL.createObjectURL(blob), thumbnail: null };
    $("choose").hidden = Boolean(blob);
    $("chosen").hidden = $("preview").hidden = !blob;
    $("no-preview").hidden = true;
    if (blob) {
      $("preview").src = this.current.address;
      $("photo-name").replaceChildren(element("bdi", {}, name), `, ${size(blob.size)}`);
    } else {
      $("preview").removeAttribute("src");
    }
  }

  /** A small copy for the list of answers: the file itself may have megabytes. */
  #keepThumbnail() {
    const { naturalWidth: width, naturalHeight: height } = $("preview");
    if (!this.current || !width || !height) return;
    const scale = THUMBNAIL / Math.min(width, height);
    const canvas = element("canvas", { width: THUMBNAIL, height: THUMBNAIL });
    const corner = [(THUMBNAIL - width * scale) / 2, (THUMBNAIL - height * scale) / 2];
    canvas.getContext("2d").drawImage($("preview"), ...corner, width * scale, height * scale);
    this.current.thumbnail = canvas.toDataURL("image/jpeg", 0.8);
  }

  #drop(event) {
    const { types, files } = event.dataTransfer;
    const text = event.target === $("text") && types.includes("text/plain");
    if (!types.includes("Files") && (text || !types.includes("text/uri-list"))) return;
    event.preventDefault();
    $("drop").classList.toggle("over", event.type === "dragover" || Boolean(event.relatedTarget));
    if (event.type !== "drop") return;
    if (files.length) this.choose(files[0]);
    else this.#complain("Addresses are not fetched: save the picture and drop its file here.");
  }

  #paste(event) {
    const { types, files } = event.clipboardData;
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    const text = event.target === $("text") && types.includes("text/plain");
    if (!picture || text) return;
    event.preventDefault();
    this.choose(picture);
  }
}
