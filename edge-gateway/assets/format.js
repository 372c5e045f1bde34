/**
 * How the page words things: amounts, spans of time, statuses, ids, JSON, errors.
 *
 * Pure: values in, text out. No DOM, no requests; only `formatAgo` reads the clock. Knows the units of a job's
 * progress, but neither jobs nor events.
 */

const MAX_JSON_SHOWN = 8_000;
const MAX_JSON_LINE = 100;
const STATUS_WORDS = {
  SCHEDULED: 'Scheduled',
  QUEUED: 'Queued',
  PROCESSING: 'Running',
  COMPLETED: 'Completed',
  FAILED: 'Failed',
  CANCELLED: 'Cancelled',
};
const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const rough = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

export const formatInteger = (value) => whole.format(value);
export const formatShort = (value) => rough.format(value);

/** A status in words; one that this page does not know yet stands as it is. */
export const statusWord = (status) => STATUS_WORDS[status] ?? status;

/** A number without its unit, except for bytes, which choose theirs: `42,049`, `1.5 MB`. */
export function formatAmount(value, unit) {
  if (unit !== 'bytes') return value < 100 ? rough.format(value) : whole.format(value);
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  return `${rough.format(value / 1000 ** power)} ${['B', 'kB', 'MB', 'GB', 'TB'][power]}`;
}

/** A number with its unit: `24 steps`, `1.5 MB`. */
export function formatMeasure(value, unit) {
  const amount = formatAmount(value, unit);
  return unit && unit !== 'bytes' ? `${amount} ${unit}` : amount;
}

/** A percentage with at most one digit, rounded down so that 100 means done. */
export function formatPercent(percent) {
  return percent >= 100 || percent % 1 === 0 ? String(Math.trunc(percent)) : (Math.floor(percent * 10) / 10).toFixed(1);
}

/** A span in its two largest units, `2 min 05 s`; a coarse one in the largest alone. */
export function formatSpan(seconds, coarse = false) {
  const total = Math.max(0, Math.round(seconds));
  const two = (large, unit, small, rest) => {
    const first = `${Math.floor(large)} ${unit}`;
    return coarse ? first : `${first} ${String(Math.floor(small)).padStart(2, '0')} ${rest}`;
  };
  if (total < MINUTE) return `${total} s`;
  if (total < HOUR) return two(total / MINUTE, 'min', total % MINUTE, 's');
  if (total < DAY) return two(total / HOUR, 'h', (total % HOUR) / MINUTE, 'min');
  return two(total / DAY, 'd', (total % DAY) / HOUR, 'h');
}

/** @param {string} time RFC 3339 */
export function formatAgo(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  return seconds < 5 ? 'now' : `${formatSpan(seconds, true)} ago`;
}

/** The random end of a UUID v7 tells jobs apart; its beginning is the time. */
export const shortId = (jobId) => jobId.slice(-6);

/** JSON on one line if it is short, else indented; cut when it is huge. */
export function showJson(value) {
  const line = JSON.stringify(value) ?? 'none';
  const text = line.length <= MAX_JSON_LINE ? line : JSON.stringify(value, null, 2);
  if (text.length <= MAX_JSON_SHOWN) return text;
  return `${text.slice(0, MAX_JSON_SHOWN)} … (${whole.format(text.length)} characters)`;
}

/** An error of `client.js` with the fields that it complains about, one a line. */
export function explain(error) {
  const fields = (error.fields ?? []).map(({ field, description }) => `${field}: ${description}`);
  return [error.message, ...fields].join('\n');
}
