"use strict";
(() => {
  // A link to a case opens the case and its enclosing sections.
  const open = () => {
    let id = location.hash.slice(1);
    try { id = decodeURIComponent(id); } catch { /* used undecoded */ }
    const target = document.getElementById(id);
    if (!target || !target.matches("details")) return;
    target.hidden = false;
    for (let at = target; at; at = at.parentElement && at.parentElement.closest("details")) {
      at.hidden = false;
      at.open = true;
    }
    target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();

  const controls = document.getElementById("controls");
  if (!controls) return;
  const text = document.getElementById("text");
  const failed = document.getElementById("only-failed");
  const shown = document.getElementById("shown");
  const themes = [...document.querySelectorAll("details.theme")].map((theme) => ({
    theme,
    open: theme.open,
    cases: [...theme.querySelectorAll("details.case")].map((node) => ({
      node,
      kind: node.dataset.kind,
      text: [node.querySelector("summary"), node.querySelector(".findings")]
        .map((part) => (part ? part.textContent : "")).join(" ").toLowerCase(),
    })),
  }));
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const active = words.length > 0 || failed.checked;
    let count = 0, all = 0;
    for (const { theme, open, cases } of themes) {
      let here = 0;
      for (const one of cases) {
        const wanted = words.every((word) => one.text.includes(word))
          && (!failed.checked || !["pass", "ignored"].includes(one.kind));
        one.node.hidden = !wanted;
        here += wanted;
      }
      theme.hidden = active && here === 0;
      theme.open = active ? here > 0 : open;
      count += here;
      all += cases.length;
    }
    shown.textContent = active ? `${count} of ${all} cases` : `${all} cases`;
  };
  text.addEventListener("input", filter);
  failed.addEventListener("input", filter);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  filter();
})();
