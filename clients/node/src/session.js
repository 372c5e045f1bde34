/**
 * The worker's side of `worker_service.proto`, as a pure state machine.
 *
 * A session holds the leases and, for each, the reports that the engine has not answered. Its invariants:
 * - reports of one lease are sent in order, numbered 1, 2, 3 … with no hole, and a number never changes its meaning;
 * - a report is kept until it is answered, and sent again on the next stream unless the engine has stored it;
 * - nothing is sent for a lease that is lost, and nothing after the report that ended the job;
 * - what a lease keeps is bounded. Unanswered reports on the wire cost at most {@link WINDOW_BYTES}; what waits behind
 *   them costs as much again. Beyond that log lines are dropped, counted, and the count is logged in their place;
 *   checkpoints and custom events are refused; progress replaces the progress before it.
 *
 * It does no I/O, has no clock and starts nothing: what is to be done comes back as effects. A tag is whatever the
 * caller wants back with the answer; progress has none, because it may be replaced.
 */

/**
 * @typedef {{ type: "answered", tag: any, answer: Answer }
 *   | { type: "cancel", jobId: string, request: { by?: string, reason?: string, deadline?: Date } }
 *   | { type: "lost", jobId: string, reason: string }
 *   | { type: "ended", jobId: string }} Effect
 * @typedef {{ result: "stored" | "gone" } | { result: "rejected", message: string }} Answer
 * @typedef {"progress" | "log" | "checkpoint" | "custom" | "complete" | "fail" | "stopped" | "released"} Kind
 * @typedef {{ kind: Kind, value: any }} Body
 * @typedef {{ number: number, body: Body, tag: any, cost: number }} Entry a number of 0 means: not sent yet, may be dropped
 * @typedef {{ jobId: string, leaseToken: string }} HeldLease
 * @typedef {{ token: string, next: number, queue: Entry[], sent: number, sentCost: number, cost: number, ending: boolean,
 *   ready: boolean, dropped: number }} Lease
 */

/** What the unanswered reports of one lease may cost on the wire: so many bytes, and so 256 small reports. */
export const WINDOW_BYTES = 1024 * 1024;
/** What a report costs at least. */
const MIN_COST = 4096;
/** How many bytes of reports leave together, about: far below the largest message, which is 4 MiB. */
const BATCH_BYTES = 256 * 1024;
/** What a lease may keep in all. */
const KEPT_BYTES = 2 * WINDOW_BYTES;

export class Session {
  /** @type {Map<string, Lease>} */
  #leases = new Map();
  /** The jobs that have something to send, each once, served in turn. @type {Set<string>} */
  #ready = new Set();
  #online = false;
  #coalesce;

  /** @param {{ coalesce?: boolean }} [options] without `coalesce` every progress report is sent */
  constructor({ coalesce = true } = {}) {
    this.#coalesce = coalesce;
  }

  /**
   * Takes a lease. One on the same job with another token is lost by that.
   * @param {string} jobId
   * @param {string} token
   * @returns {Effect[] | null} null if the lease is held already
   */
  assign(jobId, token) {
    const held = this.#leases.get(jobId);
    if (held?.token === token) return null;
    const effects = held ? this.#drop(jobId, "the job was assigned anew") : [];
    this.#leases.set(jobId, { token, next: 1, queue: [], sent: 0, sentCost: 0, cost: 0, ending: false, ready: false, dropped: 0 });
    return effects;
  }

  /**
   * Queues a report.
   * @param {string} jobId
   * @param {string} token
   * @param {Body} body
   * @param {any} [tag]
   * @returns {"queued" | "dropped" | "full" | "gone"} dropped, full: too much waits; gone: the lease is lost or the job has ended
   */
  push(jobId, token, body, tag) {
    const lease = this.#leases.get(jobId);
    if (!lease || lease.token !== token || lease.ending) return "gone";
    const supersedes = body.kind === "progress" && this.#coalesce;
    const ends = isEnding(body);
    if (lease.cost >= KEPT_BYTES && !supersedes && !ends) {
      if (body.kind !== "log") return "full";
      lease.dropped += 1;
      return "dropped";
    }
    if (lease.dropped > 0 && (lease.cost < KEPT_BYTES || ends)) {
      const text = `${lease.dropped} log lines were dropped here: the job says more than the engine takes`;
      lease.dropped = 0;
      enqueue(lease, { kind: "log", value: { level: "LOG_LEVEL_WARN", text, source: "" } }, undefined);
    }
    if (supersedes) dropSuperseded(lease);
    lease.ending = ends;
    enqueue(lease, body, tag);
    this.#markReady(jobId, lease);
    return "queued";
  }

