// Keeps the page as it is now: asks for it again, and puts in the parts that changed.
"use strict";

const EVERY_MS = 5000;
const LONGEST_MS = 60000;
const parts = () => document.querySelectorAll("[data-live]");
const trouble = document.getElementById("trouble");
const button = document.getElementById("updates");
let pause = EVERY_MS;
let isOn = true;
let timer = 0;

// What a person is doing in a part that is replaced goes on: focus, open details, selected text.
function replace(old, fresh) {
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const open = [...old.querySelectorAll("details[open][id]")].map((one) => one.id);
  const at = focused && [...old.querySelectorAll("a, button, summary, [tabindex]")].indexOf(focused);
  const href = focused && focused.getAttribute("href");
  old.replaceChildren(...fresh.childNodes);
  open.forEach((id) => {
    const one = document.getElementById(id);
    if (one) one.open = true;
  });
  if (!focused) return;
  const candidates = [...old.querySelectorAll("a, button, summary, [tabindex]")];
  const same = candidates.find((one) => href && one.getAttribute("href") === href);
  (same || candidates[Math.min(at, candidates.length - 1)] || document.getElementById("main")).focus({
    preventScroll: true,
  });
}

function isSelectedIn(part) {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && selection.containsNode(part, true);
}

async function update() {
  // Not location.href: it may hold a login, and no such URL can be fetched.
  const here = location.origin + location.pathname + location.search;
  const answer = await fetch(here, { headers: { Accept: "text/html" } });
  if (!answer.ok) throw new Error(`the receiver answers ${answer.status}`);
  const text = await answer.text();
  if (!isOn) return; // It was stopped meanwhile: what is read now stays.
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const part of parts()) {
    const other = fresh.getElementById(part.id);
    // Open details are no change of what the receiver says.
    const now = part.cloneNode(true);
    now.querySelectorAll("details").forEach((one) => one.removeAttribute("open"));
    if (other && other.innerHTML !== now.innerHTML && !isSelectedIn(part)) replace(part, other);
  }
}

async function tick() {
  if (isOn && !document.hidden) {
    try {
      await update();
      pause = EVERY_MS;
      if (trouble) trouble.hidden = true;
    } catch (error) {
      pause = Math.min(pause * 2, LONGEST_MS);
      if (trouble) {
        const said = `This page is not up to date: ${error.message}. It is tried again.`;
        if (trouble.hidden || trouble.textContent !== said) trouble.textContent = said;
        trouble.hidden = false;
      }
    }
  }
  clearTimeout(timer); // Of a look that ended while this one was under way.
  timer = setTimeout(tick, pause);
}

function say() {
  button.textContent = isOn ? "Stop updates" : "Update again";
}

if (parts().length) {
  if (button) {
    button.hidden = false;
    say();
    button.addEventListener("click", () => {
      isOn = !isOn;
      say();
    });
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    clearTimeout(timer);
    tick();
  });
  timer = setTimeout(tick, pause);
}
