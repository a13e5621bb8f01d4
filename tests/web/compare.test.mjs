import assert from "node:assert/strict";
import { test } from "node:test";
import {
  addressOf, clock, factsLine, isSame, pageBy, pairsOf, ratioOf, shareAt, shareBy, shareWords,
} from "../../web/lib/compare.mjs";
import { makePictures } from "../../web/lib/compare_pictures.mjs";
import { speedFor, Together } from "../../web/lib/compare_together.mjs";
import { makeVideos } from "../../web/lib/compare_videos.mjs";

const file = (filename, more) => ({ filename, subfolder: "", type: "temp", ...more });

test("an address holds any name", () => {
  assert.equal(addressOf(file("a b&c.png")), "/view?filename=a+b%26c.png&subfolder=&type=temp");
  assert.equal(addressOf({ filename: "a" }), "/view?filename=a&subfolder=&type=temp");
});

test("pairs go by place, and one stands for all", () => {
  const names = (output) => pairsOf(output).map(({ before, after }) => before.filename + after.filename);
  assert.deepEqual(names({ atelier_before: [file("a"), file("b")], atelier_after: [file("c"), file("d")] }), ["ac", "bd"]);
  assert.deepEqual(names({ atelier_before: [file("a")], atelier_after: [file("c"), file("d")] }), ["ac", "ad"]);
  assert.deepEqual(names({ atelier_before: [file("a"), file("b"), file("e")], atelier_after: [file("c"), file("d")] }), ["ac", "bd"]);
  for (const output of [undefined, {}, { text: ["x"] }, { atelier_before: [file("a")] }, { atelier_before: [file("a")], atelier_after: [{}] }]) {
    assert.deepEqual(pairsOf(output), []);
  }
});

test("the same files are the same result", () => {
  const pairs = (name) => pairsOf({ atelier_before: [file("a")], atelier_after: [file(name)] });
  assert.ok(isSame(pairs("b"), pairs("b")));
  assert.ok(!isSame(pairs("b"), pairs("c")));
  assert.ok(!isSame(pairs("b"), []));
});

for (const [x, share] of [[100, 0], [300, 1], [150, 0.25], [0, 0], [999, 1]]) {
  test(`a pointer at ${x} in 100 to 300`, () => assert.equal(shareAt(x, 100, 200), share));
}
test("a box without width has its middle", () => assert.equal(shareAt(5, 0, 0), 0.5));

for (const [key, shiftKey, from, to] of [
  ["ArrowLeft", false, 0.5, 0.49], ["ArrowRight", true, 0.5, 0.6], ["ArrowRight", true, 0.95, 1], ["Home", false, 0.3, 0],
  ["End", false, 0.3, 1], ["a", false, 0.3, null], ["ArrowUp", false, 0.3, null],
]) {
  test(`${shiftKey ? "Shift " : ""}${key} from ${from}`, () => assert.equal(shareBy({ key, shiftKey }, from), to));
}

for (const [step, index, count, to] of [
  ["PageDown", 0, 3, 1], ["PageDown", 2, 3, 0], ["PageUp", 0, 3, 2], [120, 1, 3, 2], [-3, 1, 3, 0], [0, 1, 3, null],
  ["x", 1, 3, null], ["PageDown", 0, 1, null], ["PageDown", 0, 0, null],
]) {
  test(`${step} from ${index} of ${count}`, () => assert.equal(pageBy(step, index, count), to));
}

test("words", () => {
  assert.equal(shareWords(0.25), "25 % before, 75 % after");
  for (const [seconds, words] of [[0, "0:00.0"], [0.3, "0:00.3"], [62.57, "1:02.5"], [600, "10:00.0"], [NaN, "0:00.0"], [-1, "0:00.0"]]) {
    assert.equal(clock(seconds), words);
  }
  assert.equal(factsLine({ width: 64, height: 32 }, { width: 64, height: 32 }), "64 × 32");
  assert.equal(factsLine({ width: 64, height: 32 }, { width: 8, height: 4 }), "64 × 32 and 8 × 4");
  const film = (rate, seconds) => ({ width: 64, height: 32, rate, seconds });
  assert.equal(factsLine(film(24000 / 1001, 2), film(24, 2.5)), "64 × 32, 23.976 fps and 24 fps, 2 s and 2.5 s");
  assert.equal(factsLine({ width: 0, height: 0 }, {}), "");
  assert.equal(ratioOf({ width: 0, height: 0 }, { width: 64, height: 32 }), 2);
  assert.equal(ratioOf({ width: 0, height: 0 }), 1);
});

