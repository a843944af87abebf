"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byName = new Map(data.sites.map((s) => [s.name, s]));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const at = (id) => document.getElementById(id);
  const whole = (n) => n.toLocaleString("en-US");
  const short = (x) => (x === null || x === undefined ? "–" : Math.abs(x) >= 1e5 || (x && Math.abs(x) < 1e-3) ? x.toExponential(2) : String(+x.toPrecision(4)));
  const percent = (x) => (x === null || x === undefined ? "–" : x > 0 && x < 1e-4 ? "< 0.01 %" : (100 * x).toFixed(2) + " %");
  const accuracy = (x) => (x === null || x === undefined ? "–" : x.toFixed(2) + " %");
  const decibels = (x) => (x === null || x === undefined ? "–" : x.toFixed(1) + " dB");
  const bytes = (n) => (n === null || n === undefined ? "–" : n >= 1e6 ? (n / 1e6).toFixed(2) + " MB" : (n / 1e3).toFixed(1) + " kB");

  function el(tag, options = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (key === "class") node.className = value;
      else if (key in node && key !== "list") node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  function table(caption, heads, rows, numbers) {
    const cell = (tag) => (text, i) => el(tag, { class: numbers.includes(i) ? "number" : "", ...(tag === "th" ? { scope: "col" } : {}) }, text instanceof Node ? text : String(text));
    return el("div", { class: "scroll" }, el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...heads.map(cell("th")))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell("td")))))));
  }

  // Colours that differ in lightness as well as in hue, so that they are told apart without one of them.
  const LEVELS = [[40, "#2c7bb6", "40 dB and more"], [30, "#77b7d8", "30 to 40 dB"], [20, "#f0c05a", "20 to 30 dB"], [10, "#e8823a", "10 to 20 dB"], [-Infinity, "#b5262b", "under 10 dB"]];
  const level = (sqnr) => LEVELS.find(([least]) => sqnr >= least);

  // -- plots ------------------------------------------------------------------------------------------------------
  const plots = [];
  function plot(host, heading, options, values) {
    const box = el("div", { class: "plot" }, el("h3", {}, heading));
    host.append(box);
    const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
    const made = new uPlot({ width: Math.max(280, box.clientWidth - 20), height: 230, legend: { live: true }, ...options,
      axes: [{ ...axis, ...(options.axes || [])[0] }, { ...axis, size: 62, ...(options.axes || [])[1] }] }, values, box);
    plots.push([made, box]);
    return made;
  }
  addEventListener("resize", () => plots.forEach(([made, box]) => box.isConnected && made.setSize({ width: Math.max(280, box.clientWidth - 20), height: 230 })));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawTraining(); if (chosen) choose(chosen, false); });

  function histogram(host, site) {
    const h = site.histogram, n = h.counts.length, width = (h.high - h.low) / n;
    const centres = h.counts.map((_, i) => h.low + (i + 0.5) * width);
    const bars = uPlot.paths.bars({ size: [1, 100], gap: 0 });
    const perTensor = site.scale.length === 1;
    const beyond = (u) => {
      const [left, right] = [site.minimum, site.maximum].map((v) => u.valToPos(v, "x", true));
      u.ctx.save();
      u.ctx.fillStyle = css("--clip");
      u.ctx.fillRect(u.bbox.left, u.bbox.top, Math.max(0, left - u.bbox.left), u.bbox.height);
      u.ctx.fillRect(right, u.bbox.top, Math.max(0, u.bbox.left + u.bbox.width - right), u.bbox.height);
      if (perTensor && site.qmax - site.qmin <= 64) {
        u.ctx.strokeStyle = css("--grid");
        for (let q = site.qmin; q <= site.qmax; q++) {
          const x = u.valToPos((q - site.zero_point[0]) * site.scale[0], "x", true);
          u.ctx.beginPath(); u.ctx.moveTo(x, u.bbox.top); u.ctx.lineTo(x, u.bbox.top + u.bbox.height); u.ctx.stroke();
        }
      }
      u.ctx.restore();
    };
    plot(host, "Values against the grid (shaded: clipped)", {
      scales: { x: { time: false }, y: { distr: 3, log: 10 } }, hooks: { drawClear: [beyond] },
      series: [{ label: "value", value: (_, v) => short(v) }, { label: "count", fill: css("--accent"), paths: bars, points: { show: false }, value: (_, v) => (v === null ? "0" : whole(v)) }],
    }, [centres, h.counts.map((c) => (c > 0 ? c : null))]);
  }

  function lines(host, heading, x, columns, xLabel) {
    const strokes = ["--accent", "--warn", "--good", "--soft"].map(css);
    const wholes = [1, 2, 5].flatMap((n) => Array.from({ length: 9 }, (_, i) => n * 10 ** i)).sort((a, b) => a - b); // steps and channels
    plot(host, heading, { scales: { x: { time: false } }, axes: [{ incrs: wholes }],
      series: [{ label: xLabel, value: (_, v) => short(v) }, ...Object.keys(columns).map((label, i) => ({ label, stroke: strokes[i % 4], width: 2, spanGaps: true, points: { show: x.length < 40 }, value: (_, v) => short(v) }))] },
      [x, ...Object.values(columns)]);
  }

  const link = (name) => { const b = el("a", { href: "#site" }, name); b.addEventListener("click", () => choose(name, false)); return b; };

  // -- summary: is it good, small, fast, exact, and what hurts ---------------------------------------------------------
  const times = (x) => (x >= 10 ? x.toFixed(0) : x.toFixed(2)) + " ×";

  function good() {
    const measured = data.stages.filter((s) => s.top1 !== null), float = measured[0], last = measured[measured.length - 1];
    if (!last || last === float) return ["–", "Not given: stages=… of tq.report has the accuracy.", ""];
    const lost = float.top1 - last.top1, classes = data.program?.classes, chance = classes ? 100 / classes : 0;
    if (chance && last.top1 < 1.5 * chance) return [accuracy(last.top1), `Chance is ${accuracy(chance)}: the model has learned nothing, however exact it is.`, "bad"];
    const points = Math.abs(lost).toFixed(2) + " points";
    return [accuracy(last.top1), `Top-1 as deployed; ${float.name} ${accuracy(float.top1)}, ${lost > 0 ? points + " lost" : points + " gained"}.`, lost <= 1 ? "good" : "bad"];
  }

  function small() {
    const sized = data.stages.filter((s) => s.size !== null), now = data.program?.bytes ?? sized[sized.length - 1]?.size, before = sized[0]?.size;
    if (!now) return ["–", "Not given: int8=… of tq.report is the converted model.", ""];
    return [bytes(now), before && before > now ? `${times(before / now)} smaller than ${sized[0].name}, ${bytes(before)}.` : "The Int8 program.", before && now >= before ? "bad" : "good"];
  }

  function fast() {
    const timed = data.stages.filter((s) => Object.keys(s.latency).length), float = timed[0], last = timed[timed.length - 1];
    const batch = float && Object.keys(float.latency).sort((x, y) => x - y).find((n) => last.latency[n] !== undefined);
    if (!last || last === float || batch === undefined) return ["–", "Not given: stages=… of tq.report has times.", ""];
    const faster = float.latency[batch] / last.latency[batch];
    return [times(faster), `${last.name} against ${float.name}, batch ${batch}: ${(1000 * last.latency[batch]).toFixed(2)} ms.`, faster >= 1 ? "good" : "bad"];
  }

  function exact() {
    const runs = data.verification || [], grades = runs.map((v) => v.grade);
    if (!runs.length) return ["–", "Not given: verification=… of tq.report is what tq.verify found.", ""];
    const sum = (field) => runs.reduce((n, v) => n + v[field], 0);
    const worst = grades.find((g) => g !== "EXACT") || "EXACT";
    return [worst, `${whole(sum("different"))} of ${whole(sum("compared"))} codes differ in ${runs.map((v) => v.runtime).join(", ")}.`, grades.every((g) => g.startsWith("EXACT")) ? "good" : "bad"];
  }

  function hurts() {
    const measured = data.sites.filter((s) => s.sqnr !== null), left = data.order.filter((s) => s.action === "float").length;
    const stays = left ? ` ${whole(left)} ${left === 1 ? "site stays" : "sites stay"} float.` : " Nothing stays float.";
    if (!measured.length) return ["–", "Nothing was measured." + stays, left ? "" : "good"];
    const worst = measured.reduce((x, y) => (x.sqnr < y.sqnr ? x : y));
    return [decibels(worst.sqnr), el("span", {}, "Lowest signal over noise of " + whole(data.sites.length) + " quantizers: ", link(worst.name), "." + stays), worst.sqnr >= 10 ? "good" : "bad"];
  }

  function summary() {
    const host = at("summary"), cards = el("div", { class: "cards" });
    for (const [question, answer] of Object.entries({ "Is it good?": good, "Is it small?": small, "Is it fast?": fast, "Is it exact?": exact, "What hurts?": hurts })) {
      const [value, text, verdict] = answer();
      cards.append(el("div", { class: "card" }, el("h3", {}, question), el("b", { class: verdict }, value), el("span", {}, text)));
    }
    host.append(cards);
    if (data.stages.length) {
      const batches = [...new Set(data.stages.flatMap((s) => Object.keys(s.latency)))].sort((a, b) => a - b);
      host.append(table("Forms of the model", ["form", "top-1", "file", ...batches.map((b) => "batch " + b)],
        data.stages.map((s) => [s.name, accuracy(s.top1), bytes(s.size), ...batches.map((b) => (s.latency[b] === undefined ? "–" : (1000 * s.latency[b]).toFixed(2) + " ms"))]), [1, 2, ...batches.map((_, i) => i + 3)]));
    }
    if (data.verification) host.append(table("Every code of every edge, against the evaluated model", ["runtime", "compared", "different", "largest", "changed predictions", "grade"],
      data.verification.map((v) => [v.runtime, whole(v.compared), whole(v.different), v.largest, whole(v.changed), v.grade]), [1, 2, 3, 4]));
    if (data.program) host.append(el("p", { class: "note" }, "Nodes of the program: " + Object.entries(data.program.ops).map(([k, n]) => n + " " + k).join(", ")));
  }

  // -- map and site -----------------------------------------------------------------------------------------------
  let chosen = null;
  const tiles = new Map();
  function map() {
    const host = at("map");
    host.append(el("p", {}, "Every quantizer and every site in float, in the order of the forward. The colour is the signal over the quantization noise; choose one to see its values."));
    host.append(el("div", { class: "legend" }, ...LEVELS.map(([, color, text]) => { const i = el("i"); i.style.background = color; return el("span", {}, i, text); })));
    const search = el("input", { type: "search", placeholder: "part of a name", "aria-label": "Show names with" });
    const kind = el("select", { "aria-label": "Show kinds" }, ...["all", "activation", "weight", "float"].map((k) => el("option", {}, k)));
    const order = el("select", { "aria-label": "Order" }, ...["in order", "worst first"].map((k) => el("option", {}, k)));
    const grid = el("div", { id: "tiles" });
    host.append(el("div", { class: "tools" }, search, kind, order), grid);
    const entries = [], seen = new Set();
    const add = (name) => { if (name && byName.has(name) && !seen.has(name)) { seen.add(name); entries.push({ name, site: byName.get(name), kind: byName.get(name).kind }); } };
    data.sites.filter((s) => s.name.startsWith("input_")).forEach((s) => add(s.name));
    for (const s of data.order) { add(s.weight); if (s.action === "float") entries.push({ name: s.name, float: s, kind: "float" }); add(s.emits); add(s.quantizer); }
    data.sites.forEach((s) => add(s.name));
    for (const e of entries) {
      const tile = e.float ? el("div", { class: "tile float", title: e.float.reason }, e.name, el("small", {}, "float: " + e.float.op))
        : el("button", { class: "tile", type: "button", "aria-pressed": "false", "aria-label": e.name + ", " + e.site.scheme + ", " + decibels(e.site.sqnr) }, e.name, el("small", {}, e.site.scheme + " · " + decibels(e.site.sqnr)));
      if (e.site) { if (e.site.sqnr !== null) tile.style.borderLeftColor = level(e.site.sqnr)[1]; tile.addEventListener("click", () => choose(e.name, true)); tiles.set(e.name, tile); }
      e.tile = tile;
    }
    const groups = blocks(entries);
    const show = () => {
      const list = entries.filter((e) => e.name.includes(search.value) && (kind.value === "all" || e.kind === kind.value));
      const plain = order.value === "worst first" || search.value || kind.value !== "all" || groups.length < 2;
      if (order.value === "worst first") list.sort((a, b) => (a.site?.sqnr ?? 1e9) - (b.site?.sqnr ?? 1e9));
      grid.classList.toggle("tiles", plain);
      grid.replaceChildren(...(plain ? list.map((e) => e.tile) : groups.map(block)));
    };
    for (const i of [search, kind, order]) for (const event of ["input", "change"]) i.addEventListener(event, show);
    show();
  }

  // A large model's map is folded by the parts of the model: each shows the colours of its tiles, and opens.
  const FOLDED = 60;
  function blocks(entries) {
    if (entries.length <= FOLDED) return [];
    for (const depth of [1, 2, 3]) {
      const parts = [];
      for (const e of entries) {
        const name = e.name.split(".").slice(0, depth).join(".");
        if (parts.length && parts[parts.length - 1].name === name) parts[parts.length - 1].entries.push(e);
        else parts.push({ name, entries: [e] });
      }
      if (parts.length > FOLDED) break;
      if (parts.every((p) => p.entries.length <= FOLDED)) return parts;
    }
    const slices = [];
    for (let i = 0; i < entries.length; i += FOLDED) {
      const some = entries.slice(i, i + FOLDED);
      slices.push({ name: some[0].name + " … " + some[some.length - 1].name, entries: some });
    }
    return slices;
  }

  function block(part) {
    const measured = part.entries.filter((e) => e.site && e.site.sqnr !== null), floats = part.entries.filter((e) => e.float).length;
    const worst = measured.length ? Math.min(...measured.map((e) => e.site.sqnr)) : null;
    const strip = el("span", { class: "strip", "aria-hidden": "true" }, ...part.entries.map((e) => {
      const bar = el("i");
      if (e.site && e.site.sqnr !== null) bar.style.background = level(e.site.sqnr)[1];
      return bar;
    }));
    const told = part.entries.length + " · lowest " + decibels(worst) + (floats ? " · " + floats + " float" : "");
    const tilesOf = el("div", { class: "tiles" }, ...part.entries.map((e) => e.tile));
    return el("details", {}, el("summary", {}, el("span", { class: "name" }, part.name), strip, el("small", {}, told)), tilesOf);
  }
  addEventListener("beforeprint", () => document.querySelectorAll("#map details").forEach((d) => { d.open = true; }));

  function choose(name, scroll) {
    const site = byName.get(name), host = at("site");
    if (chosen) tiles.get(chosen)?.setAttribute("aria-pressed", "false");
    tiles.get(name)?.setAttribute("aria-pressed", "true");
    tiles.get(name)?.closest("details")?.setAttribute("open", "");
    chosen = name;
    host.replaceChildren(at("site-title"));
    at("site-title").textContent = name;
    const span = (v) => (v.length === 1 ? short(v[0]) : short(Math.min(...v)) + " … " + short(Math.max(...v)));
    host.append(table(site.kind + ", " + site.scheme, ["scale", "zero point", "codes", "range", "SQNR", "clipped", "weight error", "oscillates", "state", "updates"],
      [[span(site.scale), span(site.zero_point), site.qmin + " … " + site.qmax, short(site.minimum) + " … " + short(site.maximum), decibels(site.sqnr), percent(site.clipped), percent(site.error), percent(data.history?.oscillating?.[name]), site.state, site.updates]], [0, 1, 9]));
    const plotsHost = el("div", { class: "plots" });
    host.append(plotsHost);
    if (site.histogram) histogram(plotsHost, site);
    if (site.channels && site.channels.low.length > 1) lines(plotsHost, "Range of each channel", site.channels.low.map((_, i) => i), { smallest: site.channels.low, largest: site.channels.high }, "channel");
    else if (site.scale.length > 1) lines(plotsHost, "Scale of each channel", site.scale.map((_, i) => i), { scale: site.scale }, "channel");
    const past = data.history?.scales[name];
    if (past) lines(plotsHost, "Scale over training", data.history.steps.slice(-past.length), { scale: past }, "step");
    if (!plotsHost.childElementCount) host.append(el("p", { class: "note" }, "Nothing was measured here: give tq.report some batches."));
    if (scroll) host.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  function ranking() {
    const host = at("ranking");
    if (data.sensitivity) {
      const sites = [...data.sensitivity.sites].sort((a, b) => b.only - a.only).slice(0, 40);
      host.append(el("p", {}, "Loss with this quantizer alone, and with all but this one. Float: " + short(data.sensitivity.floating) + ", all quantized: " + short(data.sensitivity.quantized) + "."));
      host.append(table("The most sensitive first", ["quantizer", "only this", "all but this"], sites.map((s) => [byName.has(s.name) ? link(s.name) : s.name, short(s.only), short(s.all_but)]), [1, 2]));
    }
    const worst = data.sites.filter((s) => s.sqnr !== null).sort((a, b) => a.sqnr - b.sqnr).slice(0, 20);
    if (worst.length) host.append(table("Lowest signal over quantization noise", ["quantizer", "scheme", "SQNR", "clipped"], worst.map((s) => [link(s.name), s.scheme, decibels(s.sqnr), percent(s.clipped)]), [2, 3]));
    const moving = data.history?.oscillating;
    if (moving) host.append(table("Weights that oscillate", ["weight", "share"], Object.entries(moving).sort((a, b) => b[1] - a[1]).slice(0, 20).map(([n, v]) => [n, percent(v)]), [1]));
    return Boolean(data.sensitivity || worst.length);
  }

  function drawTraining() {
    const host = at("training");
    host.replaceChildren(at("training-title"));
    const figures = Object.entries(data.history?.figures || {});
    const box = el("div", { class: "plots" });
    host.append(box);
    for (const [name, points] of figures) lines(box, name, points.map((p) => p[0]), { [name]: points.map((p) => p[1]) }, "step");
    return figures.length > 0;
  }

  function islands() {
    const left = data.order.filter((s) => s.action === "float");
    at("islands").append(left.length ? table("Between quantizers, each with its reason", ["site", "op", "why"], left.map((s) => [s.name, s.op, s.reason]), []) : el("p", {}, "Nothing: every op runs on integers."));
    return true;
  }

  function compare() {
    if (!data.before) return false;
    const old = new Map(data.before.sites.map((s) => [s.name, s])), host = at("compare");
    host.append(el("p", {}, "Against “" + data.before.title + "”."));
    if (data.before.stages.length && data.stages.length) {
      const was = new Map(data.before.stages.map((s) => [s.name, s]));
      host.append(table("Accuracy", ["form", "before", "now"], data.stages.map((s) => [s.name, accuracy(was.get(s.name)?.top1), accuracy(s.top1)]), [1, 2]));
    }
    const rows = data.sites.filter((s) => old.has(s.name)).map((s) => ({ s, o: old.get(s.name) })).filter(({ s, o }) => o.scheme !== s.scheme || (s.sqnr !== null && o.sqnr !== null && Math.abs(s.sqnr - o.sqnr) >= 0.05));
    rows.sort((a, b) => (a.s.sqnr ?? 0) - (a.o.sqnr ?? 0) - ((b.s.sqnr ?? 0) - (b.o.sqnr ?? 0)));
    host.append(table(rows.length + " quantizers changed", ["quantizer", "scheme before", "scheme now", "SQNR before", "SQNR now"], rows.slice(0, 100).map(({ s, o }) => [link(s.name), o.scheme, s.scheme, decibels(o.sqnr), decibels(s.sqnr)]), [3, 4]));
    const gone = data.before.sites.filter((s) => !byName.has(s.name)).map((s) => s.name), fresh = data.sites.filter((s) => !old.has(s.name)).map((s) => s.name);
    for (const [text, names] of [["Gone: ", gone], ["New: ", fresh]]) if (names.length) host.append(el("p", { class: "note" }, text + names.slice(0, 30).join(", ")));
    return true;
  }

  at("subtitle").textContent = "Quantization report · target " + (data.target || "none") + " · " + data.state;
  summary(); map();
  const shown = { summary: true, map: true, site: data.sites.length > 0, ranking: ranking(), training: drawTraining(), islands: islands(), compare: compare() };
  for (const [id, there] of Object.entries(shown)) {
    at(id).hidden = !there;
    if (there) at("sections").append(el("a", { href: "#" + id }, at(id + "-title").textContent));
  }
  if (data.sites.length) { const first = data.sites.filter((s) => s.sqnr !== null).sort((a, b) => a.sqnr - b.sqnr)[0] || data.sites[0]; choose(first.name, false); }
  at("footer").textContent = "Made with " + Object.entries(data.versions).filter(([, v]) => v).map(([k, v]) => k + " " + v).join(", ") + " on " + data.cpu + ".";
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
