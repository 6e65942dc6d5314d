"use strict";
const figures = [...document.querySelectorAll("figure[data-row]")];
const store = "prunesampler " + document.body.dataset.scores;
const decisions = {};
const storage = () => { try { return window.localStorage; } catch { return null; } };  // a file may have none

function decide(figure, decision) {
  const input = figure.querySelector(`input[value="${decision}"]`);
  if (!input) return;
  input.checked = true;
  figure.classList.remove("wrong", "right", "unsure");
  figure.classList.add(decision);
  decisions[figure.dataset.row] = decision;
}
function changed() {
  const count = Object.keys(decisions).length;
  document.getElementById("count").textContent = `${count} of ${figures.length} decided`;
  try { storage()?.setItem(store, JSON.stringify(decisions)); } catch { /* full, or forbidden */ }
}
function quoted(value) {
  return /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}
function exported() {
  const lines = [["row", "key", "label", "suggested_label", "decision"]];
  for (const { dataset: d } of figures)
    lines.push([d.row, d.key ?? "", d.label, d.suggested, decisions[d.row] ?? ""]);
  return lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}

document.addEventListener("change", (event) => {
  const figure = event.target.closest("figure[data-row]");
  if (figure) { decide(figure, event.target.value); changed(); }
});
document.addEventListener("click", (event) => {
  const all = event.target.dataset?.all;
  if (all) {
    for (const figure of event.target.closest(".pair").querySelectorAll("figure[data-row]")) decide(figure, all);
    changed();
  }
});
document.getElementById("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
try {
  const saved = JSON.parse(storage()?.getItem(store) ?? "{}");
  for (const figure of figures) if (saved[figure.dataset.row]) decide(figure, saved[figure.dataset.row]);
} catch { /* nothing was saved */ }
changed();
