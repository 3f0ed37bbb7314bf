// The map in three dimensions: an iso-surface found by surface nets and drawn by plotly, which is loaded before this file.
"use strict";
const aceViewer = (() => {
  // pairs of corners of a cell that share an edge; corner c is at x = c & 1, y = c >> 1 & 1, z = c >> 2
  const EDGES = [1, 2, 4].flatMap((step) => [0, 1, 2, 3, 4, 5, 6, 7].filter((c) => !(c & step)).map((c) => [c, c | step]));
  const EYE = { x: 0.85, y: 0.85, z: 0.6 };
  const TURN = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, 0.2], ArrowDown: [0, -0.2] };
  // one colour: the shading shows the shape, on white or black
  const LOOK = { type: "mesh3d", color: "#58a9dc", hoverinfo: "skip", lightposition: { x: 2e4, y: 3e4, z: 6e4 },
    lighting: { ambient: 0.3, diffuse: 0.6, specular: 0.1, roughness: 0.5, fresnel: 0.05 } };

  function decode(text) {
    const bytes = atob(text), values = new Uint8Array(bytes.length);
    for (let n = 0; n < bytes.length; n++) values[n] = bytes.charCodeAt(n);
    return values;
  }

  // A vertex in every cell of n^3 values (x fastest) that the level cuts, a quad across every edge that it cuts; the cube
  // of voxels reaches from -1 to 1.
  function surface(values, n, level) {
    const x = [], y = [], z = [], i = [], j = [], k = [];
    const scale = 2 / n, origin = -(n >> 1) * scale, stride = [1, n, n * n];
    const vertex = new Int32Array(n * n * n), corner = new Float32Array(8);
    const offset = [0, 1, 2, 3, 4, 5, 6, 7].map((c) => (c & 1) + n * (c >> 1 & 1) + n * n * (c >> 2));
    for (let iz = 0; iz < n - 1; iz++) for (let iy = 0; iy < n - 1; iy++) for (let ix = 0; ix < n - 1; ix++) {
      const cell = ix + n * (iy + n * iz);
      let inside = 0;
      for (let c = 0; c < 8; c++) {
        corner[c] = values[cell + offset[c]] - level;
        if (corner[c] > 0) inside |= 1 << c;
      }
      if (inside === 0 || inside === 255) continue;
      let px = 0, py = 0, pz = 0, cut = 0;
      for (const [a, b] of EDGES) {
        if ((inside >> a & 1) === (inside >> b & 1)) continue;
        const t = corner[a] / (corner[a] - corner[b]), step = b - a;
        px += (a & 1) + (step === 1 ? t : 0);
        py += (a >> 1 & 1) + (step === 2 ? t : 0);
        pz += (a >> 2) + (step === 4 ? t : 0);
        cut++;
      }
      vertex[cell] = x.length;
      x.push((ix + px / cut) * scale + origin);
      y.push((iy + py / cut) * scale + origin);
      z.push((iz + pz / cut) * scale + origin);
      const at = [ix, iy, iz];
      for (let axis = 0; axis < 3; axis++) {
        const u = (axis + 1) % 3, v = (axis + 2) % 3;
        if (at[u] === 0 || at[v] === 0 || (inside & 1) === (inside >> (1 << axis) & 1)) continue;
        // winding order: the face points to the lower side
        const [su, sv] = inside & 1 ? [stride[v], stride[u]] : [stride[u], stride[v]];
        const here = vertex[cell], one = vertex[cell - su], far = vertex[cell - su - sv], two = vertex[cell - sv];
        i.push(here, here);
        j.push(one, far);
        k.push(far, two);
      }
    }
    return { x, y, z, i, j, k };
  }

  function layout() {
    const axis = { visible: false, range: [-1, 1] };
    const scene = { xaxis: axis, yaxis: axis, zaxis: axis, aspectmode: "cube", dragmode: "orbit", hovermode: false,
      camera: { eye: EYE } };
    return { scene, margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)" };
  }

  function hasWebGL() {
    const context = document.createElement("canvas").getContext("webgl");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return context !== null;
  }

  // Turn the camera about the vertical and up or down, as a drag does, for who has no mouse.
  function turn(place, [aside, up]) {
    const { x, y, z } = place.layout.scene.camera.eye, flat = Math.hypot(x, y), far = Math.hypot(flat, z);
    const around = Math.atan2(y, x) + aside, height = Math.max(-1.5, Math.min(1.5, Math.atan2(z, flat) + up));
    const eye = { x: far * Math.cos(height) * Math.cos(around), y: far * Math.cos(height) * Math.sin(around),
      z: far * Math.sin(height) };
    Plotly.relayout(place, { "scene.camera.eye": eye, "scene.camera.up": { x: 0, y: 0, z: 1 } });
  }

  function zoom(place, times) {
    const { x, y, z } = place.layout.scene.camera.eye, far = Math.hypot(x, y, z);
    const scale = Math.max(0.15, Math.min(6, far * times)) / far;
    Plotly.relayout(place, { "scene.camera.eye": { x: x * scale, y: y * scale, z: z * scale } });
  }

  // Wheel and pinch. Plotly knows the wheel, but forgets what it did at the next change of the surface, and knows no pinch.
  function zoomable(place) {
    const apart = (touches) => Math.hypot(touches[0].clientX - touches[1].clientX, touches[0].clientY - touches[1].clientY);
    let before = 0;
    const on = (kind, react) => place.addEventListener(kind, react, { capture: true, passive: false });
    on("wheel", (event) => {
      event.preventDefault();
      event.stopPropagation();
      zoom(place, Math.exp(event.deltaY * (event.deltaMode === 1 ? 0.03 : 0.0012)));
    });
    // nor does it write down, but for a mouse, how the view was turned: private names, but nothing else tells
    on("touchend", (event) => {
      const camera = event.touches.length === 0 && place._fullLayout?.scene?._scene?.getCamera?.();
      if (camera) Plotly.relayout(place, { "scene.camera": camera });
    });
    on("touchstart", (event) => { if (event.touches.length === 2) before = apart(event.touches); });
    on("touchmove", (event) => {
      if (event.touches.length !== 2) return;
      event.preventDefault();
      event.stopPropagation();
      zoom(place, before / apart(event.touches));
      before = apart(event.touches);
    });
  }

  // Wire up a card; show(maps) gives it maps, at first or anew, and leaves camera, choice and level as they are.
  function mount(card) {
    const [place, choice, slider, shown, reset] = [".scene", "select", "input", "output", "button"].map((s) => card.querySelector(s));
    const chosen = {}; // level of each map that the user has set
    let maps = [], drawn = null, queued = false;
    if (!hasWebGL()) {
      place.textContent = "This browser shows no 3-D graphics (WebGL is off or missing). The slices show the same map.";
      card.querySelector(".controls").hidden = true;
      place.style.aspectRatio = "auto";
      return { show() {} };
    }

    async function draw() {
      queued = false;
      const map = maps.find((m) => m.name === choice.value), level = Number(slider.value);
      const found = surface(map.decoded, map.n, (level - map.floor_sd) / map.step_sd);
      shown.textContent = `${level.toFixed(1)} sd`;
      slider.setAttribute("aria-valuetext", `${level.toFixed(1)} standard deviations`);
      place.setAttribute("aria-label", `Surface of the ${map.label} at ${level.toFixed(1)} standard deviations, ` +
        `in a cube of ${map.edge_angstrom} Ångström. Arrow keys turn it.`);
      const arrays = Object.fromEntries(Object.entries(found).map(([key, list]) => [key, [list]]));
      if (drawn === null) {
        drawn = Plotly.newPlot(place, [{ ...LOOK, ...found }], layout(), { displayModeBar: false, responsive: true, scrollZoom: false });
        return;
      }
      await drawn;
      await Plotly.restyle(place, arrays, [0]);
    }
    // a drag of the slider asks more often than a screen shows
    const soon = () => { if (!queued) { queued = true; requestAnimationFrame(draw); } };

    function pick() {
      const map = maps.find((m) => m.name === choice.value);
      [slider.min, slider.max] = [map.least_sd, map.most_sd];
      slider.value = chosen[map.name] ?? map.level_sd;
      soon();
    }
    choice.addEventListener("change", pick);
    slider.addEventListener("input", () => { chosen[choice.value] = slider.value; soon(); });
    reset.addEventListener("click", () => Plotly.relayout(place, { "scene.camera": { eye: EYE } }));
    zoomable(place);
    place.addEventListener("keydown", (event) => {
      if (TURN[event.key] && drawn !== null) { event.preventDefault(); turn(place, TURN[event.key]); }
    });
    function show(found) {
      const before = choice.value;
      maps = found.map((map) => ({ ...map, decoded: decode(map.values) }));
      choice.replaceChildren(...maps.map((map) => new Option(map.label, map.name)));
      if (maps.some((map) => map.name === before)) choice.value = before;
      pick();
    }
    return { show };
  }
  return { mount };
})();
for (const card of document.querySelectorAll(".viewer")) {
  const held = card.querySelector("script[type='application/json']");
  if (held) aceViewer.mount(card).show(JSON.parse(held.textContent));
}
