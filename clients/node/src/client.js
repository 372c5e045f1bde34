/**
 * A caller: submits jobs, steers them, follows their logs.
 *
 * With several engines a call goes to the one that answered last; when that one is away, calls that may be repeated
 * go to the next. A watch belongs to the job, not to the connection: it resumes by its cursor until the job has ended.
 */

/** @import * as Api from "./index.js" */
import { setTimeout as sleep } from "node:timers/promises";
import { Backoff } from "./backoff.js";
import { bearer, CHANNEL, current, engines } from "./engine.js";
import { fromStatus, Unavailable } from "./errors.js";
import { decoder, encoder, services } from "./protos.js";

/** How long an engine may be silent on a watch: it says something every 15 s. */
const SILENCE_MS = 40_000;
/** How often a call that may be repeated is tried, on each engine. */
const ROUNDS = 3;

const decodeWatch = decoder("WatchJobResponse");

/** @implements {Api.Client} */
export class Client {
  #stubs;
  #current = 0;
  #caller;
  #timeout;
  #token;

  /** @param {string | string[]} addresses @param {Api.ClientOptions} [options] */
  constructor(addresses, { caller, timeout = 10_000, token = process.env.TIDEGATE_TOKEN, tls } = {}) {
    this.#stubs = engines(addresses, tls).map(({ target, credentials }) => new services.JobService(target, credentials, CHANNEL));
    this.#caller = caller;
    this.#timeout = timeout;
    this.#token = token;
  }

  /** @param {string} kind @param {unknown} [input] @param {Api.SubmitOptions} [options] */
  async submit(kind, input = {}, { options, idempotencyKey } = {}) {
    const request = { kind, inputJson: JSON.stringify(input), options, idempotencyKey };
    const { job, created = false } = await this.#call("SubmitJob", request, idempotencyKey !== undefined);
    return { ...readJob(job), created };
  }

