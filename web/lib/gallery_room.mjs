// The gallery's room: one element over one view of a dataset, its rows, its counts, and what of them is shown. What keys
// and clicks do is in gallery_element.mjs. The document, the server and the memory come in as arguments.
import { makeBar, makeFoot, makeHelp } from "./gallery_bar.mjs";
import { makeCells } from "./gallery_cells.mjs";
import { inTurn, makeClient } from "./gallery_client.mjs";
import { makeDetail } from "./gallery_detail.mjs";
import { makerOf } from "./gallery_dom.mjs";
import { makeGroups } from "./gallery_groups.mjs";
import { focusOn, NONE } from "./gallery_keys.mjs";
import { fitting, recall, remember } from "./gallery_memory.mjs";
import { Pages } from "./gallery_pages.mjs";

const AGAIN = 4000; // milliseconds before an absent server is asked again
const SOON = 250; // milliseconds after a change before counts are read and the state is kept
const STOPPED = ["keydown", "keypress", "copy", "cut", "paste", "pointerdown", "mousedown", "pointermove", "dblclick", "wheel", "contextmenu"];
const MODIFIERS = ["Shift", "Control", "Alt", "Meta"];

export class Room {
  /**
   * @param {Document} document
   * @param {{server: {ask: Function, address: Function}, storage: Storage, full: () => void}} given
   */
  constructor(document, { server, storage, full }) {
    Object.assign(this, { document, server, storage, full, name: null, client: null, info: null, looked: null, sought: null, focused: null });
    Object.assign(this, { state: fitting(null), selection: NONE, problem: "", words: "", wrong: "", retriable: false, isFull: false });
    this.inTurn = inTurn();
    this.pages = new Pages((asked, signal) => this.client.rows(asked, signal), {
      changed: () => this.onRows(), shifted: (from, to) => this.onShift(from, to), failed: (error) => this.onFailed(error),
    });
    this.build();
    this.listen();
    this.show();
  }

  build() {
    const { document } = this, make = makerOf(document), client = () => this.client;
    const look = (row) => this.look(row), thumb = (row) => client().thumb(row);
    this.bar = makeBar(document, {
      tab: (tab) => this.toTab(tab), query: (query) => this.toQuery(query), size: (size) => this.change({ size }),
      full: () => this.full(), help: () => this.toHelp(), leave: () => this.focus(),
    });
    this.cells = makeCells(document, {
      row: (index) => this.pages.row(index), want: (first, last) => this.client && this.pages.want(first, last), thumb,
      press: (index, event) => this.press(index, event), open: (index) => this.look(this.pages.row(index)), scrolled: () => this.keepSoon(),
    });
    this.detail = makeDetail(document, {
      thumb, picture: (row, done) => client().picture(row, done), similar: (id, signal) => client().similar(id, signal), look,
      save: (row, texts) => this.caption(row, texts), close: () => this.unlook(), edited: () => this.edited(),
      decide: (decision) => this.decide(decision),
    });
    this.groups = makeGroups(document, {
      groups: (...asked) => client().groups(...asked), thumb, edited: (row) => this.pages.edited(row), look,
      keepOne: (row, others) => this.keepOne(row, others), failed: (error) => this.onFailed(error),
    });
    this.foot = makeFoot(document, () => this.again());
    this.help = makeHelp(document, () => this.toHelp(false));
    this.note = make("div", { className: "empty-note" });
    const main = make("div", { className: "main" }, this.cells.element, this.note, this.groups.element, this.detail.element, this.help.element);
    this.element = make("div", { className: "flux-atelier-gallery", "data-capture-wheel": "true" }, this.bar.element, main, this.foot.element);
  }

  listen() {
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    // ComfyUI must not delete, copy, move or open anything of its graph while one works here.
    for (const name of STOPPED) this.element.addEventListener(name, (event) => event.stopPropagation());
    this.element.addEventListener("keyup", (event) => {
      if (!MODIFIERS.includes(event.key)) event.stopPropagation(); // or ComfyUI would think that Shift is still held
    });
  }

  // ---- a view, its rows, its counts

  /** Show a view; one that is shown is read again. Another view of a store goes on with the filter of the one before. */
  open(name) {
    if (name === this.name) return this.again();
    const before = this.name?.split("/")[0] === name.split("/")[0] ? { ...this.state, ids: [], all: false } : null;
    this.keep();
    this.close();
    this.name = name;
    this.client = makeClient(this.server, name);
    this.state = recall(this.storage, name, before);
    const { focus, anchor, ids, all } = this.state;
    this.selection = { focus, anchor, ids, all };
    this.restore = this.state.top;
    this.pages.open(this.query);
    this.pages.want(this.selection.focus, this.selection.focus + 1); // beside the view itself, not after it
    this.readView();
    if (this.state.tab === "groups") this.groups.open();
    this.show();
  }

  close() {
    for (const timer of [this.timer, this.viewTimer, this.keepTimer]) clearTimeout(timer);
    this.pages.clear();
    this.groups.stop();
    this.unlook(false);
    Object.assign(this, { name: null, client: null, info: null, problem: "", words: "", wrong: "" });
  }

  destroy() {
    this.keep();
    this.close();
    this.bar.stop();
    this.cells.destroy();
  }

  get query() {
    const { filter, order, tab } = this.state;
    return { filter, order, group: tab === "left_out" ? "left_out" : "all" };
  }

  async readView() {
    const { client } = this, edits = this.pages.count;
    try {
      const info = await client.view();
      if (client !== this.client || edits !== this.pages.count) return this.readViewSoon(client);
      this.info = info;
      this.bar.offer(info);
      this.show();
    } catch (error) {
      if (client === this.client) this.onFailed(error);
    }
  }

