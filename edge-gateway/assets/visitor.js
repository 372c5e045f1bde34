/**
 * Who looks at the console: signs in where the gateway asks for it, and out again.
 *
 * The token becomes a session cookie that scripts cannot read; the page keeps neither. After either step the page is loaded
 * again, because whatever it shows belonged to somebody else.
 */

import { ProblemError, signIn, signOut, whoAmI } from './client.js';
import { $, setText } from './dom.js';

class Visitor {
  /** Called when somebody has signed out. */
  onLeave = () => {};

  constructor() {
    $('sign-in-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#signIn();
    });
    $('sign-out').addEventListener('click', () => this.#signOut());
  }

  /** Asks for a token, unless the question is open already. */
  ask() {
    if (!$('sign-in').open) $('sign-in').showModal();
  }

  /** Shows who is signed in, if anybody has to. */
  async greet() {
    try {
      const { subject, expiresAt } = await whoAmI();
      $('sign-out').hidden = expiresAt === undefined; // Without authentication nobody is anybody.
      setText($('sign-out'), `Sign out ${subject}`);
    } catch {
      // The requests of the page itself find out why.
    }
  }

  async #signIn() {
    const field = $('token');
    setText($('sign-in-error'), '');
    try {
      await signIn(field.value.trim());
    } catch (error) {
      const isOff = error instanceof ProblemError && error.status === 404;
      setText($('sign-in-error'), isOff ? 'Sessions are switched off here: use the command line.' : error.message);
      field.select();
      return;
    }
    field.value = '';
    // Where the cookie did not stick, asking once more would be all that a reload does.
    try {
      await whoAmI();
      location.reload();
    } catch {
      setText($('sign-in-error'), 'The browser did not keep the cookie: this page needs HTTPS.');
    }
  }

  async #signOut() {
    await signOut();
    this.onLeave();
    location.reload();
  }
}

export const visitor = new Visitor();
