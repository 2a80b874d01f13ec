const MAX_ZOOM = 16;
const WHEEL_FACTOR = 1.0015;

/** The part of the frame that all panes show: its zoom, and its centre from 0 to 1. */
class View {
  constructor(panes, onChange) {
    this.panes = panes;
    this.onChange = onChange;
    this.pointers = new Map();
    this.zoom = 1;
    this.x = 0.5;
    this.y = 0.5;
    panes.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    panes.addEventListener("pointerdown", (event) => this.onDown(event));
    panes.addEventListener("pointermove", (event) => this.onMove(event));
    for (const end of ["pointerup", "pointercancel"]) {
      panes.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
  }

  /** Zoom by a factor around a point of the frame, which keeps its position on the screen. */
  zoomBy(factor, at = { x: this.x, y: this.y }) {
    const zoom = clamp(this.zoom * factor, 1, MAX_ZOOM);
    const ratio = this.zoom / zoom;
    this.moveTo(at.x + (this.x - at.x) * ratio, at.y + (this.y - at.y) * ratio, zoom);
  }

  moveTo(x, y, zoom = this.zoom) {
    const margin = 0.5 / zoom;
    this.zoom = zoom;
    this.x = clamp(x, margin, 1 - margin);
    this.y = clamp(y, margin, 1 - margin);
    this.panes.classList.toggle("zoomed", zoom > 1);
    this.onChange();
  }

  whole() {
    this.moveTo(0.5, 0.5, 1);
  }

  /** Return the point of the frame at an event, and the box of its pane; null outside of the panes. */
  pointAt(event) {
    const canvas = event.target.closest("canvas");
    if (!canvas) return null;
    const box = canvas.getBoundingClientRect();
    const position = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
    return { x: this.x + (position.x - 0.5) / this.zoom, y: this.y + (position.y - 0.5) / this.zoom, box };
  }

  onWheel(event) {
    const point = this.pointAt(event);
    // Scroll the page unless the panes have the focus or Ctrl is set, as browsers do for a pinch on a touch pad.
    if (!point || !(event.ctrlKey || event.metaKey || document.activeElement === this.panes)) return;
    event.preventDefault();
    this.zoomBy(WHEEL_FACTOR ** -event.deltaY, point);
  }

  onDown(event) {
    const point = this.pointAt(event);
    if (!point) return;
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    event.target.setPointerCapture(event.pointerId);
  }

  onMove(event) {
    const before = this.pointers.get(event.pointerId);
    const point = this.pointAt(event);
    if (!before || !point) return;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    const now = { x: event.clientX, y: event.clientY };
    if (other) this.zoomBy(distance(now, other) / Math.max(distance(before, other), 1), point);
    const weight = other ? 0.5 : 1; // each of two fingers moves the centre by half of its way
    const step = { x: (now.x - before.x) / point.box.width, y: (now.y - before.y) / point.box.height };
    this.moveTo(this.x - (weight * step.x) / this.zoom, this.y - (weight * step.y) / this.zoom);
    this.pointers.set(event.pointerId, now);
  }
}

function distance(a, b) {
  return Math.hypot(a.x - b.x, a.y - b.y);
}
