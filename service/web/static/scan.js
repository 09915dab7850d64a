// Follows a scan's event stream: stages fill, the log grows, and the page is loaded anew when the scan ends.
"use strict";

const live = document.getElementById("live");
const url = `/scans/${live.dataset.scan}`;
const rows = new Map([...live.querySelectorAll("li[data-stage]")].map((row) => [row.dataset.stage, row]));
const ended = new Set(["succeeded", "failed", "cancelled", "expired"]);
let current = null;
let began = null;

function seconds(milliseconds) {
  const whole = Math.round(milliseconds / 1000);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function restart() {
  for (const row of rows.values()) {
    row.className = "";
    row.querySelector("progress").value = 0;
    row.querySelector(".time").textContent = "";
  }
  current = began = null;
}

function enter(stage, at) {
  const row = rows.get(stage);
  if (!row || stage === current) return;
  if (current && began) rows.get(current).querySelector(".time").textContent = seconds(at - began);
  for (const other of rows.values()) {
    if (other === row) break;
    other.className = "done";
    other.querySelector("progress").value = 1;
  }
  row.className = "now";
  [current, began] = [stage, at];
}

function progress({ stage, fraction, message }, at) {
  enter(stage, at);
  const row = rows.get(stage);
  if (row) row.querySelector("progress").value = fraction;
  document.getElementById("message").textContent = message || "";
}

function log(text, at) {
  const line = document.createElement("li");
  const time = document.createElement("time");
  const words = document.createElement("span");
  time.textContent = at.toLocaleTimeString();
  words.textContent = text;
  line.append(time, words);
  document.getElementById("log").prepend(line);
}

function state(payload, at, attempt) {
  const badge = document.getElementById("state");
  badge.textContent = payload.state === "failed" ? "error" : payload.state;
  badge.className = `badge ${payload.state}`;
  if (payload.state === "running") restart();
  if (attempt) document.getElementById("attempt").textContent = attempt;
  log(payload.state, at);
  if (ended.has(payload.state)) window.location.reload();
}

const handlers = {
  state,
  progress,
  worker_lost: (_, at) => log("the worker was lost; another one takes over", at),
  cancel_requested: (_, at) => log("cancelling", at),
};

const stream = new EventSource(`${url}/events`);
for (const [kind, handle] of Object.entries(handlers)) {
  stream.addEventListener(kind, (event) => {
    const data = JSON.parse(event.data);
    handle(data.payload ?? data, data.at ? new Date(data.at) : new Date(), data.attempt);
  });
}

document.getElementById("cancel").onclick = async (event) => {
  event.target.disabled = true;
  const answer = await fetch(`${url}/cancel`, { method: "POST" });
  if (!answer.ok) event.target.disabled = false;
};
