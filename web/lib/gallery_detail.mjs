// One picture large: what will be cut, what was found on it, what is known of it, its captions, and its likes.
import { makerOf, shape } from "./gallery_dom.mjs";
import { draftOf, factsOf, isLocked, nameOf, nearness, textsOf, writerOf } from "./gallery_words.mjs";

const SETTLED = 160; // milliseconds on a picture before its likes are asked for

/**
 * @param {Document} document
 * @param {{thumb: (row: object) => string, picture: (row: object, done: boolean) => string,
 *   similar: (id: string, signal: AbortSignal) => Promise<{rows: object[]}>, save: (row: object, texts: string[]) => Promise<boolean>,
 *   look: (row: object) => void, close: () => void, edited: () => void, decide: (decision: string) => void}} act
 */
export function makeDetail(document, act) {
  const make = makerOf(document);
  const image = make("img", { alt: "", decoding: "async", draggable: false }), marks = shape(document, "svg", { "aria-hidden": "true" });
  const facts = make("dl", { className: "facts" }), captions = make("div", { className: "captions" });
  const likes = makeLikes(make, act), title = make("div", { className: "title" });
  const done = make("input", { type: "checkbox", onchange: () => picture() });
  const asTrained = make("label", { className: "done" }, done, "as trained");
  const button = (words, press) => make("button", { type: "button", onclick: press }, words);
  const top = make("div", { className: "top" }, title, asTrained, button("Keep", () => act.decide("keep")),
    button("Reject", () => act.decide("reject")), button("Close", act.close));
  const gone = make("div", { className: "gone" }, "The picture cannot be shown.");
  const stage = make("div", { className: "stage" }, image, marks, gone);
  const side = make("div", { className: "side" }, captions, facts);
  const element = make("div", { className: "detail", hidden: true, role: "group", "aria-label": "Picture" },
    top, make("div", { className: "body" }, stage, side), likes.element);
  let row = null, editor = null, showing = "";
  image.onerror = () => (gone.hidden = false);
  image.onload = () => (gone.hidden = true);

  function picture() {
    const address = act.picture(row, done.checked);
    if (address !== showing) {
      gone.hidden = true;
      image.src = showing = address;
    }
    marks.replaceChildren(...(done.checked ? [] : marksOf(document, row)));
    marks.setAttribute("viewBox", `0 0 ${row.width || 1} ${row.height || 1}`);
    asTrained.hidden = !row.crop && !row.ops?.length;
  }

  function show(next) {
    const another = next.id !== row?.id;
    if (another) stopEditing();
    row = next;
    element.hidden = false;
    title.textContent = row.path ?? nameOf(row);
    image.alt = nameOf(row);
    if (another) done.checked = false;
    element.dataset.decision = row.decision ?? "";
    picture();
    facts.replaceChildren(...factsOf(row).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    if (!editor) captions.replaceChildren(...captionsOf(make, row, () => edit()));
    if (another) likes.show(row);
  }

  function edit() {
    if (editor) return editor.field.focus({ preventScroll: true });
    editor = makeEditor(make, row, { save, cancel: () => (stopEditing(), act.edited()) });
    captions.replaceChildren(editor.element);
    side.scrollTop = 0;
    editor.field.focus({ preventScroll: true });
  }

  async function save(text) {
    const mine = editor;
    mine.busy(true);
    const saved = await act.save(row, textsOf(row, text)); // a refused text stays where it was written
    mine.busy(false);
    if (!saved) return mine.field.focus({ preventScroll: true });
    if (editor === mine) stopEditing();
    act.edited();
  }

  function stopEditing() {
    if (!editor) return;
    editor = null;
    if (row) captions.replaceChildren(...captionsOf(make, row, () => edit()));
  }

  function hide() {
    stopEditing();
    likes.stop();
    image.removeAttribute("src");
    [row, showing] = [null, ""];
    element.hidden = true;
  }
  return { element, show, hide, edit, get row() { return row; }, get editing() { return Boolean(editor); } };
}

function makeEditor(make, row, { save, cancel }) {
  const field = make("textarea", { value: draftOf(row), rows: 7, "aria-label": "Caption", spellcheck: true });
  const onKey = (event) => {
    if (event.key === "Escape") cancel();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(field.value);
    else return;
    event.preventDefault();
  };
  field.addEventListener("keydown", onKey);
  const keep = make("button", { type: "button", onclick: () => save(field.value) }, "Save");
  const stop = make("button", { type: "button", onclick: cancel }, "Cancel");
  const hint = make("span", { className: "hint" }, "Ctrl+Enter saves and locks it, Esc cancels. Empty takes your caption away.");
  const busy = (now) => {
    keep.disabled = now;
    field.readOnly = now;
  };
  return { element: make("div", { className: "editor" }, field, make("div", { className: "acts" }, keep, stop, hint)), field, busy };
}

function captionsOf(make, row, edit) {
  const blocks = (row.captions ?? []).map((caption) => make("div", { className: "caption" },
    make("div", { className: "writer" }, writerOf(caption), caption.author === "human" ? make("span", { className: "lock" }, "locked") : null),
    make("div", { className: "text" }, caption.text)));
  const words = isLocked(row) ? "Edit caption (E)" : "Write caption (E)";
  return [...(blocks.length ? blocks : [make("div", { className: "caption empty" }, "No caption.")]),
    make("button", { type: "button", onclick: edit }, words)];
}

/** The cut, with what falls away in shade, and the boxes that were found; in pixels of the picture. */
function marksOf(document, { width, height, crop, boxes }) {
  const drawn = [];
  if (crop) {
    const [x, y, w, h] = crop;
    const around = `M0 0H${width}V${height}H0Z M${x} ${y}V${y + h}H${x + w}V${y}Z`;
    drawn.push(shape(document, "path", { class: "away", d: around, "fill-rule": "evenodd" }), shape(document, "rect", { class: "crop", x, y, width: w, height: h }));
  }
  for (const box of boxes ?? []) {
    const title = shape(document, "title");
    title.textContent = box.score ? `${box.label} ${Number(box.score).toFixed(2)}` : box.label;
    drawn.push(shape(document, "rect", { class: "box", x: box.x, y: box.y, width: box.w, height: box.h }, title));
    const words = shape(document, "text", { class: "label", x: box.x, y: box.y, dy: "-0.3em", "font-size": Math.max(width, height) / 45 });
    words.textContent = box.label;
    drawn.push(words);
  }
  return drawn;
}

/** The strip of like pictures; only the last one asked for counts. */
function makeLikes(make, act) {
  const strip = make("div", { className: "strip" }), says = make("div", { className: "says" });
  const element = make("div", { className: "likes" }, says, strip);
  let timer = 0, stopper = null;
  function stop() {
    clearTimeout(timer);
    stopper?.abort();
    stopper = null;
  }
  function show(row) {
    stop();
    strip.replaceChildren();
    says.textContent = "Similar";
    timer = setTimeout(() => ask(row), SETTLED);
  }
  async function ask(row) {
    const mine = (stopper = new AbortController());
    try {
      const { rows } = await act.similar(row.id, mine.signal);
      if (stopper !== mine) return;
      says.textContent = rows.length ? "Similar" : "Nothing similar";
      strip.replaceChildren(...rows.map((other) => make("button", { type: "button", title: other.path, onclick: () => act.look(other) },
        make("img", { src: act.thumb(other), alt: nameOf(other), decoding: "async", draggable: false }), make("span", {}, nearness(other)))));
    } catch (error) {
      if (stopper === mine) says.textContent = error.message;
    }
  }
  return { element, show, stop };
}
