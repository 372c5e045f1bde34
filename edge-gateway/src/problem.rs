//! Every refusal, as an RFC 9457 problem document.
//!
//! One type for what can go wrong, one exhaustive map from gRPC statuses into it ([`status`]), and one from it to HTTP. Invariant:
//! what cannot be known (engine away, store away) is never told as "not found".

mod status;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tidegate_auth::{Refused, Scope};
use tidegate_proto::cursor::CursorError;
use utoipa::ToSchema;

use crate::{access, hub::jittered_retry, limits::Refusal, sse::Goodbye};

/// A field of a request that breaks a rule.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Field {
    /// The field's path, such as `options.maxAttempts`.
    field: String,
    /// What the field must be.
    description: String,
}

/// Which problem an answer tells of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slug(pub(crate) &'static str);

/// Why a request was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("the body is not the JSON that was expected: {message} (line {line}, column {column})")]
    MalformedJson { message: String, line: usize, column: usize },
    #[error("{detail}")]
    InvalidArgument { detail: String, fields: Vec<Field> },
    #[error("{detail}")]
    UnknownKind { detail: String, known: Vec<String> },
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the request took too long to arrive")]
    RequestTimeout,
    #[error("a page of another site may not call this address")]
    CrossOrigin,
    #[error(
        "this gateway asks nobody who they are, and so answers to no public name: call it localhost, configure \
         authentication, or start it with --insecure"
    )]
    ForeignHost,
    #[error("{}", .0.map_or("present a bearer token, an API key, a session cookie or a ticket".into(), |why| why.to_string()))]
    Unauthenticated(Option<Refused>),
    #[error("this needs the scope {}", .0.name())]
    InsufficientScope(Scope),
    #[error("the keys of the token's issuer cannot be had now; try again later")]
    AuthUnavailable,
    #[error(
        "no cursor may stand beside a ticket, which would open the stream to whoever reads the address; name it when asking for the ticket"
    )]
    CursorBesideTicket,
    #[error("there is no such job, or it is not yours")]
    JobNotFound,
    #[error("there is no such schedule, or it is not yours")]
    ScheduleNotFound,
    #[error("a job id is a UUID such as 01900000-0000-7000-8000-000000000000")]
    MalformedJobId,
    #[error("{0}")]
    MalformedCursor(#[from] CursorError),
    #[error("{0}")]
    Conflict(String),
    #[error("this idempotency key was used with another request")]
    IdempotencyConflict,
    #[error("another unfinished job has this unique key")]
    UniqueConflict,
    #[error("this address does not offer that method")]
    MethodNotAllowed,
    #[error("events are offered as text/event-stream, a single job as application/json, too")]
    NotAcceptable,
    #[error("there is nothing at this address")]
    NotFound,
    #[error("a quota is used up: {}; try again in {} s", .0.violated().join(", "), .0.retry_after)]
    QuotaExceeded(Box<Refusal>),
    #[error("as many streams are open as the gateway serves; try again later")]
    TooManyStreams,
    #[error("{0}")]
    ResourceExhausted(String),
    #[error("the job engine does not answer; try again later")]
    EngineUnavailable,
    #[error("this gateway is shutting down; try again")]
    Draining,
    #[error("something went wrong here; the log has the request id")]
    Internal,
}

impl Problem {
    /// A request that breaks a rule.
    pub(crate) fn invalid(detail: &str) -> Self {
        Self::InvalidArgument { detail: detail.to_owned(), fields: Vec::new() }
    }

    /// A field that breaks a rule.
    pub(crate) fn field(field: &str, description: &str) -> Self {
        let fields = vec![Field { field: field.to_owned(), description: description.to_owned() }];
        Self::InvalidArgument { detail: format!("{field}: {description}"), fields }
    }

