// Light or dark: what the reader chose, else what the system says.

const STORED = "bulkhead.theme";

function set(name) {
  document.documentElement.dataset.theme = name;
}

export function toggle() {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem(STORED, next);
  set(next);
}

set(localStorage.getItem(STORED) || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
