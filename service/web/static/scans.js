// Uploads the chosen or dropped file in pieces (tus), shows how far it is, goes on after a break, then shows
// the scan's page.
"use strict";

const byId = (id) => document.getElementById(id);
const drop = byId("drop");

const TUS = { "Tus-Resumable": "1.0.0" };
const PIECE = 16 * 1024 * 1024;
const PATIENCE_MS = 5 * 60 * 1000;
const TRANSIENT = [408, 409, 423, 429, 502, 503, 504];

let stopping = null;

function options() {
  const prompts = byId("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const announced = byId("announced").value.split(/[\n,]/).map((word) => word.trim()).filter(Boolean);
  return {
    budget: byId("budget").value,
    seed: Number(byId("seed").value || "0"),
    cleanse: byId("cleanse").checked,
    prompts: prompts.length ? prompts : null,
    announced,
    reference: byId("reference")?.value || null, // there only where a base is registered
  };
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

function progressed(done, total, started) {
  const rate = done.now / Math.max((performance.now() - started) / 1000, 0.001);
  const offset = done.before + done.now;
  byId("sending-bar").value = offset / total;
  byId("sending-figures").textContent =
    offset < total
      ? `${amount(offset)} of ${amount(total)}, ${amount(rate)} a second`
      : "received; looking at the file";
}

async function refusal(response) {
  try {
    const problem = await response.json();
    return problem.detail ? `${problem.title}. ${problem.detail}` : problem.title;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function pause(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

// The answer to a request, asked for again while the connection is down or the server says "not now".
async function insist(url, request) {
  const until = performance.now() + PATIENCE_MS;
  for (let wait = 0.5; ; wait = Math.min(2 * wait, 10)) {
    let response = null;
    try {
      response = await fetch(url, { ...request, signal: stopping.signal });
      if (!TRANSIENT.includes(response.status)) return response;
    } catch (error) {
      if (stopping.signal.aborted) throw error;
    }
    if (performance.now() > until) {
      if (response) return response;
      throw new Error("The connection was lost.");
    }
    if (request.method === "PATCH") return null; // where to go on may have changed
    if (!response) byId("sending-figures").textContent = "the connection was lost; trying again";
    await pause(Number(response?.headers.get("Retry-After")) || wait);
  }
}

async function accepted(url, request) {
  const response = await insist(url, request);
  if (response && !response.ok) throw new Error(await refusal(response));
  return response;
}

// A dropped file that was half sent before goes on there, also after the page was loaded again.
function memory(file) {
  return `upload:${file.name}:${file.size}:${file.lastModified}`;
}

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

async function begun(file) {
  const earlier = localStorage.getItem(memory(file));
  if (earlier && (await insist(earlier, { method: "HEAD", headers: TUS })).ok) return earlier;
  const headers = {
    ...TUS,
    "Upload-Length": String(file.size),
    "Upload-Metadata": `filename ${base64(file.name)}`,
  };
  const response = await accepted("/uploads", { method: "POST", headers });
  localStorage.setItem(memory(file), response.headers.get("Location"));
  return response.headers.get("Location");
}

async function offsetOf(upload) {
  const response = await insist(upload, { method: "HEAD", headers: TUS });
  if (!response.ok) throw new Error("The upload has expired; send the file again.");
  return Number(response.headers.get("Upload-Offset"));
}

async function sendBytes(file, upload) {
  const started = performance.now();
  let offset = await offsetOf(upload);
  const done = { before: offset, now: 0 };
  let failures = 0;
  while (offset < file.size) {
    progressed(done, file.size, started);
    const headers = { ...TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(offset) };
    const body = file.slice(offset, offset + PIECE);
    const response = await accepted(upload, { method: "PATCH", headers, body });
    failures = response ? 0 : failures + 1;
    if (failures) await pause(Math.min(failures, 10));
    offset = response ? Number(response.headers.get("Upload-Offset")) : await offsetOf(upload);
    done.now = offset - done.before;
  }
  progressed(done, file.size, started);
}

async function scanOf(upload) {
  const source = { upload: upload.split("/").pop() };
  const body = JSON.stringify({ source, options: options() });
  const headers = { "Content-Type": "application/json" };
  return accepted("/scans", { method: "POST", headers, body });
}

async function send(file) {
  stopping = new AbortController();
  byId("stop").onclick = () => stopping.abort();
  byId("sending-name").textContent = file.name;
  show(true);
  try {
    const upload = await begun(file);
    await sendBytes(file, upload);
    const response = await scanOf(upload);
    localStorage.removeItem(memory(file));
    window.location.assign(`/ui${response.headers.get("Location")}`);
  } catch (error) {
    show(false, stopping.signal.aborted ? "" : error.message);
  }
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
