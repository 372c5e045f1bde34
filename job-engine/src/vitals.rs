//! Whether the tasks that must never end are alive and get on: a loop that died in silence is the worst failure.
//!
//! Each such task holds a [`Pulse`]. It says when it begins to work and when it waits for something to do; a task that
//! works on one thing for longer than its limit, or whose pulse is gone because it ended or panicked, makes
//! [`Vitals::check`] fail with its name, and readiness with it. Does not: restart anything.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The tasks of one part of the engine; clones share them.
#[derive(Clone, Default)]
pub struct Vitals {
    tasks: Arc<Mutex<Vec<Arc<Task>>>>,
}

struct Task {
    name: &'static str,
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum State {
    Waiting,
    WorkingSince(Instant),
    Ended,
}

/// A task's sign of life; the task has ended when it is dropped.
pub struct Pulse(Arc<Task>);

impl Vitals {
    /// The pulse of a new task, which may work on one thing for `limit`. It works from now on.
    pub fn pulse(&self, name: &'static str, limit: Duration) -> Pulse {
        let state = Mutex::new(State::WorkingSince(Instant::now()));
        let task = Arc::new(Task { name, limit, state });
        self.tasks.lock().push(task.clone());
        Pulse(task)
    }

    /// Names the first task that is dead or stuck.
    ///
    /// # Errors
    /// A sentence for a person.
    pub fn check(&self) -> Result<(), String> {
        self.check_at(Instant::now())
    }

    fn check_at(&self, now: Instant) -> Result<(), String> {
        for task in self.tasks.lock().iter() {
            match *task.state.lock() {
                State::Ended => return Err(format!("{} has ended", task.name)),
                State::WorkingSince(since) if now - since > task.limit => {
                    let seconds = (now - since).as_secs();
                    return Err(format!("{} has made no progress for {seconds} s", task.name));
                }
                State::Waiting | State::WorkingSince(_) => {}
            }
        }
        Ok(())
    }
}

impl Pulse {
    /// Something was done, and the next thing has begun.
    pub fn beat(&self) {
        *self.0.state.lock() = State::WorkingSince(Instant::now());
    }

    /// There is nothing to do, for however long.
    pub fn rest(&self) {
        *self.0.state.lock() = State::Waiting;
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        *self.0.state.lock() = State::Ended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn j27_a_dead_or_stuck_task_is_named() {
        let vitals = Vitals::default();
        let minute = Duration::from_secs(60);
        let (idle, busy) = (vitals.pulse("the idler", minute), vitals.pulse("the worker", minute));
        idle.rest();
        assert_eq!(vitals.check(), Ok(()));
        let late = Instant::now() + minute * 2;
        let stuck = vitals.check_at(late).expect_err("the worker works for too long");
        assert!(
            stuck.starts_with("the worker has made no progress for 12") || stuck.contains("119 s"),
            "{stuck}"
        );
        busy.rest();
        assert_eq!(vitals.check_at(late), Ok(()));
        let died = tokio::spawn(async move {
            let _pulse = idle;
            panic!("on purpose");
        });
        died.await.expect_err("it panics");
        assert_eq!(vitals.check(), Err("the idler has ended".into()));
    }
}
