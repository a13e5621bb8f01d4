// Block weights as text and as bars: the words of core/lora/blocks.py as far as they are about whole blocks. The text is
// the only value that is stored; bars are read out of it and written back into it.

/**
 * @typedef {"flux1" | "flux2" | "sd3" | "sdxl"} Base
 * @typedef {{kind: string, n: number}} Bar
 * @typedef {{base: Base, comments: string[], fallback: number | null, blocks: Record<string, number[]>,
 *   parts: string[], problem: string}} Weights
 */

/** The kinds of blocks of each base: name, beginning of the modules' names, how many the largest model has. */
export const KINDS = {
  flux1: [["double", "double_blocks", 19], ["single", "single_blocks", 38]],
  flux2: [["double", "double_blocks", 8], ["single", "single_blocks", 48]],
  sd3: [["joint", "joint_blocks", 38]],
  sdxl: [["input", "input_blocks", 9], ["middle", "middle_block", 3], ["output", "output_blocks", 9]],
};

const PARTS = ["attention", "mlp", "modulation", "qkv", "proj"];
const HALVES = ["img", "txt"];
const ENCODERS = ["clip_l", "clip_g", "t5xxl"];
const FLUX = ["img_in", "txt_in", "time_in", "guidance_in", "final_layer"];
const STREAMS = ["double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"];

/** Names beside whole blocks: parts of any block, what stands in no block, and in the blocks of each kind. */
export const NAMES = {
  flux1: {
    parts: [...PARTS, ...HALVES], outside: [...FLUX, "vector_in", ...ENCODERS],
    double: ["img_attn", "img_mlp", "img_mod", "txt_attn", "txt_mlp", "txt_mod"],
    single: ["linear1", "linear2", "modulation", "norm"],
  },
  flux2: {
    parts: [...PARTS, ...HALVES], outside: [...FLUX, ...STREAMS, ...ENCODERS],
    double: ["img_attn", "img_mlp", "txt_attn", "txt_mlp"], single: ["linear1", "linear2", "norm"],
  },
  sd3: {
    parts: [...PARTS, ...HALVES],
    outside: ["context_embedder", "final_layer", "t_embedder", "x_embedder", "y_embedder", ...ENCODERS],
    joint: ["context_block", "x_block"],
  },
  sdxl: {
    parts: PARTS, outside: ["label_emb", "out", "time_embed", ...ENCODERS],
    input: ["0", "1"], output: ["0", "1", "2"],
    middle: [
      "emb_layers", "in_layers", "norm", "out_layers", "proj_in", "proj_out", "skip_connection", "transformer_blocks",
    ],
  },
};

/** What people start from. Style and subject are the training options' block presets. */
export const PRESETS = {
  everything: "",
  "style blocks": "default = 0\nsingle.19-37 = 1",
  "subject blocks": "default = 0\nsingle.7+12+16+20 = 1",
  "double blocks only": "single = 0",
  "single blocks only": "double = 0",
  "no modulation": "modulation = 0",
  "fading in": "double = 0..0.5\nsingle = 0.5..1",
  "fading out": "double = 1..0.5\nsingle = 0.5..0",
};

/** Steps of a dragged value and of the arrow keys. */
export const STEP = 0.05;

const NUMBER = "[+-]?(?:\\d+(?:\\.\\d+)?|\\.\\d+)(?:[eE][+-]?\\d+)?";
const VALUE = new RegExp(`^(${NUMBER})(?:\\.\\.(${NUMBER}))?$`);
const SPANS = /^\d+(-\d+)?(\+\d+(-\d+)?)*$/;
const VECTORS = {
  57: { before: [], after: [] },
  58: { before: [["text", "other"]], after: [] },
  61: {
    before: [["clip_l", "clip_g"], ["t5xxl"], ["img_in", "txt_in", "time_in", "vector_in", "guidance_in"]],
    after: [["final_layer"]],
  },
};

/** All bars of a base, from left to right. @returns {Bar[]} */
export function bars(base) {
  return KINDS[base].flatMap(([kind, , count]) => Array.from({ length: count }, (_, n) => ({ kind, n })));
}

/**
 * Read a text. What is not about whole blocks is kept as it is, in `parts`.
 * @param {string} text
 * @param {Base} base
 * @returns {Weights}
 */
