// The grid of small pictures: a window onto a long surface, with elements for what is near it and no others.
import { makerOf } from "./gallery_dom.mjs";
import { GAP, gridOf, LABEL, moved, shown, spotOf, topFor } from "./gallery_grid.mjs";
import { Thumbs } from "./gallery_thumbs.mjs";
import { isLocked, nameOf, noteOf, sentenceOf, verdictOf } from "./gallery_words.mjs";

const CALM = 90; // milliseconds between two looks at what is needed while one scrolls, and after the last turn of the wheel
const FLIGHT = 10; // windows a second: faster than this nobody reads, and nothing is asked for
const AHEAD = 100; // rows read before they are to be seen
let made = 0; // grids so far: ids of cells must be one of a kind in the document

/**
 * @param {Document} document
 * @param {{row: (index: number) => object | undefined, want: (first: number, last: number) => void,
 *   thumb: (row: object) => string, press: (index: number, event: MouseEvent) => void, open: (index: number) => void,
 *   scrolled: (top: number) => void}} source
 */
export function makeCells(document, source) {
  return new Cells(document, source);
}

class Cells {
  constructor(document, source) {
    Object.assign(this, { document, source, make: makerOf(document), thumbs: new Thumbs(), mark: `flux-atelier-cell-${++made}` });
    this.used = new Map(); // index -> cell
    this.free = [];
    this.state = { count: 0, size: 160, focus: 0, isChosen: () => false };
    this.flying = false;
    this.top = 0;
    this.looked = { top: 0, time: 0 }; // where the surface was when it was last seen to move
    this.surface = this.make("div", { className: "surface", role: "presentation" });
    this.element = this.make("div", {
      className: "cells", tabIndex: 0, role: "listbox", "aria-multiselectable": "true", "aria-label": "Pictures",
      onscroll: () => this.onScroll(), onclick: (event) => this.onClick(event), ondblclick: (event) => this.onOpen(event),
    }, this.surface);
    this.watch = new ResizeObserver(() => this.layOut());
    this.watch.observe(this.element);
    this.grid = gridOf(600, 0, 160);
  }

  destroy() {
    this.watch.disconnect();
    clearTimeout(this.timer);
    for (const cell of this.used.values()) this.thumbs.drop(cell.image);
  }

  get height() {
    return this.element.clientHeight;
  }

  /** Draw for a state: count, size, focus, isChosen(index, row). */
  show(state) {
    const before = this.state;
    this.state = { ...before, ...state };
    if (before.count !== this.state.count || before.size !== this.state.size) return this.layOut();
    this.draw();
  }

  /** Work the grid out anew; the cell in focus stays where the eye has it if it was to be seen. */
  layOut() {
    const { clientWidth: width, clientHeight: height } = this.element, scrollTop = this.top;
    if (!width) return; // not on the page, or folded away
    const { count, size, focus } = this.state, old = this.grid;
    this.grid = gridOf(width, count, size);
    this.surface.style.height = `${this.grid.height}px`;
    if (old.columns !== this.grid.columns || old.pitch !== this.grid.pitch) {
      const was = spotOf(old, focus).y - scrollTop;
      const seen = was > -old.pitch && was < height;
      const first = Math.floor(scrollTop / old.pitch) * old.columns;
      this.top = seen ? spotOf(this.grid, focus).y - was : spotOf(this.grid, first).y - GAP;
    }
    this.element.scrollTop = this.top; // a browser forgets it when an element is moved or folded away
    for (const index of [...this.used.keys()]) this.release(index);
    this.draw();
    this.ask();
  }

