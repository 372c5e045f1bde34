/**
 * A worker as its author describes it: what it offers and to whom. The description is checked here, all of it before
 * anything is dialled; the life of a worker is in `owner.js`.
 */

/** @import * as Api from "./index.js" */
import { hostname } from "node:os";
import { engines } from "./engine.js";
import { cut, isName, MAX_TEXT_BYTES } from "./limits.js";
import { Owner } from "./owner.js";

const VERSION = "0.1.0";

/** @implements {Api.Worker} */
export class Worker {
  #plan;
  /** @type {Record<string, any>[]} */
  #kinds = [];
  /** @type {Map<string, (context: any, input: any) => unknown>} */
  #handlers = new Map();
  /** @type {Owner | null} */
  #owner = null;
  /** @type {Api.WorkerStatus} */
  #status = "stopped";

  /** @param {string | string[]} addresses @param {Api.WorkerOptions} [options] */
  constructor(addresses, { name = hostname(), capacity = 4, grace = 5_000, coalesce = true, token = process.env.TIDEGATE_TOKEN, tls, logger = stderr, onStatus = () => {} } = {}) {
    if (!Number.isInteger(capacity) || capacity < 1 || capacity > 10_000) throw new RangeError("capacity is a whole number from 1 to 10000");
    if (!(grace >= 0 && grace < 2 ** 31)) throw new RangeError("grace is a number of milliseconds, from 0");
    this.#plan = {
      engines: engines(addresses, tls),
      capacity, grace, coalesce, token, logger,
      name: cut(name, MAX_TEXT_BYTES),
      status: (/** @type {Api.WorkerStatus} */ status) => {
        if (status === this.#status) return;
        this.#status = status;
        onStatus(status);
      },
    };
  }

  get status() {
    return this.#status;
  }

  /**
   * @param {string} kind
   * @param {Api.KindOffer | Api.Handler<any>} offer
   * @param {Api.Handler<any>} [handler]
   * @returns {this}
   */
  kind(kind, offer, handler) {
    if (typeof offer === "function") return this.kind(kind, {}, offer);
    if (!isName(kind)) throw new TypeError(`${JSON.stringify(kind)} cannot name a kind: lower-case letters, digits, '.', '_' and '-', at most 64`);
    if (this.#handlers.has(kind)) throw new TypeError(`the kind ${JSON.stringify(kind)} is offered twice`);
    if (typeof handler !== "function") throw new TypeError(`the kind ${JSON.stringify(kind)} has no handler`);
    /** @param {unknown} value */
    const json = (value) => (value === undefined ? "" : JSON.stringify(value));
    this.#kinds.push({ kind, description: offer.description ?? "", inputSchemaJson: json(offer.inputSchema), exampleJson: json(offer.example) });
    this.#handlers.set(kind, handler);
    return this;
  }

  /** @param {{ signals?: boolean }} [options] */
  async run({ signals = true } = {}) {
    if (this.#kinds.length === 0) throw new TypeError("a worker needs at least one kind of job");
    if (this.#owner) throw new Error("this worker runs already, or has run");
    const { name, capacity } = this.#plan;
    const hello = { name, capacity, batchedAcks: true, kinds: this.#kinds, client: `node/${VERSION}` };
    const owner = new Owner({ ...this.#plan, hello, handlers: this.#handlers });
    this.#owner = owner;
    const leave = () => owner.shutdown();
    // Once: the same signal again ends the process at once.
    if (signals) for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, leave);
    try {
      await owner.ended;
    } finally {
      for (const signal of ["SIGTERM", "SIGINT"]) process.off(signal, leave);
    }
  }

  async stop() {
    this.#owner?.shutdown();
    await this.#owner?.ended;
  }
}

/** What a worker logs with unless told otherwise: lines on standard error, without details meant for its own authors. */
const stderr = {
  debug() {},
  info: (/** @type {string} */ line) => console.error(`${new Date().toISOString()} INFO ${line}`),
  warn: (/** @type {string} */ line) => console.error(`${new Date().toISOString()} WARN ${line}`),
  error: (/** @type {string} */ line) => console.error(`${new Date().toISOString()} ERROR ${line}`),
};
