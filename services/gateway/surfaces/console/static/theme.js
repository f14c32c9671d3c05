// Light or dark: what the reader chose, else what the system says, also when the system changes its mind.

const STORED = "bulkhead.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

function set(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme")?.setAttribute("aria-pressed", String(name === "dark"));
}

const wanted = () => localStorage.getItem(STORED) || (dark.matches ? "dark" : "light");

export function toggle() {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem(STORED, next);
  set(next);
}

dark.addEventListener("change", () => set(wanted()));
set(wanted());
