/**
 * The only place where a worker's session, connection and table of running jobs change.
 *
 * Everything arrives as a call or an event and is dealt with before the next one: nothing here awaits while it changes
 * something. Handlers run beside it and speak through their contexts.
 *
 * Shutting down goes through phases, forwards only: `working`; `grace`, in which running jobs may finish; `stopping`, in
 * which they have been told to stop; `flushing`, in which what is left was given back and the engine's answers are
 * awaited; `ended`. The engine is told to assign nothing more; what comes all the same is kept aside unstarted and given
 * back at the end, since an engine that does not listen would assign it here again at once.
 */

import { Backoff } from "./backoff.js";
import { JobContext } from "./context.js";
import { Cancelled, JobFailed, JobReleased, LeaseLost, ReportRejected, ShuttingDown } from "./errors.js";
import { cut, MAX_CHECKPOINT_BYTES, MAX_CUSTOM_BYTES, MAX_NAME_BYTES, MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, MAX_TEXT_BYTES } from "./limits.js";
import { Link } from "./link.js";
import { Session } from "./session.js";

/** How long jobs have to return once a shutdown has told them to stop. */
const STOP_MS = 5_000;
/** How long the last reports of a shutdown may take. */
const FLUSH_MS = 5_000;
/** The ping interval when the engine does not say, and the shortest that is obeyed. */
const DEFAULT_PING_MS = 10_000;
const LEAST_PING_MS = 50;
/** How many reports leave in one message at most, whatever the engine allows. */
const MAX_BATCH = 256;
/** How long a job may take to obey a cancellation when the engine does not say. */
const DEFAULT_CANCEL_MS = 30_000;
/**
 * The deadline is a time of the engine's clock. With a skewed clock of ours it may seem to have passed: the job gets this
 * long all the same, and the engine enforces the true one.
 */
const LEAST_CANCEL_MS = 2_000;
const LEAVING = "the worker shuts down";

/** @typedef {import("./session.js").Body} Body */
/** @typedef {import("./session.js").Effect} Effect */
/** @typedef {"connecting" | "connected" | "draining" | "stopped"} Status */
/** @typedef {{ debug(line: string): void, info(line: string): void, warn(line: string): void, error(line: string): void }} Logger */
/** @typedef {{ token: string, context: JobContext, cancelled: Cancelled | null, told: boolean, abort: NodeJS.Timeout | undefined }} Running */
/**
 * What the owner needs to know.
 * @typedef {{ engines: import("./engine.js").Engine[], token?: import("./engine.js").Token, hello: Record<string, any>, capacity: number,
 *   grace: number, coalesce: boolean,
 *   handlers: Map<string, (context: any, input: any) => unknown>, logger: Logger, status: (status: Status) => void }} Plan
 */

