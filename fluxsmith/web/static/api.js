// What the server is asked for. Errors have the server's own words.

async function answer(promise) {
  let response;
  try {
    response = await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server doesn't answer: is `fluxsmith serve` still running?");
  }
  if (response.ok) return response;
  let told = {};
  try { told = await response.json(); } catch { /* no words of ours */ }
  throw new Error(told.error || `The server answered ${response.status}.`);
}

export const get = async (path) => (await answer(fetch(path))).json();

export const post = (path, body = {}, signal) =>
  answer(fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal }));

// Calls on(event) for each line that comes. Aborting the signal stops the work itself.
export async function stream(path, body, on, signal) {
  const reader = (await post(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError" || signal?.aborted) throw new DOMException("stopped", "AbortError");
      throw new Error("The server went away in the middle; nothing is lost, try again.");
    }
    if (chunk.done) return;
    const lines = (rest + chunk.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      on(event);
    }
  }
}

export const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

export function base64(array) {
  let text = "";
  for (let i = 0; i < array.length; i += 8192) text += String.fromCharCode(...array.subarray(i, i + 8192));
  return btoa(text);
}

// Draws, and resolves to the states [{t, x, x0}], x and x0 the pixels of all pictures; `extra`
// takes the other events. One at a time for each `drawer`: a new call stops the one before. Resolves
// to null where it was stopped or failed, and calls `onstop` where a person stopped it.
export function drawer(status, onstop = () => {}) {
  let controller = null;
  const stop = () => controller?.abort();
  return {
    stop,
    async draw(path, body, { total = body.steps, extra = () => {} } = {}) {
      stop();
      const mine = (controller = new AbortController());
      status?.busy(() => { mine.abort(); status.done("stopped"); onstop(); });
      const states = [];
      let seconds = 0; // of drawing alone, as the server took them
      let step = null; // that of the model
      try {
        await stream(path, body, (event) => {
          if ("place" in event) status?.waiting(event.place);
          else if ("seconds" in event) ({ seconds, step = null } = event);
          else if ("state" in event) {
            (states[event.first] ||= []).push({ t: event.t, x: bytes(event.x), x0: bytes(event.x0) });
            status?.progress(states.flat().length / (total + 1));
          } else extra(event);
        }, mine.signal);
      } catch (error) {
        if (error.name === "AbortError") return null;
        if (mine === controller) status?.failed(error.message);
        return null;
      }
      if (mine !== controller) return null;
      status?.done();
      return { states: states[0] || [], groups: states, seconds, step };
    },
  };
}
