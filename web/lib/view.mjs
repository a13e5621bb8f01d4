// The panel's elements: made once, then told what to show. The document comes in as an argument, so nothing here is
// global and the tests bring their own.
import { plot, SIDE, TABS } from "./chart.mjs";
import { figures, headline, latestNote, noteLine } from "./figures.mjs";

const SVG = "http://www.w3.org/2000/svg";
const MOST_PICTURES = 12;
/** The buttons: what is asked, what stands on it, and what stands there until it is done. */
export const BUTTONS = {
  stop: ["Stop and keep", "Stopping", "Finish the run at this step, keep the LoRA, and let the graph go on."],
  save: ["Checkpoint now", "Saving", "Save a state after this step, to go on from there."],
  sample: ["Sample now", "Sampling", "Draw a sample picture after this step."],
};

/**
 * @param {Document} document
 * @param {{wish: (wish: string) => void, picture: (curve: object, sample: object) => string}} actions
 * @returns {{element: HTMLElement, show: (curve: import("./curve.mjs").Curve) => void}}
 */
export function makeView(document, actions) {
  const make = (tag, name = "", ...inside) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...inside);
    return element;
  };
  let shown = null, tab = "loss";
  const head = make("div", "line head"), note = make("div", "line note"), plan = make("div", "line plan");
  const chart = makeChart(document, make), numbers = makeFigures(make), strip = makeStrip(make, actions.picture);
  const tabs = Object.keys(TABS).map((name) =>
    button(make, name, "", () => {
      tab = name;
      if (shown) show(shown);
    }),
  );
  const wishes = Object.keys(BUTTONS).map((wish) =>
    button(make, BUTTONS[wish][0], BUTTONS[wish][2], () => actions.wish(wish)),
  );
  const element = make(
    "div", "flux-atelier-panel", head, make("div", "tabs", ...tabs), chart.element, numbers.element, note, plan,
    strip.element, make("div", "wishes", ...wishes),
  );

  function show(curve) {
    shown = curve;
    say(head, headline(curve));
    say(note, latestNote(curve), curve.notes.map(noteLine).join("\n"));
    say(plan, curve.plan.split("\n")[0], curve.plan); // the whole of it, a table, is in the title
    tabs.forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === tab)));
    chart.show(plot(curve, tab));
    numbers.show(figures(curve));
    strip.show(curve);
    Object.keys(BUTTONS).forEach((wish, i) => {
      const asked = curve.asked.includes(wish);
      say(wishes[i], BUTTONS[wish][asked ? 1 : 0], BUTTONS[wish][2]);
      wishes[i].disabled = !curve.running || asked;
    });
  }

  return { element, show };
}

function say(element, text, title = text) {
  element.textContent = text;
  element.title = title;
}

function button(make, text, title, press) {
  const made = make("button");
  made.type = "button";
  say(made, text, title);
  made.addEventListener("click", press);
  // Pressing must not drag the node or close its menus.
  for (const name of ["pointerdown", "mousedown", "dblclick"]) made.addEventListener(name, (e) => e.stopPropagation());
  return made;
}

function makeChart(document, make) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${SIDE} ${SIDE}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // the figures below say the same in words
  const axes = ["high", "low", "first", "last"].map((name) => make("div", `axis ${name}`));
  const legend = make("div", "legend"), nothing = make("div", "nothing");

  const line = ({ kind, path, share }) => {
    const made = document.createElementNS(SVG, "path");
    made.setAttribute("class", kind);
    made.setAttribute("d", path);
    paint(made, share);
    return made;
  };
  const entry = ({ kind, label, share }) => paint(make("span", kind, label), share);

  function show(drawn) {
    say(nothing, drawn ? "" : "nothing measured yet");
    axes.forEach((axis, i) => say(axis, drawn ? drawn[["high", "low", "first", "last"][i]] : ""));
    svg.replaceChildren(...(drawn?.lines ?? []).map(line));
    legend.replaceChildren(...(drawn?.lines ?? []).filter((l) => l.label).map(entry));
  }

  return { element: make("div", "chart", svg, ...axes, legend, nothing), show };
}

/** A line between two colours has its share of the second. */
function paint(element, share) {
  if (share !== undefined) element.style.setProperty("--share", `${Math.round(share * 100)}%`);
  return element;
}

function makeFigures(make) {
  const values = new Map();
  const element = make("dl", "figures");
  function show(pairs) {
    for (const [label, value] of pairs) {
      if (!values.has(label)) {
        values.set(label, make("dd"));
        element.append(make("div", "", make("dt", "", label), values.get(label)));
      }
      say(values.get(label), value);
    }
  }
  return { element, show };
}

/** The latest pictures, the newest first; a picture that stays keeps its element, so it does not flicker. */
function makeStrip(make, address) {
  const element = make("div", "strip");
  let links = new Map();
  function link(href, step) {
    const picture = make("img"), made = make("a", "", picture, make("span", "", String(step)));
    picture.src = href;
    picture.alt = made.title = `sample at step ${step}`;
    picture.draggable = false;
    Object.assign(made, { href, target: "_blank", rel: "noopener" });
    made.addEventListener("pointerdown", (e) => e.stopPropagation());
    return made;
  }
  function show(curve) {
    const latest = [...curve.samples].sort((a, b) => b.step - a.step).slice(0, MOST_PICTURES);
    const next = new Map();
    for (const sample of latest) {
      const href = address(curve, sample);
      next.set(href, links.get(href) ?? link(href, sample.step));
    }
    const same = links.size === next.size && [...next.keys()].every((href, i) => href === [...links.keys()][i]);
    links = next;
    if (!same) element.replaceChildren(...links.values());
  }
  return { element, show };
}
