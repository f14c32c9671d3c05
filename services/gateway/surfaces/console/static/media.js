// Images, sounds and files of the blob store: read with the key of this tab, shown from memory. No address of theirs is ever a link.

import { bytesOf, path } from "./api.js";
import { button, bytes, element, explain, icon, plain } from "./dom.js";

const IMAGES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp"]);
const SOUNDS = new Set(["audio/mpeg", "audio/wav", "audio/ogg"]);
const made = new Set();

// The bytes as an address within this page. The type is one of ours, whatever the answer says: nothing is ever taken for a page.
async function local(data, allowed) {
  const content = await bytesOf(path`/v1/blobs/${data.blob_id}/content`);
  const type = allowed?.has(data.mime_type) ? data.mime_type : "application/octet-stream";
  const url = URL.createObjectURL(new Blob([content], { type }));
  made.add(url);
  return url;
}

// Takes back all addresses, as at sign-out.
export function release() {
  made.forEach((url) => URL.revokeObjectURL(url));
  made.clear();
}

// A name for the disk: without folders, and never empty.
export function fileName(data) {
  return plain(data.name, 120).replace(/[\\/:*?"<>|]/g, "_").replace(/^\.+/, "") || "download";
}

export function save(data, label = "Download") {
  const told = element("span", { class: "told", role: "status" });
  const taking = button(label, { kind: "small", symbol: "download", "aria-label": `${label} ${fileName(data)}` });
  taking.addEventListener("click", async () => {
    taking.disabled = true;
    told.textContent = "loading";
    try {
      const url = await local(data, null);
      element("a", { href: url, download: fileName(data) }).click();
      told.textContent = "";
    } catch (error) {
      told.textContent = explain(error);
    }
    taking.disabled = false;
  });
  return element("span", { class: "saving" }, taking, told);
}

function heading(data) {
  return element("span", { class: "file-name" }, element("bdi", {}, fileName(data)));
}

const facts = (data) => [plain(data.mime_type, 60), bytes(data.size)].filter(Boolean).join(", ");

function refused(data, words) {
  return element("figure", { class: "blob" }, element("p", { class: "nothing" }, words), element("figcaption", {}, heading(data), " ",
    facts(data)), save(data));
}

export function image(data) {
  if (!IMAGES.has(data.mime_type)) return refused(data, "A picture of a kind that is not shown here.");
  const words = plain(data.alt, 1000);
  const place = element("div", { class: "picture", "data-state": "loading" }, element("span", { class: "spinner", "aria-hidden": "true" }),
    element("span", { class: "hidden" }, "The picture is loading."));
  const load = async () => {
    place.dataset.state = "loading";
    try {
      const shown = element("img", { alt: words || "A picture without a description", decoding: "async", src: await local(data, IMAGES) });
      if (data.width > 0 && data.height > 0) [shown.width, shown.height] = [data.width, data.height];
      await shown.decode();
      place.dataset.state = "done";
      place.replaceChildren(shown);
    } catch (error) {
      place.dataset.state = "failed";
      const why = error.status ? explain(error) : "The picture is damaged or cannot be reached.";
      place.replaceChildren(icon("warning"), element("p", {}, words ? `${words}. ${why}` : why), button("Try again", { kind: "small",
        onclick: load }));
    }
  };
  // Only what comes into sight is loaded.
  const watching = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && (watching.disconnect(), load()),
    { rootMargin: "400px" });
  watching.observe(place);
  const title = plain(data.title, 200);
  return element("figure", { class: "blob image" }, place,
    element("figcaption", {}, title ? element("strong", {}, title) : null, words && words !== title ? element("span", {}, words) : null,
      element("span", { class: "facts" }, heading(data), " ", facts(data)), save(data)));
}

export function audio(data) {
  if (!SOUNDS.has(data.mime_type)) return refused(data, "A sound of a kind that is not played here.");
  const name = plain(data.title, 200) || fileName(data);
  const place = element("div", { class: "sound" });
  const load = button("Load the sound", { kind: "small", symbol: "play" });
  load.addEventListener("click", async () => {
    load.disabled = true;
    try {
      const player = element("audio", { controls: true, "aria-label": name, src: await local(data, SOUNDS) });
      place.replaceChildren(player);
      player.focus();
    } catch (error) {
      load.disabled = false;
      place.replaceChildren(load, element("span", { class: "told", role: "status" }, explain(error)));
    }
  });
  place.append(load);
  const said = String(data.transcript || "").trim();
  return element("figure", { class: "blob audio" }, element("figcaption", {}, icon("sound"), element("strong", {}, name), element("span",
    { class: "facts" }, facts(data)), save(data)),
    place, said ? element("details", {}, element("summary", {}, "Transcript"), element("p", { class: "verbatim" }, said)) : null);
}

export function file(data) {
  const title = plain(data.title, 200);
  return element("figure", { class: "blob file" }, icon("file"),
    element("figcaption", {}, element("strong", {}, heading(data)), element("span", { class: "facts" }, title ? `${title}, ${facts(data)}`
      : facts(data))), save(data));
}
