// The gallery's clothes: ComfyUI's own colours, and shades of them; nothing moves and nothing shines.

/** The least height in pixels; Vue nodes ask the element for it, the classic renderer asks the widget. */
export const GALLERY_HEIGHT = 460;

const SHADE = (percent) => `color-mix(in srgb, currentColor ${percent}%, transparent)`;
const G = ".flux-atelier-gallery";

export const GALLERY_STYLE = `
${G} { --kept: #145a2f; --refused: #8f2a17; --line: var(--border-color, #4e4e4e); --ground: var(--comfy-input-bg, #222);
  box-sizing: border-box; position: relative; width: 100%; height: 100%; min-height: ${GALLERY_HEIGHT}px; display: flex;
  flex-direction: column; overflow: hidden; border-radius: 6px; border: 1px solid var(--line); background: var(--ground);
  color: var(--input-text, var(--fg-color, #ddd)); font: 12px/1.4 system-ui, sans-serif; text-align: left; container-type: inline-size; }
.dark-theme ${G} { --kept: #6fce97; --refused: #ff9d85; }
${G} *, ${G} *::before { box-sizing: border-box; }
${G} [hidden] { display: none !important; }
${G} button, ${G} input, ${G} textarea { font: inherit; color: inherit; margin: 0; border: 1px solid var(--line); border-radius: 4px;
  background: transparent; padding: 3px 8px; }
${G} button { cursor: pointer; white-space: nowrap; }
${G} button:hover:enabled { border-color: currentColor; }
${G} button:disabled { opacity: 0.5; cursor: default; }
${G} input[type="range"] { width: 90px; padding: 0; border: 0; accent-color: currentColor; }
${G} ::placeholder { color: inherit; opacity: 0.65; }
${G} :focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
${G} .bar { flex: none; display: flex; flex-direction: column; gap: 6px; padding: 8px 8px 6px; border-bottom: 1px solid var(--line); }
${G} .head { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center; }
${G} .tabs { display: flex; gap: 2px; }
${G} .tabs button { border-color: transparent; }
${G} .tabs button[aria-selected="true"] { background: ${SHADE(14)}; font-weight: 600; }
${G} .counts { flex: 1; display: flex; flex-wrap: wrap; gap: 0 10px; font-variant-numeric: tabular-nums; }
${G} .tools { display: flex; gap: 6px; align-items: center; }
${G} .fields { display: flex; gap: 6px; }
${G} .fields input { min-width: 0; background: ${SHADE(5)}; }
${G} .filter { flex: 3 1 160px; } ${G} .order { flex: 1 1 90px; }
${G} .filter[aria-invalid="true"] { border-color: var(--refused); }
${G} .problem:empty { display: none; } ${G} .problem, ${G} .trouble { color: var(--refused); }
${G} .stale { padding: 0 6px; border-left: 3px solid currentColor; background: ${SHADE(7)}; }
${G} .main { position: relative; flex: 1 1 0; min-height: 0; }
${G} .cells { position: absolute; inset: 0; overflow: hidden scroll; outline-width: 1px !important; outline-offset: -1px !important; scrollbar-color: ${SHADE(45)} transparent; }
${G} .surface { position: relative; }
${G} .cell { position: absolute; top: 0; left: 0; padding: 3px; border-radius: 5px; cursor: default; user-select: none; contain: strict; }
${G} .cell:hover { background: ${SHADE(6)}; }
${G} .cell[aria-selected="true"] { background: ${SHADE(22)}; }
${G} .cell.focus { box-shadow: inset 0 0 0 1px ${SHADE(55)}; }
${G} .cells:focus .cell.focus { box-shadow: inset 0 0 0 2px currentColor; }
${G} .frame { height: calc(100% - 34px); border-radius: 3px; background: ${SHADE(6)}; overflow: hidden; }
${G} .frame img { width: 100%; height: 100%; object-fit: contain; display: block; }
${G} .name, ${G} .under { height: 16px; line-height: 16px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: 11px; }
${G} .under { display: flex; gap: 6px; }
${G} .note { flex: 1; overflow: hidden; text-overflow: ellipsis; }
${G} .lock { opacity: 0.8; }
${G} .verdict:empty, ${G} .note:empty { display: none; } ${G} .under .lock { margin-left: auto; }
${G} [data-decision="keep"] > .under .verdict { color: var(--kept); font-weight: 600; }
${G} [data-decision="reject"] > .under .verdict { color: var(--refused); font-weight: 600; }
${G} [data-decision="keep"] > .frame { box-shadow: inset 0 -3px 0 var(--kept); }
${G} [data-decision="reject"] > .frame img, ${G} .copy[data-decision="reject"] img { opacity: 0.35; }
${G} .empty-note { position: absolute; inset: 30% 12% auto; text-align: center; pointer-events: none; }
${G} .foot { flex: none; display: flex; gap: 12px; align-items: center; min-height: 28px; padding: 3px 8px; border-top: 1px solid var(--line); }
${G} .foot .shown { font-variant-numeric: tabular-nums; white-space: nowrap; }
${G} .foot .says { flex: 1; text-align: right; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
${G} .foot .says:empty { display: none; }
${G} .foot .trouble { flex: 1; text-align: right; } ${G} .foot .trouble:empty { display: none; }
${G} .foot button { padding: 1px 8px; }
${G} .detail { position: absolute; inset: 0; display: flex; flex-direction: column; background: var(--ground); }
${G} .detail .top { flex: none; display: flex; gap: 6px; align-items: center; padding: 6px 8px; }
${G} .title { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-weight: 600; }
${G} .done { display: flex; gap: 4px; align-items: center; white-space: nowrap; }
${G} .detail[data-decision="keep"] .title::before { content: "kept: "; color: var(--kept); }
${G} .detail[data-decision="reject"] .title::before { content: "rejected: "; color: var(--refused); }
${G} .body { flex: 1 1 0; min-height: 0; display: flex; }
${G} .stage { position: relative; flex: 1 1 0; min-width: 0; min-height: 0; background: ${SHADE(5)}; }
${G} .stage img, ${G} .stage svg { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
${G} .stage svg { pointer-events: none; } ${G} .stage .box { pointer-events: all; }
${G} .stage .gone { position: absolute; inset: 45% 0 auto; text-align: center; }
${G} .away { fill: #000; fill-opacity: 0.5; stroke: none; }
${G} .crop, ${G} .box { fill: none; stroke: #fff; stroke-width: 2px; vector-effect: non-scaling-stroke; paint-order: stroke; }
${G} .crop { stroke-dasharray: 7 4; filter: drop-shadow(0 0 1px #000); } ${G} .box { stroke: #ffd166; filter: drop-shadow(0 0 1px #000); }
${G} .label { fill: #ffd166; stroke: #000; stroke-width: 0.25em; stroke-linejoin: round; paint-order: stroke; }
${G} .side { flex: 0 0 min(340px, 42%); overflow: auto; padding: 3px 10px 8px; display: flex; flex-direction: column; gap: 10px; user-select: text; }
${G} .captions { display: flex; flex-direction: column; gap: 8px; align-items: flex-start; }
${G} .caption { align-self: stretch; }
${G} .writer { display: flex; gap: 8px; font-size: 11px; opacity: 0.85; }
${G} .writer .lock { border: 1px solid currentColor; border-radius: 3px; padding: 0 4px; line-height: 15px; }
${G} .text { white-space: pre-wrap; overflow-wrap: anywhere; }
${G} .editor { align-self: stretch; display: flex; flex-direction: column; gap: 6px; }
${G} textarea { width: 100%; resize: vertical; background: ${SHADE(5)}; min-height: 90px; }
${G} .acts { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; } ${G} .hint { font-size: 11px; opacity: 0.85; }
${G} .facts { margin: 0; display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; font-size: 11px; }
${G} dt { opacity: 0.8; } ${G} dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
${G} .likes { flex: none; padding: 4px 8px 8px; border-top: 1px solid var(--line); } ${G} .likes .says { font-size: 11px; opacity: 0.85; }
${G} .strip { display: flex; gap: 4px; overflow: auto hidden; height: 92px; scrollbar-width: thin; }
${G} .strip button { flex: none; width: 84px; padding: 2px; border-color: transparent; display: flex; flex-direction: column; align-items: center; font-size: 11px; }
${G} .strip img { width: 100%; height: 64px; object-fit: contain; }
${G} .groups { position: absolute; inset: 0; display: flex; flex-direction: column; background: var(--ground); }
${G} .pager { flex: none; display: flex; gap: 8px; align-items: center; padding: 6px 8px; }
${G} .groups .list { flex: 1; overflow: hidden auto; padding: 0 8px 8px; display: flex; flex-direction: column; gap: 8px; }
${G} .group { flex: none; display: flex; gap: 8px; overflow-x: auto; padding: 8px; border: 1px solid var(--line); border-radius: 5px; scrollbar-width: thin; }
${G} .copy { flex: 0 0 180px; min-width: 0; display: flex; flex-direction: column; gap: 2px; padding: 4px; border-radius: 4px; font-size: 11px; }
${G} .copy:focus { outline: 2px solid currentColor; }
${G} .copy img { width: 100%; height: 150px; object-fit: contain; background: ${SHADE(6)}; border-radius: 3px; cursor: pointer; }
${G} .copy .best { font-weight: 600; } ${G} .copy .why { opacity: 0.85; overflow-wrap: anywhere; } ${G} .copy button { margin-top: auto; }
${G} .copy .size:empty { display: none; }
${G} .help { position: absolute; z-index: 2; inset: 8px 8px auto auto; max-height: calc(100% - 16px); overflow: auto; padding: 10px 12px; border: 1px solid var(--line);
  border-radius: 6px; background: var(--ground); box-shadow: 0 2px 14px #0007; }
${G} .help table { border-spacing: 0; margin-bottom: 8px; } ${G} .help th { text-align: left; font-weight: 600; padding: 1px 14px 1px 0; }
@container (max-width: 620px) {
  ${G} .body { flex-direction: column; } ${G} .side { flex: 0 1 45%; padding-top: 6px; } ${G} .strip { height: 74px; } ${G} .strip img { height: 46px; }
}
.flux-atelier-dialog { position: fixed; inset: 0; margin: 0; width: 100vw; height: 100vh; max-width: none; max-height: none; padding: 12px; border: 0;
  background: var(--bg-color, #202020); }
.flux-atelier-dialog::backdrop { background: #000a; }
`;
