// Memory for the frames of one video that were decoded once.
const CACHE_BYTES = 192 * 2 ** 20;
// A browser that finds nothing new in a frame, or does not show the page, may not say that it presents it.
const PRESENTATION_MS = 500;

/**
 * The frames of a video by their number, exactly.
 *
 * A playing <video> shows what it pleases. So it is only ever asked for the middle of one frame, and what it shows then
 * is kept; the clock is the player's. All panes are cut from one picture, so that they cannot drift apart.
 */
class FrameStore {
  constructor(clip) {
    this.clip = clip;
    this.kept = new Map();
    this.last = Promise.resolve();
    this.video = html("video", { preload: "auto", playsinline: "" });
    this.video.muted = true;
    this.ready = new Promise((resolve, reject) => {
      this.video.addEventListener("loadeddata", resolve, { once: true });
      this.video.addEventListener("error", () => reject(new Error(`${clip.url} cannot be played`)), { once: true });
    });
    this.video.src = clip.url;
    this.video.load();
  }

  /** Return a canvas with frame `number`; requests are met one after the other. */
  async get(number) {
    const request = this.last.then(() => this.kept.get(number) ?? this.decode(number));
    this.last = request.catch(() => {}); // whoever asked is told; the next request starts afresh
    return request;
  }

  async decode(number) {
    await this.ready;
    const { video } = this;
    // Once a video has sought, it may still give the frame before to a canvas, until it has presented the new one.
    const presented = this.presented(number);
    await new Promise((resolve) => {
      video.addEventListener("seeked", resolve, { once: true });
      video.currentTime = (number + 0.5) / this.clip.fps;
    });
    const late = new Promise((resolve) => { setTimeout(resolve, PRESENTATION_MS, false); });
    const isPresented = await Promise.race([presented, late]);
    video.cancelVideoFrameCallback?.(this.asked);
    const canvas = html("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    if (isPresented) this.keep(number, canvas); // else it may be another one, and is looked for again the next time
    return canvas;
  }

  /** Resolve to true when the browser says that it presents frame `number`. */
  presented(number) {
    const { video, clip } = this;
    return new Promise((resolve) => {
      const look = (_, { mediaTime }) => {
        if (Math.floor(mediaTime * clip.fps + 0.25) === number) resolve(true);
        else this.asked = video.requestVideoFrameCallback(look);
      };
      this.asked = video.requestVideoFrameCallback?.(look);
    });
  }

  keep(number, canvas) {
    const most = Math.max(2, Math.floor(CACHE_BYTES / (4 * canvas.width * canvas.height)));
    if (this.kept.size >= most) this.kept.delete(this.kept.keys().next().value);
    this.kept.set(number, canvas);
  }

  close() {
    this.video.removeAttribute("src");
    this.video.load();
    this.kept.clear();
  }
}
