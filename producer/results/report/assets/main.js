// The page: its sections in their order, once the figures are unpacked.

import { h } from "./dom.js";
import { chunk } from "./data.js";
import { failuresSection, provenance } from "./overview.js";
import { settingsSection } from "./settings.js";
import { plotsSection } from "./plots.js";
import { matrixSection } from "./matrix.js";
import { promptsSection } from "./prompts.js";
import { comparisonSections } from "./comparison.js";

async function show() {
  const data = await chunk("overview"), main = document.getElementById("main");
  if (data.kind === "comparison") main.append(...comparisonSections(data));
  else {
    const { node, goTo } = promptsSection(data);
    document.getElementById("provenance").append(provenance(data));
    main.append(failuresSection(data), settingsSection(data), plotsSection(data), matrixSection(data, goTo), node);
    followAnchor(goTo, data.prompts.length);
  }
  contents(main);
  document.documentElement.dataset.ready = "true";
}

function contents(main) {
  const links = [...main.querySelectorAll(":scope > section")].map((each) => h("a", { href: `#${each.id}` }, each.querySelector("h2").textContent));
  document.getElementById("contents").append(...links);
}

function followAnchor(goTo, number) {
  const follow = () => {
    const found = /^#prompt-(\d+)$/.exec(location.hash);
    if (found && Number(found[1]) <= number) goTo(Number(found[1]) - 1);
  };
  addEventListener("hashchange", follow);
  setTimeout(follow);
}

show().catch((error) => {
  document.getElementById("main").append(h("p", { class: "bad-text", role: "alert" }, `This page cannot be shown: ${error.message}. It needs a browser of 2023 or newer.`));
  throw error;
});
