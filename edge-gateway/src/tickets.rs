//! Tickets: what an `EventSource`, which cannot set headers, puts into its URL instead of a token.
//!
//! A ticket is a sealed text that says for which stream, for whom, and until when; no gateway stores it, and all that
//! share the secret read it. A stream is that of one job or of several on one connection. It lets one in without more for a minute, the time of a first connect. After that it is
//! good for reconnects only, which `EventSource` makes with the same URL: they present the cursor of that very log, or of one
//! of them, in `Last-Event-ID`. The cursor of a first connect is sealed in, and none may stand beside the ticket, so that the URL does
//! not tell what proves a reconnect: what leaks into a log or a history opens nothing a minute later, and the stream's
//! own reconnects work until the token behind the ticket ends.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tidegate_auth::{Principal, Refused};
use tidegate_proto::cursor::Cursor;
use utoipa::ToSchema;

use crate::{
    caller::{Caller, May, Reader, Via},
    hub::{BETWEEN, positions},
    jobs::{self, Body, JobId},
    json,
    openapi::Problems,
    problem::Problem,
    progress,
    routes::App,
};

/// What tickets are sealed for.
pub(crate) const PURPOSE: &str = "ticket";

/// The cursor that `EventSource` sends by itself.
const LAST_EVENT_ID: &str = "last-event-id";

/// What a sealed text says. Names are short, because it stands in a URL.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ticket {
    /// The job whose stream it opens; of several, all in their order.
    #[serde(rename = "j")]
    job: String,
    /// The token of each job's log, of which reconnects must know one; empty if there was no log.
    #[serde(rename = "l")]
    epoch: String,
    /// For whom, until when.
    #[serde(rename = "p")]
    principal: Principal,
    /// Until when it opens the stream without a cursor, in seconds since 1970.
    #[serde(rename = "f")]
    first_use_until: u64,
    /// Where the stream begins then; empty for the beginning.
    #[serde(rename = "b", default, skip_serializing_if = "String::is_empty")]
    begin: String,
}

impl Ticket {
    /// The caller of a request for the stream of `jobs`; a first connect is given the cursor that it begins at.
    pub(crate) fn admit(
        self,
        jobs: Option<&[JobId]>,
        headers: &mut HeaderMap,
        now: u64,
    ) -> Result<Caller, Refused> {
        if jobs.is_none_or(|jobs| joined(jobs.iter().map(JobId::as_str)) != self.job) {
            return Err(Refused::Malformed);
        }
        let given = headers.get(LAST_EVENT_ID);
        if now >= self.first_use_until && !given.is_some_and(|value| self.is_known_to(value)) {
            return Err(Refused::Expired);
        }
        if given.is_none() && !self.begin.is_empty() {
            headers
                .insert(LAST_EVENT_ID, HeaderValue::from_str(&self.begin).map_err(|_| Refused::Malformed)?);
        }
        Ok(Caller { principal: Arc::new(self.principal), via: Via::Ticket })
    }

    /// Whether a cursor shows that its sender has read one of the logs.
    fn is_known_to(&self, cursor: &HeaderValue) -> bool {
        let positions = cursor.to_str().unwrap_or_default().split(BETWEEN);
        let cursors = positions.map(|position| position.parse::<Cursor>().ok());
        // A cursor's token is never empty, so nothing is the cursor of a log that is not there.
        cursors.zip(self.epoch.split(BETWEEN)).any(|(cursor, epoch)| cursor.is_some_and(|c| c.epoch == epoch))
    }
}

/// One text of several, none of which contains what stands between them.
fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join(BETWEEN)
}

/// The ticket in a URL, if there is one; no cursor may stand beside it.
pub(crate) fn of(uri: &Uri) -> Result<Option<String>, Problem> {
    let query = uri.query().unwrap_or_default();
    // A ticket has no character that a URL would escape.
    let named = |name| query.split('&').find_map(|pair| pair.split_once('=').filter(|(n, _)| *n == name));
    let Some((_, ticket)) = named("ticket") else { return Ok(None) };
    if named("lastEventId").or(named("last_event_id")).is_some() {
        return Err(Problem::CursorBesideTicket);
    }
    Ok(Some(ticket.to_owned()))
}

