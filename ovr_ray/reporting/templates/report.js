"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
const SPLITS = { train: "training", val: "validation" };
const METRICS = { loss: "loss", f1: "F1", sensitivity: "sensitivity (recall)", specificity: "specificity",
  precision: "precision", npv: "NPV", fpr: "FPR", fdr: "FDR", fnr: "FNR", accuracy: "accuracy", mcc: "MCC" };

// Plots take their colours from the page, so that they match it in the light theme, in the dark theme and in print.
function color(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

function themed(layout) {
  const own = structuredClone(layout);
  const plain = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", title: null,
    font: { color: color("ink"), family: "system-ui, sans-serif", size: 12 }, margin: { l: 48, r: 12, t: 10, b: 42 },
    hoverlabel: { bgcolor: color("panel"), font: { color: color("ink") } }, legend: { x: 0, y: 0, bgcolor: "rgba(0,0,0,0)", ...own.legend } };
  for (const axis of Object.keys(own).filter((key) => /^[xy]axis/.test(key)).concat("xaxis", "yaxis")) {
    own[axis] = { ...own[axis], gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), automargin: true };
  }
  for (const shape of own.shapes ?? []) shape.line.color = color("soft");
  return { ...own, ...plain, ...(own.margin ? { margin: own.margin } : {}) };
}

const drawn = new Map(); // element -> figure
function draw(element, figure) {
  drawn.set(element, figure);
  const layout = themed(figure.layout);
  return Plotly.react(element, structuredClone(figure.data), layout, CONFIG);
}
function redraw() { for (const [element, figure] of drawn) draw(element, figure); }
dark.addEventListener("change", redraw);

// Twenty tasks have hundreds of plots, so each is drawn when it comes into view; before printing, all are drawn.
const waiting = new Map(); // element -> figure
function drawWaiting(element) {
  if (!waiting.has(element)) return;
  draw(element, waiting.get(element));
  waiting.delete(element);
}
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawWaiting(entry.target);
}, { rootMargin: "400px" });
function later(element, figure) {
  waiting.set(element, figure);
  seen.observe(element);
}
// A class sets the colours of print, because @media print does not apply yet when the plots are drawn.
function print(on) {
  document.documentElement.classList.toggle("printing", on);
  if (on) [...waiting.keys()].forEach(drawWaiting);
  redraw();
}
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));

function epochFigure(curves, metric) {
  const line = ([split, name]) => ({ x: curves.epoch, y: curves[split][metric], name, type: "scatter", mode: "lines+markers",
    line: { color: color(split), width: 2 }, marker: { size: 4 } });
  return { data: Object.entries(SPLITS).map(line), layout: { showlegend: false, hovermode: "x unified", margin: { l: 36, r: 6, t: 6, b: 24 } } };
}

function fill(figures) {
  for (const element of document.querySelectorAll("[data-figure].plot")) later(element, figures[element.dataset.figure]);
  for (const select of document.querySelectorAll("select.epochs")) {
    const trials = figures[select.dataset.figure];
    const grid = select.closest("section").querySelector(".small-multiples");
    const plots = Object.entries(METRICS).map(([metric, title]) => {
      const figure = grid.appendChild(document.createElement("figure"));
      figure.appendChild(document.createElement("figcaption")).textContent = title;
      const plot = figure.appendChild(document.createElement("div"));
      plot.className = "plot";
      return [plot, metric];
    });
    for (const name of Object.keys(trials)) select.add(new Option(name, name, false, name === select.dataset.trial));
    const show = () => {
      for (const [plot, metric] of plots) {
        const figure = epochFigure(trials[select.value], metric);
        drawn.has(plot) ? draw(plot, figure) : later(plot, figure);
      }
    };
    select.addEventListener("change", show);
    show();
  }
}

function compare(a, b) {
  const [x, y] = [parseFloat(a), parseFloat(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
}
for (const heading of document.querySelectorAll(".sortable th")) {
  heading.tabIndex = 0;
  const sort = () => {
    const descending = heading.ariaSort === "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.ariaSort = descending ? "descending" : "ascending";
    const body = heading.closest("table").tBodies[0];
    const text = (row) => row.cells[heading.cellIndex].textContent.trim();
    const rows = [...body.rows].sort((a, b) => (descending ? compare(text(b), text(a)) : compare(text(a), text(b))));
    body.append(...rows);
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
for (const filter of document.querySelectorAll("input.filter")) {
  const rows = filter.closest("section").querySelector("table.trials").tBodies[0].rows;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
for (const box of document.querySelectorAll("input.overlays")) {
  box.addEventListener("change", () => {
    box.closest("p").nextElementSibling.classList.toggle("hide-overlays", !box.checked);
  });
}

// Plotly and the figures are compressed, which makes the page less than half as large.
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
Promise.all([unpacked("plotly"), unpacked("figures")]).then(([plotly, figures]) => {
  document.head.appendChild(document.createElement("script")).textContent = plotly;
  fill(JSON.parse(figures));
}).catch((error) => {
  console.error(error);
  for (const plot of document.querySelectorAll(".plot")) plot.textContent = `This browser cannot draw it: ${error}`;
});
