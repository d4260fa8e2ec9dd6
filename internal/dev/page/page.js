// Keeps the page up to date, and sends its forms without leaving it. What has the focus is never replaced.
const byID = (id) => document.getElementById(id);

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

// Puts a fragment into the list: a new one at its place, of one that is there only the part that changes.
function show(list, fragment, place) {
  const item = byID(fragment.id);
  if (!item) {
    if (fragment.html) place.call(list, element(fragment.html));
    return;
  }
  item.querySelector(".live").innerHTML = fragment.live;
  const more = item.querySelector(".more");
  if (fragment.more && !more.hasChildNodes()) more.innerHTML = fragment.more;
}

const newest = 100; // as many as the server shows

function showRows(list, { rows, counts }) {
  byID("counts").textContent = counts;
  for (const row of rows) {
    if (!("newest" in list.dataset)) row.html = ""; // a page of older messages gets no new ones
    show(list, row, list.prepend);
  }
  byID("empty").hidden = list.childElementCount > 0;
  while (list.childElementCount > newest && !list.lastElementChild.contains(document.activeElement)) {
    list.lastElementChild.remove();
  }
}

function showMessage(list, { attempts, state, due, waits }) {
  for (const attempt of attempts) show(list, attempt, list.append);
  const now = element(`<span>${state}</span>`);
  if (byID("state").textContent !== now.textContent) byID("state").replaceChildren(...now.childNodes); // it is read aloud
  byID("due").innerHTML = due;
  byID("now").setAttribute("aria-disabled", String(!waits));
  countDown();
}

function countDown() {
  for (const left of document.querySelectorAll("[data-due]")) {
    const seconds = Math.max(0, Math.round((left.dataset.due - Date.now()) / 1000));
    left.textContent = `(in ${seconds} s)`;
  }
}
countDown();
setInterval(countDown, 1000);

for (const list of document.querySelectorAll("[data-live]")) {
  const stream = new EventSource(list.dataset.live);
  const update = list.id === "rows" ? showRows : showMessage;
  stream.onmessage = (event) => update(list, JSON.parse(event.data));
  stream.onopen = () => (byID("offline").textContent = "");
  stream.onerror = () => (byID("offline").textContent = "The stand-in does not answer: this is how things were.");
}

function say(text, wrong) {
  const result = document.querySelector(".result");
  result.classList.toggle("wrong", Boolean(wrong));
  result.textContent = text;
}

for (const form of document.forms) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (event.submitter?.getAttribute("aria-disabled") === "true") {
      say("There is no attempt to wait for.");
      return;
    }
    try {
      const answer = await fetch(form.action, {
        method: "POST",
        headers: { Accept: "application/json" },
        body: new URLSearchParams(new FormData(form)),
      });
      const { text, error, location: next } = await answer.json();
      say(error ?? text, error);
      if (next) location.assign(next);
    } catch {
      say("The stand-in does not answer.", true);
    }
  });
}

byID("copy")?.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byID("curl").textContent);
    say("Copied");
  } catch {
    say("The browser does not let this page copy: the command is below.", true);
  }
});