  /** @param {string} jobId */
  async get(jobId) {
    return readJob((await this.#call("GetJob", { jobId }, true)).job);
  }

  /** @param {Api.ListOptions} [options] */
  async list(options = {}) {
    const { jobs, nextPageToken } = await this.#call("ListJobs", options, true);
    return { jobs: jobs.map(readJob), nextPageToken };
  }

  /** @param {string} jobId @param {{ reason?: string }} [options] */
  async cancel(jobId, { reason } = {}) {
    return readJob((await this.#call("CancelJob", { jobId, reason }, true)).job);
  }

  /** @param {string} jobId */
  async retry(jobId) {
    return readJob((await this.#call("RetryJob", { jobId }, false)).job);
  }

  /** @param {string} jobId */
  async delete(jobId) {
    await this.#call("DeleteJob", { jobId }, false);
  }

  async kinds() {
    const { kinds } = await this.#call("ListKinds", {}, true);
    return kinds.map((/** @type {any} */ { inputSchemaJson, exampleJson, ...rest }) =>
      ({ ...rest, inputSchema: parse(inputSchemaJson), example: parse(exampleJson) }));
  }

  /** @param {string} jobId @param {Api.WatchOptions} [options] @returns {AsyncGenerator<Api.JobEvent, void, void>} */
  async *watch(jobId, { cursor = "", tail, signal } = {}) {
    const backoff = new Backoff();
    let fruitless = 0;
    for (;;) {
      signal?.throwIfAborted();
      const begun = performance.now();
      const token = current(this.#token);
      try {
        for await (const message of this.#follow({ jobId, cursor, tail: cursor === "" ? tail : undefined }, token, signal)) {
          fruitless = 0;
          if (message.opened) ({ cursor } = message.opened);
          const epoch = message.gap?.snapshot?.epoch ?? cursor.slice(cursor.indexOf("-") + 1);
          if (message.gap) {
            cursor = `${message.gap.toSeq}-${epoch}`;
            const { fromSeq, toSeq, reason, snapshot } = message.gap;
            yield { type: "gap", cursor, from: fromSeq, to: toSeq, reason, snapshot: readJob(snapshot) };
          } else if (message.event) {
            cursor = `${message.event.seq}-${epoch}`;
            yield { ...readEvent(message.event), cursor };
          }
        }
        return;
      } catch (error) {
        signal?.throwIfAborted();
        const failure = fromStatus(error);
        // The token has ended meanwhile, and there is another one.
        if (failure.code === "UNAUTHENTICATED" && current(this.#token) !== token) continue;
        fruitless += 1;
        if (!(failure instanceof Unavailable) && !(passing(failure) && fruitless <= ROUNDS * this.#stubs.length)) throw failure;
        this.#current += 1;
        await sleep(backoff.pause(performance.now() - begun), undefined, { signal });
      }
    }
  }

  close() {
    for (const stub of this.#stubs) stub.close();
  }

  /**
   * One stream of a watch, which fails when the engine is silent.
   * @param {Record<string, any>} request
   * @param {string | undefined} token
   * @param {AbortSignal} [signal]
   */
  async *#follow(request, token, signal) {
    const encoded = encoder("WatchJobRequest")({ ...request, caller: this.#caller });
    const call = this.#stubs[this.#current % this.#stubs.length].watchJob(encoded, bearer(token));
    const stop = () => call.cancel();
    signal?.addEventListener("abort", stop, { once: true });
    let silent = false;
    const silence = setTimeout(() => {
      silent = true;
      call.cancel();
    }, SILENCE_MS);
    try {
      for await (const message of call) {
        silence.refresh();
        yield decodeWatch(message);
        // The reader's time is not the engine's.
        silence.refresh();
      }
    } catch (error) {
      throw silent ? new Unavailable("the engine is silent", { code: "UNAVAILABLE", cause: error }) : error;
    } finally {
      clearTimeout(silence);
      signal?.removeEventListener("abort", stop);
      call.cancel();
    }
  }

  /** @param {string} method @param {Record<string, any>} fields @param {boolean} repeatable @returns {Promise<any>} */
  async #call(method, fields, repeatable) {
    const request = encoder(`${method}Request`)({ ...fields, ...(method === "ListKinds" ? {} : { caller: this.#caller }) });
    const deadline = Date.now() + this.#timeout;
    const backoff = new Backoff();
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#once(method, request, deadline);
      } catch (error) {
        const failure = fromStatus(error);
        if (failure.code !== "UNAVAILABLE") throw failure;
        this.#current += 1;
        const pause = backoff.pause(0);
        if (!repeatable || tries >= ROUNDS * this.#stubs.length || Date.now() + pause >= deadline) throw failure;
        await sleep(pause);
      }
    }
  }

  /** @param {string} method @param {any} request @param {number} deadline */
  #once(method, request, deadline) {
    const stub = this.#stubs[this.#current % this.#stubs.length];
    return new Promise((resolve, reject) => {
      stub[method](request, bearer(current(this.#token)), { deadline }, (/** @type {Error | null} */ error, /** @type {any} */ response) => {
        if (error) reject(error);
        else resolve(decoder(`${method}Response`)(response));
      });
    });
  }
}

/** Whether a status is also what a connection that broke, or a proxy, says. @param {{ code: string }} failure */
function passing({ code }) {
  return code === "CANCELLED" || code === "ABORTED" || code === "INTERNAL" || code === "UNKNOWN" || code === "RESOURCE_EXHAUSTED";
}

/** @param {string} json */
function parse(json) {
  return json ? JSON.parse(json) : undefined;
}

/** @param {any} job a translated Job @returns {Api.Job} */
function readJob(job) {
  const { inputJson, completed, failed, cancelled, ...rest } = job;
  return { ...rest, input: parse(inputJson), result: completed && parse(completed.resultJson), failed, cancelled };
}

/** @param {any} event a translated Event @returns {any} a JobEvent without its cursor */
function readEvent({ seq, time, attempt, ...kind }) {
  const common = { seq, time, attempt };
  /** @type {[string, any]} */
  const [type, value] = Object.entries(kind).find(([, what]) => typeof what === "object") ?? ["unknown", {}];
  switch (type) {
    case "progress":
      return { ...common, type, progress: value };
    case "log":
      return { ...common, type, ...value, level: value.level.toLowerCase() };
    case "checkpoint":
      return { ...common, type, name: value.name, size: value.size };
    case "custom":
      return { ...common, type, name: value.name, value: parse(value.json) };
    case "complete":
      return { ...common, type, result: parse(value.resultJson) };
    default:
      return { ...common, type, ...value };
  }
}