    /// The slug of the type, the status, and the title.
    fn kind(&self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::MalformedJson { .. } => ("malformed-json", S::BAD_REQUEST, "Malformed JSON"),
            Self::InvalidArgument { .. } => ("invalid-argument", S::BAD_REQUEST, "Invalid argument"),
            Self::UnknownKind { .. } => ("unknown-kind", S::BAD_REQUEST, "Unknown kind of job"),
            Self::BodyTooLarge { .. } => ("body-too-large", S::PAYLOAD_TOO_LARGE, "Body too large"),
            Self::RequestTimeout => ("request-timeout", S::REQUEST_TIMEOUT, "Request timeout"),
            Self::CrossOrigin => ("cross-origin", S::FORBIDDEN, "Cross-origin request"),
            Self::ForeignHost => ("foreign-host", S::MISDIRECTED_REQUEST, "Foreign host"),
            Self::Unauthenticated(_) => ("unauthenticated", S::UNAUTHORIZED, "Authentication required"),
            Self::InsufficientScope(_) => ("insufficient-scope", S::FORBIDDEN, "Insufficient scope"),
            Self::AuthUnavailable => {
                ("auth-unavailable", S::SERVICE_UNAVAILABLE, "Authentication unavailable")
            }
            Self::CursorBesideTicket => ("cursor-beside-ticket", S::BAD_REQUEST, "Cursor beside a ticket"),
            Self::JobNotFound => ("job-not-found", S::NOT_FOUND, "Job not found"),
            Self::ScheduleNotFound => ("schedule-not-found", S::NOT_FOUND, "Schedule not found"),
            Self::MalformedJobId => ("malformed-job-id", S::BAD_REQUEST, "Malformed job id"),
            Self::MalformedCursor(_) => ("malformed-cursor", S::BAD_REQUEST, "Malformed cursor"),
            Self::Conflict(_) => ("conflict", S::CONFLICT, "The job's state forbids it"),
            Self::IdempotencyConflict => ("idempotency-conflict", S::CONFLICT, "Idempotency key reused"),
            Self::UniqueConflict => ("unique-conflict", S::CONFLICT, "Unique key taken"),
            Self::MethodNotAllowed => ("method-not-allowed", S::METHOD_NOT_ALLOWED, "Method not allowed"),
            Self::NotAcceptable => ("not-acceptable", S::NOT_ACCEPTABLE, "Not acceptable"),
            Self::NotFound => ("not-found", S::NOT_FOUND, "Not found"),
            Self::QuotaExceeded(_) | Self::ResourceExhausted(_) => {
                ("quota-exceeded", S::TOO_MANY_REQUESTS, "Quota exceeded")
            }
            Self::TooManyStreams => {
                ("temporary-reduced-capacity", S::SERVICE_UNAVAILABLE, "Temporarily reduced capacity")
            }
            Self::EngineUnavailable => ("engine-unavailable", S::SERVICE_UNAVAILABLE, "Engine unavailable"),
            Self::Draining => ("draining", S::SERVICE_UNAVAILABLE, "Shutting down"),
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR, "Internal error"),
        }
    }

    /// The slug alone, as answers carry it to whoever counts them.
    pub(crate) fn slug(&self) -> Slug {
        Slug(self.kind().0)
    }

    /// The goodbye that says the same in-band, if the refusal passes.
    pub(crate) fn goodbye(&self) -> Option<Goodbye> {
        match self {
            Self::TooManyStreams => Some(Goodbye::TooManyStreams),
            Self::QuotaExceeded(_) | Self::ResourceExhausted(_) => Some(Goodbye::Limit),
            Self::EngineUnavailable => Some(Goodbye::EngineUnavailable),
            Self::Draining => Some(Goodbye::Draining),
            Self::AuthUnavailable => Some(Goodbye::AuthUnavailable),
            _ => None,
        }
    }
}

impl Problem {
    /// When trying again makes sense, in milliseconds, if it ever does.
    pub(crate) fn retry_ms(&self) -> Option<u32> {
        self.goodbye()?;
        match self {
            Self::QuotaExceeded(refusal) => {
                let wait = refusal.retry_after.saturating_mul(1000);
                Some(wait.saturating_add(rand::random_range(0..1000)))
            }
            _ => Some(jittered_retry()),
        }
    }

    /// The type: a registered one where there is one, ours otherwise.
    fn uri(&self, slug: &str) -> String {
        match self {
            // draft-ietf-httpapi-ratelimit-headers-10, section 5
            Self::QuotaExceeded(_) | Self::ResourceExhausted(_) | Self::TooManyStreams => {
                format!("https://iana.org/assignments/http-problem-types#{slug}")
            }
            _ => format!("/problems/{slug}"),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::QuotaExceeded(Box::new(refusal))
    }
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Document<'a> {
    /// Which problem: an address where it is described.
    #[schema(schema_with = crate::problems::types)]
    r#type: String,
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What went wrong this time, for people.
    detail: String,
    /// Of `invalid-argument`: which fields, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Field>>)]
    fields: Option<&'a [Field]>,
    /// Of `unknown-kind`: the kinds on offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    known: Option<&'a [String]>,
    /// Of `quota-exceeded` and `temporary-reduced-capacity`: the policies, as `RateLimit-Policy` names them.
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<&'static str>,
    /// Of `malformed-json`, from 1; as is `column`.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (slug, status, title) = self.kind();
        let mut document = Document {
            r#type: self.uri(slug),
            title,
            status: status.as_u16(),
            detail: self.to_string(),
            fields: None,
            known: None,
            violated_policies: Vec::new(),
            line: None,
            column: None,
        };
        match &self {
            Self::InvalidArgument { fields, .. } => document.fields = Some(fields),
            Self::UnknownKind { known, .. } => document.known = Some(known),
            Self::QuotaExceeded(refusal) => document.violated_policies = refusal.violated(),
            Self::TooManyStreams => document.violated_policies = vec!["streams-process"],
            Self::MalformedJson { line, column, .. } => {
                (document.line, document.column) = (Some(*line), Some(*column));
            }
            _ => {}
        }
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = access::challenge(&self) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(wait) = self.retry_ms() {
            // Seconds, not before the goodbye would have called the client back.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.div_ceil(1000)));
        }
        response.extensions_mut().insert(Slug(slug));
        if let Self::QuotaExceeded(refusal) = self {
            response.extensions_mut().insert(refusal.standing);
        }
        response
    }
}
