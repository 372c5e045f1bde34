/**
 * The form that starts a job: built from the JSON Schema of the chosen kind, or plain JSON where a form cannot show it.
 *
 * Checks the plain rules of the schema before anything is sent; the worker checks all of them. One intention has one
 * idempotency key: pressing Start again after a lost answer cannot start a second job.
 * It does not show the job: `onStarted` gets it.
 */

import { listKinds, submitJob } from './client.js';
import { $, make, setText } from './dom.js';
import { explain } from './format.js';
import { link } from './link.js';

/** A longer form is harder to read than the JSON. */
const MAX_FIELDS = 12;
const NUMERIC = ['integer', 'number'];
const SIMPLE = ['string', 'boolean', ...NUMERIC];
/** The kind that is chosen and started when nobody has chosen one. */
const FIRST_KIND = 'demo';

class Launcher {
  #kinds = [];
  #kind;
  #asForm = false;
  /** What the input holds beside the form's fields. */
  #rest = {};
  #pending = { key: '', body: '' };
  /** Gets every job that was started. @type {(job: import('./client.js').Job) => void} */
  onStarted = () => {};

  /** Asks for the kinds on offer. */
  async refresh() {
    let kinds;
    try {
      kinds = await link.watch(listKinds());
    } catch {
      return; // The lamp says it; the form stays as it was.
    }
    if (JSON.stringify(kinds) === JSON.stringify(this.#kinds)) return;
    this.#kinds = kinds;
    const options = kinds.map(({ kind, live }) => make('option', { value: kind }, live ? kind : `${kind} (no worker)`));
    if (!options.length) options.push(make('option', {}, 'none on offer'));
    $('kind').replaceChildren(...options);
    $('kind').disabled = kinds.length === 0;
    $('start').disabled = kinds.length === 0;
    $('first-run').hidden = !this.#find(FIRST_KIND)?.live;
    const wanted = this.#find(this.#kind?.kind) ?? this.#find(FIRST_KIND) ?? kinds.find(({ live }) => live) ?? kinds[0];
    if (!wanted) {
      setText($('kind-hint'), 'No worker has offered a kind yet; this list fills when one connects.');
      return;
    }
    if (wanted.kind !== this.#kind?.kind) this.#choose(wanted);
    $('kind').value = wanted.kind;
  }

  #find(name) {
    return this.#kinds.find(({ kind }) => kind === name);
  }

  /** Shows the kind that is selected. */
  choose() {
    this.#choose(this.#find($('kind').value));
  }

  #choose(kind) {
    this.#kind = kind;
    setText($('kind-hint'), kind.description ?? '');
    setText($('form-error'), '');
    const fields = flatFields(kind.inputSchema);
    $('input-mode').hidden = !fields;
    $('input').value = JSON.stringify(kind.example ?? {}, null, 2);
    this.#show(Boolean(fields));
  }

  /** Changes between form and JSON. */
  toggle() {
    setText($('form-error'), '');
    try {
      if (this.#asForm) $('input').value = JSON.stringify(this.#read(), null, 2);
      this.#show(!this.#asForm);
    } catch (error) {
      this.#complain(`The input is not valid JSON: ${error.message}`);
    }
  }

  /** Shows the input as a form or as JSON; what was typed goes along, and so does what the form has no field for. */
  #show(asForm) {
    if (asForm) this.#fill(readJson());
    this.#asForm = asForm;
    $('fields').hidden = !asForm;
    $('input').hidden = asForm;
    setText($('input-mode'), asForm ? 'Edit as JSON' : 'Edit as form');
  }

  #fill(given) {
    const { inputSchema, example } = this.#kind;
    const fields = flatFields(inputSchema);
    const shown = new Set(fields.map(({ name }) => name));
    this.#rest = Object.fromEntries(Object.entries(given).filter(([name]) => !shown.has(name)));
    // In sight is what the example or the schema insists on; the rest is one step away.
    const inSight = ({ name, required }) => required || name in given || name in (example ?? {});
    const draw = (some) => some.map((field) => makeField(field, given[field.name]));
    const more = fields.filter((field) => !inSight(field));
    $('fields').replaceChildren(...draw(fields.filter(inSight)));
    if (!more.length) return;
    $('fields').append(make('details', { class: 'more', open: more.length === fields.length },
      make('summary', {}, 'More options'),
      make('div', { class: 'fields' }, ...draw(more))));
  }

