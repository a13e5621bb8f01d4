// What keys and clicks do in the gallery: choosing, deciding, writing, taking back. A change shows at once, goes to the
// server in its turn, and is taken back on the screen with a sentence where the server refuses it or is away.
import { actionOf, everything, focusOn, isField, isOneOf, only, presses, stretch, targets, toggled } from "./gallery_keys.mjs";
import { Room } from "./gallery_room.mjs";
import { decided, many, nameOf, recounted, starred, undone, withTexts } from "./gallery_words.mjs";

const MOST = 10000; // rows that are named one by one; more are named by their filter

/**
 * @param {Document} document
 * @param {{server: {ask: (path: string, options?: object) => Promise<Response>, address: (path: string) => string},
 *   storage: Storage, full: () => void}} given
 * @returns {Gallery} with element, open(store/key), moved(isFull), destroy()
 */
export function makeGallery(document, given) {
  return new Gallery(document, given);
}

class Gallery extends Room {
  // ---- keys and clicks

  onKey(event) {
    if (isField(event.target) || event.isComposing || presses(event.target, event.key)) return;
    const action = actionOf(event);
    if (!action || (!this.client && action.do !== "help")) return;
    if (this.act(action) !== false) event.preventDefault();
  }

  /** Do what a key asks for; false where it means nothing here. */
  act(action) {
    const { tab } = this.state, inGroups = tab === "groups" && !this.looked;
    if (this.isMoving(action)) return true;
    if (["move", "all", "toggle"].includes(action.do) && inGroups) return false;
    switch (action.do) {
      case "move": return this.move(action);
      case "decide": return this.decide(action.decision);
      case "stars": return this.star(action.stars);
      case "detail": return this.looked ? this.unlook() : this.look(this.inFocus());
      case "edit": return this.edit();
      case "undo": return this.undo();
      case "all": return this.choose(everything(this.selection));
      case "toggle": return this.inFocus() && this.choose(toggled(this.selection, this.selection.focus, this.inFocus().id));
      case "filter": return tab === "groups" ? false : this.bar.enter();
      case "help": return this.toHelp();
      default: return this.back();
    }
  }

  /** Whether rows are just changing places: a key must not meet another row than the one that was to be seen. */
  isMoving(action) {
    const { selection, pages, state } = this;
    if (this.sought) return ["move", "decide", "stars", "edit", "detail"].includes(action.do);
    const byPlace = !this.looked && !selection.all && !selection.ids.length && state.tab !== "groups";
    return byPlace && ["decide", "stars", "edit", "detail"].includes(action.do) && !pages.sure(selection.focus);
  }

  back() {
    if (!this.help.element.hidden) return this.toHelp(false);
    if (this.looked) return this.unlook();
    if (this.selection.all || this.selection.ids.length) return this.choose(only(this.selection.focus));
    return this.isFull ? this.full() : false;
  }

  move({ key, extend }) {
    const index = this.cells.moved(key);
    if (index === null) return false;
    if (extend && !this.looked) this.reach(index);
    else this.choose(this.selection.ids.length || this.selection.all ? only(index) : focusOn(this.selection, index));
    this.cells.reveal(index);
    if (this.looked) this.look(this.pages.row(index) ?? this.looked);
    return true;
  }

  press(index, event) {
    const row = this.pages.row(index);
    this.cells.element.focus({ preventScroll: true });
    if (event.shiftKey) return this.reach(index);
    if (row && (event.ctrlKey || event.metaKey)) return this.choose(toggled(this.selection, index, row.id));
    return this.choose(only(index));
  }

  /** Choose the stretch from the anchor to an index, reading what of it is not known. */
  async reach(index) {
    const { first, last } = stretch(this.selection, index), { anchor } = this.selection;
    const mine = (this.reaching = {});
    const known = [];
    for (let at = first; at < last && this.pages.row(at); at++) known.push(this.pages.row(at).id);
    this.choose({ focus: index, anchor, ids: known, all: false });
    if (known.length === last - first) return;
    const ids = await this.named(first, last);
    if (ids && this.reaching === mine && this.selection.focus === index) this.choose({ focus: index, anchor, ids, all: false });
  }

  choose(selection) {
    // While the row in focus is sought, another one that is pressed is sought instead.
    if (this.sought && selection.focus !== this.selection.focus) this.sought = this.pages.row(selection.focus)?.id ?? null;
    this.selection = selection;
    this.keepSoon();
    this.show();
  }

  /** Ids of a stretch, or null after saying why not. */
  async named(first, last) {
    if (last - first > MOST) {
      this.say(`${many(last - first)} are too many to name one by one. Narrow the filter to at most ${many(MOST)}.`);
      return null;
    }
    try {
      return await this.pages.ids(first, last);
    } catch (error) {
      this.onFailed(error);
      return null;
    }
  }

  // ---- one picture large

  inFocus() {
    if (this.looked) return this.current();
    return this.state.tab === "groups" ? this.groups.focused() : this.pages.row(this.selection.focus);
  }

  /** The row in the detail as it is now. */
  current() {
    const at = this.pages.find(this.looked.id);
    return at >= 0 ? this.pages.row(at) : this.pages.edited(this.looked);
  }

  look(row) {
    if (!row) return false;
    this.looked = row;
    const at = this.pages.find(row.id);
    if (at >= 0 && at !== this.selection.focus) this.choose(only(at));
    else this.show();
    if (!this.detail.element.contains(this.document.activeElement)) this.cells.element.focus({ preventScroll: true });
    return true;
  }

