/**
 * How the page stands with the gateway: the lamp in the masthead, and the pace at which it asks again.
 *
 * Requests run through `link.watch`, streams report to `link.report`; the lamp shows the longest outage among them.
 * It neither makes requests nor repeats them.
 */

import { NetworkError } from './client.js';
import { $, announce, setText } from './dom.js';
import { formatInteger } from './format.js';

/** The usual pause between two requests of the same kind. */
export const POLL_MS = 4_000;

/** A pause that can be cut short. */
export class Pause {
  #end = () => {};

  wait(ms) {
    return new Promise((resolve) => {
      this.#end = resolve;
      setTimeout(resolve, ms);
    });
  }

  end() {
    this.#end();
  }
}

class Link {
  /** When requests began to fail, in ms; 0 while they succeed. */
  #since = 0;
  /** What the gateway complains of although it answers, such as an engine that is away. */
  #trouble = '';
  #known = false;
  /** Since when each broken stream is broken, by its owner. @type {Map<object, number>} */
  #outages = new Map();
  /** Called when the gateway answers again. */
  onBack = () => {};
  /** Called when the gateway asks who this is. */
  onStranger = () => {};

  /** Whether the last request got no answer. */
  get isAway() {
    return this.#since > 0;
  }

  /** Passes a request through and remembers whether the gateway answered. */
  async watch(promise) {
    try {
      const answer = await promise;
      this.#answered('');
      return answer;
    } catch (error) {
      if (error instanceof NetworkError) this.#since ||= Date.now();
      else this.#answered(error.status >= 500 ? error.message : '');
      if (error.status === 401) this.onStranger();
      this.render();
      throw error;
    }
  }

  /** Tells that the owner's stream is broken `since` then (ms), or is not: undefined. */
  report(owner, since) {
    if (since === undefined) this.#outages.delete(owner);
    else this.#outages.set(owner, since);
    this.render();
  }

  #answered(trouble) {
    const wasAway = this.isAway;
    this.#since = 0;
    this.#known = true;
    this.#trouble = trouble;
    if (wasAway) this.onBack();
    this.render();
  }

  #describe() {
    const since = Math.min(this.#since || Infinity, ...this.#outages.values());
    if (since !== Infinity) {
      return ['offline', `Offline, reconnecting… (${formatInteger((Date.now() - since) / 1000)} s)`];
    }
    if (this.#trouble) return ['offline', `Connected, but: ${this.#trouble}`];
    return this.#known ? ['live', 'Connected'] : ['connecting', 'Connecting…'];
  }

  /** To be called once a second too: an outage is shown with its age. */
  render() {
    const [state, text] = this.#describe();
    const { dataset } = $('link');
    const before = dataset.state;
    dataset.state = state;
    setText($('link-text'), text);
    if (before === 'live' && state === 'offline') announce('Offline, reconnecting');
    if (before === 'offline' && state === 'live') announce('Connected again');
  }
}

export const link = new Link();
