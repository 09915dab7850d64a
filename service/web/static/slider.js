// Lays two pictures over each other; a range input, laid over both, moves the line between them.
"use strict";

const SMALL = 160; // pixels; smaller pictures are enlarged in squares, not in blur

for (const slider of document.querySelectorAll(".slider")) {
  const range = slider.querySelector("input");
  const show = () => slider.style.setProperty("--at", `${range.value}%`);
  const sharpen = (image) => image.classList.toggle("small", image.naturalWidth <= SMALL);
  for (const image of slider.querySelectorAll("img")) {
    image.addEventListener("load", () => sharpen(image));
    if (image.complete) sharpen(image);
  }
  range.addEventListener("input", show);
  range.hidden = false;
  slider.classList.add("ready");
  show();
}
