/**
 * What a running job can say and ask. A context checks and shapes what the handler says, and hands it to the worker's
 * owner; it neither numbers nor sends anything.
 *
 * A promise that a handler drops never ends the process: its rejection counts as handled, and the handler meets the
 * reason again at its next call or in its `signal`.
 */

/** @import * as Api from "./index.js" */
import { Cancelled, LeaseLost, ReportRejected } from "./errors.js";
import { cut, isCustomEventName, MAX_LOG_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES } from "./limits.js";
import { encoder } from "./protos.js";

const encodeProgress = encoder("Progress");
const encodeLog = encoder("Log");

/** @typedef {import("./session.js").Body} Body */
/** @typedef {{ resolve: (value?: any) => void, reject: (error: Error) => void }} Waiter */
/**
 * How a context reaches its worker.
 * @typedef {{ push: (body: Body, tag?: any) => "queued" | "dropped" | "full" | "gone",
 *   isFull: () => boolean, isFlushed: () => boolean, limits: () => { checkpoint: number, custom: number } }} Port
 */

/** @implements {Api.JobContext} */
export class JobContext {
  #port;
  #stop = new AbortController();
  /** The gravest reason to stop so far: the signal keeps its first. @type {import("./errors.js").Stop | undefined} */
  #why;
  /** @type {Set<Waiter>} */
  #roomless = new Set();
  /** @type {Set<Waiter>} */
  #flushing = new Set();
  /** The waiters of checkpoints and custom events. @type {Set<Waiter>} */
  #unanswered = new Set();

  /**
   * @param {any} assignment
   * @param {any} input
   * @param {Port} port
   */
  constructor(assignment, input, port) {
    this.#port = port;
    this.jobId = /** @type {string} */ (assignment.jobId);
    this.kind = /** @type {string} */ (assignment.kind);
    this.attempt = /** @type {number} */ (assignment.attempt);
    this.leaseToken = /** @type {string} */ (assignment.leaseToken);
    this.tenant = /** @type {string} */ (assignment.tenant);
    this.owner = /** @type {string} */ (assignment.owner);
    this.scheduledFor = /** @type {Date | null} */ (assignment.scheduledFor ?? null);
    this.input = input;
    this.inputJson = /** @type {string} */ (assignment.inputJson || "{}");
    /** @type {Readonly<{ name: string, data: Buffer }> | null} */
    this.resume = assignment.checkpoint ? Object.freeze({ name: assignment.checkpoint.name, data: assignment.checkpoint.data }) : null;
    this.signal = this.#stop.signal;
  }

