// The panel's clothes. Colours of text are the theme's own pair for inputs; lines have one set for each kind of theme.

/** The panel's least height in pixels; Vue nodes ask the element for it, the classic renderer asks the widget. */
export const HEIGHT = 360;

/** Line colours, tested for contrast against the input background of ComfyUI's own themes. */
export const COLORS = {
  dark: { raw: "#6889a3", mean: "#8fccf5", validation: "#f2a86f" },
  light: { raw: "#46677f", mean: "#08406c", validation: "#7d3400" },
};

const lines = (set) => Object.entries(set).map(([name, color]) => `--atelier-${name}:${color}`).join(";");

export const STYLE = `
.flux-atelier-panel { ${lines(COLORS.light)}; box-sizing: border-box; width: 100%; height: 100%; min-height: ${HEIGHT}px;
  display: flex; flex-direction: column; gap: 5px; padding: 8px; overflow: hidden; border-radius: 6px;
  border: 1px solid var(--border-color, #4e4e4e); background: var(--comfy-input-bg, #222);
  color: var(--input-text, var(--fg-color, #ddd)); font: 11px/1.35 system-ui, sans-serif; text-align: left;
  user-select: none; }
.dark-theme .flux-atelier-panel { ${lines(COLORS.dark)} }
.flux-atelier-told { box-sizing: border-box; width: 100%; height: 100%; margin: 0; padding: 7px; overflow: auto;
  border-radius: 6px; background: var(--comfy-input-bg, #222); color: var(--input-text, var(--fg-color, #ddd));
  font: 11px/16px ui-monospace, monospace; white-space: pre; text-align: left; user-select: text; }
.flux-atelier-panel button { font: inherit; color: inherit; background: none; border: 1px solid transparent;
  border-radius: 4px; margin: 0; padding: 2px 7px; cursor: pointer; white-space: nowrap; }
.flux-atelier-panel button:hover:enabled, .flux-atelier-panel a:hover img { border-color: currentColor; }
.flux-atelier-panel :focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
.flux-atelier-panel .line { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: none; }
.flux-atelier-panel .line:empty, .flux-atelier-panel .strip:empty { display: none; }
.flux-atelier-panel .tabs { display: flex; gap: 2px; flex: none; overflow: hidden; margin: 0 -4px; }
.flux-atelier-panel .tabs button { padding: 1px 5px; }
.flux-atelier-panel .tabs button[aria-pressed="true"] { text-decoration: underline; text-underline-offset: 3px;
  text-decoration-thickness: 2px; font-weight: 600; }
.flux-atelier-panel .chart { position: relative; flex: 1 1 100px; min-height: 90px; padding: 16px 0 15px 42px; }
.flux-atelier-panel svg { display: block; width: 100%; height: 100%; overflow: hidden;
  border-left: 1px solid var(--border-color, #4e4e4e); border-bottom: 1px solid var(--border-color, #4e4e4e); }
.flux-atelier-panel path { fill: none; stroke: var(--color); stroke-width: 2px; stroke-linecap: round;
  stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.flux-atelier-panel path.raw { stroke-width: 1px; }
.flux-atelier-panel .raw { --color: var(--atelier-raw); }
.flux-atelier-panel .mean { --color: var(--atelier-mean); }
.flux-atelier-panel .validation { --color: var(--atelier-validation); }
.flux-atelier-panel .level { --color: color-mix(in srgb, var(--atelier-validation) var(--share),
  var(--atelier-mean)); }
.flux-atelier-panel .axis { position: absolute; font-variant-numeric: tabular-nums; line-height: 1; }
.flux-atelier-panel .high { top: 16px; left: 0; width: 37px; text-align: right; }
.flux-atelier-panel .low { bottom: 15px; left: 0; width: 37px; text-align: right; }
.flux-atelier-panel .first { bottom: 0; left: 42px; }
.flux-atelier-panel .last { bottom: 0; right: 0; }
.flux-atelier-panel .legend { position: absolute; top: 0; right: 0; display: flex; gap: 10px; }
.flux-atelier-panel .legend span::before { content: ""; display: inline-block; width: 12px; height: 3px;
  border-radius: 2px; margin-right: 4px; vertical-align: middle; background: var(--color); }
.flux-atelier-panel .nothing { position: absolute; inset: 0; display: grid; place-items: center; }
.flux-atelier-panel .figures { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 3px 8px;
  flex: none; margin: 0; }
.flux-atelier-panel .figures div { min-width: 0; overflow: hidden; }
.flux-atelier-panel dt { font-size: 10px; line-height: 1.2; margin: 0; font-weight: 400; }
.flux-atelier-panel dd { margin: 0; font-size: 12px; line-height: 1.25; font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.flux-atelier-panel .strip { display: flex; gap: 4px; flex: none; height: 48px; overflow: hidden; }
.flux-atelier-panel .strip a { position: relative; flex: none; display: block; }
.flux-atelier-panel .strip img { display: block; height: 48px; width: auto; max-width: 144px; min-width: 28px;
  box-sizing: border-box; border-radius: 3px; border: 1px solid transparent; object-fit: contain; }
.flux-atelier-panel .strip span { position: absolute; left: 1px; bottom: 1px; padding: 0 3px; font-size: 9px;
  line-height: 13px; border-radius: 2px; color: #fff; background: rgba(0, 0, 0, 0.72); pointer-events: none; }
.flux-atelier-panel .wishes { display: flex; gap: 6px; flex: none; }
.flux-atelier-panel .wishes button { flex: 1 1 0; padding: 3px 4px; border-color: var(--border-color, #4e4e4e); }
.flux-atelier-panel .wishes button:disabled { cursor: default; border-style: dashed; opacity: 0.75; }
`;