export function parse(text, base) {
  const state = {
    base, comments: [], fallback: null, parts: [], problem: "",
    blocks: Object.fromEntries(KINDS[base].map(([kind, , count]) => [kind, Array(count).fill(null)])),
  };
  const vector = [], entries = [];
  let stray = "";
  for (const line of text.split(/\r?\n/)) {
    if (line.trim().startsWith("#")) state.comments.push(line.trim());
    for (const entry of line.split("#")[0].split(/[,;]/).map((e) => e.trim()).filter(Boolean)) {
      if (entry.includes("=")) entries.push(entry);
      else if (entries.length) stray ||= `${entry} stands among patterns`;
      else vector.push(...entry.split(/\s+/));
    }
  }
  state.problem = stray || readVector(state, vector) || entries.map((entry) => readEntry(state, entry)).find(Boolean) || "";
  for (const values of Object.values(state.blocks)) values.forEach((v, n) => (values[n] = v ?? state.fallback ?? 1));
  return state;
}

/** What is wrong with a vector, or an empty string; its values go into the state. */
function readVector(state, words) {
  if (!words.length) return "";
  const odd = words.find((word) => !new RegExp(`^${NUMBER}$`).test(word));
  if (odd) return `${odd} is no entry`;
  if (state.base !== "flux1") return "a vector is for flux1";
  const layout = VECTORS[words.length];
  if (!layout) return `a vector of ${words.length} numbers, not of 57, 58 or 61`;
  const numbers = words.map(Number), { before, after } = layout;
  const part = (names, value) => names.map((name) => `${name} = ${say(value)}`);
  state.parts.push(...before.flatMap((names, i) => part(names, numbers[i])));
  state.parts.push(...after.flatMap((names, i) => part(names, numbers[numbers.length - after.length + i])));
  bars("flux1").forEach(({ kind, n }, i) => (state.blocks[kind][n] = numbers[before.length + i]));
  return "";
}

/** What is wrong with an entry, or an empty string; what it says goes into the state. */
function readEntry(state, entry) {
  const at = entry.lastIndexOf("="), pattern = entry.slice(0, at).trim();
  const value = VALUE.exec(entry.slice(at + 1).replaceAll(" ", ""));
  if (!value || !pattern) return `${entry} is no entry`;
  const start = Number(value[1]), end = Number(value[2] ?? value[1]);
  if (pattern === "default" || pattern === "*") {
    if (value[2]) return `${pattern} has no numbers for a ramp`;
    state.fallback = start;
    if (pattern === "*") {
      state.parts = [];
      for (const values of Object.values(state.blocks)) values.fill(start);
    }
    return "";
  }
  const [head, ...rest] = pattern.split(".");
  const kind = KINDS[state.base].find(([name, prefix]) => head === name || head === prefix);
  const spans = SPANS.test(rest[0] ?? "") ? rest[0] : null;
  const whole = kind && rest.length === (spans || rest[0] === "*" ? 1 : 0);
  if (!whole) {
    state.parts.push(entry);
    const odd = kind ? strange(NAMES[state.base], kind[0], rest.slice(spans || rest[0] === "*" ? 1 : 0)) :
      strange(NAMES[state.base], "outside", [head]);
    return odd ? `no block or part is called ${odd}` : "";
  }
  return fill(state.blocks[kind[0]], spans ?? `0-${kind[2] - 1}`, start, end) ? "" :
    `${pattern}: ${kind[0]} goes from 0 to ${kind[2] - 1}`;
}

/** The first word of a pattern if nothing is called so, or an empty string; a glob is left to the server. */
function strange(names, where, [word, ...more]) {
  if (/[*?]/.test(word)) return "";
  const known = where === "outside" ? [...names.outside, "text", "other"] : names[where];
  return known.includes(word) || (!more.length && names.parts.includes(word)) ? "" : word;
}

/** Give blocks a value, or a ramp from the first number to the last; false if a number is none of theirs. */
function fill(values, spans, start, end) {
  const ranges = spans.split("+").map((span) => span.split("-").map(Number)).map(([a, b]) => [a, b ?? a]);
  if (ranges.some(([a, b]) => a > b || b >= values.length)) return false;
  const first = Math.min(...ranges.map((r) => r[0])), last = Math.max(...ranges.map((r) => r[1]));
  for (const [a, b] of ranges) {
    for (let n = a; n <= b; n++) values[n] = start + (last > first ? ((end - start) * (n - first)) / (last - first) : 0);
  }
  return true;
}

/**
 * Write weights as text: comments, the default, blocks, and then what is about parts.
 * @param {Weights} state
 */
export function format(state) {
  const fallback = state.fallback ?? 1;
  const blocks = KINDS[state.base].flatMap(([kind]) => entriesOf(kind, state.blocks[kind], fallback));
  return [
    ...state.comments, ...(fallback === 1 ? [] : [`default = ${say(fallback)}`]), ...blocks, ...state.parts,
  ].join("\n");
}