  unlook(andFocus = true) {
    this.looked = null;
    this.editedFrom = null;
    this.detail.hide();
    if (!andFocus) return;
    this.cells.reveal(this.selection.focus);
    this.focus();
    this.show();
  }

  edit() {
    const row = this.inFocus();
    if (!row) return false;
    this.editedFrom = this.looked ? "detail" : "grid";
    this.look(row);
    this.detail.edit();
    return true;
  }

  /** The editor has closed: back to where it was opened. */
  edited() {
    if (this.editedFrom === "grid") return this.unlook();
    this.cells.element.focus({ preventScroll: true });
  }

  // ---- changes

  say(words) {
    this.words = words;
    this.show();
  }

  /** Show a change, send it in its turn, and let it stay or take it back. */
  async put({ concerns, change, counts, send, words }) {
    const edit = Object.assign(this.pages.lay(concerns, change), { counts }), { client } = this;
    this.say(words);
    try {
      await this.inTurn(send);
      this.settle(edit, true);
      this.wrong = "";
    } catch (error) {
      this.settle(edit, false);
      if (client !== this.client) return false;
      [this.words, this.wrong, this.retriable] = ["", error.message, false];
    }
    this.readViewSoon(client);
    this.show();
    return !this.wrong;
  }

  settle(edit, done) {
    this.pages.settle(edit, done);
    if (!done) return;
    this.groups.settle(edit);
    if (this.looked && edit.concerns(this.looked)) this.looked = edit.change(this.looked);
    if (this.info && edit.counts) this.info = { ...this.info, counts: edit.counts(this.info.counts) };
  }

  /** Rows an action is for: {ids, rows} or {all}; null where there is none. */
  aims() {
    const focused = this.inFocus();
    if (this.looked || this.state.tab === "groups") return focused ? { ids: [focused.id], rows: [focused] } : null;
    const { all, ids } = targets(this.selection, focused?.id);
    if (all) return { all: true, ids: [], rows: [] };
    return ids.length ? { ids, rows: ids.map((id) => this.pages.row(this.pages.find(id))).filter(Boolean) } : null;
  }

  /** The same, with what the server is told: names, or a filter where it reaches the rows; null where there is nothing. */
  async aimed() {
    const aims = this.aims(), { query, total } = this.pages;
    if (!aims) return null;
    if (aims.all && query.group === "all") {
      return { ...aims, n: total, which: { filter: query.filter }, concerns: () => this.pages.query === query };
    }
    const ids = aims.all ? await this.named(0, total ?? 0) : aims.ids;
    return ids && { ...aims, n: ids.length, which: { ids }, concerns: isOneOf(ids) };
  }

  async decide(decision) {
    const one = !this.selection.all && !this.selection.ids.length, { client, pages } = this;
    const aims = await this.aimed();
    if (!aims) return;
    const { n, rows, which, concerns } = aims;
    const written = this.put({
      concerns, change: (row) => ({ ...row, decision, reason: null, by: decision ? "human" : null }),
      counts: rows.length === n ? (counts) => recounted(counts, rows, decision) : undefined,
      send: () => client.decide(which, decision), words: decided(decision, n, rows[0]),
    });
    const goOn = this.looked ? pages.find(this.looked.id) >= 0 : one && this.state.tab !== "groups";
    if (decision && goOn) this.move({ key: "ArrowRight" });
    await written;
  }

  async star(stars) {
    const { client } = this, aims = await this.aimed();
    if (!aims) return;
    const { n, rows, which, concerns } = aims;
    await this.put({
      concerns, change: (row) => ({ ...row, stars: stars || null }),
      send: () => client.stars(which, stars), words: starred(stars, n, rows[0]),
    });
  }

  /** One of a group is kept, and the others are rejected as its duplicates. */
  async keepOne(row, others) {
    const { client } = this, ids = others.map((other) => other.id);
    const reason = `duplicate of ${row.path}`;
    const put = (concerns, decision, rows, send, words) => this.put({
      concerns, change: (one) => ({ ...one, decision, reason: decision === "reject" ? reason : null, by: "human" }),
      counts: (counts) => recounted(counts, rows, decision), send, words,
    });
    const words = `Kept ${nameOf(row)} and rejected ${many(ids.length, "duplicate")}.`;
    const kept = put(isOneOf([row.id]), "keep", [row], () => client.decide({ ids: [row.id] }, "keep"), words);
    await Promise.all([kept, put(isOneOf(ids), "reject", others, () => client.decide({ ids }, "reject", reason), words)]);
  }

  /** Write a caption; the text stays in its field until the server has it. */
  async caption(row, texts) {
    const { client } = this;
    try {
      await this.inTurn(() => client.caption(row.id, texts));
    } catch (error) {
      [this.words, this.wrong, this.retriable] = ["", error.message, false];
      this.show();
      return false;
    }
    if (client !== this.client) return true;
    const edit = this.pages.lay(isOneOf([row.id]), (one) => withTexts(one, texts));
    this.settle(edit, true);
    this.wrong = "";
    this.say(texts.length ? `Caption of ${nameOf(row)} saved.` : `Your caption of ${nameOf(row)} was taken away.`);
    return true;
  }

  async undo() {
    const { client } = this;
    try {
      const answer = await this.inTurn(() => client.undo());
      if (client !== this.client) return;
      this.wrong = "";
      this.say(undone(answer));
      if (answer.undone) this.again();
    } catch (error) {
      [this.words, this.wrong, this.retriable] = ["", error.message, false];
      this.show();
    }
  }
}
