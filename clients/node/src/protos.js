/**
 * The contract, loaded from its `.proto` files when the module is first imported, and its translation to and from what
 * a JavaScript program expects: times are `Date`, durations milliseconds, 64-bit numbers `number` (or `bigint` beyond
 * 2^53), enum values their short names (`COMPLETED`, not `JOB_STATE_COMPLETED`), unset messages `undefined`.
 *
 * The translation follows the descriptors, so a field that the contract gains is carried without a change here.
 * It knows no message by name and does no I/O beyond reading the files.
 */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

/** A packed package carries its own copy; in the repository there is only one. */
const DIRECTORIES = ["../proto", "../../../proto"].map((dir) => fileURLToPath(new URL(dir, import.meta.url)));
const PACKAGE = "tidegate.v1.";

const directory = DIRECTORIES.find((dir) => existsSync(`${dir}/tidegate/v1/job.proto`));
if (!directory) throw new Error(`the .proto files of Tidegate are in none of ${DIRECTORIES.join(", ")}`);

const definition = loader.loadSync(["tidegate/v1/job_service.proto", "tidegate/v1/worker_service.proto"], {
  includeDirs: [directory],
  longs: String,
  enums: String,
  defaults: true,
});

/** @typedef {{ name: string, label: string, type: string, typeName: string }} Field */
/** @typedef {(value: any) => any} Translation */

/** The constructors of the generated stubs. */
export const services = /** @type {any} */ (grpc.loadPackageDefinition(definition)).tidegate.v1;

/**
 * The descriptor of a message or an enum, by its name within the package.
 * @param {string} name
 * @returns {any}
 */
function descriptor(name) {
  const found = /** @type {any} */ (definition[PACKAGE + name])?.type;
  if (!found) throw new Error(`the contract knows no ${name}`);
  return found;
}

/** @param {string} name `JobState` becomes `JOB_STATE_`, with which the enum's values begin. */
const enumPrefix = (name) => `${name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase()}_`;

/** @type {Map<string, Translation>} */
const decoders = new Map();
/** @type {Map<string, Translation>} */
const encoders = new Map();

/**
 * Translates a received message.
 * @param {string} name the message's name within the package
 * @returns {Translation}
 */
export function decoder(name) {
  const known = decoders.get(name);
  if (known) return known;
  /** @type {[string, Translation][]} */
  const fields = [];
  /** @type {Translation} */
  const decode = (message) => {
    /** @type {Record<string, any>} */
    const result = {};
    for (const [key, translate] of fields) {
      const value = message[key];
      if (value !== undefined && value !== null) result[key] = translate(value);
    }
    return result;
  };
  // Before the fields are looked at: messages may contain each other.
  decoders.set(name, decode);
  for (const field of descriptor(name).field) fields.push([field.name, repeated(field, decodeOne(field))]);
  return decode;
}

/**
 * Translates a message to be sent. What it returns throws a `TypeError` for a key that the message does not have.
 * @param {string} name the message's name within the package
 * @returns {Translation}
 */
export function encoder(name) {
  const known = encoders.get(name);
  if (known) return known;
  /** @type {Map<string, Translation>} */
  const fields = new Map();
  /** @type {Translation} */
  const encode = (message) => {
    /** @type {Record<string, any>} */
    const result = {};
    for (const [key, value] of Object.entries(message)) {
      if (value === undefined || value === null) continue;
      const translate = fields.get(key);
      if (!translate) throw new TypeError(`${name} has no field ${key}; it has ${[...fields.keys()].join(", ")}`);
      result[key] = translate(value);
    }
    return result;
  };
  encoders.set(name, encode);
  for (const field of descriptor(name).field) fields.set(field.name, repeated(field, encodeOne(name, field)));
  return encode;
}

/**
 * @param {Field} field
 * @param {Translation} translate
 * @returns {Translation}
 */
function repeated(field, translate) {
  return field.label === "LABEL_REPEATED" ? (values) => Array.from(values, translate) : translate;
}

/**
 * @param {Field} field
 * @returns {Translation}
 */
function decodeOne({ type, typeName }) {
  if (typeName === "google.protobuf.Timestamp") return (t) => new Date(Number(t.seconds) * 1000 + t.nanos / 1e6);
  if (typeName === "google.protobuf.Duration") return (d) => Number(d.seconds) * 1000 + d.nanos / 1e6;
  if (type === "TYPE_MESSAGE") return (message) => decoder(typeName)(message);
  if (type === "TYPE_UINT64") return whole;
  if (type === "TYPE_ENUM") {
    const prefix = enumPrefix(typeName);
    // A value that a newer engine may have stays a number, as text.
    return (value) => String(value).replace(prefix, "");
  }
  return (value) => value;
}

/** @param {string} text */
function whole(text) {
  const number = Number(text);
  return Number.isSafeInteger(number) ? number : BigInt(text);
}

/**
 * @param {string} message
 * @param {Field} field
 * @returns {Translation}
 */
function encodeOne(message, { name, type, typeName }) {
  /** @param {string} what @returns {never} */
  const refuse = (what) => {
    throw new TypeError(`${message}.${name} takes ${what}`);
  };
  if (typeName === "google.protobuf.Timestamp") {
    return (date) => {
      if (!(date instanceof Date) || Number.isNaN(date.getTime())) refuse("a Date");
      const seconds = Math.floor(date.getTime() / 1000);
      return { seconds, nanos: Math.round((date.getTime() - seconds * 1000) * 1e6) };
    };
  }
  if (typeName === "google.protobuf.Duration") {
    return (ms) => {
      if (!Number.isFinite(ms) || ms < 0) refuse("a number of milliseconds, from 0");
      const seconds = Math.floor(ms / 1000);
      return { seconds, nanos: Math.min(999_999_999, Math.round((ms - seconds * 1000) * 1e6)) };
    };
  }
  if (type === "TYPE_MESSAGE") return (value) => encoder(typeName)(value);
  if (type === "TYPE_ENUM") {
    const prefix = enumPrefix(typeName);
    /** @type {string[]} */
    const names = descriptor(typeName).value.map((/** @type {{ name: string }} */ value) => value.name.replace(prefix, ""));
    return (value) => (names.includes(value) ? prefix + value : refuse(`one of ${names.slice(1).join(", ")}`));
  }
  if (type === "TYPE_UINT64" || type === "TYPE_UINT32") {
    const most = type === "TYPE_UINT64" ? 2n ** 64n - 1n : 2n ** 32n - 1n;
    return (value) => {
      const fits = typeof value === "bigint" ? value >= 0n && value <= most : Number.isSafeInteger(value) && value >= 0 && value <= most;
      return fits ? String(value) : refuse("a whole number, from 0");
    };
  }
  if (type === "TYPE_STRING") return (value) => (typeof value === "string" ? value.toWellFormed() : refuse("a string"));
  if (type === "TYPE_DOUBLE") return (value) => (typeof value === "number" ? value : refuse("a number"));
  if (type === "TYPE_BOOL") return (value) => (typeof value === "boolean" ? value : refuse("true or false"));
  return (value) => value;
}
