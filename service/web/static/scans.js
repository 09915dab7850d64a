// Uploads the chosen or dropped file, shows how far it is, then goes to the scan's page.
"use strict";

const byId = (id) => document.getElementById(id);
const drop = byId("drop");

function form(file) {
  const values = new FormData();
  values.append("budget", byId("budget").value);
  values.append("seed", byId("seed").value || "0");
  values.append("cleanse", byId("cleanse").checked);
  for (const line of byId("prompts").value.split("\n")) {
    if (line.trim()) values.append("prompts", line.trim());
  }
  values.append("file", file); // last: the server knows the options before the long part begins
  return values;
}

function show(sending, refusal = "") {
  byId("upload").hidden = sending;
  byId("sending").hidden = !sending;
  byId("refused").hidden = !refusal;
  byId("refused").textContent = refusal;
}

function amount(bytes) {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

function progressed(event, started) {
  const rate = event.loaded / Math.max((performance.now() - started) / 1000, 0.001);
  byId("sending-bar").value = event.loaded / event.total;
  byId("sending-figures").textContent =
    event.loaded < event.total
      ? `${amount(event.loaded)} of ${amount(event.total)}, ${amount(rate)} a second`
      : "received; looking at the file";
}

function refusal(request) {
  try {
    const problem = JSON.parse(request.responseText);
    return problem.detail ? `${problem.title}. ${problem.detail}` : problem.title;
  } catch {
    return request.status ? `The server answered ${request.status}.` : "The connection was lost.";
  }
}

function send(file) {
  const request = new XMLHttpRequest();
  const started = performance.now();
  request.open("POST", "/scans");
  request.upload.onprogress = (event) => progressed(event, started);
  request.onabort = () => show(false);
  request.onerror = () => show(false, refusal(request));
  request.onload = () => {
    if (request.status !== 202) return show(false, refusal(request));
    window.location.assign(`/ui${request.getResponseHeader("Location")}`);
  };
  byId("sending-name").textContent = file.name;
  byId("stop").onclick = () => request.abort();
  show(true);
  request.send(form(file));
}

if (drop) {
  byId("choose").onclick = () => byId("file").click();
  byId("file").onchange = (event) => event.target.files.length && send(event.target.files[0]);
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
    });
  }
}
