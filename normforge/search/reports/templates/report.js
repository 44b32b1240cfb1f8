"use strict";
// Everything is written as text nodes: formulas and reasons are not to be trusted.
(() => {
  const PAGE = 50;
  const { objectives, networks, candidates } = JSON.parse(document.getElementById("data").textContent);
  const byIndex = new Map(candidates.map((c) => [c.index, c]));
  const at = (id) => document.getElementById(id);
  let shown = PAGE;

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const number = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
  const link = (index) =>
    byIndex.has(index) ? make("a", { href: `#c${index}` }, `#${index}`) : `#${index} (not in this page)`;

  // The table of candidates.

  function matches(c, text, fate) {
    if (fate && c.fate !== fate) return false;
    if (/^#\d+$/.test(text)) return `#${c.index}` === text;
    return !text || `#${c.index} ${c.fate} ${c.formula} ${c.reason}`.toLowerCase().includes(text);
  }
  const compare = (key, a, b) => {
    if (key === "new") return b.index - a.index;
    const of = (c) => (key === "rank" ? c.rank : c.scores[Number(key)]) ?? Infinity;
    return of(a) === of(b) ? a.index - b.index : of(a) - of(b);
  };
  function fill() {
    const text = at("find").value.trim().toLowerCase();
    const found = candidates.filter((c) => matches(c, text, at("fate").value));
    found.sort((a, b) => compare(at("sort").value, a, b));
    at("list").tBodies[0].replaceChildren(
      ...found.slice(0, shown).map((c) =>
        make("tr", {},
          make("th", { scope: "row" }, link(c.index)), make("td", {}, c.fate),
          ...c.scores.map((s) => make("td", {}, number(s))),
          make("td", { class: "text" }, make("code", {}, c.formula)))));
    at("count").textContent = `${Math.min(shown, found.length)} of ${found.length}`;
    at("more").hidden = shown >= found.length;
  }

  // One candidate, and its line of parents.

  function parents(c) {
    const words = [];
    c.parents.forEach((p, i) => words.push(i ? " and " : "", link(p)));
    return c.parents.length ? [c.parents.length > 1 ? "made from " : "mutated from ", ...words] : [c.origin];
  }
  function changes(c) {
    const tags = { "-": "del", "+": "ins", "=": "span" };
    const pieces = c.changes.map(([mark, text]) => make(tags[mark], {}, text));
    return make("code", {}, ...(pieces.length ? pieces : [c.formula]));
  }
  function step(c) {
    const scores = c.scores.some((s) => s !== null) ? `: ${c.scores.map(number).join(", ")}` : "";
    const item = make("li", {},
      make("p", {}, link(c.index), " ", make("strong", {}, c.fate), `${scores}; `, ...parents(c), `; after ${c.at}`));
    if (c.reason) item.append(make("p", {}, c.reason));
    if (c.genes.length) item.append(make("p", { class: "dim" }, c.genes.join("; ")));
    item.append(make("p", {}, changes(c)));
    return item;
  }
  function values(c) {
    const columns = [...new Set([...objectives, ...networks])];
    const row = (name, of, list) =>
      make("tr", {}, make("th", { scope: "row" }, name),
        ...columns.map((n) => make("td", {}, number(list[of.indexOf(n)] ?? null))));
    return make("div", { class: "scroll" }, make("table", {},
      make("tr", {}, make("th", {}), ...columns.map((n) => make("th", { scope: "col" }, n))),
      row("score", objectives, c.scores), row("validation accuracy", networks, c.accuracy)));
  }
  function choose() {
    const c = byIndex.get(Number((location.hash.match(/^#c(\d+)$/) ?? [])[1] ?? NaN));
    at("chosen").hidden = !c;
    if (!c) return;
    const line = [];
    for (let next = c; next; next = byIndex.get(next.parents[0])) line.push(next);
    const stages = Object.entries(c.seconds).map(([stage, s]) => `${stage} ${number(s)}`).join(", ");
    at("chosen").replaceChildren(
      make("h3", {}, `#${c.index}: ${c.fate}`), make("p", {}, make("code", {}, c.formula)), values(c),
      make("p", { class: "dim" }, stages ? `seconds: ${stages}` : "no seconds are known"),
      make("h4", {}, line.length > 1 ? `From #${line.at(-1).index}, a change at a time` : "No parents"),
      make("p", {}, "Each step: fate, scores, parents and time of search; nodes that changed; the formula, with words ",
        make("del", {}, "gone"), " and ", make("ins", {}, "new"), " since the (first) parent."),
      make("ol", {}, ...line.map(step)));
    at("chosen").scrollIntoView({ block: "nearest" });
  }

  const fates = [...new Set(candidates.map((c) => c.fate))].sort();
  at("fate").append(...fates.map((f) => make("option", { value: f }, f)));
  at("sort").append(...objectives.map((n, k) => make("option", { value: k }, `least ${n}`)));
  const heads = ["layer", "fate", ...objectives].map((n) => make("th", { scope: "col" }, n));
  at("list").tHead.replaceChildren(make("tr", {}, ...heads, make("th", { scope: "col", class: "text" }, "formula")));
  at("choice").addEventListener("input", () => { shown = PAGE; fill(); });
  at("choice").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", () => { shown += 4 * PAGE; fill(); });
  window.addEventListener("hashchange", choose);
  fill();
  choose();
})();
