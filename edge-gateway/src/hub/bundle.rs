//! Several logs on one connection: the body of one SSE response that many viewers feed.
//!
//! Over HTTP/1.1 a browser opens six connections to a host, and the seventh stream of a page hangs in silence. A bundle
//! passes on the frames of one [`Viewer`] a job, each with its job and its own cursor around the data, and with the
//! positions of all logs as its id: what EventSource sends back resumes every one of them. Invariants: an id stands
//! behind every event before it and no other, so a break between any two frames loses and doubles nothing; jobs take
//! turns, so a long history delays no other job by more than a burst; what is held of a burst is shared, not copied.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Version;
use http_body::{Body, Frame};
use tidegate_proto::cursor::{Cursor, CursorError};

use super::{
    Position, Registry, StreamId,
    viewer::{Viewer, counted},
};
use crate::{
    caller::Caller,
    limits::StreamPermit,
    metrics::Metrics,
    problem::Problem,
    sse::{self, Goodbye},
};

/// How many jobs share a connection, at most: with usual cursors the id of an event stays below 500 bytes.
pub(crate) const MAX_JOBS: usize = 32;
/// Stands between two positions: no cursor contains it.
pub(crate) const BETWEEN: &str = "~";
/// When enough frames are passed on together.
const BURST: usize = 16 * 1024;

/// The body of one SSE response.
#[derive(Debug)]
pub(crate) struct Bundle {
    members: Vec<Member>,
    /// Whose turn it is.
    turn: usize,
    /// What is sent before anything else.
    greeting: Option<Bytes>,
    closed: bool,
    metrics: Arc<Metrics>,
    _permit: StreamPermit,
}

/// One job of a bundle.
#[derive(Debug)]
struct Member {
    /// How the data of its frames begin.
    head: String,
    /// Its cursor; empty when there is no log.
    position: String,
    /// Nothing when nothing more will come.
    viewer: Option<Viewer>,
    /// Frames that are not passed on yet.
    frames: Bytes,
}

/// Reads the positions of `count` logs, as an id of a bundle names them.
pub(crate) fn positions(text: &str, count: usize) -> Result<Vec<Position>, CursorError> {
    if let Ok(all @ (Position::Earliest | Position::Latest)) = text.parse() {
        return Ok(vec![all; count]);
    }
    // Words are for all logs together. There was no log at an empty place: should there be one now, nothing of it was seen.
    let position = |text: &str| match text {
        "" => Ok(Position::Earliest),
        cursor => cursor.parse().map(Position::After),
    };
    let positions: Vec<_> = text.split(BETWEEN).map(position).collect::<Result<_, _>>()?;
    if positions.len() == count { Ok(positions) } else { Err(CursorError::Malformed) }
}

impl Bundle {
    /// Attaches to the logs of `jobs`, each at its position; `permit` is the connection's slot. Nothing if the end of all has been seen.
    ///
    /// A job that is not there, or is another's, ends at once with a goodbye of its own: were it an error, the loss of one job
    /// would stop an EventSource that follows thirty others.
    pub(crate) async fn open(
        registry: &Registry,
        caller: &Caller,
        jobs: &[&str],
        positions: &[Position],
        permit: StreamPermit,
    ) -> Result<Option<Self>, Problem> {
        let stream = StreamId::random();
        let attached = join_all(
            jobs.iter()
                .zip(positions)
                .map(|(job, position)| registry.attach(caller, job, position, stream, None)),
        )
        .await;
        let mut members = Vec::with_capacity(jobs.len());
        let (mut followed, mut finished) = (false, false);
        for ((job, position), attached) in jobs.iter().zip(positions).zip(attached) {
            let (mut seen, mut viewer, mut frames) = (None, None, Bytes::new());
            match attached {
                Ok(Some(stream)) => {
                    followed = true;
                    seen = stream.position();
                    viewer = Some(stream);
                }
                Ok(None) => {
                    finished = true;
                    if let Position::After(cursor) = position {
                        seen = Some(cursor.clone());
                    }
                }
                Err(Problem::JobNotFound) => frames = sse::goodbye(Goodbye::Deleted, sse::RETRY_MS),
                Err(problem) => return Err(problem),
            }
            members.push(Member {
                head: format!("data: {{\"jobId\":\"{job}\""),
                position: seen.as_ref().map(Cursor::to_string).unwrap_or_default(),
                viewer,
                frames,
            });
        }
        match (followed, finished) {
            (false, false) => Err(Problem::JobNotFound),
            (false, true) => Ok(None),
            (true, _) => Ok(Some(Self::new(members, registry.metrics(), permit))),
        }
    }