  /** Whether the reports of a job that are not answered fill its window. @param {string} jobId @param {string} token */
  isFull(jobId, token) {
    const lease = this.#leases.get(jobId);
    return lease !== undefined && lease.token === token && lease.cost >= WINDOW_BYTES;
  }

  /** Whether every report of a job is answered. @param {string} jobId @param {string} token */
  isFlushed(jobId, token) {
    const lease = this.#leases.get(jobId);
    return lease === undefined || lease.token !== token || lease.queue.length === 0;
  }

  /**
   * The next reports to send together, in the form of the contract: at most `most`, none after the one that makes them
   * {@link BATCH_BYTES}. Jobs take turns, and one whose turn it is gives all it may.
   * @param {number} most
   * @returns {Record<string, any>[]}
   */
  nextReports(most) {
    /** @type {Record<string, any>[]} */
    const reports = [];
    if (!this.#online) return reports;
    let bytes = 0;
    for (const jobId of this.#ready) {
      if (reports.length >= most || bytes >= BATCH_BYTES) break;
      this.#ready.delete(jobId);
      const lease = this.#leases.get(jobId);
      if (!lease) continue;
      lease.ready = false;
      while (reports.length < most && bytes < BATCH_BYTES && lease.sent < lease.queue.length && lease.sentCost < WINDOW_BYTES) {
        const entry = lease.queue[lease.sent];
        if (entry.number === 0) {
          entry.number = lease.next;
          lease.next += 1;
        }
        lease.sent += 1;
        lease.sentCost += entry.cost;
        bytes += sizeOf(entry.body);
        reports.push({ jobId, leaseToken: lease.token, number: entry.number, [entry.body.kind]: entry.body.value });
      }
      this.#markReady(jobId, lease);
    }
    return reports;
  }

  /** The leases to name in a Hello. @returns {HeldLease[]} */
  held() {
    return Array.from(this.#leases, ([jobId, { token }]) => ({ jobId, leaseToken: token }));
  }

  /** Whether no lease is held, so that every ended job is known to the engine to have ended. */
  get isEmpty() {
    return this.#leases.size === 0;
  }

  /** The stream broke: everything unanswered will be sent again. */
  disconnected() {
    this.#online = false;
    this.#ready.clear();
    for (const lease of this.#leases.values()) rewind(lease);
  }

  /**
   * A new stream is up, and the engine has answered the Hello that named {@link Session.held}.
   * @param {{ jobId: string, lastReport: number, cancelRequested?: any }[]} resumed
   * @param {{ jobId: string, leaseToken: string, reason: string }[]} lost
   * @returns {Effect[]}
   */
  welcomed(resumed, lost) {
    this.#online = true;
    const effects = lost.flatMap((gone) => this.lost(gone));
    const known = new Set(resumed.map(({ jobId }) => jobId));
    for (const jobId of [...this.#leases.keys()]) {
      if (!known.has(jobId)) effects.push(...this.#drop(jobId, "the engine does not know the lease"));
    }
    for (const { jobId, lastReport, cancelRequested } of resumed) {
      const lease = this.#leases.get(jobId);
      if (!lease) continue;
      rewind(lease);
      let ended = false;
      while (lease.queue.length > 0 && lease.queue[0].number !== 0 && lease.queue[0].number <= lastReport) {
        const entry = remove(lease, 0);
        ended ||= isEnding(entry.body);
        if (entry.tag !== undefined) effects.push({ type: "answered", tag: entry.tag, answer: { result: "stored" } });
      }
      if (ended) {
        this.#leases.delete(jobId);
        effects.push({ type: "ended", jobId });
        continue;
      }
      if (cancelRequested) effects.push({ type: "cancel", jobId, request: cancelRequested });
      this.#markReady(jobId, lease);
    }
    return effects;
  }

  /**
   * The engine answered a report.
   * @param {{ jobId: string, leaseToken: string, number: number, result: string, seq: number, deadline?: Date, message: string }} ack
   * @returns {Effect[]}
   */
  acked({ jobId, leaseToken, number, result, seq, deadline, message }) {
    const lease = this.#leases.get(jobId);
    if (!lease || lease.token !== leaseToken) return [];
    if (result === "LEASE_LOST") return this.#drop(jobId, "a later attempt has taken over");
    const at = lease.queue.findIndex((entry, index) => index < lease.sent && entry.number === number);
    if (at === -1) return [];
    const { body, tag, cost } = remove(lease, at);
    lease.sent -= 1;
    lease.sentCost -= cost;
    /** @type {Effect[]} */
    const effects = [];
    /** @type {Answer} */
    let answer = { result: "stored" };
    /** @type {Body | undefined} */
    let successor;
    if (result === "REJECTED") {
      answer = { result: "rejected", message };
      if (body.kind === "complete") successor = { kind: "fail", value: { code: "result_too_large", message, retryable: false } };
    } else if (result === "CANCELLED") {
      effects.push({ type: "cancel", jobId, request: { deadline } });
      // The order to stop does not say that the report itself is lost: its event's number does.
      if (seq === 0) answer = { result: "gone" };
      if (isEnding(body) && seq === 0 && body.kind !== "stopped") successor = { kind: "stopped", value: {} };
    }
    // Any other answer, also one that only a newer engine knows: it was answered, and nothing speaks against it.
    if (tag !== undefined) effects.push({ type: "answered", tag, answer });
    if (successor) {
      enqueue(lease, successor, undefined);
    } else if (isEnding(body)) {
      this.#leases.delete(jobId);
      this.#ready.delete(jobId);
      effects.push({ type: "ended", jobId });
      return effects;
    }
    this.#markReady(jobId, lease);
    return effects;
  }

  /**
   * The engine wants a job called off.
   * @param {{ jobId: string, leaseToken: string, request?: any }} order
   * @returns {Effect[]}
   */
  cancel({ jobId, leaseToken, request = {} }) {
    return this.#leases.get(jobId)?.token === leaseToken ? [{ type: "cancel", jobId, request }] : [];
  }

  /**
   * The engine took a lease away.
   * @param {{ jobId: string, leaseToken: string, reason: string }} lost
   * @returns {Effect[]}
   */
  lost({ jobId, leaseToken, reason }) {
    return this.#leases.get(jobId)?.token === leaseToken ? this.#drop(jobId, reason) : [];
  }

  /** @param {string} jobId @param {string} reason @returns {Effect[]} */
  #drop(jobId, reason) {
    const lease = this.#leases.get(jobId);
    if (!lease) return [];
    this.#leases.delete(jobId);
    this.#ready.delete(jobId);
    /** @type {Effect[]} */
    const effects = lease.queue.filter(({ tag }) => tag !== undefined).map(({ tag }) => ({ type: "answered", tag, answer: { result: "gone" } }));
    effects.push({ type: "lost", jobId, reason });
    return effects;
  }

  /** @param {string} jobId @param {Lease} lease */
  #markReady(jobId, lease) {
    if (!this.#online || lease.ready || lease.sent >= lease.queue.length || lease.sentCost >= WINDOW_BYTES) return;
    lease.ready = true;
    this.#ready.add(jobId);
  }
}

/** Whether a report ends its job and frees the slot. @param {Body} body */
function isEnding({ kind }) {
  return kind === "complete" || kind === "fail" || kind === "stopped" || kind === "released";
}

/** @param {Lease} lease */
function rewind(lease) {
  lease.sent = 0;
  lease.sentCost = 0;
  lease.ready = false;
}

/** @param {Lease} lease @param {Body} body @param {any} tag */
function enqueue(lease, body, tag) {
  const cost = Math.max(MIN_COST, sizeOf(body));
  lease.queue.push({ number: 0, body, tag, cost });
  lease.cost += cost;
}

/** @param {Lease} lease @param {number} at @returns {Entry} */
function remove(lease, at) {
  const entry = at === 0 ? lease.queue.shift() : lease.queue.splice(at, 1)[0];
  if (!entry) throw new RangeError("there is no such report");
  lease.cost -= entry.cost;
  return entry;
}

/**
 * Drops the progress report whose place one pushed now takes. Only log lines may be overtaken: a checkpoint must not be
 * stored before the progress that led to it.
 * @param {Lease} lease
 */
function dropSuperseded(lease) {
  for (let at = lease.queue.length - 1; at >= 0; at -= 1) {
    const { number, body } = lease.queue[at];
    if (number !== 0 || (body.kind !== "log" && body.kind !== "progress")) return;
    if (body.kind === "progress") {
      remove(lease, at);
      return;
    }
  }
}

/** A report's share of the window, in bytes; texts count by their length in UTF-16. @param {Body} body */
function sizeOf({ kind, value }) {
  switch (kind) {
    case "log":
      return value.text.length + value.source.length;
    case "checkpoint":
      return value.data.length;
    case "custom":
      return value.json.length;
    default:
      return 0;
  }
}
