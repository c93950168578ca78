"use strict";
// What the pointer adds to a page that is whole without it: values of a chart, one text of the map.
const SVG = "http://www.w3.org/2000/svg";

function drawn(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  return node;
}

for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), mark = svg.querySelector(".hover");
  const reading = figure.querySelector(".reading");
  const lines = JSON.parse(figure.querySelector("script").textContent);
  const box = svg.viewBox.baseVal;
  const clear = () => { mark.replaceChildren(); reading.replaceChildren(); };
  const show = (event) => {
    const area = svg.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width * box.width;
    clear();
    let at = null;
    const rows = [];
    for (const line of lines) {
      let best = null;
      for (const point of line.at) {
        if (best === null || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
      }
      if (best === null) continue;
      if (at === null || Math.abs(best[0] - x) < Math.abs(at[0] - x)) at = best;
      rows.push([line, best]);
    }
    if (at === null) return;
    mark.append(drawn("line", {x1: at[0], x2: at[0], y1: svg.dataset.top, y2: svg.dataset.bottom}));
    reading.append("step " + at[2]);
    for (const [line, point] of rows) {
      if (point[2] !== at[2]) continue;
      mark.append(drawn("circle", {class: "s" + line.ink, cx: point[0], cy: point[1], r: 3.5}));
      const row = document.createElement("span");
      row.className = "s" + line.ink;
      row.textContent = line.name + " " + point[3];
      reading.append(row);
    }
    reading.style.left = x < box.width / 2 ? "auto" : "14px";
    reading.style.right = x < box.width / 2 ? "14px" : "auto";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", clear);
}

for (const plane of document.querySelectorAll(".plane")) {
  const dots = plane.querySelectorAll("circle");
  const only = (text) => {
    for (const dot of dots) dot.classList.toggle("dim", text !== null && dot.dataset.text !== text);
  };
  for (const item of plane.querySelectorAll(".named li")) {
    item.addEventListener("pointerenter", () => only(item.dataset.text));
    item.addEventListener("pointerleave", () => only(null));
  }
  for (const dot of dots) {
    if (dot.dataset.text === "-1") continue;
    dot.addEventListener("pointerenter", () => only(dot.dataset.text));
    dot.addEventListener("pointerleave", () => only(null));
  }
}
