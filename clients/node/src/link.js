/**
 * One connection to an engine: dialled, greeted, welcomed. No state beyond the stream itself.
 *
 * What was handed over for sending and has not left yet is counted, and {@link Link.hasRoom} says no at a small number:
 * what has not been handed over can still be superseded.
 */

import { bearer, CHANNEL, current } from "./engine.js";
import { decoder, services } from "./protos.js";

/** How long dialling, greeting and the welcome may take together. */
const PATIENCE_MS = 10_000;
/** How many messages may wait between the owner and the HTTP/2 stream. */
const OUTBOUND = 16;

const decode = decoder("WorkResponse");

export class Link {
  #client;
  #call;
  #waiting = 0;
  #closed = false;
  #welcomed = false;
  /** @type {NodeJS.Timeout} */
  #patience;
  #events;

  /**
   * Dials and says hello. All events come from the network, none from within this call; none comes after `closed`.
   * @param {import("./engine.js").Engine} engine
   * @param {import("./engine.js").Token | undefined} token
   * @param {Record<string, any>} hello
   * @param {{ welcomed: (welcome: any) => void, heard: (message: any) => void, room: () => void, closed: (why: string) => void }} events
   */
  constructor(engine, token, hello, events) {
    this.#events = events;
    this.#client = new services.WorkerService(engine.target, engine.credentials, { ...CHANNEL, "grpc.keepalive_permit_without_calls": 1 });
    this.#patience = setTimeout(() => this.#end("no welcome within 10 s"), PATIENCE_MS);
    this.#call = this.#client.work(bearer(current(token)));
    this.#call.on("data", (/** @type {any} */ message) => this.#data(message));
    this.#call.on("error", (/** @type {any} */ error) => this.#end(explain(error, this.#welcomed)));
    this.#call.on("end", () => this.#end("the engine closed the stream"));
    this.send({ hello });
  }

  get hasRoom() {
    return this.#waiting < OUTBOUND;
  }

  /** @param {Record<string, any>} message a WorkRequest */
  send(message) {
    if (this.#closed) return;
    this.#waiting += 1;
    this.#call.write(message, () => {
      this.#waiting -= 1;
      if (!this.#closed && this.#welcomed) this.#events.room();
    });
  }

  /** Hangs up, without an event. */
  close() {
    this.#closed = true;
    clearTimeout(this.#patience);
    this.#call.cancel();
    this.#client.close();
  }

  /** @param {any} wire */
  #data(wire) {
    if (this.#closed) return;
    const message = decode(wire);
    if (this.#welcomed) {
      this.#events.heard(message);
    } else if (message.welcome) {
      this.#welcomed = true;
      clearTimeout(this.#patience);
      this.#events.welcomed(message.welcome);
    } else {
      this.#end("the engine's first message was no welcome");
    }
  }

  /** @param {string} why */
  #end(why) {
    if (this.#closed) return;
    this.close();
    this.#events.closed(why);
  }
}

/** @param {{ details?: string, message: string }} error @param {boolean} welcomed */
function explain(error, welcomed) {
  const what = error.details || error.message;
  return welcomed ? what : `cannot connect, refused, or what answers speaks no gRPC: ${what}`;
}