export class Owner {
  #plan;
  #session;
  /** @type {Map<string, Running>} */
  #jobs = new Map();
  /** Assignments that came during the shutdown; never more than the capacity. @type {any[]} */
  #unstarted = [];
  /** @type {Link | null} */
  #link = null;
  #online = false;
  #next = 0;
  #backoff = new Backoff();
  #since = 0;
  #heard = 0;
  #limits = { checkpoint: MAX_CHECKPOINT_BYTES, custom: MAX_CUSTOM_BYTES, result: MAX_RESULT_BYTES };
  /** How many reports one message may hold. */
  #batch = 1;
  /** @type {"working" | "grace" | "stopping" | "flushing" | "ended"} */
  #phase = "working";
  #pumping = false;
  /** @type {NodeJS.Timeout | undefined} */
  #dialTimer;
  /** @type {NodeJS.Timeout | undefined} */
  #pingTimer;
  /** @type {NodeJS.Timeout | undefined} */
  #leaveTimer;
  /** @type {NodeJS.Timeout | undefined} */
  #phaseTimer;
  #draining = false;
  /** Whether the engine was told to assign nothing more. */
  #left = false;
  #pinged = 0;
  /** @type {() => void} */
  #end = () => {};
  /** Resolves when the worker has ended. @type {Promise<void>} */
  ended = new Promise((resolve) => { this.#end = resolve; });

  /** @param {Plan} plan */
  constructor(plan) {
    this.#plan = plan;
    this.#session = new Session({ coalesce: plan.coalesce });
    this.#status("connecting");
    this.#dial();
  }

  /** Lets the jobs at hand finish within the grace time, gives back the rest, and ends. */
  shutdown() {
    if (this.#phase !== "working") return;
    this.#plan.logger.info(`shutting down, ${this.#jobs.size} jobs running`);
    this.#status("draining");
    this.#enter("grace", this.#plan.grace);
    this.#pump();
    this.#proceed();
  }

  // The connection.

  #dial() {
    const engine = this.#plan.engines[this.#next];
    const link = new Link(engine, this.#plan.token, { ...this.#plan.hello, leases: this.#session.held() }, {
      welcomed: (welcome) => this.#welcomed(welcome, engine.uri),
      heard: (message) => this.#hear(message),
      room: () => this.#pump(),
      closed: (why) => {
        this.#plan.logger.warn(`engine ${engine.uri}: ${why}`);
        this.#redial();
      },
    });
    this.#link = link;
  }

  /** @param {any} welcome @param {string} uri */
  #welcomed(welcome, uri) {
    this.#plan.logger.info(`connected to ${uri}, ${welcome.resumed.length} jobs kept`);
    this.#online = true;
    this.#since = this.#heard = performance.now();
    const ping = Math.max(LEAST_PING_MS, welcome.pingInterval || DEFAULT_PING_MS);
    this.#pingTimer = setInterval(() => this.#ping(ping), ping);
    /** @param {number} said @param {number} usual */
    const limit = (said, usual) => Math.min(said || usual, MAX_PAYLOAD_BYTES);
    this.#limits = {
      checkpoint: limit(welcome.maxCheckpointBytes, MAX_CHECKPOINT_BYTES),
      custom: limit(welcome.maxCustomBytes, MAX_CUSTOM_BYTES),
      result: limit(welcome.maxResultBytes, MAX_RESULT_BYTES),
    };
    this.#batch = Math.min(Math.max(1, welcome.maxBatchedReports), MAX_BATCH);
    this.#apply(this.#session.welcomed(welcome.resumed, welcome.lost));
    for (const { context } of this.#jobs.values()) context.relieve();
    if (this.#phase === "working") this.#status("connected");
    this.#pump();
    this.#proceed();
  }

  /** @param {number} interval */
  #ping(interval) {
    const now = performance.now();
    // When this process was busy or frozen, what the engine said may wait to be read: no silence of the engine's.
    const late = now - this.#pinged > interval * 1.5;
    this.#pinged = now;
    if (late) this.#heard = now;
    if (now - this.#heard > 2 * interval) {
      this.#hangUp("the engine is silent");
      return;
    }
    // Without room, reports are on their way and are signs of life themselves.
    if (this.#link?.hasRoom) this.#link.send({ ping: {} });
  }

  /** @param {any} message */
  #hear(message) {
    this.#heard = performance.now();
    if (message.ack) {
      this.#acked(message.ack);
    } else if (message.acks) {
      for (const ack of message.acks.acks) this.#acked(ack);
    } else if (message.assignment) {
      this.#assigned(message.assignment);
    } else if (message.cancel) {
      this.#apply(this.#session.cancel(message.cancel));
    } else if (message.leaseLost) {
      this.#apply(this.#session.lost(message.leaseLost));
    } else if (message.drain) {
      this.#drained(message.drain);
    }
    // A pong, or a message that only a newer engine knows: a sign of life.
    this.#pump();
    this.#proceed();
  }

