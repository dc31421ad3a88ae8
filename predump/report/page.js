"use strict";
// Draws every panel with the theme of the page, again when that changes, and lets a reader pick one
// series out of a figure by its legend.
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const panels = [...document.querySelectorAll(".plot")];
  const views = new Map();

  async function draw(panel) {
    const spec = JSON.parse(panel.parentElement.querySelector("script").textContent);
    views.get(panel)?.finalize();
    views.delete(panel);
    const drawn = await vegaEmbed(panel, spec, {
      config: isDark() ? themes.dark : themes.light,
      renderer: "svg",
      tooltip: { theme: isDark() ? "dark" : "light" },
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: panel.dataset.name,
      ast: true,
    });
    views.set(panel, drawn);
    pick(panel.closest("figure"));
  }

  // Which series of a figure the reader looks at, shown in all of its panels.
  function pick(figure) {
    const chosen = figure.dataset.hover ?? figure.dataset.chosen ?? null;
    for (const panel of figure.querySelectorAll(".plot")) {
      const view = views.get(panel)?.view;
      if (view) view.signal("shown", chosen).runAsync();
    }
  }

  for (const button of document.querySelectorAll(".keys button")) {
    const figure = button.closest("figure");
    const name = button.dataset.series;
    const hover = (on) => {
      if (on) figure.dataset.hover = name; else delete figure.dataset.hover;
      pick(figure);
    };
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hover(true));
    button.addEventListener("pointerleave", () => hover(false));
    button.addEventListener("click", () => {
      const on = figure.dataset.chosen !== name;
      if (on) figure.dataset.chosen = name; else delete figure.dataset.chosen;
      for (const other of figure.querySelectorAll(".keys button"))
        other.setAttribute("aria-pressed", String(on && other === button));
      pick(figure);
    });
  }

  const drawAll = () => Promise.all(panels.map(draw));
  const toggle = document.getElementById("theme");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    drawAll();
  });
  prefersDark.addEventListener("change", drawAll);
  drawAll().then(() => { root.dataset.drawn = String(panels.length); });
})();
