// The bars of block weights: drawn from a text, and dragged or typed into another text. The document comes in as an
// argument; the text lives in ComfyUI's own widget.
import {
  axis, barAt, bars, format, KINDS, parse, places, PRESETS, restOf, STEP, valueAt, valueOf, withBar, withLine, words,
} from "./blocks.mjs";
import { COLORS } from "./style.mjs";

const SVG = "http://www.w3.org/2000/svg";
const WIDE = 1000, HIGH = 300; // the picture's own units, stretched over the space there is
/** The least height in pixels; Vue nodes ask the element for it, the classic renderer asks the widget. */
export const BLOCKS_HEIGHT = 168;
const HELP = "Drag to draw; Shift and drag for a straight line; double-click to reset a bar. " +
  "Keys: arrows, Page Up and Down, Home, End, Delete.";

export const BLOCKS_STYLE = `
.flux-atelier-blocks { --bar:${COLORS.light.mean}; --now:${COLORS.light.validation}; box-sizing: border-box; width: 100%; height: 100%;
  min-height: ${BLOCKS_HEIGHT}px; display: flex; flex-direction: column; gap: 5px; padding: 8px; overflow: hidden;
  border-radius: 6px; border: 1px solid var(--border-color, #4e4e4e); background: var(--comfy-input-bg, #222);
  color: var(--input-text, var(--fg-color, #ddd)); font: 11px/1.35 system-ui, sans-serif; text-align: left;
  user-select: none; }
.dark-theme .flux-atelier-blocks { --bar:${COLORS.dark.mean}; --now:${COLORS.dark.validation} }
.flux-atelier-blocks .top { display: flex; gap: 8px; align-items: center; flex: none; }
.flux-atelier-blocks .says { flex: 1; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
.flux-atelier-blocks button, .flux-atelier-blocks select { font: inherit; color: inherit; margin: 0; padding: 2px 6px;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px;
  cursor: pointer; }
.flux-atelier-blocks button:hover:enabled, .flux-atelier-blocks select:hover:enabled { border-color: currentColor; }
.flux-atelier-blocks :focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
.flux-atelier-blocks :disabled { cursor: default; opacity: 0.6; }
.flux-atelier-blocks .plot { position: relative; flex: 1 1 80px; min-height: 70px; margin: 0 0 15px 22px;
  cursor: crosshair; touch-action: none; }
.flux-atelier-blocks .plot[aria-disabled="true"] { cursor: default; opacity: 0.45; }
.flux-atelier-blocks svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.flux-atelier-blocks .plot * { pointer-events: none; }
.flux-atelier-blocks rect { fill: var(--bar); }
.flux-atelier-blocks rect.back { fill: currentColor; opacity: 0.07; }
.flux-atelier-blocks .now rect.bar { fill: var(--now); }
.flux-atelier-blocks line { stroke: currentColor; stroke-width: 1px; opacity: 0.35; vector-effect: non-scaling-stroke; }
.flux-atelier-blocks line.zero { opacity: 0.8; }
.flux-atelier-blocks .tick { position: absolute; right: calc(100% + 4px); line-height: 1; transform: translateY(-50%);
  font-variant-numeric: tabular-nums; }
.flux-atelier-blocks .kind { position: absolute; top: calc(100% + 3px); line-height: 1; white-space: nowrap; }
.flux-atelier-blocks .line { flex: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.flux-atelier-blocks .line:empty { display: none; }
.flux-atelier-blocks.wrong .foot { color: var(--error-text, #e5484d); }
.flux-atelier-blocks.wrong rect.bar { fill: var(--error-text, #e5484d); }
`;

/**
 * @param {Document} document
 * @param {(text: string) => void} write takes a new text, while it is drawn
 * @returns {{element: HTMLElement, show: (text: string, base: string, linked?: boolean) => void}}
 */
