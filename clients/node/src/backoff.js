/**
 * The pause between two tries to connect: doubled each time, jittered, and forgotten only after a healthy time.
 *
 * A welcome alone is no sign of health: an engine that accepts and then drops everybody would otherwise be stormed.
 */

const FIRST_MS = 200;
const LONGEST_MS = 15_000;
/** How long a connection must have lasted to count as healthy. */
const HEALTHY_MS = 10_000;

export class Backoff {
  #tries = 0;

  /**
   * The pause before the next try, in milliseconds: between a half and the whole of the doubled time.
   * @param {number} lasted how long the last connection lasted, in milliseconds; 0 if there was none
   * @param {number} jitter uniform in [0, 1)
   */
  pause(lasted, jitter = Math.random()) {
    if (lasted >= HEALTHY_MS) this.#tries = 0;
    const whole = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(this.#tries, 16));
    this.#tries += 1;
    return whole * (0.5 + jitter / 2);
  }
}
