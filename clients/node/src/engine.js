/**
 * An engine's address, and the settings of a channel to it.
 *
 * Every channel has connections of its own: a pool shared with other channels would also share their state of backoff,
 * and the pauses between tries are this library's to choose.
 */

import grpc from "@grpc/grpc-js";
import { MAX_MESSAGE_BYTES } from "./limits.js";

/** @typedef {{ ca?: Buffer | string, cert?: Buffer | string, key?: Buffer | string }} Tls */
/** @typedef {string | (() => string)} Token */
/** @typedef {{ uri: string, target: string, credentials: import("@grpc/grpc-js").ChannelCredentials }} Engine */

/** What every channel is made with. */
export const CHANNEL = {
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.use_local_subchannel_pool": 1,
  "grpc.enable_retries": 0,
  "grpc.enable_channelz": 0,
  // A name that stands for several engines: each client begins with another one.
  "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ pick_first: { shuffleAddressList: true } }] }),
};

/**
 * Understands addresses such as `http://127.0.0.1:50051`; several may stand in one text, between commas.
 * @param {string | string[]} addresses
 * @param {Tls} [tls] for `https://` addresses
 * @returns {Engine[]} in a random order's turn: the first is chosen at random, the others follow in their order
 */
export function engines(addresses, tls = {}) {
  const uris = (Array.isArray(addresses) ? addresses : [addresses]).flatMap((text) => String(text).split(",")).map((uri) => uri.trim()).filter(Boolean);
  if (uris.length === 0) throw new TypeError("at least one engine is needed, such as http://127.0.0.1:50051");
  const list = uris.map((uri) => engine(uri, tls));
  const first = Math.floor(Math.random() * list.length);
  return [...list.slice(first), ...list.slice(0, first)];
}

/** @param {Token | undefined} token the text that is good now */
export const current = (token) => (typeof token === "function" ? token() : token);

/** @param {string | undefined} token @returns {grpc.Metadata} what a call carries to prove who is calling */
export function bearer(token) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}

/** @param {string} uri @param {Tls} tls @returns {Engine} */
function engine(uri, { ca, cert, key }) {
  const url = URL.canParse(uri) ? new URL(uri) : null;
  const secure = url?.protocol === "https:";
  if (!url?.hostname || !(secure || url.protocol === "http:")) {
    throw new TypeError(`${JSON.stringify(uri)} is no engine address; it looks like http://127.0.0.1:50051`);
  }
  /** @param {Buffer | string | undefined} pem */
  const pem = (pem) => (pem === undefined ? null : Buffer.from(pem));
  const credentials = secure ? grpc.credentials.createSsl(pem(ca), pem(key), pem(cert)) : grpc.credentials.createInsecure();
  return { uri: url.origin, target: `${url.hostname}:${url.port || (secure ? 443 : 80)}`, credentials };
}
