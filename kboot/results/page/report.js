"use strict";
(() => {
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ------------------------------------------------------------------------------- the theme
  const root = document.documentElement;
  find("#theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // ------------------------------------------------------------------------------- the tests
  const table = find("#cases");
  let rows = table ? [...table.tBodies[0].rows] : [];
  const words = new Map(rows.map((row) => [row, null]));
  const filter = find("#filter");
  const chips = all(".chip");

  const textOf = (row) => {
    // Reading the text of all rows takes a moment where there are thousands: not before it is needed.
    if (words.get(row) === null) words.set(row, row.textContent.toLowerCase());
    return words.get(row);
  };
  // A table of very many rows takes a browser long to lay out.
  let most = 1000;
  const apply = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const off = new Set(
      chips.filter((chip) => chip.getAttribute("aria-pressed") === "false").map((chip) => chip.dataset.outcome),
    );
    let shown = 0;
    for (const row of rows) {
      const visible = !off.has(row.dataset.o) && wanted.every((word) => textOf(row).includes(word));
      shown += visible;
      row.hidden = !visible || shown > most;
    }
    const first = shown > most ? `, the first ${most} are listed` : "";
    find("#shown").value = `${shown} of ${rows.length}${first}`;
    find("#nothing").hidden = shown > 0;
    find("#more").hidden = !first;
    table.tBodies[0].classList.add("chosen");
  };
  const sortBy = (button) => {
    const column = Number(button.dataset.sort);
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") === "ascending";
    all("th", table).forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.cells[column];
      if (column === 0) return chips.findIndex((chip) => chip.dataset.outcome === row.dataset.o);
      return column === 2 ? Number(cell.dataset.v) : find(".id", cell).textContent;
    };
    const values = new Map(rows.map((row) => [row, value(row)]));
    rows.sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
    apply();
  };
  if (table) {
    filter.addEventListener("input", apply);
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") === "false"));
        apply();
      });
    }
    all("[data-sort]", table).forEach((button) => button.addEventListener("click", () => sortBy(button)));
    find("#more button").addEventListener("click", () => {
      most = Infinity;
      apply();
    });
    // A reload keeps what was typed.
    if (filter.value || rows.length > most) apply();
  }

  const BAD = new Set(["failed", "error", "flaky", "not run"]);
  const move = (step, matches) => {
    const current = rows.indexOf(document.activeElement?.closest?.("#cases tr"));
    for (let at = current < 0 && step < 0 ? rows.length - 1 : current + step; at >= 0 && at < rows.length; at += step) {
      if (!rows[at].hidden && matches(rows[at])) {
        rows[at].tabIndex = -1;
        rows[at].focus();
        rows[at].scrollIntoView({ block: "nearest" });
        return;
      }
    }
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input");
    if (event.key === "Escape" && filter && event.target === filter) {
      filter.value = "";
      apply();
      filter.blur();
    } else if (typing || !table) {
      return;
    } else if (event.key === "/") {
      event.preventDefault();
      filter.focus();
      filter.select();
    } else if (event.key === "j" || event.key === "k") {
      move(event.key === "j" ? 1 : -1, () => true);
    } else if (event.key === "n" || event.key === "p") {
      move(event.key === "n" ? 1 : -1, (row) => BAD.has(row.dataset.o));
    } else if (event.key === "Enter" && event.target.matches("#cases tr")) {
      const details = find("details", event.target);
      if (details) details.open = !details.open;
    }
  });

  // ---------------------------------------------------------------------------- the consoles
  let unpacked = null;
  const unpack = () => {
    unpacked ??= (async () => {
      const bytes = Uint8Array.from(atob(find("#packed").textContent), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      return JSON.parse(await new Response(stream).text());
    })();
    return unpacked;
  };
  const line = (className, time, text) => {
    const element = document.createElement("div");
    element.className = className;
    const stamp = document.createElement("time");
    stamp.textContent = time;
    const words = document.createElement("span");
    words.textContent = text;
    element.append(stamp, words);
    return element;
  };
  const render = async (details) => {
    if (details.dataset.done || typeof DecompressionStream === "undefined") return;
    details.dataset.done = "yes";
    const data = await unpack();
    const key = details.dataset.machine;
    const { l: numbers, t: times, a: places } = data.consoles[key];
    let now = 0;
    const elements = numbers.map((number, index) => {
      if (number < 0) {
        return line("l gap", "", `${times[index].toLocaleString("en")} lines are left out here; serial.log has them`);
      }
      now += times[index];
      return line("l", (now / 1000).toFixed(3), data.lines[number]);
    });
    for (const [name, [first, last]] of Object.entries(places)) {
      if (!elements.length) break;
      if (name[0] === "c") elements.slice(first, last + 1).forEach((element) => element.classList.add("crashed"));
      // Two places may begin at the same line.
      const anchor = document.createElement("a");
      anchor.id = `${key}-${name}`;
      elements[first].prepend(anchor);
    }
    find(".lines", details).replaceChildren(...elements);
    search(details, elements);
  };
  const search = (details, elements) => {
    const bar = find(".find", details);
    const [input, output] = [find("input", bar), find("output", bar)];
    bar.hidden = false;
    let hits = [];
    let at = -1;
    const show = (step) => {
      if (!hits.length) return;
      hits[at]?.classList.remove("at");
      at = (at + step + hits.length) % hits.length;
      hits[at].classList.add("at");
      hits[at].scrollIntoView({ block: "center" });
      output.value = `${at + 1} of ${hits.length}`;
    };
    input.addEventListener("input", () => {
      hits.forEach((element) => element.classList.remove("hit", "at"));
      const wanted = input.value.toLowerCase();
      hits = wanted ? elements.filter((element) => element.lastChild.textContent.toLowerCase().includes(wanted)) : [];
      hits.forEach((element) => element.classList.add("hit"));
      at = -1;
      output.value = wanted ? `${hits.length} lines` : "";
      show(1);
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") show(event.shiftKey ? -1 : 1);
    });
    all("[data-step]", bar).forEach((button) => button.addEventListener("click", () => show(Number(button.dataset.step))));
  };
  const consoles = all("details.console");
  consoles.forEach((details) => details.addEventListener("toggle", () => details.open && render(details)));

  all("details.file").forEach((details) =>
    details.addEventListener("toggle", async () => {
      if (!details.open || typeof DecompressionStream === "undefined") return;
      const data = await unpack();
      const { machine, name } = details.dataset;
      find("pre", details).textContent = data.files[data.machines[machine][name]];
    }),
  );

  // --------------------------------------------------------------------------- places by link
  const follow = async () => {
    const place = decodeURIComponent(location.hash.slice(1));
    const machine = document.getElementById(place.split("-")[0]);
    if (!machine || !machine.matches(".machine")) return;
    machine.open = true;
    if (!place.includes("-")) {
      machine.scrollIntoView();
      return;
    }
    const details = find("details.console", machine);
    details.open = true;
    await render(details);
    const target = document.getElementById(place)?.parentElement;
    all(".at", details).forEach((element) => element.classList.remove("at"));
    target?.classList.add("at");
    (target ?? details).scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", follow);
  // The same link again does not change the place.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) follow();
  });
  follow();

  // On paper there is nothing to open.
  addEventListener("beforeprint", () => {
    if (table) {
      most = Infinity;
      apply();
    }
    all("#cases details, details.machine, details.crash").forEach((details) => {
      details.open = true;
    });
  });
})();
