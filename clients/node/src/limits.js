/**
 * The limits of the contract that a client checks before it sends, so that a refusal names the culprit at once.
 * Sizes are in bytes of UTF-8. The engine checks them again; it may be configured for others and says so in Welcome.
 */

export const MAX_CHECKPOINT_BYTES = 64 * 1024;
export const MAX_CUSTOM_BYTES = 64 * 1024;
export const MAX_RESULT_BYTES = 256 * 1024;
export const MAX_LOG_BYTES = 16 * 1024;
/** The longest message, reason, step name or source. */
export const MAX_TEXT_BYTES = 1024;
/** The longest kind, event name or error code. */
export const MAX_NAME_BYTES = 64;
/** The largest gRPC message, in either direction. */
export const MAX_MESSAGE_BYTES = 4 * 1024 * 1024;
/** What a payload may have whatever the engine says, so that the message around it stays below {@link MAX_MESSAGE_BYTES}. */
export const MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 64 * 1024;

const CUT_MARK = " …[cut]";
const CUT_MARK_BYTES = Buffer.byteLength(CUT_MARK);
const RESERVED_EVENT_NAMES = new Set(["state", "progress", "log", "checkpoint", "complete", "failed", "cancelled", "connected",
  "gap", "goodbye", "error", "open", "message", "retry", "close"]);

/** Whether `name` may name a kind of job. @param {string} name */
export const isName = (name) => /^[a-z][a-z0-9._-]{0,63}$/.test(name);

/** Whether `name` may name a custom event. @param {string} name */
export const isCustomEventName = (name) => isName(name) && !RESERVED_EVENT_NAMES.has(name);

/**
 * Shortens `text` to at most `max` bytes on a character boundary, marking the cut. Lone surrogates are replaced: they
 * have no UTF-8, and an engine would refuse the whole message, now and each time it is sent again.
 * @param {string} text
 * @param {number} max
 */
export function cut(text, max) {
  text = text.toWellFormed();
  // No character of UTF-16 takes more than three bytes.
  if (text.length * 3 <= max || Buffer.byteLength(text) <= max) return text;
  const bytes = Buffer.from(text.slice(0, max));
  let end = max - CUT_MARK_BYTES;
  // A byte 10xxxxxx goes on with the character before it.
  while (end > 0 && (bytes[end] & 0xc0) === 0x80) end -= 1;
  return bytes.toString("utf8", 0, end) + CUT_MARK;
}