  /** The input as a value; throws a SyntaxError when the JSON is broken. */
  #read() {
    if (!this.#asForm) return readJson();
    const value = { ...this.#rest };
    for (const control of $('fields').querySelectorAll('[name]')) {
      const { type, default: usual } = this.#kind.inputSchema.properties[control.name];
      if (type === 'boolean') {
        if (control.checked !== (usual ?? false)) value[control.name] = control.checked;
      } else if (control.value !== '') {
        value[control.name] = NUMERIC.includes(type) ? Number(control.value) : control.value;
      }
    }
    return value;
  }

  /** Starts what the form says, or says what is wrong with it. */
  async submit() {
    setText($('form-error'), '');
    if (!this.#kind) return;
    let input;
    try {
      input = this.#read();
    } catch (error) {
      this.#complain(`The input is not valid JSON: ${error.message}`);
      $('input').focus();
      return;
    }
    const faults = faultsOf(input, this.#kind.inputSchema);
    if (faults.length) this.#complain(faults.join('\n'));
    else await this.#send(this.#kind.kind, input);
  }

  /** Starts the first kind with its example. */
  async submitFirst() {
    await this.#send(FIRST_KIND, this.#find(FIRST_KIND)?.example ?? {});
  }

  async #send(kind, input) {
    const body = JSON.stringify([kind, input]);
    if (this.#pending.body !== body) this.#pending = { key: randomKey(), body };
    $('start').setAttribute('aria-busy', 'true');
    try {
      const job = await link.watch(submitJob(kind, input, { idempotencyKey: this.#pending.key }));
      this.#pending = { key: '', body: '' };
      this.onStarted(job);
    } catch (error) {
      if (!error.passing) this.#pending = { key: '', body: '' };
      this.#complain(explain(error));
    } finally {
      $('start').removeAttribute('aria-busy');
    }
  }

  #complain(text) {
    setText($('form-error'), text);
  }
}

export const launcher = new Launcher();

const readJson = () => JSON.parse($('input').value.trim() || '{}');

function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// --- schemas -----------------------------------------------------------------------------------

/** The fields of a schema that a form can show; null when a required one is not among them, or there are too many. */
function flatFields(schema) {
  const required = schema?.required ?? [];
  const fields = Object.entries(schema?.properties ?? {})
    .filter(([, rules]) => Array.isArray(rules.enum) || SIMPLE.includes(rules.type))
    .map(([name, rules]) => ({ name, rules, required: required.includes(name) }));
  const complete = required.every((name) => fields.some((field) => field.name === name));
  return complete && fields.length > 0 && fields.length <= MAX_FIELDS ? fields : null;
}

function makeField({ name, rules, required }, given) {
  const id = `field-${name}`;
  const hint = rules.description ? make('p', { class: 'hint', id: `${id}-hint` }, rules.description) : null;
  const star = required ? make('span', { class: 'need', 'aria-hidden': 'true' }, ' *') : null;
  const label = make('label', { for: id }, name, star);
  const shared = {
    id,
    name,
    required,
    'aria-describedby': hint ? `${id}-hint` : undefined,
    'data-testid': id,
    'data-type': rules.type,
  };
  if (rules.type === 'boolean') {
    const box = make('input', { ...shared, type: 'checkbox', checked: (given ?? rules.default) === true });
    return make('div', { class: 'field wide' }, make('span', { class: 'tick' }, box, label), hint);
  }
  const control = rules.enum ? makeChoice(rules, shared) : makeInput(rules, shared);
  control.value = given ?? control.value;
  const narrow = rules.enum || NUMERIC.includes(rules.type);
  return make('div', { class: narrow ? 'field' : 'field wide' }, label, control, hint);
}

function makeChoice({ enum: choices }, shared) {
  const none = shared.required ? [] : [make('option', { value: '' })];
  return make('select', shared, ...none, ...choices.map((choice) => make('option', {}, String(choice))));
}

function makeInput(rules, shared) {
  return make('input', {
    ...shared,
    type: NUMERIC.includes(rules.type) ? 'number' : 'text',
    min: rules.minimum,
    max: rules.maximum,
    step: rules.type === 'number' ? 'any' : undefined,
    placeholder: rules.default,
    autocomplete: 'off',
  });
}

/** What is wrong with an input by the plain rules of its schema: names, types, choices, bounds. */
function faultsOf(input, schema) {
  if (!schema || schema.type !== 'object') return [];
  if (input === null || typeof input !== 'object' || Array.isArray(input)) return ['The input must be a JSON object.'];
  const known = schema.properties ?? {};
  const faults = (schema.required ?? []).filter((name) => !(name in input)).map((name) => `${name} is required.`);
  for (const [name, value] of Object.entries(input)) {
    const fault = known[name] ? faultOf(value, known[name]) : undefined;
    if (fault) faults.push(`${name} ${fault}.`);
    if (known[name] || schema.additionalProperties !== false) continue;
    faults.push(`${name} is not known; known are ${Object.keys(known).join(', ')}.`);
  }
  return faults;
}

function faultOf(value, rules) {
  const fits = {
    string: typeof value === 'string',
    integer: Number.isInteger(value),
    number: Number.isFinite(value),
    boolean: typeof value === 'boolean',
    array: Array.isArray(value),
  };
  if (fits[rules.type] === false) return `must be ${/^[aeiou]/.test(rules.type) ? 'an' : 'a'} ${rules.type}`;
  if (rules.enum && !rules.enum.includes(value)) return `must be one of ${rules.enum.join(', ')}`;
  if (value < rules.minimum) return `must be at least ${rules.minimum}`;
  if (value > rules.maximum) return `must be at most ${rules.maximum}`;
  return undefined;
}
