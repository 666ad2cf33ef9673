"use strict";
// The figures of the page, drawn as SVG from the embedded JSON. Whatever comes from data is set as text, never as markup.
(() => {
  document.documentElement.classList.add("js");
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const NONE = "not measured";

  // Elements, numbers, tooltip -------------------------------------------------------------------------------------
  function build(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }
  const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const num = (value, signed) => {
    if (value === null || value === undefined) return NONE;
    const text = value.toFixed(2).replace(/^-(0\.00)$/, "$1");
    return signed && value >= 0 ? "+" + text : text;
  };
  const ends = (low, high) => (low === null || high === null || low === undefined ? "" : `[${num(low)}, ${num(high)}]`);
  const est = (value, low, high, signed) => `${num(value, signed)} ${ends(low, high)}`.trim();
  const line = (text) => text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]+/g, " ").trim();
  const cut = (text, n) => { const one = [...line(text)]; return one.length > n ? one.slice(0, n - 1).join("") + "\u2026" : one.join(""); };

  const tip = document.getElementById("tip");
  function showTip(where, lines) {
    tip.replaceChildren(...lines.filter(Boolean).map((text) => el("div", {}, text)));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const rect = where.getBoundingClientRect ? where.getBoundingClientRect() : null;
    const x = rect ? rect.right : where.clientX, y = rect ? rect.top : where.clientY;
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width - (rect ? rect.width : 0) : x + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - box.height - 4))}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  // Heatmap ----------------------------------------------------------------------------------------------------------
  const RED_GREEN = ["#a50026", "#d73027", "#f46d43", "#fdae61", "#fee08b", "#ffffbf", "#d9ef8b", "#a6d96a", "#66bd63", "#1a9850", "#006837"];
  const BLIND_SAFE = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
  function colour(value, stops) {
    const at = Math.min(Math.max(value, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
    const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
    return [0, 1, 2].map((k) => Math.round(part(stops[i], k) + (at - i) * (part(stops[i + 1], k) - part(stops[i], k))));
  }
  function ink(rgb) { // black or white, whichever has more contrast (relative luminance, WCAG 2.1)
    const linear = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.2 ? "#fff" : "#000";
  }

  const isMeasured = (view) => view.values.some((row) => row.some((value) => value !== null));
  function whyNone(model, a, b, view) {
    for (const name of [a, b]) if (name in model.left_out) return `${line(name)} was not compared: ${model.left_out[name]}`;
    if (!isMeasured(view)) return model.reason;
    if (view.key.endsWith("normalised")) return "the noise ceiling of one of the two is too low";
    return "the own necessity of one of the two is too small at this site";
  }

  function heatmap(model, id, root) {
    const state = { view: model.matrices[0], stops: RED_GREEN, pair: [0, Math.min(1, model.categories.length - 1)] };
    const select = el("select", { onchange: () => { state.view = model.matrices[select.selectedIndex]; draw(); } },
      model.matrices.map((view) => el("option", {}, view.label + (isMeasured(view) ? "" : `: ${NONE}`))));
    const blind = el("input", { type: "checkbox", onchange: () => { state.stops = blind.checked ? BLIND_SAFE : RED_GREEN; draw(); } });
    const plot = el("div", { class: "scroll" }), note = el("figcaption", {}), detail = el("div", { class: "detail", "aria-live": "polite" });
    root.append(el("div", { class: "controls" }, el("label", {}, "Show", select), el("label", {}, blind, "colours safe for colour blindness")),
      el("figure", {}, el("div", { class: "split" }, plot, detail), note));
    const names = model.categories, n = names.length, cell = n > 14 ? 34 : 58;
    const left = 16 + 7.2 * Math.max(4, ...names.map((name) => Math.min(22, name.length)));

    function move(event) {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      pick(state.pair[0] + step[0], state.pair[1] + step[1]);
    }
    function pick(i, j) {
      state.pair = [Math.min(Math.max(i, 0), n - 1), Math.min(Math.max(j, 0), n - 1)];
      draw(true);
    }
    function cellOf(i, j) {
      const view = state.view, value = view.values[i][j], a = names[i], b = names[j];
      const low = view.low ? view.low[i][j] : null, high = view.high ? view.high[i][j] : null;
      const x = left + j * cell, y = 6 + i * cell, rgb = value === null ? null : colour(value, state.stops);
      const lines = [`${line(a)} ${view.directed ? "onto" : "and"} ${line(b)}`, value === null ? `${NONE}: ${whyNone(model, a, b, view)}` : est(value, low, high),
        value !== null && low === null ? (i === j ? "" : "no interval") : value === null ? "" : "95 % interval", `n = ${model.n[a] ?? 0} and ${model.n[b] ?? 0} refused prompts used`];
      const group = svg("g", { class: "cell", onpointermove: (event) => showTip(event, lines), onpointerleave: hideTip, onclick: () => pick(i, j) },
        svg("rect", { x: x + 0.5, y: y + 0.5, width: cell - 1, height: cell - 1, fill: rgb ? `rgb(${rgb})` : `url(#hatch-${id})` }));
      const style = rgb ? `fill:${ink(rgb)}` : "fill:var(--faint)", text = value === null ? "n/a" : num(value);
      group.append(svg("text", { class: "value", x: x + cell / 2, y: y + cell / 2 + (low !== null ? -1 : 4), style: cell < 40 ? style + ";font-size:10px" : style }, text));
      if (low !== null && cell > 40) group.append(svg("text", { class: "ends", x: x + cell / 2, y: y + cell / 2 + 15, style }, ends(low, high).replace(/-0\.0/g, "-.0").replace(/\b0\./g, ".")));
      return group;
    }
    function draw(keepFocus) {
      const size = n * cell, bottom = 12 + left * 0.72, width = left + size + 8, height = 6 + size + bottom;
      const figure = svg("svg", { class: "fig", viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, role: "application", onkeydown: move,
        "aria-label": `${state.view.label}, ${n} by ${n} categories of ${line(model.name)}; arrow keys choose a pair` });
      figure.append(svg("defs", {}, svg("pattern", { id: `hatch-${id}`, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 7, height: 7, fill: "var(--none)" }), svg("line", { x1: 0, y1: 0, x2: 0, y2: 7, stroke: "var(--none-line)", "stroke-width": 2 }))));
      names.forEach((name, i) => {
        const faint = name in model.left_out ? "fill:var(--faint)" : null, middle = i * cell + cell / 2;
        figure.append(svg("text", { x: left - 8, y: 6 + middle + 4, "text-anchor": "end", style: faint }, cut(name, 22)),
          svg("text", { x: left + middle + 4, y: size + 20, "text-anchor": "end", transform: `rotate(-45 ${left + middle + 4} ${size + 20})`, style: faint }, cut(name, 22)));
        for (let j = 0; j < n; j++) figure.append(cellOf(i, j));
      });
      for (const group of model.groups || []) figure.append(svg("rect", { class: "box", x: left + group[0] * cell, y: 6 + group[0] * cell, width: group.length * cell, height: group.length * cell }));
      const [i, j] = state.pair, at = { x: left + j * cell + 2, y: 6 + i * cell + 2, width: cell - 4, height: cell - 4 };
      if (n) figure.append(svg("rect", { class: "picked", ...at }), svg("rect", { class: "picked-inner", ...at }));
      plot.replaceChildren(figure);
      note.textContent = `${state.view.note} Red is 0, green is 1, whatever the data are.${blind.checked ? " Here: dark is 0, bright is 1." : ""} ${model.groups ? "Boxes: groups that share a mechanism." : ""}`;
      if (n) detail.replaceChildren(...pairDetail(model, names[i], names[j], i, j));
      if (keepFocus) figure.focus({ preventScroll: true });
    }
    draw();
  }

  function pairDetail(model, a, b, i, j) {
    const views = Object.fromEntries(model.matrices.map((view) => [view.key, view]));
    const of = (key, r = i, c = j, none = NONE) => {
      const view = views[key], value = view.values[r][c];
      return value === null ? el("span", { class: "none" }, none) : est(value, view.low && view.low[r][c], view.high && view.high[r][c]);
    };
    const row = (label, ...cells) => el("tr", {}, el("th", { scope: "row", class: "wrap" }, label), cells.map((cell) => el("td", {}, cell)));
    const causal = el("table", {}, el("tbody", {}, row("Similarity", of("similarity")), row(`Transfer, ${cut(a, 20)} onto ${cut(b, 20)}`, of("transfer")),
      row(`Transfer, ${cut(b, 20)} onto ${cut(a, 20)}`, of("transfer", j, i)), row("Original rule", of("baseline"))));
    const structure = el("table", {}, el("thead", {}, el("tr", {}, ["Structure", "raw", "ceiling", "ratio"].map((label) => el("th", { scope: "col" }, label)))),
      el("tbody", {}, Object.entries(data.measures).map(([key, label]) => row(label, ...["raw", "ceiling", "normalised"].map((kind) => of(`${key} ${kind}`, i, j, "n/a"))))));
    const missing = views.similarity.values[i][j] === null ? el("p", {}, `Not measured: ${whyNone(model, a, b, views.similarity)}`) : null;
    return [el("h4", {}, i === j ? line(a) : `${line(a)} and ${line(b)}`), el("p", { class: "note" }, `n = ${model.n[a] ?? 0} and ${model.n[b] ?? 0} refused prompts used. 95 % intervals; no interval: none is computed.`), missing, causal, structure].filter(Boolean);
  }

  // Depth profile ------------------------------------------------------------------------------------------------------
  const SERIES = [
    { key: "transfer", label: "transfer: cross over own, less random", colour: "var(--transfer)", ci: "transfer_ci", chart: 0 },
    { key: "own", label: "own: necessity of a category's own circuit", colour: "var(--positive)", ci: "own_ci", chart: 1 },
    { key: "cross", label: "cross: another category's circuit", colour: "var(--negative)", dash: "7 4", chart: 1 },
    { key: "random", label: "random sets, matched", colour: "var(--control)", dash: "2 3", chart: 1 },
    { key: "direct", label: "direct effect, later writes held", colour: "var(--direct)", dash: "8 3 2 3", chart: 1 },
  ];
  const BEFORE_BLOCK = 0.5; // how far left of a block's residual site its neurons are drawn, in blocks
  const placeOf = (site) => layerOf(site) - (kindOf(site) === "neurons" ? BEFORE_BLOCK : 0);
  const layerOf = (site) => Number(site.slice(site.lastIndexOf("_") + 1));
  const kindOf = (site) => site.slice(0, site.lastIndexOf("_"));

  function depth(model, id, root) {
    if (!model.depth.length) return;
    const kinds = ["residuals", "mlp", "attention"].filter((kind) => model.depth.some((point) => kindOf(point.site) === kind));
    const readout = el("p", { class: "note", "aria-live": "polite" }, "Move over the figure, or focus it and use the left and right arrow keys, to read a site.");
    const sample = (series) => svg("svg", { width: 34, height: 12, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 33, y1: 6, y2: 6, style: `stroke:${series.colour}`, "stroke-width": 2.2, "stroke-dasharray": series.dash }));
    const shade = svg("svg", { width: 20, height: 12, "aria-hidden": "true" }, svg("rect", { width: 20, height: 12, style: "fill:var(--shade);stroke:var(--rule)" }));
    const diamond = svg("svg", { width: 16, height: 16, "aria-hidden": "true" }, svg("path", { d: diamondAt(8, 8), style: "fill:var(--faint)" }));
    const ring = svg("svg", { width: 16, height: 16, "aria-hidden": "true" }, svg("circle", { cx: 8, cy: 8, r: 6, style: "fill:none;stroke:var(--ink);stroke-width:1.5" }));
    root.append(el("figure", {}, el("div", { class: "depths" }, kinds.map((kind) => el("div", { class: "scroll" }, depthChart(model, kind, kinds.length, readout)))),
      el("ul", { class: "legend" }, SERIES.map((series) => el("li", {}, sample(series), series.label)), el("li", {}, ring, "decisive site"), el("li", {}, diamond, "MLP neurons of blocks that write the decision"), el("li", {}, shade, "at and after commit")),
      el("figcaption", {}, `Means over ${model.categories.length - Object.keys(model.left_out).length} categories; bands are 95 % bootstrap intervals over prompts and SAE seeds. Upper: share of a category's own effect, with the thresholds ${num(model.thresholds.partially_modular)} and ${num(model.thresholds.monolithic)}. Lower: share of the difference in m, refused less counterfactual.`), readout));
  }

  function depthChart(model, kind, nKinds, readout) {
    const points = model.depth.filter((point) => kindOf(point.site) === kind), layers = points.map((point) => layerOf(point.site));
    const inside = kind === "residuals" ? model.depth.filter((point) => kindOf(point.site) === "neurons") : [];
    const all = [...points, ...inside].sort((a, b) => placeOf(a.site) - placeOf(b.site));
    const width = nKinds > 1 ? 340 : 760, left = 46, right = 12, top = 58, tall = 170, gap = 34, height = top + 2 * tall + gap + 44;
    const first = Math.min(...layers) - 0.5, last = Math.max(...layers) + 0.5;
    const x = (layer) => left + ((layer - first) / (last - first)) * (width - left - right);
    const figure = svg("svg", { class: "fig", viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, role: "application", "aria-label": `Depth profile of ${line(model.name)}, ${kind}; left and right arrow keys read a site` });
    const scales = [0, 1].map((chart) => scaleOf(model, chart, top + chart * (tall + gap), tall));
    const commit = model.anchors.commit;
    scales.forEach((y, chart) => {
      if (commit !== null && layerOf(commit) - 0.3 < last) {
        const from = x(Math.max(first, layerOf(commit) - 0.3));
        figure.append(svg("rect", { x: from, y: y.top, width: width - right - from, height: tall, style: "fill:var(--shade)" }));
      }
      for (const tick of [0, 0.5, 1]) figure.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }), svg("text", { class: "minor", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(1)));
      figure.append(svg("text", { class: "strong", x: 4, y: y.top - 8 + (chart ? 0 : -38) }, chart ? "share of the difference in m" : "transfer"));
    });
    for (const key of ["monolithic", "partially_modular"]) {
      const y = scales[0](model.thresholds[key]);
      figure.append(svg("line", { class: "limit", x1: left, x2: width - right, y1: y, y2: y }), svg("text", { class: "minor", x: width - right - 3, y: y - 4, "text-anchor": "end" }, key.replace("_", " ")));
    }
    ["commit", "shared from", "onset"].forEach((label, row) => {
      const site = model.anchors[label];
      if (site === null || layerOf(site) < first || layerOf(site) > last) return;
      const at = x(layerOf(site)), toLeft = at > (left + width) / 2;
      figure.append(svg("line", { class: "anchor", x1: at, x2: at, y1: top - 10 - 12 * row, y2: height - 44 }), svg("text", { class: "minor", x: at + (toLeft ? -4 : 4), y: top - 4 - 12 * row, "text-anchor": toLeft ? "end" : "start" }, label));
    });
    for (const series of SERIES) drawSeries(figure, series, points, x, scales[series.chart]);
    for (const series of SERIES) drawNeurons(figure, series, inside, x, scales[series.chart]);
    for (const chart of [0, 1]) if (SERIES.every((series) => series.chart !== chart || points.every((point) => point[series.key] === null))) figure.append(svg("text", { x: (left + width - right) / 2, y: scales[chart].top + tall * 0.75, "text-anchor": "middle", style: "fill:var(--faint)" }, NONE));
    const decisive = all.find((point) => point.site === model.anchors.decisive && point.transfer !== null);
    if (decisive) figure.append(svg("circle", { cx: x(placeOf(decisive.site)), cy: scales[0](decisive.transfer), r: 7.5, style: "fill:none;stroke:var(--ink);stroke-width:1.5" }));
    const every = Math.ceil(layers.length / (nKinds > 1 ? 10 : 20));
    layers.forEach((layer, index) => { if (index % every === 0) figure.append(svg("text", { class: "minor", x: x(layer), y: height - 28, "text-anchor": "middle" }, String(layer))); });
    figure.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, `${kind}_N, by block N`));
    readPoints(figure, { model, points: all, x, span: [left, width - right, scales[0].top, height - 44], readout });
    return figure;
  }

  function scaleOf(model, chart, top, tall) {
    const values = model.depth.flatMap((point) => SERIES.filter((series) => series.chart === chart).flatMap((series) => [point[series.key], ...(series.ci ? point[series.ci] : [])])).filter((value) => value !== null);
    const low = Math.min(-0.04, ...values), high = Math.max(1.06, ...values);
    return Object.assign((value) => top + tall - ((value - low) / (high - low)) * tall, { top });
  }

  function drawSeries(figure, series, points, x, y) {
    let run = [];
    const flush = () => {
      if (run.length > 1) {
        if (series.ci) {
          const upper = run.map((point) => `${x(layerOf(point.site))},${y(point[series.ci][1] ?? point[series.key])}`), lower = run.map((point) => `${x(layerOf(point.site))},${y(point[series.ci][0] ?? point[series.key])}`);
          figure.append(svg("polygon", { class: "band", points: [...upper, ...lower.reverse()].join(" "), style: `fill:${series.colour}` }));
        }
        figure.append(svg("polyline", { class: "line", points: run.map((point) => `${x(layerOf(point.site))},${y(point[series.key])}`).join(" "), style: `stroke:${series.colour}`, "stroke-dasharray": series.dash }));
      }
      run = [];
    };
    for (const point of points) point[series.key] === null ? flush() : run.push(point);
    flush();
    for (const point of points) {
      if (point[series.key] === null) continue;
      const at = x(layerOf(point.site));
      if (series.ci && points.length === 1 && point[series.ci][0] !== null) figure.append(svg("line", { x1: at, x2: at, y1: y(point[series.ci][0]), y2: y(point[series.ci][1]), style: `stroke:${series.colour}` }));
      figure.append(svg("circle", { cx: at, cy: y(point[series.key]), r: 3.2, style: `fill:${series.colour}` }));
    }
  }

  const diamondAt = (x, y) => `M${x - 5} ${y}L${x} ${y - 5}L${x + 5} ${y}L${x} ${y + 5}Z`;

  function drawNeurons(figure, series, points, x, y) {
    for (const point of points) {
      if (point[series.key] === null) continue;
      const at = x(placeOf(point.site));
      if (series.ci && point[series.ci][0] !== null) figure.append(svg("line", { x1: at, x2: at, y1: y(point[series.ci][0]), y2: y(point[series.ci][1]), style: `stroke:${series.colour}` }));
      figure.append(svg("path", { d: diamondAt(at, y(point[series.key])), style: `fill:${series.colour}` }));
    }
  }

  function readPoints(figure, { model, points: all, x, span, readout }) {
    const cursor = svg("line", { class: "cursor", y1: span[2], y2: span[3], visibility: "hidden" });
    const lines = (point) => [point.site, `transfer ${est(point.transfer, ...point.transfer_ci)}`, `own ${est(point.own, ...point.own_ci)}`, `cross ${num(point.cross)}`, `random ${num(point.random)}`,
      `direct ${num(point.direct)}`, `sufficiency ${est(point.sufficiency, ...point.sufficiency_ci)} (own ${num(point.sufficiency_own)})`, `AUC ${num(point.separation_auc)}`, `${point.size === null ? "?" : point.size.toFixed(1)} units a circuit`, point.before_commit ? "before commit" : "not before commit: says nothing about the mechanism"];
    let chosen = -1;
    const choose = (index, event) => {
      chosen = Math.min(Math.max(index, 0), points.length - 1);
      const at = x(placeOf(points[chosen].site));
      cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); cursor.setAttribute("visibility", "visible");
      readout.textContent = lines(points[chosen]).join("; ") + ".";
      if (event) showTip(event, lines(points[chosen]));
    };
    const nearest = (event) => {
      const box = figure.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * figure.viewBox.baseVal.width;
      const distance = points.map((point) => Math.abs(x(placeOf(point.site)) - at));
      choose(distance.indexOf(Math.min(...distance)), event);
    };
    figure.append(cursor, svg("rect", { class: "hit", x: span[0], y: span[2], width: span[1] - span[0], height: span[3] - span[2], onpointermove: nearest, onpointerleave: () => { hideTip(); cursor.setAttribute("visibility", "hidden"); } }));
    figure.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      choose(chosen + (event.key === "ArrowRight" ? 1 : -1));
    });
  }

  // Circuit explorer ---------------------------------------------------------------------------------------------------
  const sign = (value) => (value >= 0 ? "var(--positive)" : "var(--negative)");
  const nodeName = (circuit, node) => `${circuit.sites[node.s].name} ${node.l === null ? "error" : "#" + node.l}`;

  function explorer(model, id, root) {
    if (!model.circuits.length) { root.append(el("p", {}, "There are no circuits.")); return; }
    const state = { circuit: model.circuits[0], chosen: null };
    const select = el("select", { onchange: () => { state.circuit = model.circuits[select.selectedIndex]; state.chosen = null; fitLimits(); draw(); } },
      model.circuits.map((circuit) => el("option", {}, line(circuit.category) + (circuit.nodes.length ? "" : " (no circuit)"))));
    const most = el("input", { type: "number", min: 1, max: 24, value: 8, onchange: () => draw() });
    const edges = el("input", { type: "number", min: 0, max: 400, value: 40, onchange: () => draw() });
    const graph = el("div", { class: "graph" }), detail = el("div", { class: "detail", "aria-live": "polite" }), note = el("figcaption", {}), table = el("div", {});
    const zoom = (factor) => el("button", { type: "button", "aria-label": factor < 1 ? "Zoom in" : "Zoom out", onclick: () => scale(factor) }, factor < 1 ? "Zoom in" : "Zoom out");
    root.append(el("div", { class: "controls" }, el("label", {}, "Category", select), el("label", {}, "Nodes a site", most), el("label", {}, "Edges", edges), zoom(0.8), zoom(1.25),
      el("button", { type: "button", onclick: () => { state.chosen = null; draw(); } }, "Reset")),
      el("figure", {}, el("div", { class: "split narrow" }, graph, detail), note), el("details", {}, el("summary", {}, "How complete the circuit is at each site"), table));
    let box = null, home = null, figure = null;

    function fitLimits() { edges.max = state.circuit.edges.length; edges.value = Math.min(Math.max(40, 8 * (state.circuit.sites.length - 1)), state.circuit.edges.length); }
    function setBox(next) { box = next; figure.setAttribute("viewBox", box.join(" ")); }
    function scale(factor, cx = 0.5, cy = 0.5) {
      if (!box) return;
      const width = Math.min(Math.max(box[2] * factor, home[2] / 12), home[2] * 2), ratio = width / box[2];
      setBox([box[0] + box[2] * cx * (1 - ratio), box[1] + box[3] * cy * (1 - ratio), width, box[3] * ratio]);
    }
    function draw() {
      const circuit = state.circuit;
      note.textContent = "";
      if (!circuit.nodes.length) {
        graph.replaceChildren(el("p", { class: "note", style: "padding:24px" }, circuit.notices.map(line).join(" ") || "The circuit has no nodes."));
        detail.replaceChildren(...circuitDetail(circuit)); table.replaceChildren(); box = null;
        return;
      }
      const shown = layout(circuit, Math.max(1, Number(most.value) || 8), Math.max(0, Number(edges.value) || 0));
      if (state.chosen !== null && !shown.places.has(state.chosen)) state.chosen = null;
      figure = circuitFigure(circuit, shown, choose);
      home = [0, 0, shown.width, shown.height];
      figure.style.aspectRatio = `${shown.width} / ${shown.height}`;
      figure.style.minHeight = "260px";
      setBox(home);
      dragAndZoom(figure, () => box, setBox, scale);
      graph.replaceChildren(figure);
      table.replaceChildren(siteTable(circuit));
      const total = circuit.sites.reduce((sum, site) => sum + site.n, 0);
      note.textContent = `${shown.places.size} of ${total} nodes and ${shown.edges.length} of ${circuit.n_edges} edges: the largest and the strongest. Attribution in logits of m; intervals 95 % over ${circuit.n[0]} refused prompts (bootstrap). Blue is towards refusal, orange towards compliance. Drag to move; zoom with Ctrl and the wheel, or with the wheel after a click on the figure; Tab and Enter choose a node, Escape lets go.`;
      mark();
    }
    function choose(index) { state.chosen = state.chosen === index ? null : index; mark(); }
    function mark() {
      const circuit = state.circuit, near = new Set();
      if (state.chosen !== null) {
        near.add(state.chosen);
        for (const [u, v] of circuit.edges) { if (u === state.chosen) near.add(v); if (v === state.chosen) near.add(u); }
      }
      for (const node of figure.querySelectorAll(".node")) {
        const index = Number(node.dataset.index);
        node.classList.toggle("dim", near.size > 0 && !near.has(index));
        node.classList.toggle("chosen", index === state.chosen);
        node.setAttribute("aria-pressed", index === state.chosen);
      }
      for (const edge of figure.querySelectorAll(".edge")) {
        const touches = Number(edge.dataset.u) === state.chosen || Number(edge.dataset.v) === state.chosen;
        edge.classList.toggle("dim", near.size > 0 && !touches);
        edge.classList.toggle("weak", "rest" in edge.dataset && !touches);
      }
      detail.replaceChildren(...(state.chosen === null ? circuitDetail(circuit) : nodeDetail(model, circuit, state.chosen, choose)));
    }
    graph.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.chosen !== null) { state.chosen = null; mark(); } });
    fitLimits();
    draw();
  }

  function layout(circuit, most, nEdges) {
    const rows = circuit.sites.map(() => []);
    circuit.nodes.forEach((node, index) => rows[node.s].push(index));
    const places = new Map();
    let columns = 1;
    const kept = rows.map((row) => {
      const errors = row.filter((index) => circuit.nodes[index].l === null);
      const latents = row.filter((index) => circuit.nodes[index].l !== null).sort((u, v) => Math.abs(circuit.nodes[v].a) - Math.abs(circuit.nodes[u].a)).slice(0, Math.max(0, most - errors.length));
      return [...latents.sort((u, v) => circuit.nodes[v].a - circuit.nodes[u].a), ...errors];
    });
    kept.forEach((row, s) => {
      columns = Math.max(columns, row.length);
      row.forEach((index, column) => places.set(index, [130 + 100 * column, 44 + 88 * (circuit.sites.length - 1 - s)]));
    });
    const edges = circuit.edges.filter(([u, v]) => places.has(u) && places.has(v));
    return { places, edges: edges.slice(0, nEdges), rest: edges.slice(nEdges), // the rest shows when one of its nodes is chosen
      width: Math.max(130 + 100 * columns, 620), height: 88 * circuit.sites.length };
  }

  function circuitFigure(circuit, shown, choose) {
    const figure = svg("svg", { class: "fig", tabindex: 0, role: "group", "aria-label": `Circuit of ${line(circuit.category)}: ${shown.places.size} nodes` });
    circuit.sites.forEach((site, s) => {
      const y = 44 + 88 * (circuit.sites.length - 1 - s), drawn = circuit.nodes.filter((node, index) => node.s === s && shown.places.has(index)).length;
      figure.append(svg("line", { class: "grid", x1: 112, x2: shown.width - 6, y1: y, y2: y }), svg("text", { class: "strong", x: 12, y: y + 1 }, site.name), svg("text", { class: "minor", x: 12, y: y + 15 }, `${drawn} of ${site.n} nodes`));
    });
    const strongest = Math.max(1e-9, ...shown.edges.map((edge) => Math.abs(edge[2]))), largest = Math.max(1e-9, ...circuit.nodes.map((node) => Math.abs(node.a)));
    for (const [u, v, weight, isRest] of [...shown.edges, ...shown.rest.map((edge) => [...edge, true])].reverse()) {
      const [x0, y0] = shown.places.get(u), [x1, y1] = shown.places.get(v), middle = (y0 + y1) / 2, share = Math.abs(weight) / strongest;
      const lines = [`${nodeName(circuit, circuit.nodes[u])} to ${nodeName(circuit, circuit.nodes[v])}`, `${num(weight, true)} logits`];
      figure.append(svg("path", { class: isRest ? "edge weak" : "edge", "data-rest": isRest ? "" : null, "data-u": u, "data-v": v, d: `M${x0},${y0} C${x0},${middle} ${x1},${middle} ${x1},${y1}`, style: `stroke:${sign(weight)}`, "stroke-width": 0.8 + 4.2 * share, "stroke-opacity": 0.25 + 0.5 * share, onpointermove: (event) => showTip(event, lines), onpointerleave: hideTip }));
    }
    for (const [index, [x, y]] of shown.places) figure.append(nodeMark(circuit, index, x, y, largest, choose));
    return figure;
  }

  function nodeMark(circuit, index, x, y, largest, choose) {
    const node = circuit.nodes[index], r = 3.5 + 9.5 * Math.sqrt(Math.abs(node.a) / largest), name = nodeName(circuit, node);
    const lines = [name, `attribution ${est(node.a, ...node.i, true)} logits`, `adds to the kept circuit ${est(...node.d, true)} logits`, `stability ${num(node.t)}`, `active on ${num(node.f[0])} of ${circuit.n[0]} refused, ${num(node.f[1])} of ${circuit.n[1]} complied prompts`];
    const shape = node.l === null ? svg("rect", { class: "mark", x: x - r, y: y - r, width: 2 * r, height: 2 * r, style: `fill:${sign(node.a)}` }) : svg("circle", { class: "mark", cx: x, cy: y, r, style: `fill:${sign(node.a)}` });
    const group = svg("g", { class: "node", tabindex: 0, role: "button", "data-index": index, "aria-label": lines.join(", "), onpointermove: (event) => showTip(event, lines), onpointerleave: hideTip,
      onfocus: () => { if (group.matches(":focus-visible")) showTip(group, lines); }, onblur: hideTip, onclick: () => choose(index),
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(index); } } },
      shape, svg("text", { class: "halo", x: x + r + 5, y: y - 1 }, node.l === null ? "error" : `#${node.l}`), svg("text", { class: "halo strong", x: x + r + 5, y: y + 13 }, num(node.a, true)));
    return group;
  }

  function dragAndZoom(figure, getBox, setBox, scale) {
    let from = null;
    figure.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !figure.contains(document.activeElement)) return;
      event.preventDefault();
      const rect = figure.getBoundingClientRect();
      scale(event.deltaY < 0 ? 0.88 : 1.14, (event.clientX - rect.left) / rect.width, (event.clientY - rect.top) / rect.height);
    }, { passive: false });
    figure.addEventListener("pointerdown", (event) => { if (event.button === 0 && !event.target.closest(".node")) from = { x: event.clientX, y: event.clientY, box: getBox() }; });
    figure.addEventListener("pointermove", (event) => {
      if (!from) return;
      const per = from.box[2] / figure.getBoundingClientRect().width;
      setBox([from.box[0] - (event.clientX - from.x) * per, from.box[1] - (event.clientY - from.y) * per, from.box[2], from.box[3]]);
    });
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) figure.addEventListener(end, () => { from = null; });
  }

  function circuitDetail(circuit) {
    return [el("h4", {}, line(circuit.category)), el("p", {}, `n = ${circuit.n[0]} refused, ${circuit.n[1]} complied prompts; latents ranked by ${circuit.method === "attribution" ? "integrated gradients" : "correlation"}; SAE seed ${circuit.seed}.`),
      ...circuit.notices.map((notice) => el("p", {}, line(notice))), el("p", { class: "note" }, "Choose a node to see what it is connected to and which prompts it is most active on.")];
  }

  function nodeDetail(model, circuit, index, choose) {
    const node = circuit.nodes[index], row = (label, value) => el("tr", {}, el("th", { scope: "row", class: "wrap" }, label), el("td", {}, value));
    const list = (title, edges, other) => edges.length ? [el("h4", {}, title), el("ul", {}, edges.slice(0, 6).map((edge) => el("li", {}, el("button", { type: "button", class: "link", onclick: () => choose(other(edge)) }, nodeName(circuit, circuit.nodes[other(edge)])), ` ${num(edge[2], true)}`)), edges.length > 6 ? el("li", { class: "none" }, `and ${edges.length - 6} weaker`) : null)] : [];
    const into = circuit.edges.filter((edge) => edge[1] === index), out = circuit.edges.filter((edge) => edge[0] === index);
    return [el("h4", {}, nodeName(circuit, node)), el("table", {}, el("tbody", {}, row("Attribution, logits", est(node.a, ...node.i, true)), row("Stability (share of draws)", num(node.t)),
      row(`Active, of ${circuit.n[0]} refused`, num(node.f[0])), row(`Active, of ${circuit.n[1]} complied`, num(node.f[1])))), ...list("Strongest from", into, (edge) => edge[0]), ...list("Strongest to", out, (edge) => edge[1]), ...promptList(model, node)];
  }

  function promptList(model, node) {
    if (!node.p.length) return [];
    const entry = (id) => {
      const prompt = data.prompts[id], answer = model.answers[id];
      const about = [prompt && `${prompt[1]}, ${line(prompt[0])}`, answer && answer[0].replace("_", " ")].filter(Boolean).join("; ");
      if (!prompt) return el("li", {}, line(id), el("span", { class: "none" }, " (text not in this page)"));
      const text = el("div", { hidden: true }, el("div", { class: "text", dir: "auto" }, prompt[2]), el("div", { class: "text", dir: "auto" }, answer ? answer[1] || "(empty response)" : "(response not in this page)"));
      const button = el("button", { type: "button", class: "link", "aria-expanded": "false", onclick: () => { text.hidden = !text.hidden; button.setAttribute("aria-expanded", String(!text.hidden)); } }, line(id));
      return el("li", {}, button, ` ${about}`, text);
    };
    return [el("h4", {}, "Most active on"), el("p", { class: "note" }, "Prompts may be harmful. Click an id to show the prompt and the response."), el("ul", {}, node.p.map(entry))];
  }

  function siteTable(circuit) {
    const head = ["Site", "Latents chosen", "Faithfulness", "Completeness", "Not explained by edges"];
    return el("div", {}, el("p", { class: "note" }, `n = ${circuit.n[0]} refused prompts; 95 % bootstrap intervals. Faithfulness: share of the change of m that the circuit alone keeps (1 = all). Completeness: the same for everything but the circuit (0 = the circuit was all of it). Neither is clipped.`),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, head.map((label) => el("th", { scope: "col" }, label)))),
      el("tbody", {}, circuit.sites.map((site) => el("tr", {}, el("th", { scope: "row" }, site.name), el("td", {}, String(site.size ?? NONE)), el("td", {}, est(...site.faithfulness)), el("td", {}, est(...site.completeness)), el("td", {}, num(site.remainder))))))));
  }

  // Tables, tabs, start ------------------------------------------------------------------------------------------------
  function sortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = el("button", { type: "button", onclick: () => {
        const down = head.getAttribute("aria-sort") !== "descending" && column > 0 || head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => column === 0 ? row.cells[0].textContent : Number(row.cells[column].dataset.sort);
        body.append(...[...body.rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (down ? -1 : 1)));
      } }, head.textContent);
      head.replaceChildren(button);
    });
  }

  const tabs = [...document.querySelectorAll("[role=tab]")], panels = [...document.querySelectorAll(".panel")], drawn = new Set();
  function drawPanel(index) {
    if (drawn.has(index)) return;
    drawn.add(index);
    const figures = { heatmap, depth, circuit: explorer };
    for (const root of panels[index].querySelectorAll("[data-figure]")) figures[root.dataset.figure](data.models[index], index, root);
    panels[index].querySelectorAll("table.sortable").forEach(sortable);
  }
  function show(index) {
    panels.forEach((panel, other) => { panel.hidden = other !== index; });
    tabs.forEach((tab, other) => { tab.setAttribute("aria-selected", String(other === index)); tab.tabIndex = other === index ? 0 : -1; });
    drawPanel(index);
  }
  function fromAddress(jump) {
    const match = /^#model-(\d+)$/.exec(location.hash), index = match ? Number(match[1]) : 0;
    show(index < panels.length ? index : 0);
    if (jump && match && panels[index]) panels[index].scrollIntoView();
  }
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => { show(index); history.replaceState(null, "", `#model-${index}`); });
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (index + step + tabs.length) % tabs.length;
      show(next);
      tabs[next].focus();
    });
  });
  addEventListener("hashchange", () => fromAddress(true));
  addEventListener("beforeprint", () => panels.forEach((_, index) => drawPanel(index)));
  fromAddress(true);
})();