test("a follower is pulled by speed, gently, and sought where it is far off", () => {
  assert.equal(speedFor(0.005), 1);
  assert.ok(speedFor(0.05) < 1 && speedFor(-0.05) > 1);
  assert.ok(speedFor(0.19) >= 0.9 && speedFor(-0.19) <= 1.1);
  assert.equal(speedFor(0.3), null);
  assert.equal(speedFor(-0.3), null);
});

/** As much of an element as the panels touch. */
class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, textContent: "", className: "", title: "", hidden: false });
    Object.assign(this, { disabled: false, value: "", max: "", type: "", tabIndex: -1 });
    this.style = { setProperty: (name, value) => (this.attributes[name] = value) };
    this.classList = { toggle: (name, on) => (this.attributes[name] = on) };
  }
  append(...inside) {
    for (const child of inside) typeof child === "string" ? (this.textContent = child) : this.children.push(child);
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  removeAttribute(name) {
    delete this[name];
    delete this.attributes[name];
  }
  addEventListener(name, act) {
    (this.listeners[name] ??= []).push(act);
  }
  fire(name, event = {}) {
    const given = { type: name, button: 0, preventDefault() {}, stopPropagation() {}, ...event };
    for (const act of this.listeners[name] ?? []) act(given);
  }
  focus() {}
  contains() {
    return true;
  }
  getBoundingClientRect() {
    return { left: 100, width: 200 };
  }
  all(match) {
    return [...(match(this) ? [this] : []), ...this.children.flatMap((c) => c.all(match))];
  }
}

/** A film that plays on a clock of the test's; it seeks when the test says so. */
class Film extends Element {
  constructor(duration = NaN) {
    super("video");
    Object.assign(this, { duration, currentTime: 0, paused: true, ended: false, readyState: 4, playbackRate: 1, seeking: false });
    Object.assign(this, { muted: true, playsInline: true, videoWidth: 64, videoHeight: 32, src: "", loads: 0 });
    Object.assign(this, { preload: "", disablePictureInPicture: false, isConnected: true, calls: [] });
    return new Proxy(this, {
      set(film, name, value) {
        if (name === "currentTime" && film.loads) Object.assign(film, { seeking: true, ended: false });
        film[name] = value;
        return true;
      },
    });
  }
  load() {
    this.loads++;
    this.calls.push(`load ${this.src ?? ""}`);
  }
  play() {
    this.paused = false;
    return Promise.resolve();
  }
  pause() {
    this.paused = true;
  }
}

function sought(film) {
  film.seeking = false;
  film.fire("seeked");
}

/** Two films in step, and a screen whose frames the test draws. */
function together(first, second) {
  const films = [new Film(first), new Film(second)], waits = [];
  const both = new Together(films, { soon: (act) => waits.push(act), changed: () => {} });
  both.open(["/a", "/b"]);
  /** Let time pass as a screen of 50 frames a second sees it. */
  const pass = (seconds, drift = 0) => {
    for (let n = 0; n < Math.round(seconds * 50); n++) {
      films.forEach((film, i) => {
        if (film.paused || film.seeking || film.readyState < 3) return;
        const to = film.currentTime + 0.02 * film.playbackRate * (i ? 1 + drift : 1), target = Math.min(to, film.duration);
        film.ended = to >= film.duration;
        const { loads } = film;
        film.loads = 0; // time that passes is no seek
        film.currentTime = target;
        film.loads = loads;
        if (film.ended) film.paused = true;
      });
      waits.splice(0).forEach((act) => act());
      for (const film of films) if (film.seeking) sought(film);
    }
  };
  return { films, both, pass };
}

test("both play, and one that runs too fast is held", () => {
  const { films, both, pass } = together(10, 10);
  both.play();
  pass(5, 0.03); // 0.15 seconds apart if nothing were done, which is too little to seek
  assert.ok(both.playing && films.every((film) => !film.paused));
  assert.ok(Math.abs(films[0].currentTime - films[1].currentTime) < 0.04, `${films.map((f) => f.currentTime)}`);
  both.pause();
  assert.ok(films.every((film) => film.paused && film.playbackRate === 1));
  assert.equal(films[1].currentTime, films[0].currentTime);
});

