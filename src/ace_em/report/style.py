"""The page's style sheet: light and dark, one column on a phone, two on a screen."""

CSS = """
:root { --page: #f4f5f6; --card: #ffffff; --text: #1c2024; --soft: #5a6169; --line: #d9dde1;
  --good: #00694c; --bad: #a84400; --open: #005a8f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #131516; --card: #1f1f1f; --text: #e6e8ea; --soft: #a3abb3; --line: #383c40;
    --good: #4cc9a0; --bad: #ff9a4d; --open: #7cc4f0; }
  /* white becomes the card's grey, every colour keeps its hue */
  .chart img { filter: invert(.8784) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 0 0 .6rem; font-size: 1.05rem; }
.what { margin: .1rem 0 .8rem; color: var(--soft); }
.outcome { margin: 0 0 .5rem; padding: .7rem 1rem; background: var(--card); border-left: 5px solid; border-radius: 4px;
  font-size: 1.12rem; }
.good { border-color: var(--good); } .bad { border-color: var(--bad); } .open { border-color: var(--open); }
.outcome p { margin: 0; }
.outcome .message { margin-top: .3rem; color: var(--soft); font-size: .95rem; }
.bad p:first-child { font-weight: 600; } .bad .message { color: var(--text); font-size: 1.05rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: .6rem; margin: .8rem 0; }
.tiles div { padding: .5rem .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
.tiles dt { color: var(--soft); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.missing { margin: .8rem 0; padding: .7rem 1rem; border: 1px dashed var(--soft); border-radius: 6px; font-size: .9rem; }
.missing ul { margin: 0; padding-left: 1.2rem; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; align-items: start; }
.column { display: flex; flex-direction: column; gap: 1rem; }
.cell { min-width: 0; } .cell:has(> [hidden], > :empty) { display: none; }
.card { padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.wide { margin-top: 1rem; }
.wide ul { margin: 0; padding-left: 1.2rem; max-width: 60rem; } .wide li + li { margin-top: .4rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.scene { overflow: hidden; aspect-ratio: 1; max-height: 80vh; width: 100%; border-radius: 4px; cursor: grab;
  touch-action: pan-y; }
.scene:active { cursor: grabbing; }
:focus-visible { outline: 2px solid var(--open); outline-offset: 2px; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin-top: .6rem; font-size: .9rem; }
.controls label { display: flex; gap: .5rem; align-items: center; min-width: 0; white-space: nowrap; }
.controls[hidden] { display: none; }
.controls select { flex: 1; min-width: 0; }
.controls label:nth-child(2) { flex: 1 1 14rem; }
.controls input { flex: 1; min-width: 6rem; accent-color: var(--open); }
.controls output { min-width: 4rem; font-variant-numeric: tabular-nums; }
select, button { max-width: 100%; padding: .3rem .7rem; font: inherit; color: var(--text); background: var(--page);
  border: 1px solid var(--line); border-radius: 6px; }
button { cursor: pointer; }
.scroll { overflow-x: auto; margin-top: .6rem; font-size: .85rem; }
.scroll table { width: 100%; } .scroll th, .scroll td { padding-right: 1rem; min-width: 0; }
.scroll thead th { color: var(--soft); }
h3 { margin: .8rem 0 .3rem; font-size: .95rem; }
.command { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem; background: var(--page); border-radius: 4px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .4rem 1rem; margin: .7rem 0 0; }
.facts dt { color: var(--soft); font-size: .8rem; } .facts dd { margin: 0; }
.facts div:last-child { grid-column: 1 / -1; }
figcaption, .absent { margin-top: .6rem; color: var(--soft); font-size: .88rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; font-weight: normal; }
td { padding-right: 0; min-width: 5.5rem; overflow-wrap: break-word; }
code { white-space: nowrap; font-size: .95em; }
summary { cursor: pointer; font-weight: 600; }
pre { margin: .8rem 0 0; overflow-x: auto; font-size: .82rem; line-height: 1.4; }
@media (max-width: 760px) { body { padding: .7rem; }
  .grid { display: flex; flex-direction: column; align-items: stretch; } .column { display: contents; }
  .card { padding: .7rem; } }
.live { margin: .4rem 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  border-left: 5px solid var(--open); }
.live p { margin: 0 0 .3rem; } .headline { font-size: 1.12rem; font-weight: 600; } .time, .task { color: var(--soft); }
.live.finished { border-left-color: var(--line); } .live.lost, .live.failed { border-left-color: var(--bad); }
progress { display: block; width: 100%; height: .8rem; margin: .4rem 0; accent-color: var(--open); }
progress[hidden] { display: none; }
.silent { padding: .6rem 1rem; border: 1px dashed var(--bad); border-radius: 6px; }
dialog { max-width: 26rem; color: var(--text); background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
dialog form { display: flex; flex-wrap: wrap; gap: .6rem; }
.files { color: var(--soft); font-size: .9rem; } a { color: var(--open); }
@media print { .card { break-inside: avoid; } }
"""