/// For which stream a ticket is: `jobId` or `jobIds` is given.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(as = TicketOrder)]
struct Order {
    /// For the stream of this job.
    #[serde(default)]
    #[schema(format = "uuid")]
    job_id: Option<String>,
    /// For the one stream of these jobs, in the order in which its query names them.
    #[serde(default)]
    #[schema(max_items = 32)]
    job_ids: Vec<String>,
    /// Where a first connect begins, as `lastEventId` names it.
    #[serde(default)]
    cursor: String,
}

/// A ticket for one stream.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Ticket)]
struct Issued<'a> {
    /// For the query of the stream's address.
    ticket: &'a str,
    /// Until when the first connect must come.
    #[schema(format = DateTime)]
    connect_before: String,
    /// Until when reconnects are let in.
    #[schema(format = DateTime)]
    expires_at: String,
}

/// Issue a ticket
///
/// For an `EventSource`, which cannot set headers: it opens the one stream, and lets its reconnects in. Needs the
/// scope `jobs:read`.
#[utoipa::path(
    post, path = "/api/tickets", tag = "access", operation_id = "issueTicket", request_body = Order,
    responses((status = 201, description = "The ticket", body = Issued<'_>), Problems)
)]
pub(crate) async fn issue(
    State(app): State<App>,
    May(caller): Reader,
    body: Body,
) -> Result<Response, Problem> {
    let order: Order = jobs::parse(&body.0?)?;
    let job_ids = match (&order.job_id, &*order.job_ids) {
        (Some(job_id), []) => vec![job_id.parse()?],
        (None, ids) => progress::bundle::several("jobIds", ids.iter().map(|id| &**id))?,
        (Some(_), _) => return Err(Problem::field("jobIds", "must not be given beside jobId")),
    };
    positions(&order.cursor, job_ids.len())?;
    if caller.via == Via::Ticket {
        return Err(Refused::Malformed.into()); // it opens its stream, and nothing else
    }
    let mut epochs = Vec::with_capacity(job_ids.len());
    for job in join_all(job_ids.iter().map(|job_id| jobs::get(&app, &caller, job_id))).await {
        epochs.push(match job {
            Ok(job) => job.epoch,
            Err(Problem::JobNotFound) => String::new(),
            Err(problem) => return Err(problem),
        });
    }
    if epochs.iter().all(String::is_empty) {
        return Err(Problem::JobNotFound);
    }
    let settings = app.access.auth.as_ref().map(tidegate_auth::Authenticator::tickets).unwrap_or_default();
    let now = tidegate_auth::now();
    let ends = (now + settings.lifetime.as_secs()).min(caller.principal.expires.unwrap_or(u64::MAX));
    let ticket = Ticket {
        job: joined(job_ids.iter().map(JobId::as_str)),
        epoch: joined(epochs.iter().map(|epoch| &**epoch)),
        principal: Principal { expires: Some(ends), ..caller.as_reader() },
        first_use_until: (now + settings.first_use.as_secs()).min(ends),
        begin: order.cursor,
    };
    let sealed = app.access.sealer.seal(PURPOSE, &ticket).ok_or(Problem::Internal)?;
    let issued = Issued {
        ticket: &sealed,
        connect_before: json::unix(ticket.first_use_until),
        expires_at: json::unix(ends),
    };
    Ok((StatusCode::CREATED, jobs::json(&issued)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "01900000-0000-7000-8000-000000000001";

    fn ticket() -> Ticket {
        let principal = Principal::clone(&Caller::anonymous().principal);
        Ticket {
            job: JOB.into(),
            epoch: "q7x2ma".into(),
            principal,
            first_use_until: 100,
            begin: "9-q7x2ma".into(),
        }
    }

    #[test]
    fn e45_a_ticket_opens_its_stream_first_without_then_only_with_the_cursor_of_its_log() {
        let admit = |stream: Option<&str>, cursor: Option<&'static str>, now| {
            let jobs: Option<Vec<JobId>> =
                stream.map(|ids| ids.split(BETWEEN).map(|id| id.parse().unwrap()).collect());
            let cursor =
                cursor.map(|cursor| (LAST_EVENT_ID.parse().unwrap(), HeaderValue::from_static(cursor)));
            let mut headers: HeaderMap = cursor.into_iter().collect();
            let admitted = ticket().admit(jobs.as_deref(), &mut headers, now);
            admitted.map(|_| headers[LAST_EVENT_ID].to_str().unwrap().to_owned())
        };
        assert_eq!(admit(Some(JOB), None, 99).unwrap(), "9-q7x2ma", "where it was to begin");
        assert_eq!(admit(Some(JOB), Some("17-q7x2ma"), 99).unwrap(), "17-q7x2ma", "the browser knows better");
        assert_eq!(admit(Some(JOB), None, 100), Err(Refused::Expired));
        assert_eq!(admit(Some(JOB), Some("17-q7x2ma"), 5000).unwrap(), "17-q7x2ma");
        for bad in ["17-other", "", "17", "earliest"] {
            assert_eq!(admit(Some(JOB), Some(bad), 5000), Err(Refused::Expired), "{bad}");
        }
        assert_eq!(admit(None, None, 0), Err(Refused::Malformed));
        let other = "01900000-0000-7000-8000-000000000002";
        assert_eq!(admit(Some(other), Some("17-q7x2ma"), 0), Err(Refused::Malformed));
        assert_eq!(admit(Some(&format!("{JOB}~{other}")), Some("17-q7x2ma"), 0), Err(Refused::Malformed));
    }

    #[test]
    fn e45_a_ticket_of_several_jobs_knows_them_in_their_order_and_their_cursors_in_their_places() {
        let all: [JobId; 3] =
            [1, 2, 3].map(|n| format!("01900000-0000-7000-8000-00000000000{n}").parse().unwrap());
        let admit = |jobs: &[JobId], cursor: &'static str| {
            let mut ticket = ticket();
            ticket.job = joined(all.iter().map(JobId::as_str));
            ticket.epoch = "q7x2ma~~other".into();
            let mut headers =
                HeaderMap::from_iter([(LAST_EVENT_ID.parse().unwrap(), HeaderValue::from_static(cursor))]);
            ticket.admit(Some(jobs), &mut headers, 5000).err()
        };
        for cursor in ["1-q7x2ma~~2-other", "1-q7x2ma~~", "1-q7x2ma~0-new~2-lost", "~~2-other"] {
            assert_eq!(admit(&all, cursor), None, "{cursor}");
        }
        for cursor in ["", "~~", "1-other~~2-q7x2ma", "~1-q7x2ma~", "1-q7x2m~~2-othe", "latest~~"] {
            assert_eq!(admit(&all, cursor), Some(Refused::Expired), "{cursor}");
        }
        let [one, two, three] = all.clone();
        for jobs in
            [&[one.clone()][..], &[one.clone(), two.clone()], &[two.clone(), one.clone(), three.clone()], &[]]
        {
            assert_eq!(admit(jobs, "1-q7x2ma~~2-other"), Some(Refused::Malformed), "{jobs:?}");
        }
    }

    #[test]
    fn the_ticket_is_found_wherever_it_stands_in_the_query() {
        let of = |uri: &'static str| of(&Uri::from_static(uri));
        assert_eq!(of("/api/progress/x?a=1-a&ticket=abc").unwrap().as_deref(), Some("abc"));
        assert_eq!(of("/api/progress/x?ticket=").unwrap().as_deref(), Some(""), "an empty one is a bad one");
        assert_eq!(of("/api/progress/x?aticket=b").unwrap(), None);
        assert_eq!(of("/api/progress/x?lastEventId=1-a").unwrap(), None);
        assert_eq!(of("/api/progress/x").unwrap(), None);
        for cursor in
            ["lastEventId=1-a&ticket=abc", "ticket=abc&last_event_id=1-a", "ticket=abc&lastEventId="]
        {
            let uri: Uri = format!("/api/progress/x?{cursor}").parse().unwrap();
            assert!(matches!(super::of(&uri), Err(Problem::CursorBesideTicket)), "{cursor}");
        }
    }
}
