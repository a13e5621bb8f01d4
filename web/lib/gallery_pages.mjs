// Rows of a long list, a page at a time: asked for when they come near the window, kept while they are among the last
// used, and shown with the changes that are on their way to the server.

export const PAGE = 200; // rows
const MOST = 30; // pages kept

export class Pages {
  /**
   * @param {(asked: {offset: number, limit: number, query: object}, signal: AbortSignal) => Promise<object>} read
   * @param {{changed: () => void, shifted: (from: number, to: number) => void, failed: (error: Error) => void}} tell
   */
  constructor(read, tell, { size = PAGE, most = MOST } = {}) {
    Object.assign(this, { read, tell, size, most });
    this.asked = new Map(); // page number -> {stop, since}
    this.pages = new Map(); // page number -> {rows, stale}, the last used last
    this.edits = []; // on their way
    this.settled = []; // done, while an answer that began before may still come
    this.count = 0; // edits so far
    this.turn = 0;
    this.query = {};
    this.total = null; // unknown
    this.fresh = false; // whether the query's own answer is there
  }

  /** Begin another list. What was shown stays until its first answer; answers to the one before are thrown away. */
  open(query) {
    this.refresh();
    this.query = query;
    this.fresh = false;
  }

  /** Forget all. */
  clear() {
    this.open({});
    this.pages.clear();
    this.total = null;
  }

  /** Read all again when it is wanted, and show what is known meanwhile. */
  refresh() {
    this.stop();
    this.turn++;
    this.settled = [];
    for (const page of this.pages.values()) page.stale = true;
  }

  stop() {
    for (const { stop } of this.asked.values()) stop.abort();
    this.asked.clear();
  }

  /** The row at an index as it will be when all changes are through, or undefined. */
  row(index) {
    const found = this.pages.get(Math.floor(index / this.size))?.rows[index % this.size];
    return found && this.edited(found);
  }

  edited(row) {
    return this.edits.reduce((now, edit) => (edit.concerns(now) ? edit.change(now) : now), row);
  }

  /** Index of a row that has been read lately, or -1. */
  find(id) {
    for (const [number, { rows, stale }] of this.pages) {
      if (stale) continue;
      const at = rows.findIndex((row) => row.id === id);
      if (at >= 0) return number * this.size + at;
    }
    return -1;
  }

  /** Whether what stands at an index is known to stand there. */
  sure(index) {
    return this.pages.get(Math.floor(index / this.size))?.stale === false;
  }

  /** Ask for the rows from first to before last; what is asked and no longer wanted is given up. */
  want(first, last) {
    const from = Math.floor(Math.max(0, first) / this.size);
    const to = Math.floor(Math.max(first, Math.min(last, this.fresh ? this.total : last) - 1) / this.size);
    for (const [number, { stop }] of this.asked) {
      if (number >= from && number <= to) continue;
      stop.abort();
      this.asked.delete(number);
    }
    for (let number = from; number <= to; number++) {
      const page = this.pages.get(number);
      if (page) this.keep(number, page);
      if ((!page || page.stale) && !this.asked.has(number)) this.ask(number);
    }
  }

  async ask(number) {
    const stop = new AbortController(), turn = this.turn, since = this.count;
    const asked = { stop, since };
    this.asked.set(number, asked);
    try {
      const answer = await this.read({ offset: number * this.size, limit: this.size, query: this.query }, stop.signal);
      if (turn === this.turn && this.asked.get(number) === asked) this.take(number, answer, since);
    } catch (error) {
      if (turn === this.turn && this.asked.get(number) === asked) this.tell.failed(error);
    } finally {
      if (this.asked.get(number) === asked) this.asked.delete(number);
    }
  }

  take(number, answer, since) {
    const late = this.settled.filter((edit) => edit.number > since); // the answer may be older than these
    const rows = answer.rows.map((row) => late.reduce((now, edit) => (edit.concerns(now) ? edit.change(now) : now), row));
    const before = this.fresh ? this.total : null;
    if (!this.fresh) this.pages.clear();
    [this.fresh, this.total] = [true, answer.total];
    if (before !== null && before !== answer.total) for (const page of this.pages.values()) page.stale = true;
    this.keep(number, { rows, stale: false });
    if (before !== null && before !== answer.total) this.tell.shifted(before, answer.total);
    this.tell.changed();
  }

  keep(number, page) {
    this.pages.delete(number);
    this.pages.set(number, page);
    while (this.pages.size > this.most) this.pages.delete(this.pages.keys().next().value);
  }

  /** Ids of a stretch of rows, read where they are not known; the cache stays as it is. */
  async ids(first, last) {
    const found = [];
    for (let number = Math.floor(first / this.size); number * this.size < last; number++) {
      const offset = number * this.size, known = this.pages.get(number);
      const rows = known && !known.stale
        ? known.rows
        : (await this.read({ offset, limit: this.size, query: this.query }, new AbortController().signal)).rows;
      found.push(...rows.slice(Math.max(0, first - offset), last - offset).map((row) => row.id));
    }
    return found;
  }

  /**
   * Show a change before the server has it.
   * @param {(row: object) => boolean} concerns
   * @param {(row: object) => object} change gives another row, and leaves its argument alone
   */
  lay(concerns, change) {
    const edit = { concerns, change, number: ++this.count };
    this.edits.push(edit);
    return edit;
  }

  /** The server has answered: the change stays, or is as if it had never been. */
  settle(edit, done) {
    this.edits = this.edits.filter((other) => other !== edit);
    if (!done) return;
    for (const page of this.pages.values()) {
      page.rows = page.rows.map((row) => (edit.concerns(row) ? edit.change(row) : row));
    }
    this.settled = this.asked.size ? [...this.settled, { ...edit, number: ++this.count }] : [];
  }
}
