/** The session against a model of an engine that loses connections at any point. Pure: no process, no clock. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Session, WINDOW_BYTES } from "../src/session.js";

const log = (text) => ({ kind: "log", value: { text, source: "" } });
const progress = (done) => ({ kind: "progress", value: { done } });
const complete = { kind: "complete", value: { resultJson: "1" } };
const checkpoint = (size = 1) => ({ kind: "checkpoint", value: { name: "", data: Buffer.alloc(size) } });
const ack = (number, result = "OK", seq = number) => ({ jobId: "j", leaseToken: "t", number, result, seq, message: "" });

/** A session that holds the job `j` under the token `t`, online. */
function holding(options) {
  const session = new Session(options);
  session.welcomed([], []);
  assert.deepEqual(session.assign("j", "t"), []);
  assert.equal(session.assign("j", "t"), null);
  return session;
}

/** The next report, sent alone. */
const next = (session) => session.nextReports(1)[0] ?? null;

test("reports that leave together are bounded and keep their order", () => {
  const s = holding();
  s.assign("k", "u");
  for (const text of ["0", "1", "2"]) {
    s.push("j", "t", log(text));
    s.push("k", "u", log(text));
  }
  const numbers = (most) => s.nextReports(most).map(({ jobId, number }) => `${jobId}${number}`);
  assert.deepEqual(numbers(2), ["j1", "j2"]);
  assert.deepEqual(numbers(9), ["k1", "k2", "k3", "j3"]);
  assert.deepEqual(numbers(9), []);
  for (let i = 0; i < 40; i += 1) s.push("k", "u", log("x".repeat(16 * 1024)));
  assert.equal(numbers(256).length, 16);
});

function sendAll(session) {
  const sent = [];
  for (let report = next(session); report; report = next(session)) sent.push(report);
  return sent;
}

test("j4 unanswered reports are sent again under their numbers", () => {
  const s = holding();
  for (const text of ["a", "b", "c"]) assert.equal(s.push("j", "t", log(text), text), "queued");
  assert.equal(next(s).number, 1);
  assert.equal(next(s).number, 2);
  s.disconnected();
  assert.equal(next(s), null);
  assert.deepEqual(s.held(), [{ jobId: "j", leaseToken: "t" }]);
  assert.deepEqual(s.welcomed([{ jobId: "j", lastReport: 1 }], []), [{ type: "answered", tag: "a", answer: { result: "stored" } }]);
  assert.deepEqual(sendAll(s).map(({ number, log }) => [number, log.text]), [[2, "b"], [3, "c"]]);
});

test("progress that has not left is replaced, but never across a checkpoint", () => {
  const s = holding();
  s.push("j", "t", progress(1));
  s.push("j", "t", log("x"));
  s.push("j", "t", progress(2));
  s.push("j", "t", checkpoint());
  s.push("j", "t", progress(3));
  const sent = sendAll(s);
  assert.deepEqual(sent.map(({ number }) => number), [1, 2, 3, 4]);
  assert.deepEqual(sent[1].progress, { done: 2 });
  // Sent means fixed: the next one queues behind it.
  s.push("j", "t", progress(4));
  assert.equal(next(s).number, 5);
});

test("without coalescing every progress report is sent", () => {
  const s = holding({ coalesce: false });
  for (let done = 1; done <= 5; done += 1) s.push("j", "t", progress(done));
  assert.equal(sendAll(s).length, 5);
});

test("j1 a lost lease sends nothing more", () => {
  const s = holding();
  s.push("j", "t", log("a"), "a");
  s.push("j", "t", log("b"), "b");
  next(s);
  const effects = s.acked(ack(1, "LEASE_LOST", 0));
  assert.deepEqual(effects.map(({ type }) => type), ["answered", "answered", "lost"]);
  assert.equal(effects[0].answer.result, "gone");
  assert.equal(next(s), null);
  assert.ok(s.isEmpty);
  assert.equal(s.push("j", "t", log("c")), "gone");
});

test("a lease of which Welcome says nothing is lost", () => {
  const s = holding();
  s.disconnected();
  assert.deepEqual(s.welcomed([], []).map(({ type }) => type), ["lost"]);
});

test("j1 answers and orders for another lease are ignored", () => {
  const s = holding();
  s.push("j", "t", log("a"), "a");
  next(s);
  assert.deepEqual(s.acked({ ...ack(1, "LEASE_LOST", 0), leaseToken: "old" }), []);
  assert.deepEqual(s.lost({ jobId: "j", leaseToken: "old", reason: "" }), []);
  assert.deepEqual(s.cancel({ jobId: "j", leaseToken: "old" }), []);
  assert.equal(s.acked(ack(1)).length, 1);
});

test("j10 a completion that races a cancellation is followed by stopped", () => {
  const s = holding();
  s.push("j", "t", complete);
  next(s);
  assert.deepEqual(s.acked(ack(1, "CANCELLED", 0)).map(({ type }) => type), ["cancel"]);
  assert.ok(next(s).stopped);
  // Stored although the order to stop came with it: that is the end.
  assert.deepEqual(s.acked(ack(2, "CANCELLED", 9)).map(({ type }) => type), ["cancel", "ended"]);
});

test("j37 a result that is refused fails the job", () => {
  const s = holding();
  s.push("j", "t", complete);
  assert.equal(s.push("j", "t", log("late")), "gone", "nothing follows the end");
  next(s);
  assert.deepEqual(s.acked({ ...ack(1, "REJECTED", 0), message: "too deep" }), []);
  const { number, fail } = next(s);
  assert.deepEqual([number, fail.code, fail.message], [2, "result_too_large", "too deep"]);
  assert.deepEqual(s.acked(ack(2)), [{ type: "ended", jobId: "j" }]);
  assert.ok(s.isEmpty);
});

