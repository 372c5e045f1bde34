"""The suite sees what it is to see: a right worker passes, and each fault turns its case red, for the right reason."""

import asyncio
import pathlib
import re
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import broken_worker  # noqa: E402
from suite.runner import run, supervised  # noqa: E402

# Which case sees a fault, and what its diagnosis says.
FAULTS = {
    # First, because it is seen by waiting for long.
    "loses_unanswered_reports": ("j4_an_end_that_is_not_stored_is_sent_again", "not within 30 s: the next report"),
    "says_no_name": ("hello_is_first_and_complete", "Hello has no name"),
    "reports_before_the_welcome": ("hello_is_first_and_complete", "a ping came before the Welcome"),
    "skips_a_number": ("j38_a_job_reports_everything_in_order", "expected report number 2, got report 3"),
    "forgets_the_token": ("j38_a_job_reports_everything_in_order", "carries the token '', which was never assigned"),
    "rounds_numbers": ("j38_a_job_reports_everything_in_order", "64-bit numbers stay exact"),
    "loses_the_last_progress": ("the_last_progress_comes_before_what_follows_it", "the last value is never lost"),
    "exceeds_its_capacity": ("jobs_run_side_by_side_up_to_the_capacity", "expected a released, got report 1 complete"),
    "runs_assignments_twice": ("an_assignment_that_is_held_already_is_ignored", "report 1 .* was sent a second time|began 2 times"),
    "shows_stack_traces": ("j9_an_unexpected_error_fails_its_job_alone", "several lines"),
    "does_not_wait_for_answers": ("j3_a_checkpoint_call_waits_for_its_answer", "returned before its report was answered"),
    "forgets_the_checkpoint": ("j2_a_job_resumes_from_its_checkpoint", "attempt 2 resumed from .*None"),
    "believes_rejected_checkpoints": ("a_rejected_report_is_its_calls_error_alone", r"the calls' errors are \[\]"),
    "takes_any_answer": ("j1_answers_for_another_token_are_ignored", "took the answer to another lease's report"),
    "dies_of_unknown_messages": ("e57_messages_and_fields_of_a_newer_engine_are_ignored", "the worker exited with code 4"),
    "sends_what_is_too_large": ("j37_what_is_too_large_is_refused_before_it_is_sent", "a checkpoint of 65 bytes was sent"),
    "grows": ("e36_a_flood_waits_for_a_slow_engine", "memory grew by"),
    "swallows_log_lines": ("e36_a_flood_waits_for_a_slow_engine", "no line of level WARN says"),
    "ignores_cancel": ("j10_a_cancelled_job_stops", 'not within 10 s: .*"stopping"'),
    "completes_when_cancelled": ("j10_a_cancelled_job_reports_stopped_whatever_it_returns", "ends with `stopped`, not with report 2 complete"),
    "lets_the_deaf_run": ("j11_a_job_that_ignores_its_cancellation_is_cut_off", "not within 5 s: `stopped`"),
    "hears_any_token": ("j1_a_cancellation_for_another_token_is_ignored", "a cancellation of another lease ended the job"),
    "tells_the_lost_end": ("j1_a_lost_lease_stops_its_job_without_a_word", "report 2 stopped .* was sent although its lease is lost"),
    "keeps_a_lost_job_running": ("j1_a_lost_lease_stops_its_job_without_a_word", 'not within 10 s: .*"end"'),
    "reports_under_a_lost_lease": (
        "j1_a_handler_that_goes_on_after_its_lease_is_lost_is_not_heard",
        "report 2 log .* was sent although its lease is lost",
    ),
    "numbers_across_attempts": ("j21_a_new_attempt_replaces_the_old_run_at_once", "expected report number 1, got report 2"),
    "names_no_leases": ("j36_a_stream_that_ends_in_order_is_opened_again", r"Hello names the leases \[\]; the worker holds"),
    "sends_answered_reports_again": ("j36_a_stream_that_ends_in_order_is_opened_again", "but the worker sent again: report 2"),
    "renumbers_reports": ("j36_a_stream_that_ends_in_order_is_opened_again", "expected report number 3, got report 4"),
    "stops_jobs_when_the_stream_breaks": (
        "j5_a_reset_connection_loses_no_report_and_no_job",
        # Which of the two is seen first depends on how fast the worker learns of the break.
        r'not within 10 s: .*"went on"|Hello names the leases \[\]',
    ),
    "keeps_forgotten_leases": ("j2_a_lease_of_which_the_welcome_says_nothing_is_lost", 'not within 10 s: .*"end"'),
    "forgets_cancels_in_the_welcome": ("j12_a_cancellation_waits_in_the_welcome", 'not within 10 s: .*"stopping"'),
    "storms": ("e43_an_engine_that_is_away_is_tried_again_and_not_stormed", "no growing pause"),
    "dies_of_html": ("j37_html_on_the_port_is_said_in_words", "the worker exited with code 3"),
    "never_pings": ("j35_the_ping_interval_is_kept", "not within 10 s: ten pings"),
    "stays_with_a_silent_engine": ("j36_a_silent_engine_is_left", "not within 6 s: the worker leaves an engine that is silent"),
    "ignores_drain": ("j36_an_idle_worker_leaves_a_draining_engine_at_once", "not within 10 s: the worker's Hello at"),
    "does_not_release": ("a_leaving_worker_gives_back_what_it_cannot_finish", "ended with report 2 fail"),
    "exits_with_1": ("an_idle_worker_exits_at_once", "exited with code 1"),
    "exits_unanswered": ("a_leaving_worker_finishes_its_jobs_within_the_grace_time", "exited before its last report"),
    "never_says_leave": ("a_leaving_worker_gives_back_what_it_cannot_finish", "released .* came before `leave`"),
    "batches_unasked": ("an_engine_that_knows_no_batches_is_sent_none", "reports came in one message; the Welcome says nothing of such"),
    "fills_messages_beyond_the_limit": (
        "a_message_holds_no_more_reports_than_the_welcome_allows",
        "reports came in one message; the Welcome allows 3",
    ),
    "hears_the_first_answer_alone": ("answers_that_share_a_message_are_answers", 'not within 30 s: .*"rejected"'),
    "rejects_a_whole_message": ("answers_that_share_a_message_are_answers", "rejected because another report in the same message was"),
    "takes_jobs_while_leaving": ("an_assignment_to_a_leaving_worker_is_given_back", "expected a released, got report 1 log"),
}


