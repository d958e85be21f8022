// An image to try, for models of digits.

import { element } from "./answers.js";

const THREE = /^(digit[ _-]?)?(3|three)$/i;

/** Whether the drawn digit is such as the model was trained on: it sees small, greyscale images, and knows a 3. */
export function takesDigits(model) {
  const { colour, size = [Infinity] } = model?.input ?? {};
  return colour === "L" && Math.max(...size) <= 64 && (model.labels ?? []).some((label) => THREE.test(label));
}

/** A handwritten 3 as a PNG file, white on black, as the usual collections of digits have it. */
export async function drawDigit() {
  const canvas = element("canvas");
  canvas.width = canvas.height = 224;
  const pen = canvas.getContext("2d");
  pen.fillRect(0, 0, 224, 224);
  pen.strokeStyle = "#fff";
  pen.lineWidth = 20;
  pen.lineCap = "round";
  pen.stroke(new Path2D("M72 62C100 34 156 44 148 80C144 98 122 106 104 106C140 106 164 124 156 152C146 188 96 190 68 168"));
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return new File([blob], "sample digit 3.png", { type: "image/png" });
}
