const PANE_NAMES = ["input", "reconstruction", "amplified difference"];
// Shorter clips are slowed down by default until they last this long.
const MIN_SECONDS = 1.5;
// Minimum range of the PSNR axis: smaller differences are not visible.
const MIN_DECIBELS = 2;
const TIMELINE_HEIGHT = 84;
// Shorter clips have a dot for each frame.
const MAX_DOTS = 40;
const TIMELINE_MARGIN = { left: 40, right: 12, top: 10, bottom: 8 };

function nameOf(metric) {
  return DATA.metrics[metric] ?? metric;
}

class Player {
  constructor() {
    this.root = byId("player");
    this.panes = byId("panes");
    this.canvases = [];
    this.shown = [];
    this.speed = byId("speed");
    this.playing = false;
    this.loop = true;
    this.frame = 0;
    this.view = new View(this.panes, () => this.draw());
    this.actions = this.makeActions();
    this.listen();
    this.sources = makeSources(() => this.selectValidation());
    this.selectValidation();
  }

  /** The clip that is shown, whose frames all others have in common. */
  get clip() {
    return this.shown[0].clip;
  }

  makeActions() {
    return {
      first: () => this.stopAt(0),
      back: () => this.stopAt(this.frame - 1),
      play: () => (this.playing ? this.pause() : this.play()),
      forward: () => this.stopAt(this.frame + 1),
      last: () => this.stopAt(this.clip.num_frames - 1),
      loop: () => this.setLoop(!this.loop),
      in: () => this.view.zoomBy(1.5),
      out: () => this.view.zoomBy(1 / 1.5),
      whole: () => this.view.whole(),
      slower: () => this.changeSpeed(-1),
      faster: () => this.changeSpeed(1),
      previous: () => this.openNeighbour(-1),
      next: () => this.openNeighbour(1),
    };
  }