def judge(names, fault=""):
    command = ["env", f"WRONG={fault}", sys.executable, str(HERE / "broken_worker.py")]
    # Failures are what is expected here: they are not shown.
    return run(names, command, jobs=4, verbose=False, show=lambda _: None)


class TheSuite(unittest.TestCase):
    def test_every_fault_turns_its_case_red_and_without_it_the_case_is_green(self):
        self.assertEqual(sorted(FAULTS), sorted(broken_worker.FAULTS))

        async def faulty(fault, case, gate):
            async with gate:
                return fault, (await judge([case], fault))[0]

        async def all_at_once():
            # Most faults are seen by waiting, so that many at a time load no machine.
            gate = asyncio.Semaphore(8)
            right = asyncio.ensure_future(judge(sorted({case for case, _ in FAULTS.values()})))
            return await asyncio.gather(*(faulty(fault, case, gate) for fault, (case, _) in FAULTS.items())), await right

        faults, right = supervised(all_at_once())
        for outcome in right:
            with self.subTest(f"{outcome.name}, without a fault"):
                self.assertIsNone(outcome.why)
        for fault, outcome in faults:
            with self.subTest(fault):
                self.assertIsNotNone(outcome.why, f"{outcome.name} does not see it")
                self.assertRegex(outcome.why, re.compile(FAULTS[fault][1], re.S))


if __name__ == "__main__":
    unittest.main()
