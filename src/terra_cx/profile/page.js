"use strict";
// The timeline (two canvases per loop) and what happens when a line is chosen. Times are microseconds.
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.querySelector(".tip");
const RULER = 26, ROW = 26, THIN = 15, GAP = 10, LABEL = 15, COUNTER = 30;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const short = (line) => line.slice(line.lastIndexOf("/") + 1);
function span(us) {
  if (us >= 1e6) return (us / 1e6).toPrecision(3) + " s";
  if (us >= 1e3) return (us / 1e3).toPrecision(3) + " ms";
  return (us >= 100 ? us.toFixed(0) : us.toPrecision(2)) + " µs";
}

class Timeline {
  constructor(section, index) {
    this.section = section;
    this.index = index;
    this.lanes = data.timelines[index].lanes;
    this.steps = data.timelines[index].steps;
    this.arrows = data.timelines[index].arrows;
    this.counters = data.timelines[index].counters;
    this.end = this.steps.length ? this.steps[this.steps.length - 1][1] : 1;
    this.view = section.querySelector(".view");
    this.overview = section.querySelector(".overview");
    this.from = 0; this.to = this.end;
    this.line = null; this.over = null;
    this.layOut();
    this.listen();
    this.zoomTo(...this.firstSteps(Math.max(2, Math.round(this.view.clientWidth / 260))));
  }
  firstSteps(count) {
    const devices = data.timelines[this.index].devices;  // where all lanes have something, if anywhere
    let at = this.steps.findIndex(([start]) => start >= devices);
    at = Math.max(0, Math.min((at < 0 ? 0 : at) + 1, this.steps.length - count));
    const last = this.steps[Math.min(at + count, this.steps.length) - 1];
    const from = this.steps[at][0], margin = (last[1] - from) * 0.02;
    return [from - margin, last[1] + margin];
  }
  layOut() {
    let y = RULER + 6;
    for (const lane of this.lanes) {
      lane.y = y + LABEL; lane.height = lane.thin ? THIN : ROW;
      y = lane.y + lane.height + GAP;
    }
    for (const counter of this.counters) { counter.y = y + LABEL; y = counter.y + COUNTER + GAP; }
    this.height = y + 4;
    this.view.style.height = this.height + "px";
  }
  zoomTo(from, to) {
    const least = 2, whole = this.end * 1.04, edge = this.end * 0.02;
    let width = Math.min(Math.max(to - from, least), whole);
    const centre = (from + to) / 2;
    this.from = Math.min(Math.max(centre - width / 2, -edge), this.end + edge - width);
    this.to = this.from + width;
    this.view.dataset.from = this.from; this.view.dataset.to = this.to;
    this.draw();
  }
  zoom(factor, at = (this.from + this.to) / 2) {
    this.zoomTo(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }
  x(time) { return (time - this.from) / (this.to - this.from) * this.width; }
  time(x) { return this.from + x / this.width * (this.to - this.from); }

  context(canvas) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    const c = canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    return c;
  }
  draw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => { this.queued = false; this.paint(); });
  }
  paint() {
    this.width = this.view.clientWidth;
    if (!this.width) return;
    const c = this.context(this.view);
    const paint = Object.fromEntries(data.whats.map((what) => [what, colour(data.colours[what])]));
    const ink = colour("ink"), soft = colour("soft"), faint = colour("faint"), rule = colour("rule"), band = colour("band");
    const face = getComputedStyle(document.body).fontFamily;
    this.paintSteps(c, { band, soft, rule, face });
    for (const lane of this.lanes) {
      this.paintLane(c, lane, paint, face);
    }
    this.paintArrows(c, ink);
    this.paintCounters(c, { soft, faint, face });
    for (const lane of this.lanes) {
      c.font = `12px ${face}`; c.textBaseline = "alphabetic";
      c.globalAlpha = 0.8; c.fillStyle = colour("card"); c.fillRect(5, lane.y - 14, c.measureText(lane.name).width + 6, 13);
      c.globalAlpha = 1; c.fillStyle = soft; c.fillText(lane.name, 8, lane.y - 4);
    }
    this.paintOverview(paint, ink);
  }
  paintSteps(c, { band, soft, rule, face }) {
    c.font = `12px ${face}`; c.textBaseline = "middle";
    let free = -1;
    this.steps.forEach(([start, end, number], index) => {
      const x = this.x(start), w = this.x(end) - x;
      if (x > this.width || x + w < 0) return;
      if (w > 6 && index % 2 === 0) { c.fillStyle = band; c.fillRect(x, RULER, w, this.height - RULER); }
      const text = "step " + number, wide = c.measureText(text).width;
      const left = Math.max(x, 0), seen = Math.min(x + w, this.width) - left;
      if (left + 8 > free && w > 2) {
        const at = left + 6;
        if (seen > wide + 12 || (w < wide + 12 && index % Math.ceil((wide + 24) / w) === 0)) {
          c.fillStyle = soft; c.fillText(text, at, RULER / 2);
          free = at + wide + 10;
          const room = x + w - free, length = span(end - start);
          if (room > c.measureText(length).width + 8) {
            c.fillStyle = colour("faint"); c.fillText(length, free - 2, RULER / 2);
          }
        }
      }
    });
    c.fillStyle = rule; c.fillRect(0, RULER, this.width, 1);
  }
  visible(bars) {  // bars are in order of their start; those before may reach in, so a little earlier
    let low = 0, high = bars.length;
    while (low < high) { const middle = (low + high) >> 1; if (bars[middle][0] < this.from) low = middle + 1; else high = middle; }
    return Math.max(0, low - 12);
  }
  paintLane(c, lane, paint, face) {
    const { bars } = lane;
    let last = -1;
    c.font = `11.5px ${face}`; c.textBaseline = "middle";
    for (let i = this.visible(bars); i < bars.length; i++) {
      const [start, length, what, name, line] = bars[i];
      if (start > this.to) break;
      const x = this.x(start), w = this.x(start + length) - x;
      if (x + w < 0) continue;
      if (w < 1) { const pixel = Math.floor(x); if (pixel === last) continue; last = pixel; }
      const kind = data.whats[what], inner = kind === "dispatch";
      const mine = this.line === null || data.lines[line] === this.line;
      c.globalAlpha = mine ? 1 : 0.16;
      c.fillStyle = paint[kind];
      const y = lane.y + (inner ? lane.height - 6 : 0), h = inner ? 6 : lane.height;
      if (w > 7) { c.beginPath(); c.roundRect(x + 0.25, y, w - 0.5, h, 3); c.fill(); }
      else c.fillRect(x, y, Math.max(w - (w > 2 ? 0.4 : 0), 0.8), h);
      if (bars[i] === this.over) { c.strokeStyle = colour("ink"); c.lineWidth = 1.5; c.strokeRect(x + 0.5, y + 0.5, Math.max(w - 1, 1), h - 1); }
      if (!inner && w > 34 && !lane.thin) {
        const left = Math.max(x, 0), room = Math.min(x + w, this.width) - left - 10;
        if (room > 24) {
          c.save(); c.beginPath(); c.rect(left, y, room + 6, h); c.clip();
          c.fillStyle = light(paint[kind]) ? "#15171b" : "#fff";
          c.fillText(data.names[name], left + 5, y + h / 2 + 0.5);
          c.restore();
        }
      }
    }
    c.globalAlpha = 1;
  }
  paintCounters(c, { soft, faint, face }) {
    for (const counter of this.counters) {
      const { y, levels, max, name } = counter;
      c.font = `12px ${face}`; c.textBaseline = "alphabetic"; c.fillStyle = soft;
      c.fillText(`${name}, at most ${max}`, 8, y - 4);
      c.fillStyle = faint; c.globalAlpha = 0.45;
      for (let i = 0; i < levels.length; i++) {
        const until = i + 1 < levels.length ? levels[i + 1][0] : this.end;
        if (!levels[i][1] || until < this.from || levels[i][0] > this.to) continue;
        const x = this.x(levels[i][0]), h = COUNTER * levels[i][1] / max;
        c.fillRect(x, y + COUNTER - h, Math.max(this.x(until) - x, 0.6), h);
      }
      c.globalAlpha = 1;
    }
  }
  paintArrows(c, ink) {
    const python = this.lanes[0], graph = this.lanes[1];
    let seen = this.arrows.filter(([op, run, wait]) => op <= this.to && Math.max(run, wait ?? 0) >= this.from);
    if (seen.length > this.width / 60) {  // too many to follow: those of what the pointer is at
      const within = (time) => time !== null && this.over !== null && time >= this.over[0] && time < this.over[0] + this.over[1];
      const onGraph = graph.bars.includes(this.over);
      seen = seen.filter(([op, run, wait]) => (onGraph ? within(run) : within(op) || within(wait)));
    }
    c.strokeStyle = ink; c.fillStyle = ink; c.lineWidth = 1; c.globalAlpha = 0.55;
    for (const [op, run, wait] of seen) {
      this.curve(c, this.x(op), python.y + python.height, this.x(run), graph.y);
      if (wait !== null) this.curve(c, this.x(run), graph.y, this.x(wait), python.y + python.height);
    }
    c.globalAlpha = 1;
  }
  curve(c, x1, y1, x2, y2) {
    const middle = (y1 + y2) / 2, tipUp = y2 < y1 ? 1 : -1;
    c.beginPath(); c.moveTo(x1, y1); c.bezierCurveTo(x1, middle, x2, middle, x2, y2); c.stroke();
    c.beginPath(); c.moveTo(x2, y2); c.lineTo(x2 - 3, y2 + 5 * tipUp); c.lineTo(x2 + 3, y2 + 5 * tipUp); c.fill();
  }
  paintOverview(paint, ink) {
    const c = this.context(this.overview), width = this.overview.clientWidth, height = this.overview.clientHeight;
    const at = (time) => (time + this.end * 0.02) / (this.end * 1.04) * width;
    [[0, 4, 15], [1, 20, 10]].forEach(([lane, y, h]) => {
      const share = new Map();  // per pixel, the kind that has most of it
      for (const [start, length, what, , line] of this.lanes[lane].bars) {
        if (lane === 1 && data.whats[what].endsWith("wait")) continue;
        const first = Math.floor(at(start)), last = Math.floor(at(start + length));
        for (let p = first; p <= last; p++) {
          const part = Math.min(at(start + length), p + 1) - Math.max(at(start), p);
          const cell = share.get(p) ?? share.set(p, {}).get(p);
          const key = this.line !== null && data.lines[line] === this.line ? "*" + what : what;
          cell[key] = (cell[key] ?? 0) + part + (String(key)[0] === "*" ? 1 : 0);
        }
      }
      for (const [p, cell] of share) {
        const best = Object.keys(cell).reduce((a, b) => (cell[a] >= cell[b] ? a : b));
        const mine = best[0] === "*";
        c.globalAlpha = this.line === null || mine ? 1 : 0.2;
        c.fillStyle = paint[data.whats[mine ? best.slice(1) : best]];
        c.fillRect(p, y, 1, h);
      }
      c.globalAlpha = 1;
    });
    const x1 = at(this.from), x2 = at(this.to);
    c.strokeStyle = ink; c.lineWidth = 1.5; c.fillStyle = ink; c.globalAlpha = 0.08; c.fillRect(x1, 0, x2 - x1, height);
    c.globalAlpha = 1; c.strokeRect(x1 + 0.75, 0.75, Math.max(x2 - x1 - 1.5, 2), height - 1.5);
  }

  barAt(x, y) {
    const lane = this.lanes.find((one) => y >= one.y && y <= one.y + one.height);
    if (!lane) return null;
    const time = this.time(x), slack = (this.to - this.from) / this.width * 2;
    let found = null;
    for (let i = this.visible(lane.bars); i < lane.bars.length; i++) {
      const bar = lane.bars[i];
      if (bar[0] > time + slack) break;
      if (bar[0] <= time + slack && bar[0] + bar[1] >= time - slack) {
        if (data.whats[bar[2]] === "dispatch" && y < lane.y + lane.height - 6) continue;
        if (found === null || bar[1] <= found[1] || bar[0] + bar[1] >= time) found = bar;
      }
    }
    return found;
  }
  listen() {
    const pointers = new Map();
    let moved = 0;
    const place = (event) => { const box = this.view.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    this.view.addEventListener("pointerdown", (event) => {
      this.view.setPointerCapture(event.pointerId); pointers.set(event.pointerId, place(event)); moved = 0;
      this.view.classList.add("moving");
    });
    this.view.addEventListener("pointermove", (event) => {
      const [x, y] = place(event);
      if (!pointers.has(event.pointerId)) return this.hover(x, y, event);
      const others = [...pointers.entries()].filter(([id]) => id !== event.pointerId);
      const [before] = pointers.get(event.pointerId);
      if (others.length) {
        const other = others[0][1][0], was = Math.abs(before - other), is = Math.max(Math.abs(x - other), 8);
        this.zoom(was / is, this.time((x + other) / 2));
      } else {
        const shift = (before - x) / this.width * (this.to - this.from);
        this.zoomTo(this.from + shift, this.to + shift);
      }
      moved += Math.abs(x - before); pointers.set(event.pointerId, [x, y]); tip.hidden = true;
    });
    const up = (event) => {
      pointers.delete(event.pointerId); this.view.classList.remove("moving");
      if (event.type === "pointerup" && moved < 4) {
        const bar = this.barAt(...place(event));
        choose(this.section, bar && data.lines[bar[4]] ? data.lines[bar[4]] : null);
      }
    };
    this.view.addEventListener("pointerup", up);
    this.view.addEventListener("pointercancel", up);
    this.view.addEventListener("pointerleave", () => { tip.hidden = true; this.over = null; this.draw(); });
    this.view.addEventListener("wheel", (event) => {
      const [x] = place(event);
      if (event.ctrlKey || event.metaKey) { event.preventDefault(); this.zoom(Math.exp(event.deltaY / 240), this.time(x)); }
      else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        event.preventDefault();
        const shift = event.deltaX / this.width * (this.to - this.from);
        this.zoomTo(this.from + shift, this.to + shift);
      }
    }, { passive: false });
    this.view.addEventListener("dblclick", (event) => {
      const time = this.time(place(event)[0]), step = this.steps.find(([start, end]) => start <= time && time < end);
      if (step) this.zoomTo(step[0], step[1]);
    });
    this.view.addEventListener("keydown", (event) => {
      const shift = (this.to - this.from) * 0.15;
      if (event.key === "ArrowLeft") this.zoomTo(this.from - shift, this.to - shift);
      else if (event.key === "ArrowRight") this.zoomTo(this.from + shift, this.to + shift);
      else if (event.key === "+" || event.key === "=") this.zoom(0.6);
      else if (event.key === "-") this.zoom(1 / 0.6);
      else return;
      event.preventDefault();
    });
    const drag = (event) => {
      if (event.type === "pointerdown") this.overview.setPointerCapture(event.pointerId);
      else if (!event.buttons) return;
      const time = (event.clientX - this.overview.getBoundingClientRect().left) / this.overview.clientWidth * this.end * 1.04 - this.end * 0.02;
      const half = (this.to - this.from) / 2;
      this.zoomTo(time - half, time + half);
    };
    this.overview.addEventListener("pointerdown", drag);
    this.overview.addEventListener("pointermove", drag);
    const tools = { in: () => this.zoom(0.5), out: () => this.zoom(2), all: () => this.zoomTo(0, this.end), step: () => this.zoomTo(...this.nearestStep()) };
    for (const button of this.section.querySelectorAll("[data-do]")) button.addEventListener("click", () => tools[button.dataset.do]());
    new ResizeObserver(() => this.draw()).observe(this.view);
  }
  nearestStep() {
    const centre = (this.from + this.to) / 2;
    return this.steps.reduce((a, b) => (Math.abs(a[0] + a[1] - 2 * centre) <= Math.abs(b[0] + b[1] - 2 * centre) ? a : b));
  }
  hover(x, y, event) {
    const bar = this.barAt(x, y);
    if (bar !== this.over) { this.over = bar; this.draw(); }
    tip.hidden = bar === null;
    if (bar === null) return;
    const [, length, what, name, line] = bar, where = data.lines[line];
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = data.names[name];
    tip.append(head, ` ${span(length)}`, document.createElement("br"), data.words[data.whats[what]]);
    if (where) {
      const code = document.createElement("code");
      code.textContent = short(where) + "  " + (data.texts[where] ?? "");
      tip.append(code);
    }
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
    tip.style.top = (event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
  }
}

