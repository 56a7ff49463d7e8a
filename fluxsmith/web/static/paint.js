// Pixels (n, h, w, c) of the server onto canvases.

export function paint(canvas, pixels, index, { size, channels }) {
  if (canvas.width !== size || canvas.height !== size) canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  const area = size * size;
  const from = index * area * channels;
  for (let i = 0; i < area; i += 1) {
    const at = from + i * channels;
    image.data[4 * i] = pixels[at];
    image.data[4 * i + 1] = pixels[at + (channels > 1 ? 1 : 0)];
    image.data[4 * i + 2] = pixels[at + (channels > 1 ? 2 : 0)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The colours of the page as a canvas needs them.
export function colour(name, alpha = 1) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  const [r, g, b] = found.match(/[\d.]+/g).map(Number);
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}