/** The entries of one kind: equal values together, ramps as ramps, what has the default left out. */
function entriesOf(kind, values, fallback) {
  const flat = new Map(), ramps = [];
  for (const { first, last } of runs(values, fallback)) {
    const span = first === last ? `${first}` : `${first}-${last}`;
    if (say(values[first]) !== say(values[last])) ramps.push([span, `${say(values[first])}..${say(values[last])}`]);
    else if (say(values[first]) !== say(fallback)) {
      flat.set(say(values[first]), [...(flat.get(say(values[first])) ?? []), span]);
    }
  }
  const entries = [...[...flat].map(([value, spans]) => [spans.join("+"), value]), ...ramps];
  const whole = `0-${values.length - 1}`;
  return entries.map(([span, value]) => `${kind}${span === whole ? "" : `.${span}`} = ${value}`);
}

/** Stretches of equal values, or of three and more that rise or fall evenly. */
function runs(values, fallback) {
  const found = [];
  for (let first = 0; first < values.length; ) {
    let last = stretch(values, first);
    const even = Math.abs((values[first + 1] ?? values[first]) - values[first]) > 1e-6;
    if (even && last - first < 2) last = first;
    // The end of a slope that a level begins with belongs to the level, unless that goes without saying.
    const level = last + 1 < values.length && say(values[last]) === say(values[last + 1]);
    if (even && last > first && level && say(values[last]) !== say(fallback)) last -= 1;
    if (even && last - first < 2) last = first;
    found.push({ first, last });
    first = last + 1;
  }
  return found;
}

/** The last place up to which values change by the same step. */
function stretch(values, first) {
  const step = values[first + 1] - values[first];
  let last = first;
  while (last + 1 < values.length && Math.abs(values[last + 1] - values[first] - step * (last + 1 - first)) < 1e-6) last++;
  return last;
}

const say = (value) => String(Number(value.toFixed(4)));

/** The weights with one bar at a value. @param {Weights} state @param {Bar} bar @returns {Weights} */
export function withBar(state, { kind, n }, value) {
  const values = [...state.blocks[kind]];
  values[n] = value;
  return { ...state, blocks: { ...state.blocks, [kind]: values } };
}

/**
 * The weights with a straight line from one bar to another, across kinds too.
 * @param {Weights} state
 * @param {number} from place among all bars
 * @param {number} to
 */
export function withLine(state, from, start, to, end) {
  const all = bars(state.base), step = to > from ? 1 : -1;
  let next = state;
  for (let place = from; ; place += step) {
    const share = from === to ? 1 : (place - from) / (to - from);
    next = withBar(next, all[place], start + (end - start) * share);
    if (place === to) return next;
  }
}

/** The value of a bar. @param {Weights} state @param {Bar} bar */
export const valueOf = (state, { kind, n }) => state.blocks[kind][n];

/** The value a bar goes back to. @param {Weights} state */
export const restOf = (state) => state.fallback ?? 1;

/** The axis: 0 to 1.5, wider where values are. @param {Weights} state */
export function axis(state) {
  const values = Object.values(state.blocks).flat();
  const up = (v) => Math.ceil(v * 2 - 1e-9) / 2;
  return { low: -up(Math.max(0, ...values.map((v) => -v))) + 0, high: Math.max(1.5, up(Math.max(...values))) };
}

/** Where bars stand in a picture of width 1: a gap between kinds as wide as a bar. */
export function places(base) {
  const all = bars(base), gaps = KINDS[base].length - 1, width = 1 / (all.length + gaps);
  let gap = 0;
  return all.map((bar, i) => {
    if (i && all[i - 1].kind !== bar.kind) gap++;
    return { ...bar, x: (i + gap) * width, width };
  });
}

/** The place among all bars that is nearest to a share of the width. */
export function barAt(base, share) {
  const distances = places(base).map(({ x, width }) => Math.abs(x + width / 2 - share));
  return distances.indexOf(Math.min(...distances));
}

/** The value at a share of the height from the top, on the step. */
export function valueAt({ low, high }, share) {
  const value = high - (high - low) * Math.min(1, Math.max(0, share));
  return Number((Math.round(value / STEP) * STEP).toFixed(4));
}

/** A bar in words. @param {Weights} state @param {Bar} bar */
export const words = (state, bar) => `${bar.kind} ${bar.n}: ${say(Number(valueOf(state, bar).toFixed(2)))}`;
