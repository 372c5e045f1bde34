//! What the engine's refusals mean: the one map from gRPC statuses to problems.
//!
//! The reason that the engine gives says most; the code says enough where there is none.

use tidegate_proto::cursor::CursorError;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Field, Problem};
use crate::json;

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let detail = || status.message().to_owned();
        let invalid = || match status.get_details_bad_request() {
            Some(bad) => {
                let field = |v: tonic_types::FieldViolation| Field {
                    field: json::field_name(&v.field).to_owned(),
                    description: v.description,
                };
                let fields: Vec<_> = bad.field_violations.into_iter().map(field).collect();
                let words: Vec<_> =
                    fields.iter().map(|f| format!("{}: {}", f.field, f.description)).collect();
                Self::InvalidArgument { detail: words.join("; "), fields }
            }
            None => Self::InvalidArgument { detail: detail(), fields: Vec::new() },
        };
        if let Some(info) = info.filter(|info| info.domain == "tidegate") {
            match info.reason.as_str() {
                "UNKNOWN_KIND" => {
                    let known = info.metadata.get("known").map_or("", String::as_str);
                    let known = known.split(',').filter(|k| !k.is_empty()).map(str::to_owned).collect();
                    return Self::UnknownKind { detail: detail(), known };
                }
                "INVALID_ARGUMENT" => return invalid(),
                "JOB_NOT_FOUND" => return Self::JobNotFound,
                "SCHEDULE_NOT_FOUND" => return Self::ScheduleNotFound,
                "MALFORMED_JOB_ID" => return Self::MalformedJobId,
                "MALFORMED_CURSOR" => return Self::MalformedCursor(CursorError::Malformed),
                "STATE_FORBIDS" => return Self::Conflict(detail()),
                "IDEMPOTENCY_CONFLICT" => return Self::IdempotencyConflict,
                "UNIQUE_CONFLICT" => return Self::UniqueConflict,
                "STORE_UNAVAILABLE" => return Self::EngineUnavailable,
                "RESOURCE_EXHAUSTED" => return Self::ResourceExhausted(detail()),
                _ => {} // a newer engine: its code still says enough
            }
        }
        match status.code() {
            Code::NotFound => Self::JobNotFound,
            Code::InvalidArgument | Code::OutOfRange => invalid(),
            Code::AlreadyExists => Self::IdempotencyConflict,
            Code::FailedPrecondition => Self::Conflict(detail()),
            Code::ResourceExhausted => Self::ResourceExhausted(detail()),
            // Tonic reports a connection that broke under a call as Unknown or Cancelled.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
                Self::EngineUnavailable
            }
            Code::Unknown if std::error::Error::source(&status).is_some() => Self::EngineUnavailable,
            // It is the gateway that is refused, not its caller, and that passes when it gets a token that is good.
            Code::Unauthenticated | Code::PermissionDenied => {
                tracing::error!(
                    message = status.message(),
                    "the engine refuses this gateway: see --engine-token-file"
                );
                Self::EngineUnavailable
            }
            Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss | Code::Unimplemented => {
                tracing::error!(code = ?status.code(), message = status.message(), "the engine failed a call");
                Self::Internal
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use axum::response::IntoResponse as _;
    use http::{StatusCode, header};
    use tonic_types::ErrorDetails;

    use super::*;

    fn status_of(status: Status) -> (&'static str, u16) {
        let (slug, status, _) = Problem::from(status).kind();
        (slug, status.as_u16())
    }

    #[test]
    fn e17_what_cannot_be_known_is_never_not_found() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Aborted] {
            assert_eq!(status_of(Status::new(code, "")), ("engine-unavailable", 503));
        }
        let details = ErrorDetails::with_error_info("STORE_UNAVAILABLE", "tidegate", HashMap::new());
        let status = Status::with_error_details(Code::NotFound, "cannot tell", details);
        assert_eq!(status_of(status), ("engine-unavailable", 503));
        // The gateway's own credential is not good; that says nothing of the job, nor of who asks.
        for code in [Code::Unauthenticated, Code::PermissionDenied] {
            assert_eq!(status_of(Status::new(code, "")), ("engine-unavailable", 503));
        }
    }

    #[test]
    fn every_reason_of_the_engine_has_its_problem() {
        for (reason, slug) in [
            ("UNKNOWN_KIND", "unknown-kind"),
            ("INVALID_ARGUMENT", "invalid-argument"),
            ("JOB_NOT_FOUND", "job-not-found"),
            ("SCHEDULE_NOT_FOUND", "schedule-not-found"),
            ("MALFORMED_JOB_ID", "malformed-job-id"),
            ("MALFORMED_CURSOR", "malformed-cursor"),
            ("STATE_FORBIDS", "conflict"),
            ("IDEMPOTENCY_CONFLICT", "idempotency-conflict"),
            ("UNIQUE_CONFLICT", "unique-conflict"),
            ("STORE_UNAVAILABLE", "engine-unavailable"),
            ("RESOURCE_EXHAUSTED", "quota-exceeded"),
        ] {
            let details = ErrorDetails::with_error_info(reason, "tidegate", HashMap::new());
            let status = Status::with_error_details(Code::Unknown, "x", details);
            assert_eq!(status_of(status).0, slug, "{reason}");
        }
    }

    #[test]
    fn e52_a_bound_of_the_engine_is_told_as_a_quota_is() {
        let details = ErrorDetails::with_error_info("RESOURCE_EXHAUSTED", "tidegate", HashMap::new());
        let status = Status::with_error_details(Code::ResourceExhausted, "the queue is full", details);
        let response = Problem::from(status).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let wait: u32 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert!((1..=5).contains(&wait), "{wait}");
        let problem = Problem::ResourceExhausted(String::new());
        assert_eq!(
            problem.uri(problem.kind().0),
            "https://iana.org/assignments/http-problem-types#quota-exceeded"
        );
    }

    #[test]
    fn known_kinds_and_fields_are_passed_on() {
        let known = HashMap::from([("known".to_owned(), "a,b".to_owned())]);
        let details = ErrorDetails::with_error_info("UNKNOWN_KIND", "tidegate", known);
        let problem = Problem::from(Status::with_error_details(Code::InvalidArgument, "no", details));
        assert!(matches!(problem, Problem::UnknownKind { known, .. } if known == ["a", "b"]));
        let details = ErrorDetails::with_bad_request_violation("kind", "is empty");
        let problem = Problem::from(Status::with_error_details(Code::InvalidArgument, "no", details));
        assert!(matches!(problem, Problem::InvalidArgument { fields, .. } if fields[0].field == "kind"));
    }
}
