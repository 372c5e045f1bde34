//! The Tidegate contract: protobuf messages, gRPC services, and the cursor.
//!
//! Everything that two parts of Tidegate must agree on is here and nowhere else. The messages are generated
//! from `proto/tidegate/v1/*.proto`; this crate adds the [`cursor`], the [`limits`], and the [`bearer`] token of
//! calls. It does no I/O but read that token, except for the `pool` of engines that gateway and worker share, which is a
//! feature of its own.

pub mod bearer;
pub mod cursor;
pub mod limits;
#[cfg(feature = "pool")]
pub mod pool;

/// The generated messages and services of `tidegate.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("tidegate.v1");

    impl JobState {
        /// Whether a job in this state has ended.
        pub fn is_terminal(self) -> bool {
            matches!(self, JobState::Completed | JobState::Failed | JobState::Cancelled)
        }

        /// The state's name without the enum prefix, as the HTTP side writes it: `QUEUED`.
        pub fn short_name(self) -> &'static str {
            self.as_str_name().trim_start_matches("JOB_STATE_")
        }

        /// The inverse of [`JobState::short_name`].
        pub fn from_short_name(name: &str) -> Option<Self> {
            Self::from_str_name(&format!("JOB_STATE_{name}")).filter(|s| *s != Self::Unspecified)
        }
    }

    impl Event {
        /// Whether this event ends the job's log (until a retry).
        pub fn is_terminal(&self) -> bool {
            matches!(
                self.kind,
                Some(event::Kind::Complete(_) | event::Kind::Failed(_) | event::Kind::Cancelled(_))
            )
        }
    }
}

/// The serialised descriptor set of `tidegate.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tidegate.bin"));
