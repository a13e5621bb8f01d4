// The stage of a comparison: two pictures or videos in one frame, over each other with a slider, or beside each other.
import { CENTER, shareAt, shareBy, shareWords } from "./compare.mjs";

/** Events that must not reach the graph: a drag would move the node, a double click would open its menus. */
export function keepEvents(element) {
  for (const name of ["pointerdown", "mousedown", "pointermove", "dblclick"]) {
    element.addEventListener(name, (event) => {
      if (!event.button || event.button < 0) event.stopPropagation(); // the middle button moves the graph, here as elsewhere
    });
  }
}

/**
 * @param {(tag: string, given?: object, ...inside: (Node | string)[]) => HTMLElement} make
 * @param {[HTMLElement, HTMLElement]} media before and after
 * @param {{key?: (event: KeyboardEvent) => boolean, wheel?: (delta: number) => boolean}} [more] keys and wheel beside
 *   the slider's own; they tell whether they were meant
 * @returns {{element: HTMLElement, say: (words: string) => void, ratio: (value: number) => void, beside: (on: boolean) => void}}
 */
export function makeStage(make, media, { key = () => false, wheel = () => false } = {}) {
  const sides = ["before", "after"].map((name, i) =>
    make("div", { className: `side ${name}` }, media[i], make("span", { className: "label" }, name)),
  );
  const divider = make("div", { className: "divider" }, make("span", { className: "grip" }));
  const frame = make("div", { className: "frame" }, sides[1], sides[0], divider), nothing = make("div", { className: "nothing" });
  const element = make("div", { className: "stage", tabIndex: 0 }, frame, nothing);
  let share = CENTER, isBeside = false, dragging = false;

  function set(to) {
    share = to;
    element.style.setProperty("--share", `${share * 100}%`);
    element.setAttribute("aria-valuenow", String(Math.round(share * 100)));
    element.setAttribute("aria-valuetext", shareWords(share));
  }

  function beside(on) {
    isBeside = on;
    element.classList.toggle("beside", on);
    element.setAttribute("role", on ? "group" : "slider");
    element.setAttribute("aria-label", on ? "Before and after" : "Slider between before and after");
    element.title = on ? "" : "Drag, or press the arrow keys. Double-click for the middle.";
  }

  const drag = (event) => {
    const box = frame.getBoundingClientRect();
    set(shareAt(event.clientX, box.left, box.width));
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.focus({ preventScroll: true, focusVisible: false });
    if (isBeside) return;
    element.setPointerCapture?.(event.pointerId);
    dragging = true;
    drag(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (dragging) drag(event);
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    element.addEventListener(name, () => (dragging = false));
  }
  element.addEventListener("dblclick", () => {
    if (!isBeside) set(CENTER);
  });
  element.addEventListener("keydown", (event) => {
    const to = isBeside || event.ctrlKey || event.metaKey || event.altKey ? null : shareBy(event, share);
    if (to !== null) set(to);
    if (to === null && !key(event)) return;
    event.preventDefault();
    event.stopPropagation(); // or ComfyUI would move the node
  });
  element.addEventListener("wheel", (event) => {
    // Without the focus the wheel zooms the graph, as everywhere.
    if (!element.contains(element.ownerDocument?.activeElement) || event.ctrlKey || !wheel(event.deltaY)) return;
    event.preventDefault();
    event.stopPropagation();
  }, { passive: false });
  keepEvents(element);
  element.setAttribute("aria-valuemin", "0");
  element.setAttribute("aria-valuemax", "100");
  set(CENTER);
  beside(false);

  return {
    element,
    beside,
    say: (words) => {
      nothing.textContent = words;
      frame.hidden = Boolean(words);
    },
    ratio: (value) => element.style.setProperty("--ratio", String(value)),
  };
}

/** A button with its words; `press` runs on a click. */
export function makeButton(make, words, title, press) {
  const button = make("button", { type: "button", title, onclick: press }, words);
  keepEvents(button);
  return button;
}