    /// Counts each of its streams as open, over this version of HTTP.
    pub(crate) fn over(mut self, version: Version) -> Self {
        for member in &mut self.members {
            member.viewer = member.viewer.take().map(|viewer| viewer.over(version));
        }
        self
    }

    fn new(members: Vec<Member>, metrics: Arc<Metrics>, permit: StreamPermit) -> Self {
        let greeting = Some(sse::retry());
        Self { members, turn: 0, greeting, closed: false, metrics, _permit: permit }
    }

    /// The next frames, the end, or a wait.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(greeting) = self.greeting.take() {
            return Poll::Ready(Some(greeting));
        }
        let mut waits = false;
        let asked = if self.closed { 0 } else { self.members.len() };
        for step in 0..asked {
            let turn = (self.turn + step) % self.members.len();
            let member = &mut self.members[turn];
            if member.frames.is_empty()
                && let Some(viewer) = &mut member.viewer
            {
                match viewer.poll_next(cx) {
                    Poll::Pending => waits = true,
                    Poll::Ready(None) => member.viewer = None,
                    Poll::Ready(Some(bytes)) => {
                        // A job that was removed is the matter of that job; any other goodbye is meant for the connection.
                        if viewer.left().is_some_and(|reason| reason != Goodbye::Deleted.label()) {
                            self.closed = true;
                            return Poll::Ready(Some(bytes));
                        }
                        member.frames = bytes;
                    }
                }
            }
            if !member.frames.is_empty() {
                self.turn = turn + 1;
                return Poll::Ready(Some(self.pass(turn)));
            }
        }
        if waits {
            return Poll::Pending;
        }
        self.closed = true;
        Poll::Ready(None)
    }

    /// Passes on frames of one member, as many as make a burst.
    fn pass(&mut self, turn: usize) -> Bytes {
        let mut out = Vec::with_capacity(self.members[turn].frames.len() + 512);
        while out.len() < BURST && !self.members[turn].frames.is_empty() {
            let frames = &mut self.members[turn].frames;
            let end = frames.windows(2).position(|two| two == b"\n\n").map_or(frames.len(), |end| end + 2);
            let frame = frames.split_to(end);
            self.rewrite(turn, &frame, &mut out);
        }
        out.into()
    }

    /// Writes a frame of one member as one of the bundle.
    fn rewrite(&mut self, turn: usize, frame: &[u8], out: &mut Vec<u8>) {
        let mut cursor: &[u8] = b"";
        for line in frame.split(|byte| *byte == b'\n') {
            if let Some(id) = line.strip_prefix(b"id: ") {
                cursor = id;
                // Ids are printed cursors.
                self.members[turn].position = String::from_utf8_lossy(id).into_owned();
                out.extend_from_slice(b"id: ");
                for (n, member) in self.members.iter().enumerate() {
                    if n > 0 {
                        out.extend_from_slice(BETWEEN.as_bytes());
                    }
                    out.extend_from_slice(member.position.as_bytes());
                }
                out.push(b'\n');
            } else if let Some(data) = line.strip_prefix(b"data: ") {
                out.extend_from_slice(self.members[turn].head.as_bytes());
                if !cursor.is_empty() {
                    out.extend_from_slice(b",\"cursor\":\"");
                    out.extend_from_slice(cursor);
                    out.push(b'"');
                }
                out.extend_from_slice(b",\"data\":");
                out.extend_from_slice(data);
                out.extend_from_slice(b"}\n");
            } else if !line.is_empty() && !line.starts_with(b"retry:") {
                // The event's name, or a comment. How long to wait was said for the whole connection.
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
        out.push(b'\n');
    }
}

impl Body for Bundle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        counted(this.poll_next(cx), &this.metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(job: &str, position: &str, frames: &'static str) -> Member {
        let head = format!("data: {{\"jobId\":\"{job}\"");
        Member {
            head,
            position: position.into(),
            viewer: None,
            frames: Bytes::from_static(frames.as_bytes()),
        }
    }

    fn bundle(members: Vec<Member>) -> Bundle {
        Bundle::new(members, Arc::new(Metrics::new()), StreamPermit::alone())
    }

    fn all(mut bundle: Bundle) -> Vec<String> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut bursts = Vec::new();
        while let Poll::Ready(Some(bytes)) = bundle.poll_next(&mut cx) {
            bursts.push(String::from_utf8(bytes.to_vec()).unwrap());
        }
        bursts
    }

    #[test]
    fn e19_frames_carry_their_job_and_ids_resume_all() {
        let a = "retry: 2000\nevent: connected\ndata: {\"x\":1}\n\nid: 4-e\nevent: log\ndata: \"a b\"\n\nid: 5-e\n\n:\n\n";
        let bursts =
            all(bundle(vec![member("A", "3-e", a), member("B", "0-f", "id: 1-f\nevent: log\ndata: 2\n\n")]));
        assert_eq!(bursts[0], "retry: 2000\n\n");
        let of_a = "event: connected\ndata: {\"jobId\":\"A\",\"data\":{\"x\":1}}\n\n\
                    id: 4-e~0-f\nevent: log\ndata: {\"jobId\":\"A\",\"cursor\":\"4-e\",\"data\":\"a b\"}\n\n\
                    id: 5-e~0-f\n\n:\n\n";
        assert_eq!(bursts[1], of_a);
        let of_b = "id: 5-e~1-f\nevent: log\ndata: {\"jobId\":\"B\",\"cursor\":\"1-f\",\"data\":2}\n\n";
        assert_eq!(bursts[2..], [of_b]);
    }

    #[test]
    fn e32_a_long_history_delays_another_job_by_one_burst() {
        let frame = format!("id: 1-e\nevent: log\ndata: \"{}\"\n\n", "x".repeat(1000));
        let many = frame.repeat(100);
        let mut long = member("A", "0-e", "");
        long.frames = many.into();
        let bursts = all(bundle(vec![long, member("B", "", "id: 1-f\nevent: log\ndata: 2\n\n")]));
        assert!(bursts[1].contains("\"A\"") && bursts[1].len() < BURST + 2 * frame.len());
        assert!(bursts[2].contains("\"B\""), "{}", bursts[2]);
        assert_eq!(bursts.iter().map(|burst| burst.matches("\"A\"").count()).sum::<usize>(), 100);
    }

    #[test]
    fn e24_positions_are_read_strictly() {
        let after = |seq, epoch| Position::After(Cursor::new(seq, epoch));
        assert_eq!(positions("", 2).unwrap(), [Position::Earliest, Position::Earliest]);
        assert_eq!(positions("latest", 1).unwrap(), [Position::Latest]);
        assert_eq!(positions("3-e~~4-f", 3).unwrap(), [after(3, "e"), Position::Earliest, after(4, "f")]);
        assert_eq!(positions("3-e", 1).unwrap(), [after(3, "e")]);
        for (bad, count) in
            [("3-e", 2), ("3-e~4-f", 1), ("3-e~$", 2), ("~~", 2), ("latest~3-e", 2), ("3-e, 4-f", 2)]
        {
            assert!(positions(bad, count).is_err(), "{bad}");
        }
    }
}
