// Groups of duplicates side by side, a screenful of groups at a time: why they belong together, and one to keep.
import { makerOf } from "./gallery_dom.mjs";
import { counted, many, nameOf, noteOf, verdictOf, whyOf } from "./gallery_words.mjs";

export const GROUPS = 20; // on a page
const PENDING = 1000; // milliseconds before groups that are still looked for are asked for again

/**
 * @param {Document} document
 * @param {{groups: (offset: number, limit: number, signal: AbortSignal) => Promise<{total: number, groups: object[]}>,
 *   thumb: (row: object) => string, edited: (row: object) => object, keepOne: (row: object, others: object[]) => void,
 *   look: (row: object) => void, failed: (error: Error) => void}} act
 */
export function makeGroups(document, act) {
  const make = makerOf(document);
  const list = make("div", { className: "list" }), says = make("span", { className: "says", role: "status" });
  const step = (by, words) => make("button", { type: "button", onclick: () => open(offset + by * GROUPS) }, words);
  const back = step(-1, "Previous"), on = step(1, "Next");
  const element = make("div", { className: "groups", hidden: true, onkeydown: onKey }, make("div", { className: "pager" }, back, says, on), list);
  let offset = 0, total = 0, groups = [], stopper = null, timer = 0, waiting = "Looking for duplicates";

  async function open(at = 0) {
    clearTimeout(timer);
    stopper?.abort();
    const mine = (stopper = new AbortController());
    try {
      const answer = await act.groups(Math.max(0, at), GROUPS, mine.signal);
      if (stopper !== mine) return;
      if (answer.pending) {
        waiting = `Looking for duplicates: ${counted(answer.done)} of ${counted(answer.total)}`;
        timer = setTimeout(() => open(at), PENDING);
        return draw();
      }
      waiting = "";
      offset = Math.max(0, at);
      ({ total, groups } = answer);
      draw();
      list.scrollTop = 0;
    } catch (error) {
      if (stopper === mine && error?.name !== "AbortError") act.failed(error);
    }
  }

  /** Draw again, with the changes that are on their way; the focus stays. */
  function draw() {
    const held = document.activeElement?.dataset?.id;
    says.textContent = waiting || (total ? `${offset + 1} to ${offset + groups.length} of ${many(total, "group")}` : "No duplicates were found.");
    back.hidden = on.hidden = total <= GROUPS;
    back.disabled = offset === 0;
    on.disabled = offset + GROUPS >= total;
    list.replaceChildren(...groups.map(groupOf));
    if (held) [...list.querySelectorAll("[data-id]")].find((one) => one.dataset.id === held)?.focus({ preventScroll: true });
  }

  function groupOf(group) {
    const rows = group.rows.map((row) => act.edited(row));
    return make("div", { className: "group" }, ...rows.map((row) => {
      const others = rows.filter((other) => other.id !== row.id);
      const best = row.id === group.kept ? make("div", { className: "best" }, "best copy") : null;
      const figure = make("div", { className: "copy", tabIndex: 0, "aria-label": `${row.path}, ${row.decision ?? "undecided"}` },
        make("img", { src: act.thumb(row), alt: nameOf(row), decoding: "async", draggable: false, onclick: () => act.look(row) }),
        make("div", { className: "name", title: row.path }, nameOf(row)),
        make("div", { className: "size" }, row.width ? `${row.width} × ${row.height}` : ""), best,
        make("div", { className: "under" }, make("span", { className: "verdict" }, verdictOf(row)), make("span", { className: "note" }, noteOf(row))), ...whyOf(group, row.id).map((why) => make("div", { className: "why" }, why)),
        make("button", { type: "button", onclick: () => act.keepOne(row, others) }, "Keep this one"));
      figure.dataset.id = row.id;
      figure.dataset.decision = row.decision ?? "";
      return figure;
    }));
  }

  function onKey(event) {
    const copies = [...list.querySelectorAll(".copy")], at = copies.indexOf(document.activeElement?.closest?.(".copy"));
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || event.ctrlKey || event.altKey || event.metaKey || !copies.length) return;
    event.preventDefault();
    const next = copies[Math.min(copies.length - 1, Math.max(0, at + by))];
    next.focus({ preventScroll: true });
    next.scrollIntoViewIfNeeded?.(false);
  }

  /** The row in focus, or null. */
  function focused() {
    const id = document.activeElement?.closest?.(".copy")?.dataset.id;
    const found = id && groups.flatMap((group) => group.rows).find((row) => row.id === id);
    return found ? act.edited(found) : null;
  }

  /** Make changes stay in what was read. */
  function settle(edit) {
    groups = groups.map((group) => ({ ...group, rows: group.rows.map((row) => (edit.concerns(row) ? edit.change(row) : row)) }));
  }
  function stop() {
    clearTimeout(timer);
    stopper?.abort();
    stopper = null;
    [groups, total, waiting] = [[], 0, "Looking for duplicates"];
  }
  return { element, open, draw, focused, settle, stop, reopen: () => open(offset) };
}