  /** @param {any} ack */
  #acked(ack) {
    this.#apply(this.#session.acked(ack));
    this.#jobs.get(ack.jobId)?.context.relieve();
  }

  /** @param {{ deadline?: Date }} drain */
  #drained({ deadline }) {
    this.#plan.logger.info("the engine drains");
    this.#status("draining");
    this.#draining = true;
    // A little before the engine hangs up by itself.
    const left = Math.max(0, (deadline?.getTime() ?? 0) - Date.now() - 1000);
    clearTimeout(this.#leaveTimer);
    this.#leaveTimer = setTimeout(() => this.#hangUp("the engine drained"), left);
  }

  /** @param {string} why */
  #hangUp(why) {
    this.#plan.logger.warn(`engine ${this.#plan.engines[this.#next].uri}: ${why}`);
    this.#link?.close();
    this.#redial();
  }

  /** The connection is gone, or never came up. */
  #redial() {
    const lasted = this.#online ? performance.now() - this.#since : 0;
    this.#offline();
    this.#session.disconnected();
    if (this.#phase === "ended") return;
    if (this.#phase === "working") this.#status("connecting");
    this.#next = (this.#next + 1) % this.#plan.engines.length;
    this.#dialTimer = setTimeout(() => this.#dial(), this.#backoff.pause(lasted));
  }

  #offline() {
    this.#link = null;
    this.#online = false;
    this.#draining = false;
    this.#left = false;
    this.#pinged = 0;
    clearInterval(this.#pingTimer);
    clearTimeout(this.#leaveTimer);
  }

  /** Sends what there is room for, when what runs now has said all it has to say: that leaves together. */
  #pump() {
    if (this.#pumping || !this.#online) return;
    this.#pumping = true;
    setImmediate(() => {
      if (this.#online) this.#send();
      this.#pumping = false;
    });
  }

  #send() {
    while (this.#link?.hasRoom) {
      if (this.#phase !== "working" && !this.#left) {
        // Before any report of this shutdown: what is given back then goes to other workers.
        this.#left = true;
        this.#link.send({ leave: {} });
        continue;
      }
      const reports = this.#session.nextReports(this.#batch);
      if (reports.length === 0) break;
      this.#link.send(reports.length === 1 ? { report: reports[0] } : { reports: { reports } });
    }
  }

  // The jobs.

  /** @param {any} assignment */
  #assigned(assignment) {
    const { jobId, leaseToken: token, kind } = assignment;
    const effects = this.#session.assign(jobId, token);
    if (!effects) return;
    this.#apply(effects);
    const working = this.#phase === "working";
    if ((working ? this.#jobs.size : this.#unstarted.length) >= this.#plan.capacity) {
      this.#report(jobId, token, released("every slot of the worker is taken"));
      return;
    }
    if (!working) {
      this.#unstarted.push(assignment);
      return;
    }
    const handler = this.#plan.handlers.get(kind);
    if (!handler) {
      this.#report(jobId, token, failed("unknown_kind", `this worker does not run ${JSON.stringify(kind)}`, false));
      return;
    }
    let input;
    try {
      input = JSON.parse(assignment.inputJson || "{}");
    } catch (error) {
      this.#report(jobId, token, failed("input_invalid", String(error), false));
      return;
    }
    this.#plan.logger.info(`job ${jobId} begins: ${kind}, attempt ${assignment.attempt}`);
    const context = new JobContext(assignment, input, {
      push: (body, tag) => {
        const result = this.#session.push(jobId, token, body, tag);
        this.#pump();
        return result;
      },
      isFull: () => this.#session.isFull(jobId, token),
      isFlushed: () => this.#session.isFlushed(jobId, token),
      limits: () => this.#limits,
    });
    /** @type {Running} */
    const running = { token, context, cancelled: null, told: false, abort: undefined };
    this.#jobs.set(jobId, running);
    // Begun in a turn of its own: whatever it throws is the job's, and it reports to an owner at rest.
    setImmediate(async () => {
      /** @type {() => Body} */
      let outcome;
      try {
        const result = await handler(context, input);
        outcome = () => this.#completed(result);
      } catch (error) {
        outcome = () => this.#failure(jobId, running, error);
      }
      this.#finished(jobId, running, outcome);
    });
  }

  /** @param {string} jobId @param {Running} running @param {() => Body} outcome */
  #finished(jobId, running, outcome) {
    // Dropped meanwhile: lost, or too slow to obey.
    if (this.#jobs.get(jobId) !== running) return;
    this.#jobs.delete(jobId);
    clearTimeout(running.abort);
    const body = running.cancelled ? stopped() : outcome();
    this.#plan.logger.info(`job ${jobId} ends: ${body.kind}${body.kind === "fail" ? ` ${body.value.code}: ${body.value.message}` : ""}`);
    this.#report(jobId, running.token, body);
    this.#pump();
    this.#proceed();
  }

  /** @param {unknown} result @returns {Body} */
  #completed(result) {
    let json;
    try {
      json = JSON.stringify(result) ?? "null";
    } catch (error) {
      return failed("result_invalid", `the result has no JSON form: ${message(error)}`, false);
    }
    const size = Buffer.byteLength(json);
    if (size > this.#limits.result) return failed("result_too_large", `the result has ${size} bytes; the engine takes ${this.#limits.result}`, false);
    return { kind: "complete", value: { resultJson: json } };
  }

  /** @param {string} jobId @param {Running} running @param {unknown} error @returns {Body} */
  #failure(jobId, running, error) {
    // Told to make room, a job may fail in any way: that says nothing about the job.
    if (running.told) return released(LEAVING);
    if (error instanceof JobReleased) return released(error.message);
    if (error instanceof JobFailed) return failed(error.code, error.message, error.retryable);
    if (error instanceof ReportRejected) return failed("report_rejected", error.message, false);
    if (error instanceof Cancelled) return failed("stopped", "the handler stopped although nobody told it to", false);
    // The stack is for whoever runs the worker, not for whoever watches the job.
    this.#plan.logger.error(`job ${jobId}: ${error instanceof Error ? error.stack : String(error)}`);
    return failed("error", message(error), true);
  }

  /** Queues a report of the worker itself. It fails only when the lease is gone, and then there is nothing to say. @param {string} jobId @param {string} token @param {Body} body */
  #report(jobId, token, body) {
    this.#session.push(jobId, token, body);
  }

  /** @param {Effect[]} effects */
  #apply(effects) {
    for (const effect of effects) {
      switch (effect.type) {
        case "answered": {
          const { tag, answer } = effect;
          if (answer.result === "stored") tag.resolve();
          else if (answer.result === "rejected") tag.reject(new ReportRejected(answer.message));
          // Gone: what follows in the same list says why, and the context tells everybody who waits.
          break;
        }
        case "cancel":
          this.#cancel(effect.jobId, effect.request);
          break;
        case "lost":
          this.#lose(effect.jobId, effect.reason);
          break;
        case "ended":
          this.#plan.logger.debug(`job ${effect.jobId}: lease returned`);
      }
    }
  }

  /** @param {string} jobId @param {string} reason */
  #lose(jobId, reason) {
    this.#unstarted = this.#unstarted.filter((assignment) => assignment.jobId !== jobId);
    const running = this.#jobs.get(jobId);
    if (!running) return;
    this.#plan.logger.warn(`job ${jobId}: lease lost, job dropped: ${reason}`);
    this.#jobs.delete(jobId);
    clearTimeout(running.abort);
    running.context.stop(new LeaseLost(reason));
  }

  /** @param {string} jobId @param {{ by?: string, reason?: string, deadline?: Date }} request */
  #cancel(jobId, { by = "", reason = "", deadline }) {
    const unstarted = this.#unstarted.findIndex((assignment) => assignment.jobId === jobId);
    if (unstarted !== -1) {
      const [{ leaseToken }] = this.#unstarted.splice(unstarted, 1);
      this.#report(jobId, leaseToken, stopped());
    }
    const running = this.#jobs.get(jobId);
    if (!running) return;
    if (running.cancelled) {
      // The answer to a report came before the order itself, and does not say who.
      running.cancelled.by ||= by;
      running.cancelled.reason ||= reason;
      running.context.stop(running.cancelled);
      return;
    }
    const left = Math.max(LEAST_CANCEL_MS, deadline ? deadline.getTime() - Date.now() : DEFAULT_CANCEL_MS);
    this.#plan.logger.info(`job ${jobId} is called off by ${by || "somebody"}: ${reason}`);
    running.cancelled = new Cancelled(by, reason, new Date(Date.now() + left));
    running.abort = setTimeout(() => {
      this.#plan.logger.warn(`job ${jobId} ignored its cancellation and is dropped`);
      this.#jobs.delete(jobId);
      running.context.stop(new LeaseLost("the job ignored its cancellation"));
      this.#report(jobId, running.token, stopped());
      this.#pump();
      this.#proceed();
    }, Math.min(left, 2 ** 31 - 1));
    running.context.stop(running.cancelled);
  }

  // The phases.

  /** @param {"grace" | "stopping" | "flushing"} phase @param {number} ms how long it may last */
  #enter(phase, ms) {
    this.#phase = phase;
    clearTimeout(this.#phaseTimer);
    this.#phaseTimer = setTimeout(() => this.#proceed(true), ms);
  }

  /** Goes on to the next phase when the present one has nothing left to do, or `late` is set. */
  #proceed(late = false) {
    if (this.#draining && this.#session.isEmpty && this.#jobs.size === 0) {
      this.#hangUp("the engine drained");
      return;
    }
    if (this.#phase === "grace" && (late || this.#jobs.size === 0)) {
      late = false;
      this.#enter("stopping", STOP_MS);
      const why = new ShuttingDown(new Date(Date.now() + STOP_MS));
      for (const running of this.#jobs.values()) {
        running.told = true;
        running.context.stop(why);
      }
    }
    if (this.#phase === "stopping" && (late || this.#jobs.size === 0)) {
      late = false;
      for (const [jobId, { token, context, abort }] of this.#jobs) {
        clearTimeout(abort);
        this.#report(jobId, token, released(LEAVING));
        context.stop(new LeaseLost(LEAVING));
      }
      this.#jobs.clear();
      this.#enter("flushing", FLUSH_MS);
    }
    if (this.#phase === "flushing") {
      for (const { jobId, leaseToken } of this.#unstarted.splice(0)) this.#report(jobId, leaseToken, released(LEAVING));
      this.#pump();
      if (late || this.#session.isEmpty) this.#finish();
    }
  }

  #finish() {
    this.#phase = "ended";
    this.#link?.close();
    this.#offline();
    clearTimeout(this.#dialTimer);
    clearTimeout(this.#phaseTimer);
    this.#status("stopped");
    this.#end();
  }

  /** @param {Status} status */
  #status(status) {
    this.#plan.status(status);
  }
}

/** @returns {Body} */
const stopped = () => ({ kind: "stopped", value: {} });

/** @param {string} reason @returns {Body} */
const released = (reason) => ({ kind: "released", value: { reason: cut(reason, MAX_TEXT_BYTES) } });

/** @param {string} code @param {string} message @param {boolean} retryable @returns {Body} */
function failed(code, message, retryable) {
  return { kind: "fail", value: { code: cut(String(code), MAX_NAME_BYTES), message: cut(String(message), MAX_TEXT_BYTES), retryable } };
}

/** @param {unknown} error */
const message = (error) => (error instanceof Error ? error.message : String(error));
