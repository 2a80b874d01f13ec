"use strict";

// "System" follows `prefers-color-scheme`; the others override it.
document.getElementById("theme").addEventListener("change", ({ target }) => {
  document.documentElement.dataset.theme = target.value;
});