  readViewSoon(client = this.client) {
    if (!client || client !== this.client) return;
    clearTimeout(this.viewTimer);
    this.viewTimer = setTimeout(() => this.readView(), SOON);
  }

  onRows() {
    const { total } = this.pages;
    this.problem = "";
    if (this.retriable) [this.wrong, this.retriable] = ["", false]; // what was wrong was the reading
    const found = this.sought ? this.pages.find(this.sought) : -1;
    if (found >= 0) this.selection = focusOn(this.selection, found);
    if (found >= 0 || this.pages.sure(this.selection.focus)) this.sought = null;
    if (total && this.selection.focus >= total) this.selection = focusOn(this.selection, total - 1);
    this.show();
    if (this.restore === undefined || !this.cells.height) return;
    this.cells.scrollTo(this.restore);
    this.restore = undefined;
  }

  /** Rows have left or joined the list (decided ones leave "undecided"): go on at the row in focus, once it is found. */
  onShift(from, to) {
    const gone = Math.max(0, from - to), { focus } = this.selection;
    this.sought ??= this.focused;
    this.selection = focusOn(this.selection, Math.max(0, Math.min(focus - gone, to - 1)));
    this.cells.show({ count: to, focus: this.selection.focus });
    this.cells.reveal(this.selection.focus);
    this.cells.ask();
  }

  onFailed(error) {
    if (error?.name === "AbortError") return;
    this.sought = null;
    const refused = error.status === 400;
    if (refused) this.problem = error.message;
    else this.wrong = error.message;
    this.retriable = error.status !== 404 && !refused;
    clearTimeout(this.timer);
    if (this.retriable) this.timer = setTimeout(() => this.element.isConnected && this.again(), AGAIN);
    this.show();
  }

  /** Read all again. */
  again() {
    if (!this.client) return;
    clearTimeout(this.timer);
    this.pages.refresh();
    this.cells.ask();
    if (!this.pages.fresh) this.pages.want(this.selection.focus, this.selection.focus + 1);
    if (this.state.tab === "groups") this.groups.reopen();
    if (this.looked) this.lookAgain(this.looked.id);
    this.readView();
  }

  async lookAgain(id) {
    const { client } = this;
    const asked = { offset: 0, limit: 1, query: { filter: `id = "${id.replace(/\+\d+$/, "")}"` } };
    const { rows } = await client.rows(asked).catch(() => ({ rows: [] })); // the pages tell of an absent server
    const found = rows.find((row) => row.id === id);
    if (client !== this.client || this.looked?.id !== id || !found) return;
    this.looked = found;
    this.show();
  }

  // ---- what is shown

  show() {
    if (!this.sought) this.focused = this.pages.sure(this.selection.focus) ? this.pages.row(this.selection.focus)?.id ?? null : null;
    const { state, selection, info } = this, chosen = new Set(selection.ids), total = this.client ? this.pages.total : 0;
    const counts = info && this.pages.edits.reduce((now, edit) => edit.counts?.(now) ?? now, info.counts);
    this.bar.show({ ...state, info: info && { ...info, counts }, problem: this.problem, full: this.isFull });
    this.cells.show({ count: total ?? 0, size: state.size, focus: selection.focus, isChosen: (row) => selection.all || chosen.has(row.id) });
    this.groups.element.hidden = state.tab !== "groups";
    if (state.tab === "groups") this.groups.draw();
    if (this.looked) this.detail.show(this.current());
    const n = selection.all ? total : selection.ids.length, words = new Intl.NumberFormat("en").format(n ?? 0);
    const list = state.tab === "groups" ? null : this.client ? total : null;
    this.foot.show({ total: list, chosen: n && list !== null ? words : "", words: this.words, wrong: this.wrong, retriable: this.retriable, current: info?.current !== false });
    this.note.textContent = this.emptyNote(total);
  }

  emptyNote(total) {
    if (!this.client) return "Queue the workflow to see its dataset here.";
    if (total !== 0 || this.problem) return "";
    if (this.state.filter) return "No picture fits the filter.";
    return this.state.tab === "left_out" ? "No picture was left out." : "The dataset has no pictures.";
  }

  change(values) {
    this.state = { ...this.state, ...values };
    this.keepSoon();
    this.show();
  }

  toTab(tab) {
    if (!this.client) return;
    this.unlook(false);
    const { group } = this.query;
    this.change({ tab });
    if (this.query.group !== group) this.toQuery({});
    if (tab === "groups") this.groups.open();
    else this.focus();
  }

  toQuery(query) {
    [this.selection, this.problem, this.words, this.sought] = [NONE, "", "", null];
    this.change(query);
    if (!this.client) return;
    this.restore = 0;
    this.pages.open(this.query);
    this.pages.want(0, 1);
  }

  toHelp(open = this.help.element.hidden) {
    this.help.element.hidden = !open;
    if (open) this.help.button.focus({ preventScroll: true });
    else this.focus();
  }

  /** Give the keyboard to what is on top. */
  focus() {
    if (this.state.tab === "groups" && !this.looked) return (this.groups.element.querySelector(".copy") ?? this.cells.element).focus({ preventScroll: true });
    this.cells.element.focus({ preventScroll: true });
  }

  /** After the element was put elsewhere: the browser has forgotten where it was scrolled to. */
  moved(isFull) {
    this.isFull = isFull;
    this.cells.layOut();
    this.show();
    this.focus();
  }

  keepSoon() {
    clearTimeout(this.keepTimer);
    this.keepTimer = setTimeout(() => this.keep(), SOON);
  }

  keep() {
    if (!this.name) return;
    const { top = this.cells.top } = { top: this.restore };
    this.state = { ...this.state, ...this.selection, top };
    remember(this.storage, this.name, this.state);
  }
}
