// What stands above and below the pictures: tabs, counts, filter, order, size; and what has happened.
import { makerOf } from "./gallery_dom.mjs";
import { HELP } from "./gallery_keys.mjs";
import { countsLine, many } from "./gallery_words.mjs";

const TABS = [["all", "All"], ["left_out", "Left out"], ["groups", "Duplicates"]];
const TYPING = 350; // milliseconds after the last key before a filter is asked for
const KNOWN = ["path", "-stars", "decision", "-megapixels", "aspect", "shorter", "id"]; // orders offered before the scores
const STALE = "Changed since its run; queue again to go on with it.";
let made = 0;

/**
 * @param {Document} document
 * @param {{tab: (tab: string) => void, query: (query: {filter: string, order: string}) => void, size: (size: number) => void,
 *   full: () => void, help: () => void, leave: () => void}} act
 */
export function makeBar(document, act) {
  const make = makerOf(document), list = `flux-atelier-words-${++made}`;
  const tabs = new Map(TABS.map(([tab, words]) => [tab, make("button", {
    type: "button", role: "tab", onclick: () => act.tab(tab),
  }, words)]));
  const counts = make("div", { className: "counts" }), problem = make("div", { className: "problem", role: "alert" });
  const words = make("datalist", { id: `${list}-names` });
  const orders = make("datalist", { id: `${list}-orders` });
  const field = (name, placeholder, datalist) => make("input", {
    type: "text", className: name, placeholder, spellcheck: false, autocomplete: "off", list: null, "aria-label": placeholder,
    oninput: () => typed(), onkeydown: onKey, onchange: () => ask(),
  }, datalist);
  const filter = field("filter", "Filter, such as undecided and sharpness < 0.3"), order = field("order", "Order, such as -sharpness");
  filter.setAttribute("list", words.id);
  order.setAttribute("list", orders.id);
  const size = make("input", {
    type: "range", min: "90", max: "320", step: "10", title: "Size of the pictures", "aria-label": "Size of the pictures",
    oninput: () => act.size(Number(size.value)),
  });
  const help = make("button", { type: "button", title: "Keys (?)", onclick: act.help }, "Keys");
  const full = make("button", { type: "button", className: "full", onclick: act.full }, "Full screen");
  let timer = 0, asked = { filter: "", order: "path" };

  function ask() {
    clearTimeout(timer);
    const next = { filter: filter.value.trim(), order: order.value.trim() || "path" };
    if (next.filter === asked.filter && next.order === asked.order) return;
    asked = next;
    act.query(next);
  }
  function typed() {
    clearTimeout(timer);
    timer = setTimeout(ask, TYPING);
  }
  function onKey(event) {
    if (event.key === "Escape" || event.key === "Enter") {
      event.preventDefault();
      if (event.key === "Enter") ask();
      act.leave();
    }
  }
  const head = make("div", { className: "head" },
    make("div", { className: "tabs", role: "tablist" }, ...tabs.values()), counts, make("div", { className: "tools" }, size, help, full));
  const fields = make("div", { className: "fields" }, filter, order, words, orders);

  function option(value) {
    return make("option", { value });
  }
  /** Take a view's words; they change with the view only. */
  function offer({ names = [], scores = [] }) {
    words.replaceChildren(...[...new Set([...names, ...scores])].map(option));
    orders.replaceChildren(...[...KNOWN, ...scores.flatMap((name) => [name, `-${name}`])].map(option));
  }
  function show(state) {
    asked = { filter: state.filter, order: state.order };
    if (document.activeElement !== filter) filter.value = state.filter;
    if (document.activeElement !== order) order.value = state.order === "path" ? "" : state.order;
    size.value = String(state.size);
    for (const [tab, button] of tabs) button.setAttribute("aria-selected", String(tab === state.tab));
    const left = state.info?.counts?.left_out;
    tabs.get("left_out").textContent = left ? `Left out (${new Intl.NumberFormat("en").format(left)})` : "Left out";
    counts.replaceChildren(...(state.info ? countsLine(state.info.counts).map((one) => make("span", {}, one)) : []));
    problem.textContent = state.problem;
    filter.setAttribute("aria-invalid", String(Boolean(state.problem)));
    fields.hidden = state.tab === "groups";
    full.textContent = state.full ? "Leave full screen" : "Full screen";
  }
  function enter() {
    filter.focus({ preventScroll: true });
    filter.select();
  }
  return { element: make("div", { className: "bar" }, head, fields, problem), show, offer, enter, stop: () => clearTimeout(timer) };
}

/** The last line: what is shown and chosen, what happened, and what went wrong. */
export function makeFoot(document, again) {
  const make = makerOf(document);
  const shown = make("span", { className: "shown" }), says = make("span", { className: "says", role: "status" });
  const stale = make("span", { className: "stale", title: "Decisions are kept at once. What follows in the graph goes by them from its next run." }, STALE);
  const trouble = make("span", { className: "trouble", role: "alert" });
  const retry = make("button", { type: "button", onclick: again }, "Try again");
  function show({ total, chosen, words, wrong, retriable, current }) {
    stale.hidden = current;
    shown.textContent = [total === null ? "" : many(total), chosen && `${chosen} chosen`].filter(Boolean).join(", ");
    says.textContent = wrong ? "" : words;
    trouble.textContent = wrong;
    retry.hidden = !(wrong && retriable);
  }
  return { element: make("div", { className: "foot" }, shown, stale, says, trouble, retry), show };
}

export function makeHelp(document, close) {
  const make = makerOf(document);
  const rows = HELP.map(([keys, meaning]) => make("tr", {}, make("th", { scope: "row" }, keys), make("td", {}, meaning)));
  const button = make("button", { type: "button", onclick: close }, "Close");
  const element = make("div", { className: "help", role: "dialog", "aria-label": "Keys", hidden: true },
    make("table", {}, make("tbody", {}, ...rows)), button);
  return { element, button };
}
