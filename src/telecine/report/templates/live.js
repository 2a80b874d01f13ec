// The page of runs that train: it loads itself again once it was written again, and shows what it showed before.
const LOOK_MS = 5000;
const STORED = `telecine ${location.pathname}`;
const RADIOS = ["theme", "scale"];

/** Called by the script beside the videos, which each version of the page replaces: pages from a file cannot fetch. */
function pageVersion(version) {
  if (version === DATA.live.version || player?.playing) return;
  sessionStorage.setItem(STORED, JSON.stringify(shownNow()));
  location.reload();
}

function shownNow() {
  return {
    radios: RADIOS.map((name) => document.querySelector(`input[name=${name}]:checked`)?.value),
    smoothing: byId("smoothing")?.value,
    hidden: legendButtons().filter((button) => button.getAttribute("aria-pressed") === "false").map(nameOfButton),
    // A slider at the last validation stays at the last one.
    sources: player?.sources.map(({ select, slider }) => [select.value, slider.value === slider.max ? null : Number(slider.value)]),
    clip: player?.index,
    frame: player?.frame,
    speed: player?.speed.value,
    loop: player?.loop,
    view: player && [player.view.x, player.view.y, player.view.zoom],
  };
}

/** Return the buttons that hide runs and curves. */
function legendButtons() {
  return [...document.querySelectorAll(".legend button")];
}

function nameOfButton(button) {
  return `${button.parentElement.getAttribute("aria-label")}: ${button.title || button.textContent}`;
}

function showAgain({ radios, smoothing, hidden, sources, clip, frame, speed, loop, view }) {
  RADIOS.forEach((name, index) => document.querySelector(`input[name=${name}][value=${radios[index]}]`)?.click());
  if (smoothing && byId("smoothing")) {
    byId("smoothing").value = smoothing;
    byId("smoothing").dispatchEvent(new Event("input"));
  }
  legendButtons().filter((button) => hidden.includes(nameOfButton(button))).forEach((button) => button.click());
  if (!player || !sources) return;
  sources.forEach(([run, position], index) => player.sources[index].choose(run, position ?? Infinity));
  player.selectValidation();
  player.open(Math.min(clip, player.validation.clips.length - 1), frame);
  player.speed.value = speed;
  player.setLoop(loop);
  player.view.moveTo(...view);
}

function look() {
  const script = html("script", { src: `${DATA.live.url}?${Date.now()}` });
  for (const end of ["load", "error"]) script.addEventListener(end, () => script.remove());
  document.head.append(script);
}

const stored = sessionStorage.getItem(STORED);
sessionStorage.removeItem(STORED);
if (stored) showAgain(JSON.parse(stored));
setInterval(look, LOOK_MS);