  onScroll() {
    if (!this.height) return;
    this.top = this.element.scrollTop;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
    this.source.scrolled(this.top);
    const now = performance.now(), { top, time } = this.looked;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.flying = false;
      this.draw();
      this.ask();
    }, CALM);
    if (now - time < CALM) return;
    const speed = Math.abs(this.top - top) / this.height / ((now - time) / 1000);
    this.looked = { top: this.top, time: now };
    this.flying = speed > FLIGHT;
    if (!this.flying) this.ask();
  }

  ask() {
    const { first, last } = shown(this.grid, this.element.scrollTop, this.height);
    if (last > first || !this.state.count) this.source.want(Math.max(0, first - AHEAD), Math.max(last, 1) + AHEAD);
  }

  /** Bring the cells near the window into the document, and take the others out. */
  draw() {
    const { first, last } = shown(this.grid, this.element.scrollTop, this.height);
    for (const index of [...this.used.keys()]) if (index < first || index >= last) this.release(index);
    for (let index = first; index < last; index++) this.fill(index, this.used.get(index) ?? this.take(index));
    const there = this.used.has(this.state.focus);
    if (there) this.element.setAttribute("aria-activedescendant", `${this.mark}-${this.state.focus}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  take(index) {
    const cell = this.free.pop() ?? this.build(), { x, y } = spotOf(this.grid, index);
    cell.element.style.transform = `translate(${x}px, ${y}px)`;
    cell.element.style.width = `${this.grid.side}px`;
    cell.element.style.height = `${this.grid.side + LABEL}px`;
    cell.element.id = `${this.mark}-${index}`;
    cell.element.dataset.index = String(index);
    cell.element.setAttribute("aria-posinset", String(index + 1));
    cell.element.setAttribute("aria-setsize", String(this.state.count));
    cell.row = null;
    cell.address = "";
    this.used.set(index, cell);
    this.surface.append(cell.element);
    return cell;
  }

  release(index) {
    const cell = this.used.get(index);
    this.used.delete(index);
    this.thumbs.drop(cell.image);
    cell.element.remove();
    this.free.push(cell);
  }

  build() {
    const { make } = this;
    const image = make("img", { alt: "", draggable: false }), name = make("div", { className: "name" });
    const note = make("span", { className: "note" }), verdict = make("span", { className: "verdict" }), lock = make("span", { className: "lock", title: "Its caption was written by a person and is locked" });
    const element = make("div", { className: "cell", role: "option" }, make("div", { className: "frame" }, image), name, make("div", { className: "under" }, verdict, note, lock));
    return { element, image, name, note, verdict, lock, row: null, address: "" };
  }

  fill(index, cell) {
    const row = this.source.row(index), { focus, isChosen } = this.state;
    cell.element.classList.toggle("focus", index === focus);
    cell.element.setAttribute("aria-selected", String(Boolean(row) && isChosen(row)));
    if (row !== cell.row || !row) this.write(cell, row);
    const address = row ? this.source.thumb(row) : "";
    if (address === cell.address || (this.flying && address)) return; // pictures wait until the flight ends
    cell.address = address;
    if (address) this.thumbs.want(cell.image, address);
    else this.thumbs.drop(cell.image);
  }

  write(cell, row) {
    cell.row = row;
    cell.element.dataset.decision = row?.decision ?? "";
    cell.element.classList.toggle("unread", !row);
    cell.element.setAttribute("aria-label", row ? sentenceOf(row) : "not read yet");
    cell.element.title = row ? [row.path, row.reason].filter(Boolean).join("\n") : "";
    cell.name.textContent = row ? nameOf(row) : "";
    cell.verdict.textContent = row ? verdictOf(row) : "";
    cell.note.textContent = row ? noteOf(row) : "";
    cell.lock.textContent = row && isLocked(row) ? "by hand" : "";
  }

  indexOf(event) {
    const cell = event.target.closest?.("[data-index]");
    return cell ? Number(cell.dataset.index) : -1;
  }

  onClick(event) {
    const index = this.indexOf(event);
    if (index >= 0) this.source.press(index, event);
  }

  onOpen(event) {
    const index = this.indexOf(event);
    if (index >= 0) this.source.open(index);
  }

  moved(key) {
    return this.grid.count ? moved(key, this.grid, this.state.focus, this.height) : null;
  }

  reveal(index) {
    const top = topFor(this.grid, index, this.element.scrollTop, this.height);
    if (top !== this.element.scrollTop) this.element.scrollTop = this.top = top;
  }

  scrollTo(top) {
    this.element.scrollTop = this.top = top;
    this.draw();
    this.ask();
  }
}
