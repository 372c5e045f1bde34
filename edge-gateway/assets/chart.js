/**
 * Line charts of custom events, as SVG.
 *
 * Reads what looks like series of numbers and draws at most `MAX_SERIES` lines of `MAX_POINTS` points over one range.
 * No axes, no interaction, no state: each picture is made anew.
 */

import { make } from './dom.js';
import { formatShort } from './format.js';

export const MAX_POINTS = 500;
/** As many as the style sheet has colours. */
const MAX_SERIES = 4;
const WIDTH = 400;
const HEIGHT = 96;
/** Keeps the line's stroke inside the picture. */
const MARGIN = 4;

/**
 * Reads `{"series": […]}`, `{"x": […], "y": […]}`, or `points` collected from many `{"x", "y"}`.
 * @returns {{name: string, points: [number, number][]}[]|null} null when it is no chart
 */
export function chartSeries({ data, points }) {
  const series = readSeries(data) ?? [{ name: '', points }];
  return series.some((one) => one.points.length) ? series : null;
}

function readSeries(data) {
  if (Array.isArray(data?.series)) {
    if (!data.series.every((item) => Array.isArray(inner(item)))) {
      return [{ name: axisName(data), points: asPoints(data.series) }];
    }
    return data.series
      .slice(0, MAX_SERIES)
      .map((item) => ({ name: String(item.name ?? ''), points: asPoints(inner(item)) }));
  }
  if (Array.isArray(data?.x) && Array.isArray(data?.y)) {
    return [{ name: '', points: asPoints(data.y.map((y, index) => [data.x[index], y])) }];
  }
  return null;
}

/** Where one of several series keeps its points. */
const inner = (item) => item?.points ?? item?.data ?? item?.values ?? item?.y;

/** Points may be `[x, y]`, `{x, y}` or a bare `y`; what is no pair of numbers is left out. */
function asPoints(list) {
  return list
    .slice(-MAX_POINTS)
    .map((item, index) => {
      if (Array.isArray(item)) return item;
      return typeof item === 'object' && item ? [item.x, item.y] : [index, item];
    })
    .filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
}

function axisName({ title, x, y }) {
  const axes = [y, x].filter((name) => typeof name === 'string').join(' by ');
  return [title, axes].filter(Boolean).join(', ');
}

/** The picture and the line below it that tells its range. */
export function drawChart(name, series) {
  const all = series.flatMap(({ points }) => points);
  const [xs, ys] = [all.map(([x]) => x), all.map(([, y]) => y)];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const place = ([x, y]) => {
    const across = ((x - left) / (right - left || 1)) * WIDTH;
    const down = HEIGHT - MARGIN - ((y - low) / (high - low || 1)) * (HEIGHT - 2 * MARGIN);
    return `${across.toFixed(1)},${down.toFixed(1)}`;
  };
  const lines = series.map(({ points }, index) => (
    make('polyline', { class: `s${index}`, points: points.map(place).join(' ') })
  ));
  const [from, to, now] = [low, high, ys.at(-1)].map(formatShort);
  const svg = make('svg', {
    class: 'chart',
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: 'none',
    role: 'img',
    'aria-label': `${name}: from ${from} to ${to}, now ${now}`,
    'data-testid': 'chart',
  }, ...lines);
  const names = series.map((one) => one.name).filter(Boolean).join(', ');
  const range = make('div', { class: 'range' },
    make('span', {}, `${from} – ${to}`),
    make('span', {}, names),
    make('span', {}, `now ${now}`));
  return [svg, range];
}
