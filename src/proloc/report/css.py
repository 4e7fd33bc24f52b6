"""The style of the page: light and dark, laptop and phone, nothing loaded from anywhere (ours)."""

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1d2125; --muted: #5c646c; --line: #dfe2e5;
  --accent: #0b5c92; --b0: #d6e8f7; --b1: #fbe3cf; --b2: #d5efe3; --b3: #f3dcea; --b4: #ece5c4; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --ink: #e7e9eb; --muted: #a3abb3;
  --line: #343a40; --accent: #7cc0ee; --b0: #1f4461; --b1: #5c3a1c; --b2: #1c4d3a; --b3: #55304a; --b4: #4d451f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 38px 0 10px; }
.meta { color: var(--muted); margin: 0 0 18px; overflow-wrap: anywhere; }
.answer { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--accent);
  border-radius: 6px; padding: 14px 18px; margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--card); }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.84rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
td .interval, th .interval { display: block; color: var(--muted); font-size: 0.76rem;
  font-weight: 400; }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; line-height: 1.3; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 600; white-space: nowrap; }
tr.control th, tr.baseline th { font-weight: 400; font-style: italic; }
tr.baseline > * { border-top: 2px solid var(--line); }
figure { margin: 0; }
.plot { overflow-x: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: 10px; }
.plot img { display: block; width: 100%; min-width: 660px; height: auto; }
.reading { color: var(--muted); font-size: 0.88rem; margin: 8px 2px 0; }
.hint { display: none; }
.passage { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 12px 16px;
  margin: 12px 0 0; font-size: 0.92rem; line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; }
.passage span { padding: 2px 0; }
.passage .sink { text-decoration: underline dotted; text-underline-offset: 3px; }
.b0 { background: var(--b0); } .b1 { background: var(--b1); } .b2 { background: var(--b2); }
.b3 { background: var(--b3); } .b4 { background: var(--b4); }
.failures { margin: 12px 0 0; padding-left: 20px; font-size: 0.9rem; overflow-wrap: anywhere; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px 16px;
  margin: 10px 0 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 0.8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 10px 0 4px; }
@media (max-width: 600px) { main { padding: 18px 12px 40px; } h1 { font-size: 1.35rem; } .plot { padding: 6px; }
  .hint { display: block; } }
@media print { body { background: #ffffff; } .scroll, .plot { overflow: visible; } figure { break-inside: avoid; } }
"""
