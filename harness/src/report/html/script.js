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

  // A button beside each command copies it.
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without permission, as in a page from a file in some browsers.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const copied = document.execCommand("copy");
      area.remove();
      if (!copied) throw new Error("not allowed");
    }
  };
  for (const line of document.querySelectorAll("pre.line")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    const text = line.textContent;
    button.setAttribute("aria-label", `Copy: ${text}`);
    button.addEventListener("click", () => {
      copy(text).then(() => "Copied", () => "Not allowed").then((said) => {
        button.textContent = said;
        setTimeout(() => { button.textContent = "Copy"; }, 2000);
      });
    });
    const box = document.createElement("div");
    box.className = "command";
    line.replaceWith(box);
    box.append(line, button);
  }

  const controls = document.getElementById("controls");
  if (!controls) return;
  const text = document.getElementById("text");
  const failed = document.getElementById("only-failed");
  const shown = document.getElementById("shown");
  const sort = document.getElementById("sort");
  const sorted = document.getElementById("sorted");
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
      theme.hidden = sort.value !== "" || (active && here === 0);
      theme.open = active ? here > 0 : open;
      count += here;
      all += cases.length;
    }
    shown.textContent = active ? `${count} of ${all} cases` : `${all} cases`;
  };
  // Sorted cases are in one list; the longest and the worst come first.
  const number = (one, key) => Number(one.node.dataset[key] ?? -1);
  const orders = {
    name: () => 0,
    verdict: (a, b) => number(a, "rank") - number(b, "rank"),
    took: (a, b) => number(b, "took") - number(a, "took"),
    blackout: (a, b) => number(b, "blackout") - number(a, "blackout"),
  };
  const arrange = () => {
    const order = orders[sort.value];
    sorted.hidden = !order;
    if (order) {
      const all = themes.flatMap(({ cases }) => cases);
      all.sort((a, b) => order(a, b) || (a.node.id < b.node.id ? -1 : 1));
      sorted.append(...all.map(({ node }) => node));
    } else {
      for (const { theme, cases } of themes) theme.append(...cases.map(({ node }) => node));
    }
    filter();
  };
  sort.addEventListener("input", arrange);
  text.addEventListener("input", filter);
  failed.addEventListener("input", filter);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  arrange();
})();