test("the longer one leads, the shorter one waits on its last frame, and both begin again", () => {
  const { films, both, pass } = together(1, 2);
  assert.equal(both.leader, films[1]);
  assert.equal(both.length, 2);
  both.play();
  pass(1.5);
  assert.ok(films[0].paused && !films[1].paused && films[0].currentTime > 0.95);
  pass(0.8);
  assert.ok(both.playing && films[1].currentTime < 0.5 && !films[0].paused);
  assert.ok(Math.abs(films[0].currentTime - films[1].currentTime) < 0.05);
});

test("without the loop it stops at the end, and plays again from the beginning", () => {
  const { films, both, pass } = together(1, 1);
  both.loop = false;
  both.play();
  pass(1.4);
  assert.ok(!both.playing && films.every((film) => film.paused));
  assert.ok(both.time > 0.95);
  both.play();
  pass(0.3);
  assert.ok(both.playing && both.time > 0.1 && both.time < 0.5);
});

test("one that waits for its data holds the other", () => {
  const { films, both, pass } = together(4, 4);
  both.play();
  pass(0.5);
  films[1].readyState = 2;
  pass(0.5);
  assert.ok(both.playing && both.waiting && films[0].paused);
  assert.ok(films[0].currentTime < 0.6);
  films[1].readyState = 4;
  pass(0.5);
  assert.ok(!films[0].paused && films[0].currentTime > 0.8);
});

test("a seek goes to both, the shorter one to its end; what is asked while it seeks comes after", () => {
  const { films, both } = together(1, 2);
  both.seek(1.5);
  assert.deepEqual(films.map((film) => film.currentTime), [1, 1.5]);
  assert.equal(both.time, 1.5);
  for (const time of [0.7, 0.6, 0.5]) both.seek(time);
  assert.equal(films[1].currentTime, 1.5); // still on its way
  assert.equal(both.time, 0.5);
  films.forEach(sought);
  assert.deepEqual(films.map((film) => film.currentTime), [0.5, 0.5]);
  films.forEach(sought);
  assert.equal(both.asked, null);
  both.seek(99);
  assert.equal(both.time, 2);
});

test("one far off is sought", () => {
  const { films, both, pass } = together(9, 9);
  both.play();
  pass(0.2);
  films[1].currentTime = 5;
  sought(films[1]);
  pass(0.1);
  assert.ok(Math.abs(films[1].currentTime - films[0].currentTime) < 0.05);
});

test("what is out of sight stops, and nothing plays before there is something", () => {
  const { films, both, pass } = together(9, 9);
  both.play();
  pass(0.2);
  films[0].isConnected = films[1].isConnected = false;
  pass(0.1);
  assert.ok(!both.playing && films.every((film) => film.paused));
  const empty = together(NaN, NaN);
  empty.both.play();
  assert.ok(!empty.both.playing && empty.both.length === 0);
});

test("a forbidden play stops both", async () => {
  const { films, both } = together(9, 9);
  films[0].play = () => Promise.reject(Object.assign(new Error("no"), { name: "NotAllowedError" }));
  both.play();
  await new Promise((done) => setTimeout(done));
  assert.ok(!both.playing);
});

const makeDocument = () => ({ createElement: (tag) => (tag === "video" ? new Film() : tag === "img" ? new Picture() : new Element(tag)) });
class Picture extends Element {
  constructor() {
    super("img");
    Object.assign(this, { naturalWidth: 0, naturalHeight: 0, alt: "", src: "", draggable: true });
  }
}
const find = (panel, text) => panel.element.all((e) => e.textContent === text)[0];
const ofClass = (panel, name) => panel.element.all((e) => e.className.split(" ").includes(name))[0];
const batch = (count, names = "ab") => ({
  atelier_before: Array.from({ length: count }, (_, i) => file(`${names[0]}${i}.png`)),
  atelier_after: Array.from({ length: count }, (_, i) => file(`${names[1]}${i}.png`)),
});

