// The page of runs that train loads itself again once it was written again, and shows what it showed before.
const LOOK_MS = 5000;
const STORED = `telecine ${location.pathname}`;
const CONTROLS = "a, button, input, select, summary, [tabindex]";

/** Called by the script beside the videos, which each version of the page replaces: pages from a file cannot fetch. */
function pageVersion(version) {
  if (version === DATA.live.version || player?.playing) return;
  sessionStorage.setItem(STORED, JSON.stringify(shownNow()));
  location.reload();
}

/** Return a video's run and the position of its slider: null at the last validation, where it then stays. */
function chosenSource({ select, slider }) {
  const isLast = slider.value === slider.max;
  return [select.value, isLast ? null : Number(slider.value)];
}

function chosenOrder(button) {
  return [controlName(button), button.closest("th").ariaSort];
}

function shownNow() {
  return {
    theme: document.querySelector("input[name=theme]:checked").value,
    charts: chosen,
    scroll: scrollY,
    sources: player?.sources.map(chosenSource),
    clip: player?.index,
    frame: player?.frame,
    speed: player?.speed.value,
    loop: player?.loop,
    view: player && [player.view.x, player.view.y, player.view.zoom],
    open: controlNames("details[open] > summary"),
    sorted: [...document.querySelectorAll("[aria-sort] button")].map(chosenOrder),
    focus: controlNames(":focus"),
  };
}

function controlNames(selector) {
  return [...document.querySelectorAll(selector)].map(controlName);
}

/** Return what tells a control from others, also in the next version of the page: its name for screen readers, and that
 * of the part of the page around it. */
function controlName(control) {
  const around = control.parentElement.closest("[id], [aria-label]");
  const label = control.id || control.title || control.ariaLabel || control.value || control.textContent;
  return `${around?.ariaLabel ?? around?.id}: ${label}`;
}

function controlNamed(name) {
  return [...document.querySelectorAll(CONTROLS)].find((control) => controlName(control) === name);
}

function showAgain({ theme, charts: choices, scroll, open, sorted, focus, ...shown }) {
  document.querySelector(`input[name=theme][value=${theme}]`).click();
  chooseAgain(choices);
  if (player && shown.sources) playAgain(shown);
  for (const name of open) controlNamed(name)?.click();
  for (const [name, order] of sorted) {
    const button = controlNamed(name);
    if (button) sortBy(button, order);
  }
  controlNamed(focus[0])?.focus({ preventScroll: true });
  scrollTo({ top: scroll, behavior: "instant" });
}

function playAgain({ sources, clip, frame, speed, loop, view }) {
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
if (DATA.live) setInterval(look, LOOK_MS);
