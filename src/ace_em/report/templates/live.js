// The live page: requests the state of the run every 2 s, and the parts that have changed.
"use strict";
(() => {
  const EVERY_MS = 2000, AFTER_FAILURE_MS = 6000;
  const find = (selector) => document.querySelector(selector);
  const shown = {}; // version of each part on the page
  const viewer = aceViewer.mount(find("#maps"));
  const [stop, ask, silent] = [find("#stop"), find("#ask"), find("#silent")];
  let timer = 0, updating = false;
  // the token is now in a cookie: remove it from the visible address
  if (location.search) history.replaceState(null, "", location.pathname);

  function say(selector, text) {
    const place = find(`#status ${selector}`);
    if (place.textContent !== text) place.textContent = text;
    place.hidden = text === "";
  }

  function showStatus(status) {
    const end = status.left_s && new Date(Date.now() + 1000 * status.left_s);
    const day = end && end.toDateString() !== new Date().toDateString() ? { weekday: "short" } : {};
    const at = end ? `; expected end ${end.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...day })}` : "";
    find("#status").className = `live ${status.state}`;
    say(".headline", status.stop_asked ? "Stopping: the run saves a checkpoint first" : status.headline);
    say(".task", [status.task, status.words].filter(Boolean).join("  ·  "));
    say(".time", status.time && status.time + at);
    say(".message", status.message);
    const bar = find("#status progress");
    bar.hidden = status.task === "" || status.share === null;
    bar.value = status.share ?? 0;
    stop.hidden = !status.stoppable;
    document.title = (bar.hidden ? "" : `${Math.floor(100 * status.share)} % `) + `${find("h1").textContent} – ace-em`;
  }

  async function get(path) {
    const answer = await fetch(path, { credentials: "same-origin", cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status === 401 ? "token" : "answer");
    return answer;
  }

  async function update(versions) {
    for (const [name, version] of Object.entries(versions)) {
      if (shown[name] === version) continue;
      if (name === "maps") {
        const maps = await (await get("/api/maps")).json();
        find("#maps").hidden = maps.length === 0;
        if (maps.length) viewer.show(maps);
      } else {
        find(`#part-${name}`).innerHTML = await (await get(`/api/part/${name}`)).text();
      }
      shown[name] = version;
    }
  }

  function later(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(look, milliseconds);
  }

  function fail(error) {
    silent.textContent = error.message === "token" ? "The server was restarted: open the address printed by ace-em watch."
      : "No response from ace-em watch. The run itself is not affected.";
    silent.hidden = false;
  }

  async function look() {
    if (document.hidden) return later(EVERY_MS);
    try {
      const { status, versions } = await (await get("/api/state")).json();
      showStatus(status);
      silent.hidden = true;
      // figures may take seconds, so the status does not wait for them
      if (!updating) {
        updating = true;
        update(versions).catch(fail).finally(() => { updating = false; });
      }
      later(EVERY_MS);
    } catch (error) {
      fail(error);
      later(AFTER_FAILURE_MS);
    }
  }

  stop.addEventListener("click", () => { ask.returnValue = ""; ask.showModal(); });
  ask.addEventListener("close", async () => {
    if (ask.returnValue !== "stop") return;
    stop.disabled = true;
    try {
      const answer = await fetch("/stop", { method: "POST" }), said = await answer.json();
      if (answer.ok) showStatus(said.status);
      else say(".message", said.detail);
    } catch {
      say(".message", "No response: the stop request was not sent.");
    } finally {
      stop.disabled = false;
    }
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) later(0); });
  look();
})();
