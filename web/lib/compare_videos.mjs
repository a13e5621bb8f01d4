// The panel of Compare Videos: two videos in step, beside each other or over each other with a slider.
import { addressOf, clock, factsLine, isSame, pairsOf, ratioOf } from "./compare.mjs";
import { keepEvents, makeButton, makeStage } from "./compare_stage.mjs";
import { Together } from "./compare_together.mjs";
import { makerOf } from "./gallery_dom.mjs";

const EMPTY = "Run the graph to compare.", GONE = "The videos cannot be played. Run the graph again.";
const FINE = 0.001; // seconds, the seek bar's own step; its keys go by frames

/**
 * @param {Document} document
 * @param {{address: (path: string) => string, soon: (act: () => void) => void}} given
 * @returns {{element: HTMLElement, show: (output: object) => void, close: () => void, together: Together}}
 */
export function makeVideos(document, given) {
  const make = makerOf(document);
  let pairs = [], muted = true;
  const videos = ["before", "after"].map((name) =>
    make("video", { muted: true, playsInline: true, preload: "auto", disablePictureInPicture: true, "aria-label": name, onerror: () => fail() }),
  );
  const together = new Together(videos, { soon: given.soon, changed: () => tell() });
  const stage = makeStage(make, videos, { key: onKey });
  const play = makeButton(make, "Play", "Play or pause both (Space)", () => together.toggle());
  const seek = make("input", {
    type: "range", min: 0, step: FINE, value: 0, "aria-label": "Time", title: "Drag, or go by frames with the arrow keys",
    oninput: () => together.seek(Number(seek.value)), onkeydown: onKey,
  });
  keepEvents(seek);
  const time = make("span", { className: "time" }), facts = make("span", { className: "facts" });
  const sound = makeButton(make, "Sound", "The sound of the one after; of the one before where that is silent", () => mute(!muted));
  const loop = makeButton(make, "Loop", "Begin again at the end", () => ((together.loop = !together.loop), tell()));
  const ways = ["beside", "over"].map((way) =>
    makeButton(make, way === "beside" ? "Beside" : "Over", way === "beside" ? "Beside each other" : "Over each other, with a slider", () => lay(way)),
  );
  const element = make(
    "div", { className: "flux-atelier-compare videos" }, stage.element,
    make("div", { className: "line bar" }, play, seek, time),
    make("div", { className: "line" }, facts, make("span", { className: "pages" }, ...ways, sound, loop)),
  );
  const told = {};

  /** Write an element's property only where it has changed: this runs for every frame of the screen. */
  function put(name, element, property, value) {
    if (told[name] === value) return;
    told[name] = value;
    if (property.startsWith("aria-")) element.setAttribute(property, value);
    else element[property] = value;
  }

  const rate = () => Math.max(1, ...pairs.flatMap(({ before, after }) => [before.rate ?? 0, after.rate ?? 0]));
  const heard = () => ["after", "before"].find((side) => pairs[0]?.[side].sound);

  function tell() {
    const { length } = together, ready = pairs.length > 0 && length > 0;
    put("play", play, "textContent", together.playing ? "Pause" : "Play");
    for (const [i, button] of [play, seek, loop].entries()) put(`off${i}`, button, "disabled", !ready);
    put("silent", sound, "disabled", !ready || !heard());
    put("max", seek, "max", String(length));
    put("value", seek, "value", String(together.time));
    const at = length ? Math.round((together.time / length) * 1000) / 10 : 0;
    if (told.at !== at) seek.style.setProperty("--at", `${(told.at = at)}%`);
    put("time", time, "textContent", ready ? `${clock(together.time)} / ${clock(length)}` : "");
    put("words", seek, "aria-valuetext", `${clock(together.time)} of ${clock(length)}`);
    put("loop", loop, "aria-pressed", String(together.loop));
    put("muted", sound, "aria-pressed", String(!muted));
    const sizes = videos.map((video) => ({ width: video.videoWidth, height: video.videoHeight }));
    const ratio = ratioOf(...sizes);
    if (told.ratio !== ratio) stage.ratio((told.ratio = ratio));
    if (!ready) return put("facts", facts, "textContent", "");
    const both = ["before", "after"].map((side, i) => ({ ...sizes[i], rate: pairs[0][side].rate, seconds: videos[i].duration }));
    put("facts", facts, "textContent", factsLine(...both));
    put("title", facts, "title", facts.textContent);
  }

  function fail() {
    if (!pairs.length || !videos.some((video) => video.error)) return;
    together.pause();
    stage.say(GONE);
  }

  function lay(way) {
    stage.beside(way === "beside");
    ways.forEach((button, i) => button.setAttribute("aria-pressed", String(["beside", "over"][i] === way)));
  }

  function mute(on) {
    muted = on;
    videos.forEach((video, i) => (video.muted = muted || ["before", "after"][i] !== heard()));
    tell();
  }

  /** Space plays; the arrows go by frames, on the seek bar and where nothing else is moved by them. */
  function onKey(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, ",": -1, ".": 1 }[event.key];
    const isOurs = together.length > 0 && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (!isOurs || (event.key !== " " && by === undefined)) return false;
    if (event.key === " ") together.toggle();
    else step(by * (event.shiftKey ? 10 : 1));
    event.preventDefault();
    event.stopPropagation();
    return true;
  }

  /** Go by frames of the faster video, to the middle of one: its edge might show the one before. */
  function step(frames) {
    if (together.playing) together.pause();
    const number = Math.floor(together.time * rate() + 1e-6) + frames;
    together.seek((Math.max(0, number) + 0.5) / rate());
  }

  function show(output) {
    const next = pairsOf(output).slice(0, 1);
    if (next.length && isSame(next, pairs)) return;
    pairs = next;
    stage.say(pairs.length ? "" : EMPTY);
    if (pairs.length) together.open([pairs[0].before, pairs[0].after].map((file) => given.address(addressOf(file))));
    else together.close();
    mute(muted);
  }

  show(undefined);
  lay("beside");
  return { element, show, close: () => show(undefined), together };
}