export function makeBars(document, write) {
  const { make, place } = makers(document);
  const says = make("span", "says"), foot = make("div", "line foot"), choice = make("select"), reset = make("button");
  const plot = make("div", "plot"), picture = place("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none" });
  const element = make("div", "flux-atelier-blocks", make("div", "top", choice, reset, says), plot, foot);
  let state = parse("", "flux1"), now = 0, open = false, anchor = null, locked = false;
  picture.setAttribute("aria-hidden", "true"); // the slider around it says the same in words
  plot.append(picture);
  plot.tabIndex = 0;
  plot.title = HELP;
  plot.setAttribute("role", "slider");
  plot.setAttribute("aria-label", "Block weights");
  reset.type = "button";
  reset.textContent = "Reset";
  reset.title = "All blocks back to 1; what is about parts stays.";
  choice.title = "Start from a preset";
  choice.setAttribute("aria-label", "Start from a preset");

  function show(text, base, linked = false) {
    state = parse(String(text ?? ""), KINDS[base] ? base : "flux1");
    locked = linked || Boolean(state.problem);
    now = Math.min(now, bars(state.base).length - 1);
    const names = state.base === "flux1" ? Object.keys(PRESETS) : ["everything"];
    if (choice.options.length !== names.length + 1) {
      choice.replaceChildren(...["presets", ...names].map((name) => make("option", "", name)));
    }
    choice.selectedIndex = 0;
    choice.disabled = reset.disabled = linked;
    plot.setAttribute("aria-disabled", String(locked));
    foot.textContent = linked ? "The weights come over a wire." : state.problem || state.parts.join(", ");
    foot.title = foot.textContent;
    element.classList.toggle("wrong", Boolean(!linked && state.problem));
    draw();
  }

  function draw() {
    const range = axis(state), all = places(state.base);
    drawBars(picture, place, state, range, open ? now : -1);
    plot.querySelectorAll(".tick, .kind").forEach((label) => label.remove());
    plot.append(...labels(make, state.base, all, range));
    const bar = bars(state.base)[now];
    says.textContent = open ? words(state, bar) : "";
    const told = {
      valuenow: valueOf(state, bar), valuemin: range.low, valuemax: range.high, valuetext: words(state, bar),
    };
    for (const [name, value] of Object.entries(told)) plot.setAttribute(`aria-${name}`, String(value));
  }

  function change(next) {
    state = next;
    draw();
    write(format(state));
  }

  /** The bar and the value under a pointer; the axis stays as it was when the drag began. */
  function under(event) {
    const box = plot.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return { bar: barAt(state.base, share[0]), value: valueAt(anchor?.range ?? axis(state), share[1]) };
  }

  function drag(event) {
    const { bar, value } = under(event), from = event.shiftKey ? anchor : (anchor.last ?? anchor);
    const before = event.shiftKey ? anchor.state : state; // a line is drawn anew from where the drag began
    now = bar;
    anchor.last = { bar, value };
    change(withLine(before, from.bar, from.value, bar, value));
  }

  plot.addEventListener("pointerdown", (event) => {
    if (locked || event.button !== 0) return;
    plot.focus({ preventScroll: true, focusVisible: false });
    plot.setPointerCapture?.(event.pointerId);
    anchor = { ...under(event), state, range: axis(state) };
    drag(event);
  });
  plot.addEventListener("pointermove", (event) => {
    if (anchor) return drag(event);
    now = under(event).bar;
    open = true;
    draw();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    plot.addEventListener(name, () => (anchor = null));
  }
  plot.addEventListener("pointerleave", () => {
    if (anchor || plot.contains(document.activeElement)) return;
    open = false;
    draw();
  });
  plot.addEventListener("dblclick", (event) => {
    if (!locked) change(withBar(state, bars(state.base)[under(event).bar], restOf(state)));
  });
  plot.addEventListener("focus", () => ((open = true), draw()));
  plot.addEventListener("blur", () => ((open = false), draw()));
  plot.addEventListener("keydown", (event) => {
    const count = bars(state.base).length, move = moved(event.key, now, count);
    const value = locked ? null : typed(event.key, state, bars(state.base)[now]);
    if (move === null && value === null) return;
    event.preventDefault();
    event.stopPropagation(); // or ComfyUI would delete the node, or move it
    if (move !== null) now = move;
    if (value === null) draw();
    else change(withBar(state, bars(state.base)[now], value));
  });
  choice.addEventListener("change", () => {
    const name = choice.value;
    if (choice.selectedIndex > 0) write(PRESETS[name] ?? "");
    show(choice.selectedIndex > 0 ? PRESETS[name] : format(state), state.base);
  });
  reset.addEventListener("click", () => {
    const text = format({ ...parse("", state.base), comments: state.comments, parts: state.parts });
    write(text);
    show(text, state.base);
  });
  for (const part of [plot, choice, reset]) {
    // Drawing must not drag the node, and a double click must not open its menus.
    for (const name of ["pointerdown", "mousedown", "pointermove", "dblclick"]) {
      part.addEventListener(name, (event) => event.stopPropagation());
    }
  }
  show("", "flux1");
  return { element, show };
}

/** Where a key moves to, or null. */
function moved(key, now, count) {
  const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: count - 1 }[key];
  return to === undefined ? null : Math.min(count - 1, Math.max(0, to));
}

/** The value a key gives a bar, or null. */
function typed(key, state, bar) {
  if (key === "Delete" || key === "Backspace") return restOf(state);
  const by = { ArrowUp: STEP, ArrowDown: -STEP, PageUp: 5 * STEP, PageDown: -5 * STEP }[key];
  return by === undefined ? null : Number((valueOf(state, bar) + by).toFixed(4));
}

function makers(document) {
  return {
    make(tag, name = "", ...inside) {
      const element = document.createElement(tag);
      if (name) element.className = name;
      element.append(...inside);
      return element;
    },
    place(tag, attributes) {
      const element = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
      return element;
    },
  };
}

/** One group a bar: its column faint behind it, and the bar from zero to its value. */
function drawBars(picture, place, state, { low, high }, now) {
  const y = (value) => (HIGH * (high - value)) / (high - low);
  const groups = places(state.base).map((spot, i) => {
    const value = valueOf(state, spot), x = WIDE * spot.x + 1, width = WIDE * spot.width - 2;
    const group = place("g", i === now ? { class: "now" } : {});
    const top = Math.min(y(value), y(0)), height = Math.max(2, Math.abs(y(value) - y(0)));
    group.append(
      place("rect", { class: "back", x, width, y: 0, height: HIGH }),
      place("rect", { class: "bar", x, width, y: top, height }),
    );
    return group;
  });
  const rule = (value, name) => place("line", { class: name, x1: 0, x2: WIDE, y1: y(value), y2: y(value) });
  picture.replaceChildren(...groups, rule(1, "one"), rule(0, "zero"));
}

/** The axis' numbers, and under each kind its name and its blocks' numbers. */
function labels(make, base, all, { low, high }) {
  const ticks = [...new Set([0, 1, low])].filter((v) => v <= high).map((value) => {
    const tick = make("div", "tick", String(value));
    tick.style.top = `${(100 * (high - value)) / (high - low)}%`;
    return tick;
  });
  const kinds = KINDS[base].map(([kind, , count]) => {
    const name = make("div", "kind", count > 5 ? `${kind} 0 to ${count - 1}` : kind);
    name.style.left = `${100 * all.find((spot) => spot.kind === kind).x}%`;
    return name;
  });
  return [...ticks, ...kinds];
}
