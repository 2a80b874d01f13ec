// Maximum memory for decoded frames of one video.
const CACHE_BYTES = 192 * 2 ** 20;
// Browsers may not report the presentation of a frame that equals the previous one, or on a hidden page.
const PRESENTATION_MS = 500;

/**
 * Decodes exact frames of a video by number.
 *
 * A playing <video> does not tell exactly which frame it shows. So it stays paused: each frame is decoded by seeking to
 * its middle, and the player keeps the time. All panes are cut from one picture, so they are always in sync.
 */
class FrameStore {
  constructor(clip) {
    this.clip = clip;
    this.cache = new Map();
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

  /** Return a canvas with frame `number`. Requests are processed one after the other. */
  async get(number) {
    const request = this.last.then(() => this.cache.get(number) ?? this.decode(number));
    this.last = request.catch(() => {}); // the caller gets the error; the next request tries again
    return request;
  }

  async decode(number) {
    await this.ready;
    const { video } = this;
    // After `seeked`, a canvas may still get the previous frame until the new one has been presented.
    const presented = this.presented(number);
    await new Promise((resolve) => {
      video.addEventListener("seeked", resolve, { once: true });
      video.currentTime = (number + 0.5) / this.clip.fps;
    });
    const late = new Promise((resolve) => { setTimeout(resolve, PRESENTATION_MS, false); });
    const isPresented = await Promise.race([presented, late]);
    video.cancelVideoFrameCallback?.(this.callback);
    const canvas = html("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    if (isPresented) this.keep(number, canvas); // otherwise it may be another frame: decode it again next time
    return canvas;
  }

  /** Resolve to true when the browser reports that it presents frame `number`. */
  presented(number) {
    const { video, clip } = this;
    return new Promise((resolve) => {
      const check = (_, { mediaTime }) => {
        if (Math.floor(mediaTime * clip.fps + 0.25) === number) resolve(true);
        else this.callback = video.requestVideoFrameCallback(check);
      };
      this.callback = video.requestVideoFrameCallback?.(check);
    });
  }

  keep(number, canvas) {
    const maxFrames = Math.max(2, Math.floor(CACHE_BYTES / (4 * canvas.width * canvas.height)));
    if (this.cache.size >= maxFrames) this.cache.delete(this.cache.keys().next().value);
    this.cache.set(number, canvas);
  }

  close() {
    this.video.removeAttribute("src");
    this.video.load();
    this.cache.clear();
  }
}
