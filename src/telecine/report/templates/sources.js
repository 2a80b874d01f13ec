/** A row of controls above the player: a run, and a slider over its validations. */
class Source {
  constructor(index, title, choices, onChange) {
    this.choices = choices;
    const options = choices.map(([value, name]) => html("option", { value }, name));
    this.select = html("select", { id: `run-${index}` }, ...options);
    this.slider = html("input", { id: `step-${index}`, type: "range", min: 0, step: 1 });
    this.output = html("output", { for: this.slider.id });
    this.step = html("label", { class: "slider" }, "Validation ", this.slider, this.output);
    this.row = html("div", { class: "bar" }, html("label", {}, `${title} `, this.select), this.step);
    this.select.parentNode.hidden = choices.length < 2;
    this.select.addEventListener("change", () => { this.choose(this.select.value); onChange(); });
    this.slider.addEventListener("input", () => { this.describe(); onChange(); });
  }

  /** Choose a run, or nothing (""), and one of its validations; by default the last one. */
  choose(run, position = Infinity) {
    this.select.value = String(run);
    this.validations = run === "" ? [] : DATA.validations.filter((validation) => validation.run === Number(run));
    const last = Math.max(this.validations.length - 1, 0);
    this.slider.max = last;
    this.slider.value = Math.min(position, last);
    this.slider.disabled = last === 0;
    this.step.hidden = !this.validations.length;
    this.describe();
  }

  /** The validation that is shown, or null. */
  get validation() {
    return this.validations[Number(this.slider.value)] ?? null;
  }

  /** The run and the step that are shown. */
  get name() {
    const { run, step } = this.validation;
    return DATA.runs.length > 1 ? `${DATA.runs[run]}, step ${step}` : `step ${step}`;
  }

  describe() {
    if (!this.validation) return;
    const { step } = this.validation;
    this.output.textContent = `step ${step} (${Number(this.slider.value) + 1} of ${this.validations.length})`;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
  }
}

/** Return the two rows: what the player shows, and what it is compared with. */
function makeSources(onChange) {
  const runs = [...new Set(DATA.validations.map(({ run }) => run))];
  const named = runs.map((run) => [String(run), DATA.runs[run]]);
  const others = named.length > 1 ? named : [[String(runs[0]), "another validation"]];
  const compared = [["", "nothing"], ...others];
  const sources = [new Source(0, "Run", named, onChange), new Source(1, "Compare with", compared, onChange)];
  sources[0].choose(runs[0]);
  sources[1].choose(runs[1] ?? "");
  byId("sources").append(...sources.map(({ row }) => row));
  return sources;
}
