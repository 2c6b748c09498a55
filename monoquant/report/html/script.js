"use strict";
(() => {
  const table = document.getElementById("layers");
  const controls = document.getElementById("controls");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const filter = document.getElementById("filter");
  const decision = document.getElementById("decision");
  const count = document.getElementById("count");
  const texts = rows.map((row) => row.textContent.toLowerCase());

  // Numbers: nan is worse than any; undefined stands for "not there", which comes last in both directions.
  const readers = {
    text: (cell) => (cell.textContent === "–" ? undefined : cell.textContent.toLowerCase()),
    number: (cell) => number(cell.dataset.v ?? cell.textContent),
    size: (cell) => (cell.textContent === "–" ? undefined : cell.textContent.split("×").reduce((a, b) => a * Number(b), 1)),
  };

  function number(text) {
    if (text === "–") return undefined;
    if (text === "nan" || text === "-inf") return -Infinity;
    if (text === "inf") return Infinity;
    return Number(text.replaceAll(",", ""));
  }

  function compare(one, other, direction) {
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    if (typeof one === "string") return direction * one.localeCompare(other, "en", { numeric: true });
    return one === other ? 0 : direction * (one < other ? -1 : 1);
  }

  function sortBy(heading, column) {
    const read = readers[heading.dataset.sort];
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const keyed = rows.map((row) => [row, read(row.cells[column])]);
    keyed.sort((one, other) => compare(one[1], other[1], direction));
    body.append(...keyed.map(([row]) => row));
  }

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      const fits = (!decision.value || row.cells[2].textContent === decision.value) && words.every((word) => texts[index].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    const all = rows.length.toLocaleString("en");
    count.textContent = shown === rows.length ? `${all} layers` : `${shown.toLocaleString("en")} of ${all} layers`;
  }

  function reveal() {
    const row = document.getElementById(location.hash.slice(1));
    if (!row || !row.hidden) return;
    filter.value = decision.value = "";
    show();
    row.scrollIntoView({ block: "center" });
  }

  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sortBy(heading, column));
    heading.replaceChildren(button);
  });
  filter.addEventListener("input", show);
  decision.addEventListener("change", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  controls.hidden = false;
  show();  // a reloaded page may have kept what was typed
})();