  /** @param {Api.Progress} progress */
  progress(progress) {
    const { percent, rate, done, total, step, steps, eta, message, stepName, unit, ...unknown } = progress;
    const [key] = Object.keys(unknown);
    if (key !== undefined) throw new TypeError(`progress has no field ${key}`);
    const value = encodeProgress({
      percent: percent === undefined || Number.isNaN(percent) ? undefined : Math.min(100, Math.max(0, percent)),
      rate: rate !== undefined && Number.isFinite(rate) && rate >= 0 ? rate : undefined,
      done: whole(done), total: whole(total), step: whole(step), steps: whole(steps),
      eta: eta !== undefined && Number.isFinite(eta) && eta >= 0 ? eta : undefined,
      message: short(message, MAX_TEXT_BYTES), stepName: short(stepName, MAX_TEXT_BYTES), unit: short(unit, MAX_NAME_BYTES),
    });
    return handled(this.#say({ kind: "progress", value }));
  }

  /** @param {string} text @param {{ level?: Api.LogLevel, source?: string }} [options] */
  log(text, { level = "info", source = "" } = {}) {
    const value = encodeLog({ level: level.toUpperCase(), text: cut(String(text), MAX_LOG_BYTES), source: cut(source, MAX_NAME_BYTES) });
    return handled(this.#say({ kind: "log", value }));
  }

  /** @param {string} name @param {Uint8Array | string} data */
  checkpoint(name, data) {
    const bytes = Buffer.from(data);
    const limit = this.#port.limits().checkpoint;
    if (bytes.length > limit) return handled(tooLarge("a checkpoint", bytes.length, limit));
    return handled(this.#ask({ kind: "checkpoint", value: { name: cut(name, MAX_TEXT_BYTES), size: bytes.length, data: bytes } }));
  }

  /** @param {string} name @param {unknown} value */
  custom(name, value) {
    const json = JSON.stringify(value);
    if (json === undefined) throw new TypeError("a custom event needs a value that has a JSON form");
    const limit = this.#port.limits().custom;
    const size = Buffer.byteLength(json);
    if (!isCustomEventName(name)) return handled(Promise.reject(new ReportRejected(`an event cannot be named ${JSON.stringify(name)}`)));
    if (size > limit) return handled(tooLarge("a custom event", size, limit));
    return handled(this.#ask({ kind: "custom", value: { name, json } }));
  }

  flush() {
    return handled(this.#wait(this.#flushing, () => this.#port.isFlushed(), false));
  }

  /** Says something without waiting for the answer. @param {Body} body @returns {Promise<void>} */
  async #say(body) {
    this.#check(body.kind === "log");
    const result = this.#port.push(body);
    if (result === "gone") throw new LeaseLost("the job has ended");
    if (result === "full") throw new ReportRejected("too many reports wait to be sent: await ctx.progress()");
    await this.#wait(this.#roomless, () => !this.#port.isFull(), body.kind === "log");
  }

  /** Says something and waits until it is stored. @param {Body} body @returns {Promise<void>} */
  async #ask(body) {
    this.#check(false);
    await new Promise((resolve, reject) => {
      const waiter = { resolve: done, reject };
      const unanswered = this.#unanswered;
      function done() {
        unanswered.delete(waiter);
        resolve(undefined);
      }
      unanswered.add(waiter);
      const result = this.#port.push(body, waiter);
      if (result === "queued") return;
      unanswered.delete(waiter);
      reject(result === "full" ? new ReportRejected("too many reports wait to be sent: await each") : new LeaseLost("the job has ended"));
    });
  }

  /**
   * @param {Set<Waiter>} waiters
   * @param {() => boolean} condition
   * @param {boolean} evenCancelled
   */
  async #wait(waiters, condition, evenCancelled) {
    while (!condition()) {
      this.#check(evenCancelled);
      await new Promise((resolve, reject) => waiters.add({ resolve, reject }));
    }
  }

  /** @param {boolean} evenCancelled whether a cancelled job may still say this */
  #check(evenCancelled) {
    const why = this.#why;
    if (why instanceof LeaseLost || (why instanceof Cancelled && !evenCancelled)) throw why;
  }

  /** The worker's side: some reports were answered. */
  relieve() {
    if (this.#roomless.size > 0 && !this.#port.isFull()) wake(this.#roomless);
    if (this.#flushing.size > 0 && this.#port.isFlushed()) wake(this.#flushing);
  }

  /** The worker's side: the job has to stop. @param {import("./errors.js").Stop} why */
  stop(why) {
    this.#why = why;
    if (!this.signal.aborted) this.#stop.abort(why);
    if (!(why instanceof Cancelled || why instanceof LeaseLost)) return;
    for (const waiters of [this.#roomless, this.#flushing, this.#unanswered]) {
      for (const { reject } of waiters) reject(why);
      waiters.clear();
    }
  }
}

/** @param {Set<Waiter>} waiters */
function wake(waiters) {
  for (const { resolve } of waiters) resolve();
  waiters.clear();
}

/** @template T @param {Promise<T>} promise @returns {Promise<T>} */
function handled(promise) {
  promise.catch(() => {});
  return promise;
}

/** @param {string} what @param {number} size @param {number} limit @returns {Promise<never>} */
function tooLarge(what, size, limit) {
  return Promise.reject(new ReportRejected(`${what} has ${size} bytes; the engine takes ${limit}`));
}

/** A count, or unknown. @param {number | bigint | undefined} value */
function whole(value) {
  if (typeof value === "bigint") return value < 0n ? undefined : value;
  return value === undefined || !Number.isFinite(value) || value < 0 ? undefined : Math.min(Math.floor(value), Number.MAX_SAFE_INTEGER);
}

/** @param {string | undefined} text @param {number} max */
const short = (text, max) => (text === undefined ? undefined : cut(String(text), max));
