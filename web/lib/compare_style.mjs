// The comparison's clothes: ComfyUI's own colours, like the training panel's.

/** The least heights in pixels; Vue nodes ask the element for them, the classic renderer asks the widget. */
export const COMPARE_HEIGHT = { pictures: 260, videos: 290 };

const C = ".flux-atelier-compare", LINE = "var(--border-color, #4e4e4e)";
const RANGE = (part, style) => `${C} input[type="range"]${part} { ${style} }`; // browsers drop a rule that names a part of another's
const TRACK = "height: 4px; border-radius: 2px; background: linear-gradient(to right, currentColor var(--at, 0%), " +
  "color-mix(in srgb, currentColor 30%, transparent) var(--at, 0%));";
const THUMB = "appearance: none; -webkit-appearance: none; width: 12px; height: 12px; border: 0; border-radius: 6px; background: currentColor;";

export const COMPARE_STYLE = `
${C} { box-sizing: border-box; width: 100%; height: 100%; display: flex; flex-direction: column; gap: 6px; padding: 8px; overflow: hidden;
  border-radius: 6px; border: 1px solid ${LINE}; background: var(--comfy-input-bg, #222); color: var(--input-text, var(--fg-color, #ddd));
  font: 11px/1.35 system-ui, sans-serif; text-align: left; user-select: none; }
${C}.pictures { min-height: ${COMPARE_HEIGHT.pictures}px; } ${C}.videos { min-height: ${COMPARE_HEIGHT.videos}px; }
${C} [hidden] { display: none !important; }
${C} button { font: inherit; color: inherit; margin: 0; padding: 2px 7px; background: none; border: 1px solid ${LINE}; border-radius: 4px;
  cursor: pointer; white-space: nowrap; }
${C} button:hover:enabled { border-color: currentColor; }
${C} button[aria-pressed="true"] { text-decoration: underline; text-underline-offset: 3px; text-decoration-thickness: 2px; font-weight: 600; }
${C} :disabled { cursor: default; opacity: 0.5; }
${C} :focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
${C} .line { flex: none; display: flex; gap: 8px; align-items: center; min-height: 21px; }
${C} .facts { flex: 1 1 0; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-variant-numeric: tabular-nums; }
${C} .pages { flex: none; display: flex; gap: 4px; align-items: center; }
${C} .place, ${C} .time { font-variant-numeric: tabular-nums; white-space: nowrap; padding: 0 3px; }
${C} .bar button { min-width: 52px; }
${C} input[type="range"] { flex: 1; min-width: 40px; height: 16px; margin: 0; padding: 0; border: 0; background: none; color: inherit; cursor: pointer;
  appearance: none; -webkit-appearance: none; touch-action: none; }
${RANGE("::-webkit-slider-runnable-track", TRACK)}
${RANGE("::-moz-range-track", TRACK)}
${RANGE("::-webkit-slider-thumb", `${THUMB} margin-top: -4px;`)}
${RANGE("::-moz-range-thumb", THUMB)}
${C} .stage { position: relative; flex: 1 1 120px; min-height: 120px; container-type: size; display: grid; place-items: center; overflow: hidden;
  border-radius: 3px; cursor: ew-resize; touch-action: none; }
${C} .frame { position: relative; width: min(100cqw, calc(100cqh * var(--ratio, 1))); aspect-ratio: var(--ratio, 1); }
${C} .side { position: absolute; inset: 0; }
${C} .side.before { clip-path: inset(0 calc(100% - var(--share)) 0 0); }
${C} .side.after { clip-path: inset(0 0 0 var(--share)); }
${C} .side img, ${C} .side video { position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; object-fit: contain; display: block;
  pointer-events: none; }
${C} .label { position: absolute; top: 4px; left: 4px; padding: 0 5px; line-height: 16px; border-radius: 3px; color: #fff; background: rgba(0, 0, 0, 0.72);
  pointer-events: none; }
${C} .after .label { left: auto; right: 4px; }
${C} .divider { position: absolute; top: 0; bottom: 0; left: var(--share); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px rgba(0, 0, 0, 0.55); pointer-events: none; }
${C} .grip { position: absolute; top: 50%; left: 50%; width: 10px; height: 26px; transform: translate(-50%, -50%); border-radius: 5px; background: #fff;
  box-shadow: 0 0 0 1px rgba(0, 0, 0, 0.55); }
${C} .stage.beside { cursor: default; touch-action: auto; }
${C} .beside .frame { width: 100%; height: 100%; aspect-ratio: auto; display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 4px; }
${C} .beside .side { position: relative; inset: auto; clip-path: none; } ${C} .beside .side.before { order: -1; }
${C} .beside .after .label { left: 4px; right: auto; }
${C} .beside .divider { display: none; }
${C} .nothing { position: absolute; inset: 0; display: grid; place-items: center; text-align: center; cursor: default; }
${C} .nothing:empty { display: none; }
`;
