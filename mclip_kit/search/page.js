"use strict";
const $ = (id) => document.getElementById(id);
const largest = Number(document.querySelector("main").dataset.upload); // bytes of a picture
const towers = { student: $("student"), teacher: $("teacher") };
let current = null; // { path, towers, start }: what is shown, and where it goes on
let number = 0; // of the search: answers to older ones are not shown
const near = new IntersectionObserver((seen) => { if (seen[0].isIntersecting) load(); }, { rootMargin: "400px" });

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function tile(hit) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.title = "Find pictures like this one";
  const image = document.createElement("img");
  image.loading = "lazy";
  image.alt = hit.name;
  image.src = `picture/${hit.row}`;
  image.addEventListener("error", () => { image.alt = `${hit.name} (moved or deleted)`; });
  const name = document.createElement("span");
  name.textContent = hit.name;
  name.dir = "auto";
  name.setAttribute("aria-hidden", "true"); // the picture says it
  const score = document.createElement("span");
  score.className = "score";
  score.textContent = hit.score.toFixed(3);
  button.append(image, name, score);
  button.addEventListener("click", () => {
    given(null);
    begin({ path: (tower, start) => `like/${hit.row}?start=${start}`, towers: ["student"], what: `pictures like: ${hit.name}` });
    $("status").scrollIntoView({ block: "nearest" });
  });
  item.append(button);
  return item;
}

async function answer(response) {
  let found = {};
  try { found = await response.json(); } catch { /* no answer of ours */ }
  if (!response.ok) throw new Error(found.sentence || "The server cannot answer this.");
  return found;
}

function show(tower, found, start) {
  const grid = towers[tower].querySelector(".grid");
  if (!start) grid.replaceChildren();
  grid.append(...found.hits.map(tile));
}

async function load() {
  const own = number, asked = current;
  if (!asked || asked.busy) return;
  asked.busy = true;
  try {
    const start = asked.start;
    const found = await Promise.all(asked.towers.map((tower) => fetch(asked.path(tower, start)).then(answer)));
    if (own !== number) return;
    asked.towers.forEach((tower, place) => show(tower, found[place], start));
    asked.start = start + found[0].hits.length;
    if (!$("status").classList.contains("wrong")) { // a mistake made meanwhile is still to be read
      say(`${asked.start} ${asked.what}. ${found[0].note || ""}`.trim());
    }
    $("more").hidden = !found[0].more || !found[0].hits.length;
    near.unobserve($("more")); // an observer tells changes only: one that is still in view would not be told again
    near.observe($("more"));
  } catch (error) {
    if (own === number) { say(error.message || "The server does not answer.", true); $("more").hidden = true; }
  } finally {
    asked.busy = false;
  }
}

function clear(both) {
  towers.teacher.hidden = !both;
  $("student-title").hidden = !both;
  $("more").hidden = true;
  for (const section of Object.values(towers)) section.querySelector(".grid").replaceChildren();
  say("Searching ...");
}

function begin(asked) {
  number += 1;
  current = { ...asked, start: 0, busy: false };
  const both = asked.towers.length > 1;
  clear(both);
  return load();
}

function search() {
  const query = $("query").value.trim();
  given(null);
  if (!query) { say("Write what you look for.", true); return; }
  const path = (tower, start) => `texts?${new URLSearchParams({ q: query, start, tower })}`;
  begin({ path, towers: $("compare").checked ? ["student", "teacher"] : ["student"], what: `pictures for: ${query}` });
}

function given(file, captions = []) {
  $("given").hidden = !file;
  const old = $("given-picture").src;
  if (old.startsWith("blob:")) URL.revokeObjectURL(old);
  if (!file) { $("given-picture").removeAttribute("src"); return; }
  $("given-picture").src = URL.createObjectURL(file);
  $("captions").replaceChildren(...captions.map((caption) => {
    const item = document.createElement("li");
    item.textContent = `${caption.text} (${caption.score.toFixed(3)})`;
    return item;
  }));
}

async function like(file) {
  number += 1;
  const own = number;
  current = null;
  given(null);
  clear(false);
  if (file.size > largest) { say(`This file is larger than ${largest / 1e6} MB.`, true); return; }
  try {
    const found = await answer(await fetch("like", { method: "POST", body: file }));
    if (own !== number) return;
    given(file, found.captions);
    show("student", found, 0);
    say(`${found.hits.length} pictures like yours.`);
  } catch (error) {
    if (own === number) say(error.message || "The server does not answer.", true);
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("compare").addEventListener("change", () => { if ($("query").value.trim()) search(); });
$("more").addEventListener("click", load);
$("file").addEventListener("change", () => { if ($("file").files[0]) like($("file").files[0]); $("file").value = ""; });
for (const button of document.querySelectorAll(".example")) {
  button.addEventListener("click", () => { $("query").value = button.dataset.query; search(); });
}
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) like(file); else say("Drop a picture file.", true);
});
