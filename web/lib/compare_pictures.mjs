// The panel of Compare Pictures: a slider between before and after, and pages through a batch.
import { addressOf, factsLine, isSame, pageBy, pairsOf, ratioOf } from "./compare.mjs";
import { makeButton, makeStage } from "./compare_stage.mjs";
import { makerOf } from "./gallery_dom.mjs";

const EMPTY = "Run the graph to compare.", GONE = "The pictures are gone. Run the graph again.";

/**
 * @param {Document} document
 * @param {{address: (path: string) => string}} server
 * @returns {{element: HTMLElement, show: (output: object) => void, close: () => void}}
 */
export function makePictures(document, server) {
  const make = makerOf(document);
  let pairs = [], index = 0;
  const images = ["before", "after"].map((alt) => make("img", { alt, draggable: false, onload: () => tell(), onerror: () => fail() }));
  const stage = makeStage(make, images, { key: (event) => turn(event.key), wheel: (delta) => turn(delta) });
  const facts = make("span", { className: "facts" }), place = make("span", { className: "place" });
  const pages = make(
    "span", { className: "pages" },
    makeButton(make, "Previous", "The picture before (Page Up)", () => turn("PageUp")),
    place,
    makeButton(make, "Next", "The next picture (Page Down)", () => turn("PageDown")),
  );
  const element = make("div", { className: "flux-atelier-compare pictures" }, stage.element, make("div", { className: "line" }, facts, pages));

  const sizes = () => images.map((image) => ({ width: image.naturalWidth, height: image.naturalHeight }));
  function tell() {
    if (!pairs.length || !images.every((image) => image.naturalWidth > 0)) return;
    stage.say("");
    stage.ratio(ratioOf(...sizes()));
    facts.textContent = facts.title = factsLine(...sizes());
  }

  function fail() {
    if (!pairs.length) return;
    stage.say(GONE);
    facts.textContent = "";
  }

  function load() {
    const pair = pairs[index];
    if (pair) {
      images[0].src = server.address(addressOf(pair.before));
      images[1].src = server.address(addressOf(pair.after));
    } else {
      images.forEach((image) => image.removeAttribute("src"));
    }
    place.textContent = `${index + 1} of ${pairs.length}`;
    pages.hidden = pairs.length < 2;
    facts.textContent = "";
    stage.say(pair ? "" : EMPTY);
  }

  function turn(step) {
    const to = pageBy(step, index, pairs.length);
    if (to === null) return false;
    index = to;
    load();
    return true;
  }

  function show(output) {
    const next = pairsOf(output);
    if (isSame(next, pairs) && next.length) return;
    pairs = next;
    index = Math.min(index, Math.max(0, pairs.length - 1)); // a run anew is looked at where the last one was
    load();
  }

  function close() {
    pairs = [];
    load();
  }

  load();
  return { element, show, close };
}
