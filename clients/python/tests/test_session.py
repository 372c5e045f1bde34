"""The session against a model of an engine that loses connections at any point; no I/O."""

from __future__ import annotations

import random
import unittest

from tidegate._session import (
    GONE,
    LOG_WINDOW,
    MAX_IN_FLIGHT,
    MIN_LOG_COST,
    STORED,
    Answered,
    Cancel,
    Effect,
    Ended,
    Lost,
    Session,
)
from tidegate.v1 import job_pb2 as job
from tidegate.v1 import worker_service_pb2 as wire


def log(text: str) -> wire.Report:
    return wire.Report(log=job.Log(text=text))


def progress(done: int) -> wire.Report:
    return wire.Report(progress=job.Progress(done=done))


def checkpoint(name: str = "") -> wire.Report:
    return wire.Report(checkpoint=job.Checkpoint(name=name))


def complete() -> wire.Report:
    return wire.Report(complete=job.Completed(result_json="1"))


def ack(number: int, result: wire.ReportResult = wire.REPORT_RESULT_OK, seq: int = 0, token: str = "t") -> wire.ReportAck:
    return wire.ReportAck(job_id="j", lease_token=token, number=number, result=result, seq=seq, message="why")


def session() -> Session[int]:
    """A session that holds the job `j` under the token `t`, online."""
    s: Session[int] = Session()
    assert s.welcomed([], []) == []
    assert s.assign("j", "t") == []
    assert s.assign("j", "t") is None
    return s


def resumed(last_report: int) -> list[wire.ResumedLease]:
    return [wire.ResumedLease(job_id="j", last_report=last_report)]


def next_report(s: Session[int]) -> wire.Report | None:
    """The next report, sent alone."""
    return next(iter(s.next_reports(1)), None)


def sent(s: Session[int]) -> list[wire.Report]:
    reports = []
    while (report := next_report(s)) is not None:
        # What is on the wire must not change afterwards.
        copy = wire.Report()
        copy.CopyFrom(report)
        reports.append(copy)
    return reports


