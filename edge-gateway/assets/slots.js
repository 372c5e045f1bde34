/**
 * The origin's stream slots.
 *
 * Browsers open six HTTP/1.1 connections per origin, over all tabs. Streams hold theirs, so at most `MAX_STREAMS` are
 * open at a time and the sixth connection stays free for requests. Where the browser has Web Locks the slots are shared
 * between tabs, and a tab that dies gives its slots back; elsewhere each tab counts for itself.
 * Nothing is queued here: who gets no slot asks again.
 */

export const MAX_STREAMS = 5;

let takenHere = 0;
/** Whom to tell when this tab gives a slot back. @type {Set<() => void>} */
const waiting = new Set();

/**
 * Takes a slot.
 * @param {() => void} onFree Called once when asking again may help, if all slots are taken.
 * @returns {Promise<(() => void)|null>} what gives the slot back; null when all are taken
 */
export async function takeSlot(onFree) {
  const release = navigator.locks ? await takeLock() : takeCount();
  if (!release) {
    waiting.add(onFree);
    return null;
  }
  return () => {
    release();
    const told = [...waiting];
    waiting.clear();
    for (const tell of told) tell();
  };
}

async function takeLock() {
  for (let slot = 0; slot < MAX_STREAMS; slot += 1) {
    const release = await new Promise((resolve) => {
      // The lock is held until the promise returned here settles: `resolve(done)` hands its resolver out.
      const hold = (lock) => (lock ? new Promise((done) => { resolve(done); }) : resolve(null));
      navigator.locks.request(`tidegate-stream-${slot}`, { ifAvailable: true }, hold).catch(() => resolve(null));
    });
    if (release) return release;
  }
  return null;
}

function takeCount() {
  if (takenHere >= MAX_STREAMS) return null;
  takenHere += 1;
  return () => { takenHere -= 1; };
}
