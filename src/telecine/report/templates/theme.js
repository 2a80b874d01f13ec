"use strict";

// "System" follows `prefers-color-scheme`; the two others win over it.
document.getElementById("theme").addEventListener("change", ({ target }) => {
  document.documentElement.dataset.theme = target.value;
});
