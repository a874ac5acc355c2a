"use strict";
// Live batches: asks the server's own API every two seconds, with the key that was typed in, if there is one.
// Behind a proxy its address is another one than the server knows: where this page is, the routes are beside it.
const base = location.pathname.replace(/\/+$/, ""), list = document.getElementById("batches"), state = document.getElementById("state");
const keyForm = document.getElementById("key"), cards = new Map(), RUNNING = ["validating", "in_progress"];
const ENDED = ["completed", "failed", "expired", "cancelled"];
const PAUSE = 2000, MOST = 50;
let key = sessionStorage.getItem("clear_ray key") || "";

async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const answer = await fetch(`${base}/v1/batches${path}`, options);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error ? told.error.message : `status ${answer.status}`);
  return told;
}

function amount(number, unit) {
  if (number === null || number === undefined) return "–";
  if (unit && unit !== "tokens") return `${(number / 1e9).toLocaleString(undefined, { maximumFractionDigits: 6 })} ${unit}`;
  return `${number.toLocaleString()} tokens`;
}

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function makeCard(id) {
  const card = { id, root: element("article", { id }) };
  card.status = element("span", { className: "status" });
  card.progress = element("progress", { max: 1, value: 0 });
  card.facts = {};
  const facts = element("dl");
  for (const [name, words] of [["done", "ended"], ["spent", "spent"], ["budget", "budget"], ["price", "price of a token"], ["stage", "stage"]]) {
    card.facts[name] = element("dd");
    facts.append(element("div", {}, element("dt", { textContent: words }), card.facts[name]));
  }
  card.budget = element("input", { placeholder: "+200k, -50k or 2M tokens", ariaLabel: `new budget of ${id}` });
  card.change = element("button", { textContent: "Change budget", className: "main" });
  card.cancel = element("button", { textContent: "Cancel batch", type: "button" });
  card.form = element("form", {}, card.budget, card.change, card.cancel);
  card.said = element("p", { className: "said", role: "status" });
  card.form.addEventListener("submit", (event) => {
    event.preventDefault();
    act(card, async () => {
      const told = await ask(`/${id}/budget`, { budget: card.budget.value });
      card.budget.value = "";
      return `The budget is ${amount(told.budget_tokens, told.unit)} from the next clearing on.`;
    });
  });
  card.cancel.addEventListener("click", () => {
    if (!confirm(`Cancel ${id}? What was answered is kept.`)) return;
    act(card, async () => (await ask(`/${id}/cancel`, {}), "It ends; what was answered is kept."));
  });
  card.root.append(element("header", {}, element("code", { textContent: id }), card.status), card.progress, facts, card.form, card.said);
  return card;
}

async function act(card, order) {
  try {
    card.said.textContent = await order();
    card.said.className = "said";
  } catch (error) {
    card.said.textContent = error.message;
    card.said.className = "said bad";
  }
  refresh();
}

function show(card, batch) {
  const counts = batch.request_counts, live = batch.clear_ray || {};
  card.status.textContent = batch.status.replace("_", " ");
  card.status.className = `status ${batch.status}`;
  card.progress.value = counts.total ? (counts.completed + counts.failed) / counts.total : 0;
  card.facts.done.textContent = counts.total ? `${(counts.completed + counts.failed).toLocaleString()} of ${counts.total.toLocaleString()}` : "–";
  card.facts.spent.textContent = amount(live.spent_tokens, live.unit);
  card.facts.budget.textContent = amount(live.budget_tokens, live.unit);
  card.facts.price.textContent = typeof live.shadow_price === "number" ? Number(live.shadow_price.toPrecision(3)).toString() : "–";
  card.facts.stage.textContent = live.stage || "–";
  card.budget.disabled = card.change.disabled = batch.status !== "in_progress";
  card.cancel.disabled = !RUNNING.includes(batch.status);
  card.form.hidden = !RUNNING.includes(batch.status);
}

async function refresh() {
  let page;
  try {
    page = await ask(`?limit=${MOST}`);
  } catch (error) {
    state.textContent = error.message;
    return;
  }
  state.textContent = page.data.length ? "" : "No batch yet.";
  for (const batch of page.data) {
    if (!cards.has(batch.id)) cards.set(batch.id, makeCard(batch.id));
    show(cards.get(batch.id), batch);
  }
  const isLive = (batch) => !ENDED.includes(batch.status);
  page.data.sort((one, other) => isLive(other) - isLive(one)); // those that run first; each kind stays newest first
  const wanted = page.data.map((batch) => cards.get(batch.id).root);
  if (wanted.some((root, k) => list.children[k] !== root)) list.replaceChildren(...wanted);
}

document.getElementById("docs").href = `${base}/docs`;
for (const example of document.querySelectorAll("pre")) {
  example.textContent = example.textContent.replaceAll(document.body.dataset.told, location.origin + base);
}
if (keyForm) {
  keyForm.addEventListener("submit", (event) => {
    event.preventDefault();
    key = keyForm.elements.key.value.trim();
    sessionStorage.setItem("clear_ray key", key);
    refresh();
  });
}
if (list) {
  refresh();
  setInterval(() => document.hidden || refresh(), PAUSE);
}