test("j1 a new assignment of the same job ends the old lease", () => {
  const s = holding();
  s.push("j", "t", log("old"), "old");
  assert.deepEqual(s.assign("j", "t2").map(({ type }) => type), ["answered", "lost"]);
  s.push("j", "t2", log("new"));
  const { number, leaseToken } = next(s);
  assert.deepEqual([number, leaseToken], [1, "t2"]);
});

test("jobs take turns", () => {
  const s = holding();
  s.assign("k", "u");
  for (let i = 0; i < 2; i += 1) {
    s.push("j", "t", log("j"));
    s.push("k", "u", log("k"));
  }
  assert.deepEqual(sendAll(s).map(({ jobId }) => jobId), ["j", "k", "j", "k"]);
});

test("an answer that only a newer engine knows counts as stored", () => {
  const s = holding();
  s.push("j", "t", checkpoint(), "c");
  next(s);
  assert.deepEqual(s.acked(ack(1, "17")), [{ type: "answered", tag: "c", answer: { result: "stored" } }]);
});

test("j40 a flood that nobody awaits is bounded, and what was dropped is said in its place", () => {
  const s = holding();
  let dropped = 0;
  for (let i = 0; i < 10_000; i += 1) {
    if (s.push("j", "t", log(`line ${i}`)) === "dropped") dropped += 1;
    s.push("j", "t", progress(i));
  }
  assert.equal(s.push("j", "t", checkpoint()), "full");
  const sent = sendAll(s);
  assert.ok(sent.length <= 256, `${sent.length} reports on the wire, unanswered`);
  let kept = sent.filter(({ log }) => log).length;
  let newest;
  let last = 0;
  for (const queue = [...sent]; queue.length > 0;) {
    const report = queue.shift();
    assert.equal(report.number, last + 1);
    last = report.number;
    newest = report.progress ?? newest;
    s.acked(ack(report.number));
    const more = sendAll(s);
    kept += more.filter(({ log }) => log).length;
    queue.push(...more);
  }
  assert.ok(kept < 600 && kept + dropped === 10_000, `${kept} kept and ${dropped} dropped`);
  assert.deepEqual(newest, { done: 9_999 }, "the newest progress is never dropped");
  s.push("j", "t", log("after"));
  assert.deepEqual(sendAll(s).map(({ log }) => log.text), [`${dropped} log lines were dropped here: the job says more than the engine takes`, "after"]);
});

test("what is unanswered on the wire is bounded by bytes, too", () => {
  const s = holding();
  for (let i = 0; i < 30; i += 1) s.push("j", "t", checkpoint(64 * 1024), i);
  assert.equal(sendAll(s).length, WINDOW_BYTES / (64 * 1024));
  assert.ok(s.isFull("j", "t"));
  s.acked(ack(1));
  assert.equal(sendAll(s).length, 1, "an answer makes room");
});

/** A small generator with a seed (mulberry32), so that a failing history can be had again. */
function random(seed) {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

test("j5 a broken stream loses and doubles nothing, whatever is cut when", () => {
  for (let seed = 1; seed <= 2_000; seed += 1) {
    const pick = random(seed);
    const s = holding();
    const logs = [];
    const open = new Set();
    const stored = [];
    let wire = [];
    let answers = [];
    let last = 0;
    let newest;
    let count = 0;
    const store = (report) => {
      // An engine takes the next number, and answers one that it has already stored again.
      assert.ok(report.number <= last + 1, `seed ${seed}: a hole, ${report.number} after ${last}`);
      if (report.number <= last) return;
      last = report.number;
      stored.push(report);
    };
    const close = (effects) => { for (const { tag } of effects) assert.ok(open.delete(tag), `seed ${seed}: answered twice`); };
    const steps = {
      push() {
        count += 1;
        if (pick(2) === 0) {
          newest = { done: count };
          s.push("j", "t", progress(count));
        } else {
          logs.push(String(count));
          open.add(count);
          s.push("j", "t", log(String(count)), count);
        }
      },
      send(n) { wire.push(...s.nextReports(n)); },
      store(n) { for (const report of wire.splice(0, n)) { store(report); answers.push(ack(report.number)); } },
      hear(n) { for (const answer of answers.splice(0, n)) close(s.acked(answer)); },
      cut() {
        // What was under way may still arrive, or not; the answers are lost.
        for (const report of wire.splice(0, wire.length >> 1)) store(report);
        [wire, answers] = [[], []];
        s.disconnected();
        close(s.welcomed([{ jobId: "j", lastReport: last }], []));
      },
    };
    const names = ["push", "push", "push", "send", "send", "store", "store", "hear", "hear", "cut"];
    for (let i = pick(120); i >= 0; i -= 1) steps[names[pick(names.length)]](pick(6));
    steps.cut();
    steps.send(999);
    steps.store(999);
    steps.hear(999);
    assert.equal(open.size, 0, `seed ${seed}: every report was answered`);
    assert.ok(s.isFlushed("j", "t"));
    assert.deepEqual(stored.filter(({ log }) => log).map(({ log }) => log.text), logs, `seed ${seed}`);
    assert.deepEqual(stored.filter(({ progress }) => progress).at(-1)?.progress, newest, `seed ${seed}`);
  }
});