  listen() {
    for (const button of this.root.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => this.actions[button.dataset.do]());
    }
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.speed.addEventListener("change", () => this.restartClock());
    this.timeline = byId("timeline");
    const seek = (event) => event.buttons && this.stopAt(this.frameAt(event));
    this.timeline.addEventListener("pointerdown", (event) => {
      this.timeline.setPointerCapture(event.pointerId);
      seek(event);
    });
    this.timeline.addEventListener("pointermove", seek);
    onResize(this.timeline, () => this.drawTimeline());
  }

  onKey(event) {
    if (event.target.matches("select, summary") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.matches("button")) return; // the space key presses the button
    const isPan = event.shiftKey && event.key.startsWith("Arrow");
    const action = isPan ? () => this.pan(event.key) : this.actions[KEYS[event.key.toLowerCase()]];
    if (!action) return;
    event.preventDefault();
    action();
  }

  pan(key) {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    this.view.moveTo(this.view.x + (0.1 * x) / this.view.zoom, this.view.y + (0.1 * y) / this.view.zoom);
  }

  // ---- selection of the clip

  /** Show another validation at the same clip and frame, so that the two can be compared. */
  selectValidation() {
    this.validation = this.sources[0].validation;
    this.listBestAndWorst();
    this.makeTable();
    const same = this.shown.length ? this.validation.clips.findIndex((clip) => isSame(clip, this.clip)) : -1;
    const isWorst = ({ rank, metric }) => rank === "worst" && metric === "psnr";
    const worst = this.validation.best_and_worst.find(isWorst)?.index ?? 0;
    this.open(same < 0 ? worst : same, this.frame);
  }

  listBestAndWorst() {
    const buttons = this.validation.best_and_worst.map((ranked) => {
      const button = html("button", { type: "button" }, capitalized(readable(ranked)));
      button.addEventListener("click", () => this.open(ranked.index, 0));
      return button;
    });
    byId("best-and-worst").replaceChildren(...buttons);
  }

  openNeighbour(by) {
    this.open(clamp(this.index + by, 0, this.validation.clips.length - 1), 0);
  }

  open(index, frame) {
    this.pause();
    this.shown.forEach(({ store }) => store.close());
    this.index = index;
    this.shown = this.clipsToShow(this.validation.clips[index]).map(([source, clip]) => ({
      name: source.name,
      amplification: source.validation.amplification,
      clip,
      store: new FrameStore(clip),
      picture: null,
    }));
    this.points = null;
    delete this.root.dataset.shown;
    byId("player-error").hidden = true;
    byId("clip-title").textContent = this.clip.title;
    this.makePanes();
    this.timeline.setAttribute("aria-valuemax", this.clip.num_frames);
    this.setDefaultSpeed();
    this.markRow();
    this.drawTimeline();
    return this.show(clamp(frame, 0, this.clip.num_frames - 1));
  }

  /** Return the clip with its source, and the same clip of the validation that it is compared with, if it has it. */
  clipsToShow(clip) {
    const [source, other] = this.sources;
    const found = other.validation?.clips.find((candidate) => isSame(candidate, clip));
    const isMissing = other.validation && !found;
    const note = byId("source-note");
    note.hidden = !isMissing;
    note.textContent = isMissing ? `${other.name}: this clip is not among those of this validation.` : "";
    const shown = [[source, clip]];
    if (found) shown.push([other, found]);
    return shown;
  }

  /** Make a pane for the input, and one for the reconstruction and the difference of each clip that is shown. */
  makePanes() {
    const isPair = this.shown.length > 1;
    const columns = [...PANE_NAMES.keys()];
    this.layout = [];
    for (const column of columns) {
      // Both have the same input.
      const inColumn = column === 0 ? [this.shown[0]] : this.shown;
      for (const shown of inColumn) this.layout.push({ shown, column });
    }
    if (this.canvases.length !== this.layout.length) {
      this.canvases = this.layout.map(() => html("canvas", { role: "img" }));
      this.panes.replaceChildren(...this.canvases.map((canvas) => html("figure", {}, html("figcaption"), canvas)));
      this.canvases.forEach((canvas) => onResize(canvas, () => this.draw()));
    }
    this.panes.classList.toggle("pair", isPair);
    this.panes.style.setProperty("--aspect", this.clip.width / this.clip.height);
    this.layout.forEach(({ shown, column }, pane) => {
      this.canvases[pane].previousSibling.replaceChildren(...this.captionOf(shown, column));
    });
  }

  /** Return the content of the caption of a pane. Of two clips, the panes of each have the name of its source. */
  captionOf(shown, column) {
    const title = ["Input", "Reconstruction", `Difference × ${shown.amplification}`][column];
    if (this.shown.length === 1 || column === 0) return [title];
    const name = html("b", { class: `curve-${this.shown.indexOf(shown)}` }, shown.name);
    if (column !== 1) return [name, ` ${title}`];
    const metrics = Object.entries(shown.clip.metrics).map(([metric, value]) => `${nameOf(metric)} ${even(value)}`);
    return [name, ` ${metrics.join(", ")}`];
  }

  makeTable() {
    const { clips } = this.validation;
    const metrics = Object.keys(clips[0].metrics);
    const heads = ["Clip", ...metrics.map(nameOf), "Best or worst"].map((name) => html("th", { scope: "col" }, name));
    const table = byId("clip-table");
    table.tHead.replaceChildren(html("tr", {}, ...heads));
    this.rows = clips.map((clip, index) => this.makeRow(clip, index, metrics));
    table.tBodies[0].replaceChildren(...this.rows);
    table.hidden = clips.length < 2;
    makeSortable(table);
  }

  makeRow(clip, index, metrics) {
    const button = html("button", { type: "button" }, clip.title);
    button.addEventListener("click", () => this.open(index, 0));
    const ranks = this.validation.best_and_worst.filter((ranked) => ranked.index === index);
    const badges = ranks.map((ranked) => html("span", { class: `badge ${ranked.rank}` }, readable(ranked)));
    const cells = metrics.map((name) => html("td", {}, even(clip.metrics[name])));
    return html("tr", {}, html("th", { scope: "row" }, button), ...cells, html("td", {}, ...badges));
  }

  markRow() {
    this.rows.forEach((row, index) => {
      if (index === this.index) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    });
  }

  // ---- selection of the frame

  stopAt(number) {
    this.pause();
    return this.show(clamp(number, 0, this.clip.num_frames - 1));
  }

  /** Show a frame once it is decoded, unless another one was requested in the meantime. */
  async show(number) {
    this.frame = number;
    this.report();
    const { shown } = this;
    try {
      const pictures = await Promise.all(shown.map(({ store }) => store.get(number)));
      if (shown !== this.shown || number !== this.frame) return;
      shown.forEach((each, index) => { each.picture = pictures[index]; });
      this.draw();
      this.root.dataset.shown = number;
    } catch (error) {
      if (shown === this.shown) this.fail(error);
    }
  }

  fail(error) {
    this.pause();
    byId("player-error").textContent = `${error.message}. Is the folder of videos beside this page?`;
    byId("player-error").hidden = false;
  }

  report() {
    const psnr = this.shown.flatMap(({ clip }) => clip.frame_psnr.slice(this.frame, this.frame + 1));
    const position = `frame ${this.frame + 1} of ${this.clip.num_frames}`;
    const seconds = `${(this.frame / this.clip.fps).toFixed(2)} s`;
    const text = [position, seconds, ...psnr.map((value) => `${value.toFixed(2)} dB`)].join(", ");
    byId("frame-readout").textContent = text;
    this.timeline.setAttribute("aria-valuenow", this.frame + 1);
    this.timeline.setAttribute("aria-valuetext", text);
    this.moveTimelineCursor();
  }

  // ---- playback

  play() {
    if (this.frame === this.clip.num_frames - 1) this.show(0);
    this.setPlaying(true);
    this.restartClock();
    this.tick(this.round);
  }

  pause() {
    this.setPlaying(false);
  }

  setPlaying(playing) {
    this.playing = playing;
    this.round = {}; // pending ticks of earlier rounds end
    this.root.classList.toggle("playing", playing);
    this.root.querySelector("[data-do=play]").setAttribute("aria-label", playing ? "Pause" : "Play");
    // Screen readers must not read out every frame during playback.
    byId("frame-readout").setAttribute("aria-live", playing ? "off" : "polite");
  }

  restartClock() {
    this.startTime = performance.now();
    this.startFrame = this.frame;
  }

  async tick(round) {
    if (round !== this.round) return;
    const elapsed = (performance.now() - this.startTime) / 1000;
    const number = this.startFrame + Math.floor(elapsed * this.clip.fps * Number(this.speed.value));
    const { num_frames: numFrames } = this.clip;
    if (number >= numFrames && !this.loop) {
      this.stopAt(numFrames - 1);
      return;
    }
    const wanted = number % numFrames;
    if (wanted !== this.frame || !this.shown[0].picture) await this.show(wanted);
    if (round === this.round) requestAnimationFrame(() => this.tick(round));
  }

  setLoop(loop) {
    this.loop = loop;
    this.root.querySelector("[data-do=loop]").setAttribute("aria-pressed", String(loop));
    this.restartClock();
  }

  setDefaultSpeed() {
    const seconds = this.clip.num_frames / this.clip.fps;
    const speeds = [...this.speed.options].map((option) => Number(option.value)).filter((speed) => speed <= 1);
    this.speed.value = String(Math.max(...speeds.filter((speed) => seconds / speed >= MIN_SECONDS), speeds[0]));
  }

  changeSpeed(by) {
    this.speed.selectedIndex = clamp(this.speed.selectedIndex + by, 0, this.speed.options.length - 1);
    this.restartClock();
  }

  // ---- drawing

  draw() {
    byId("zoom").textContent = `${Number(this.view.zoom.toFixed(1))} ×`;
    if (!this.shown[0].picture) return;
    this.layout.forEach(({ shown: { picture, clip, name }, column }, pane) => {
      const paneWidth = picture.width / PANE_NAMES.length;
      const size = { width: paneWidth / this.view.zoom, height: picture.height / this.view.zoom };
      const left = this.view.x * paneWidth - size.width / 2;
      const top = this.view.y * picture.height - size.height / 2;
      const canvas = this.canvases[pane];
      fit(canvas);
      const context = canvas.getContext("2d");
      // Do not interpolate enlarged pixels, because that would hide artifacts.
      context.imageSmoothingEnabled = canvas.width < size.width;
      const { width, height } = canvas;
      context.drawImage(picture, column * paneWidth + left, top, size.width, size.height, 0, 0, width, height);
      const pixels = `${clip.width} by ${clip.height} pixels`;
      const position = `frame ${this.frame + 1} of ${clip.num_frames}`;
      canvas.setAttribute("aria-label", `${name}: ${PANE_NAMES[column]}, ${pixels}, ${position}`);
    });
  }

  // ---- timeline with the PSNR of each frame

  frameAt(event) {
    const box = this.timeline.getBoundingClientRect();
    const width = box.width - TIMELINE_MARGIN.left - TIMELINE_MARGIN.right;
    const position = (event.clientX - box.left - TIMELINE_MARGIN.left) / width;
    return Math.round(position * (this.clip.num_frames - 1));
  }

  drawTimeline() {
    const width = this.timeline.clientWidth;
    if (!width) return;
    const { num_frames: numFrames } = this.clip;
    const all = this.shown.flatMap(({ clip }) => clip.frame_psnr);
    const { left, right, top } = TIMELINE_MARGIN;
    const bottom = TIMELINE_HEIGHT - TIMELINE_MARGIN.bottom;
    const low = Math.min(...all);
    const high = Math.max(...all);
    const margin = Math.max(0, MIN_DECIBELS - (high - low)) / 2;
    const x = (number) => left + (number / Math.max(numFrames - 1, 1)) * (width - left - right);
    const y = (value) => bottom + ((value - low + margin) / (high - low + 2 * margin)) * (top - bottom);
    this.timeline.setAttribute("viewBox", `0 0 ${width} ${TIMELINE_HEIGHT}`);
    this.timeline.replaceChildren();
    for (const value of all.length ? gridLines(low - margin, high + margin) : []) {
      this.timeline.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      this.timeline.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
    }
    this.points = this.shown.map(({ clip }) => {
      const height = (number) => (all.length ? y(clip.frame_psnr[number]) : bottom);
      return Array.from({ length: numFrames }, (_, number) => [x(number), height(number)]);
    });
    this.cursor = svg("g");
    this.cursor.append(svg("line", { class: "cursor", y1: 2, y2: TIMELINE_HEIGHT - 2 }));
    this.points.forEach((points, index) => {
      const fill = `var(--c${index})`;
      const line = points.map((point) => point.map((value) => value.toFixed(1)).join(" ")).join("L");
      const dashes = index ? "2 3" : "";
      this.timeline.append(svg("path", { class: "line", stroke: fill, "stroke-dasharray": dashes, d: `M${line}` }));
      if (numFrames < MAX_DOTS) {
        this.timeline.append(...points.map(([cx, cy]) => svg("circle", { cx, cy, r: 2.5, fill })));
      }
      this.cursor.append(svg("circle", { r: 5, fill }));
    });
    this.timeline.append(this.cursor);
    this.moveTimelineCursor();
  }

  moveTimelineCursor() {
    if (!this.points) return;
    const [line, ...dots] = this.cursor.children;
    dots.forEach((dot, index) => {
      const [cx, cy] = this.points[index][this.frame];
      line.setAttribute("x1", cx);
      line.setAttribute("x2", cx);
      dot.setAttribute("cx", cx);
      dot.setAttribute("cy", cy);
    });
  }
}

const KEYS = {
  " ": "play", arrowleft: "back", arrowright: "forward", home: "first", end: "last", l: "loop",
  "[": "slower", "]": "faster", p: "previous", n: "next", "+": "in", "=": "in", "-": "out", "0": "whole",
};

/** Return up to four round values, in whole decibels, for the lines behind the timeline. */
function gridLines(low, high) {
  const step = [1, 2, 5, 10, 20, 50].find((size) => (high - low) / size <= 4) ?? 100;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

/** Set a canvas' resolution to the number of pixels that it covers on the screen. */
function fit(canvas) {
  const box = canvas.getBoundingClientRect();
  const [width, height] = [box.width, box.height].map((side) => Math.max(1, Math.round(side * devicePixelRatio)));
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

/** Return whether two clips of validations have the same frames of the same video as input. */
function isSame(clip, other) {
  return clip === other || (clip.sha256 !== "" && clip.sha256 === other.sha256);
}

/** Return "worst LPIPS (Alex)" of a clip that is the best or the worst by a metric. */
function readable({ rank, metric }) {
  return `${rank} ${nameOf(metric)}`;
}

function capitalized(text) {
  return text[0].toUpperCase() + text.slice(1);
}

const player = byId("player") ? new Player() : null;