function light(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.length === 4 ? hex[(i + 1) / 2].repeat(2) : hex.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 150;
}

function choose(section, line) {
  for (const row of section.querySelectorAll("tr.line")) {
    const mine = row.dataset.line === line && !row.classList.contains("picked");
    row.classList.toggle("picked", mine);
    row.setAttribute("aria-expanded", mine);
    row.nextElementSibling.hidden = !mine;
  }
  const timeline = timelines.get(section);
  if (!timeline) return;
  timeline.line = section.querySelector("tr.picked")?.dataset.line ?? null;
  if (timeline.line !== null) {  // bring a wait of that line into view, if it has one and none is
    const bars = timeline.lanes[0].bars.filter((bar) => data.lines[bar[4]] === timeline.line);
    const waits = bars.filter((bar) => ["fetch", "graph"].includes(data.whats[bar[2]]));
    const shown = (bar) => bar[0] < timeline.to && bar[0] + bar[1] > timeline.from;
    const wanted = waits.length ? waits : bars;
    if (wanted.length && !wanted.some(shown)) {
      const centre = (timeline.from + timeline.to) / 2, half = (timeline.to - timeline.from) / 2;
      const near = wanted.reduce((a, b) => (Math.abs(a[0] - centre) <= Math.abs(b[0] - centre) ? a : b));
      timeline.zoomTo(near[0] + near[1] / 2 - half, near[0] + near[1] / 2 + half);
    }
  }
  timeline.view.dataset.line = timeline.line ?? "";
  timeline.draw();
}

const timelines = new Map();
function show(section) {
  if (!timelines.has(section) && section.querySelector(".view")) {
    timelines.set(section, new Timeline(section, Number(section.dataset.section)));
  }
}
for (const section of document.querySelectorAll("section")) {
  if (!section.hidden) show(section);
  for (const row of section.querySelectorAll("tr.line")) {
    row.addEventListener("click", () => choose(section, row.dataset.line));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(section, row.dataset.line); }
    });
  }
}
for (const tab of document.querySelectorAll("[data-tab]")) {
  tab.addEventListener("click", () => {
    for (const other of document.querySelectorAll("[data-tab]")) other.setAttribute("aria-pressed", other === tab);
    for (const section of document.querySelectorAll("section")) {
      section.hidden = section.dataset.section !== tab.dataset.tab;
      if (!section.hidden) show(section);
    }
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => timelines.forEach((one) => one.draw()));