class SessionTest(unittest.TestCase):
    def test_j4_unanswered_reports_are_sent_again_under_their_numbers(self) -> None:
        s = session()
        for tag, text in enumerate("abc", 1):
            self.assertTrue(s.push("j", "t", log(text), tag))
        self.assertEqual([next_report(s).number, next_report(s).number], [1, 2])  # type: ignore[union-attr]
        s.disconnected()
        self.assertIsNone(next_report(s))
        self.assertEqual(s.held(), [wire.HeldLease(job_id="j", lease_token="t")])
        self.assertEqual(s.welcomed(resumed(1), []), [Answered(1, STORED)])
        self.assertEqual([(r.number, r.log.text) for r in sent(s)], [(2, "b"), (3, "c")])

    def test_progress_not_yet_sent_is_superseded_but_never_across_a_checkpoint(self) -> None:
        s = session()
        for report in (progress(1), log("x"), progress(2), checkpoint(), progress(3), progress(4)):
            s.push("j", "t", report)
        reports = sent(s)
        self.assertEqual([r.number for r in reports], [1, 2, 3, 4])
        self.assertEqual([r.WhichOneof("body") for r in reports], ["log", "progress", "checkpoint", "progress"])
        self.assertEqual([reports[1].progress.done, reports[3].progress.done], [2, 4])
        # Sent means fixed: the next one queues behind it.
        s.push("j", "t", progress(5))
        self.assertEqual([(r.number, r.progress.done) for r in sent(s)], [(5, 5)])

    def test_j1_a_lost_lease_sends_nothing_more(self) -> None:
        s = session()
        s.push("j", "t", checkpoint(), 1)
        s.push("j", "t", checkpoint(), 2)
        next_report(s)
        effects = s.acked(ack(1, wire.REPORT_RESULT_LEASE_LOST))
        self.assertEqual(effects[:2], [Answered(1, GONE), Answered(2, GONE)])
        self.assertIsInstance(effects[2], Lost)
        self.assertIsNone(next_report(s))
        self.assertTrue(s.is_empty())
        self.assertFalse(s.push("j", "t", log("late")))

    def test_j1_what_belongs_to_another_token_is_ignored(self) -> None:
        s = session()
        s.push("j", "t", checkpoint(), 1)
        next_report(s)
        self.assertEqual(s.acked(ack(1, token="old")), [])
        self.assertEqual(s.acked(ack(1, wire.REPORT_RESULT_LEASE_LOST, token="old")), [])
        self.assertEqual(s.lost(wire.LeaseLost(job_id="j", lease_token="old")), [])
        self.assertEqual(s.cancel(wire.CancelOrder(job_id="j", lease_token="old")), [])
        self.assertFalse(s.push("j", "old", log("late")))
        self.assertEqual(s.acked(ack(1)), [Answered(1, STORED)])

    def test_a_lease_of_which_the_welcome_says_nothing_is_lost(self) -> None:
        s = session()
        s.disconnected()
        self.assertEqual([type(effect) for effect in s.welcomed([], [])], [Lost])

    def test_j10_an_end_that_races_a_cancellation_is_followed_by_stopped(self) -> None:
        s = session()
        s.push("j", "t", complete())
        next_report(s)
        self.assertEqual([type(e) for e in s.acked(ack(1, wire.REPORT_RESULT_CANCELLED))], [Cancel])
        [report] = sent(s)
        self.assertEqual((report.number, report.WhichOneof("body")), (2, "stopped"))
        # Stored although the order to stop came with it: that is the end.
        self.assertEqual([type(e) for e in s.acked(ack(2, wire.REPORT_RESULT_CANCELLED, seq=9))], [Cancel, Ended])

    def test_j12_a_cancellation_waits_in_the_welcome(self) -> None:
        s = session()
        s.disconnected()
        request = job.CancelRequested(by="ada")
        again = [wire.ResumedLease(job_id="j", cancel_requested=request)]
        self.assertEqual(s.welcomed(again, []), [Cancel("j", request)])

    def test_j37_a_rejected_result_fails_the_job(self) -> None:
        s = session()
        s.push("j", "t", complete())
        self.assertFalse(s.push("j", "t", log("late")), "nothing follows the end")
        next_report(s)
        self.assertEqual(s.acked(ack(1, wire.REPORT_RESULT_REJECTED)), [])
        [report] = sent(s)
        self.assertEqual((report.number, report.fail.code, report.fail.message), (2, "result_too_large", "why"))
        self.assertEqual(s.acked(ack(2)), [Ended("j")])
        self.assertTrue(s.is_empty())

    def test_a_new_assignment_of_the_same_job_ends_the_old_lease(self) -> None:
        s = session()
        s.push("j", "t", checkpoint(), 1)
        effects = s.assign("j", "t2")
        assert effects is not None
        self.assertEqual([type(e) for e in effects], [Answered, Lost])
        s.push("j", "t2", log("new"))
        self.assertEqual([(r.number, r.lease_token) for r in sent(s)], [(1, "t2")])

    def test_e36_lines_beyond_the_window_are_left_out_and_counted_in_their_place(self) -> None:
        s = session()
        lines = LOG_WINDOW // MIN_LOG_COST
        for i in range(lines + 7):
            self.assertTrue(s.push("j", "t", log(f"{i}")))
        self.assertTrue(s.is_crowded("j", "t"))
        kept = sent(s)
        self.assertEqual([r.log.text for r in kept], [f"{i}" for i in range(lines)])
        for report in kept[: lines // 2 - 1]:
            s.acked(ack(report.number))
        s.push("j", "t", log("still crowded"))
        self.assertEqual(sent(s), [])
        s.acked(ack(kept[lines // 2 - 1].number))
        s.push("j", "t", log("after"))
        mark, after = sent(s)
        self.assertEqual((mark.log.level, mark.log.text.split()[0]), (job.LOG_LEVEL_WARN, "8"))
        self.assertEqual(after.log.text, "after")
        self.assertEqual(after.number, lines + 2)

    def test_e36_a_gap_in_the_lines_is_owned_up_to_before_the_end(self) -> None:
        s = session()
        for i in range(300):
            s.push("j", "t", log(f"{i}"))
        s.push("j", "t", complete())
        while True:
            reports = sent(s)
            if not reports:
                break
            bodies = [(r.WhichOneof("body"), r.log.text) for r in reports]
            for report in reports:
                s.acked(ack(report.number, seq=1))
        self.assertEqual(bodies[-1][0], "complete")
        self.assertIn("44 log lines left out", bodies[-2][1])
        self.assertTrue(s.is_empty())

    def test_e36_what_is_under_way_is_bounded_and_progress_is_merged_beyond(self) -> None:
        s = session()
        shown = []
        for i in range(1, 10_000):
            s.push("j", "t", progress(i))
            shown += [r.progress.done for r in sent(s)]
        self.assertEqual(shown, list(range(1, MAX_IN_FLIGHT + 1)))
        s.acked(ack(1))
        self.assertEqual([r.progress.done for r in sent(s)], [9_999])

    def test_e57_an_answer_of_a_newer_engine_counts_as_stored(self) -> None:
        s = session()
        s.push("j", "t", checkpoint(), 1)
        next_report(s)
        answer = wire.ReportAck.FromString(ack(1).SerializeToString() + b"\x18\x63")  # result = 99
        self.assertEqual(s.acked(answer), [Answered(1, STORED)])

    def test_j38_jobs_take_turns(self) -> None:
        s = session()
        s.assign("k", "u")
        for i in range(3):
            s.push("j", "t", log(f"j{i}"))
            s.push("k", "u", log(f"k{i}"))
        self.assertEqual([r.log.text for r in sent(s)], ["j0", "k0", "j1", "k1", "j2", "k2"])

    def test_reports_that_leave_together_are_bounded_and_keep_their_order(self) -> None:
        s = session()
        s.assign("k", "u")
        for i in range(3):
            s.push("j", "t", log(str(i)))
            s.push("k", "u", log(str(i)))

        def numbers(most: int) -> list[str]:
            return [f"{r.job_id}{r.number}" for r in s.next_reports(most)]

        self.assertEqual(numbers(2), ["j1", "j2"])
        self.assertEqual(numbers(9), ["k1", "k2", "k3", "j3"])
        self.assertEqual(numbers(9), [])
        for _ in range(40):
            s.push("k", "u", log("x" * 16 * 1024))
        self.assertEqual(len(numbers(256)), 16)

    def test_j5_whatever_breaks_every_report_is_stored_once_and_in_order(self) -> None:
        for seed in range(300):
            with self.subTest(seed=seed):
                self.play(random.Random(seed))

    def play(self, chance: random.Random) -> None:
        """A job reports, the engine stores and answers, and the stream breaks between any two of these."""
        s = session()
        stored: list[wire.Report] = []
        wires: list[wire.Report] = []
        answers: list[int] = []
        said: list[str] = []
        answered: set[int] = set()

        def heed(effects: list[Effect[int]]) -> None:
            for effect in effects:
                if isinstance(effect, Answered):
                    self.assertNotIn(effect.tag, answered, "answered twice")
                    answered.add(effect.tag)
                else:
                    self.assertIsInstance(effect, Ended)

        def disconnect() -> None:
            s.disconnected()
            wires.clear()
            answers.clear()
            if not s.is_empty():
                heed(s.welcomed(resumed(len(stored)), []))
            else:
                s.welcomed([], [])

        def report(body: wire.Report) -> None:
            said.append(f"{body.WhichOneof('body')} {body.log.text or body.checkpoint.name}".strip())
            self.assertTrue(s.push("j", "t", body, len(said)))

        def store() -> None:
            report = wires.pop(0)
            self.assertEqual(report.number, len(stored) + 1, "a hole, or a report that was stored already")
            stored.append(report)
            answers.append(report.number)

        for step in range(chance.randrange(1, 60)):
            match chance.randrange(7):
                case 0 | 1:
                    report(chance.choice([log(f"l{step}"), checkpoint(f"c{step}")]))
                case 2 | 3:
                    for next_one in s.next_reports(chance.randrange(1, 5)):
                        wires.append(wire.Report.FromString(next_one.SerializeToString()))
                case 4 if wires:
                    store()
                case 5 if answers:
                    heed(s.acked(ack(answers.pop(0), seq=1)))
                case 6 if chance.random() < 0.5:
                    disconnect()
        report(complete())
        for _ in range(2):
            wires += sent(s)
            while wires:
                store()
            while answers:
                heed(s.acked(ack(answers.pop(0), seq=1)))
            disconnect()
        shown = [f"{r.WhichOneof('body')} {r.log.text or r.checkpoint.name}".strip() for r in stored]
        self.assertEqual(shown, said)
        self.assertEqual(answered, set(range(1, len(said) + 1)))
        self.assertTrue(s.is_empty())


if __name__ == "__main__":
    unittest.main()