test("pictures: empty, a pair, pages, gone, and let go", () => {
  const panel = makePictures(makeDocument(), { address: (path) => `/api${path}` });
  const images = panel.element.all((e) => e.tag === "img").reverse(); // the one after lies below
  const nothing = ofClass(panel, "nothing"), pages = ofClass(panel, "pages"), stage = ofClass(panel, "stage");
  assert.match(nothing.textContent, /Run the graph/);
  panel.show(batch(1));
  assert.equal(nothing.textContent, "");
  assert.ok(pages.hidden);
  assert.deepEqual(images.map((i) => [i.alt, i.src.split("filename=")[1].split("&")[0]]), [["before", "a0.png"], ["after", "b0.png"]]);
  images.forEach((image) => Object.assign(image, { naturalWidth: 64, naturalHeight: 32 }));
  images[0].fire("load");
  assert.equal(ofClass(panel, "facts").textContent, "64 × 32");
  assert.equal(stage.attributes["--ratio"], "2");
  panel.show(batch(3, "cd"));
  find(panel, "Next").fire("click");
  assert.equal(ofClass(panel, "place").textContent, "2 of 3");
  stage.fire("keydown", { key: "PageUp" });
  stage.fire("wheel", { deltaY: -5 });
  assert.equal(ofClass(panel, "place").textContent, "3 of 3");
  panel.show(batch(2, "ef"));
  assert.equal(ofClass(panel, "place").textContent, "2 of 2");
  images[1].fire("error");
  assert.match(nothing.textContent, /gone/);
  panel.close();
  assert.ok(images.every((image) => image.src === undefined));
});

test("the slider follows pointer and keys, and speaks", () => {
  const panel = makePictures(makeDocument(), { address: (path) => path });
  const stage = ofClass(panel, "stage");
  panel.show(batch(1));
  stage.fire("pointermove", { clientX: 150 });
  assert.equal(stage.attributes["--share"], "50%");
  stage.fire("pointerdown", { clientX: 150 });
  assert.equal(stage.attributes["--share"], "25%");
  stage.fire("pointermove", { clientX: 250 });
  stage.fire("pointerup");
  stage.fire("pointermove", { clientX: 110 });
  assert.equal(stage.attributes["--share"], "75%");
  assert.equal(stage.attributes["aria-valuetext"], "75 % before, 25 % after");
  stage.fire("keydown", { key: "Home" });
  assert.equal(stage.attributes["aria-valuenow"], "0");
  let stopped = 0;
  stage.fire("keydown", { key: "Delete", stopPropagation: () => stopped++ });
  stage.fire("keydown", { key: "ArrowRight", ctrlKey: true, stopPropagation: () => stopped++ });
  assert.equal(stopped, 0);
  stage.fire("dblclick");
  assert.equal(stage.attributes["aria-valuenow"], "50");
});

test("videos: addresses, buttons, keys, sound, and let go", () => {
  const waits = [];
  const panel = makeVideos(makeDocument(), { address: (path) => path, soon: (act) => waits.push(act) });
  const { videos } = panel.together, stage = ofClass(panel, "stage");
  assert.ok(find(panel, "Play").disabled);
  panel.show({
    atelier_before: [file("a.mp4", { rate: 12, sound: true })], atelier_after: [file("b.mp4", { rate: 24, sound: false })],
  });
  videos.forEach((video, i) => (video.duration = 2 + i));
  videos[0].fire("loadedmetadata");
  assert.equal(ofClass(panel, "facts").textContent, "64 × 32, 12 fps and 24 fps, 2 s and 3 s");
  assert.equal(ofClass(panel, "time").textContent, "0:00.0 / 0:03.0");
  const play = find(panel, "Play");
  play.fire("click");
  assert.equal(play.textContent, "Pause");
  stage.fire("keydown", { key: " " });
  assert.ok(!panel.together.playing && videos.every((video) => video.paused));
  stage.fire("keydown", { key: "ArrowRight" });
  assert.ok(Math.abs(panel.together.time - 1.5 / 24) < 1e-6);
  const sound = find(panel, "Sound");
  sound.fire("click");
  assert.deepEqual(videos.map((video) => video.muted), [false, true]); // the one after is silent
  sound.fire("click");
  assert.ok(videos.every((video) => video.muted));
  find(panel, "Over").fire("click");
  assert.equal(stage.attributes.beside, false);
  const loads = videos[0].loads;
  panel.show({ atelier_before: [file("a.mp4", { rate: 12 })], atelier_after: [file("b.mp4", { rate: 24 })] });
  assert.equal(videos[0].loads, loads); // the same result again goes on
  videos[1].error = { code: 4 };
  videos[1].fire("error");
  assert.match(ofClass(panel, "nothing").textContent, /cannot be played/);
  panel.close();
  assert.ok(videos.every((video) => video.src === undefined && video.paused));
  assert.equal(videos[0].calls.at(-1), "load ");
});
