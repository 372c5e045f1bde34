//! JSON in and out: bodies within their limit and queries, parsed strictly, and answers that nobody stores.

use std::convert::Infallible;

use axum::{
    extract::{FromRequest, Query, Request, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{HeaderValue, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;
use tonic::Status;

use crate::{problem::Problem, routes::MAX_BODY_BYTES};

/// A body, read within its limit.
pub(crate) struct Body(pub(crate) Result<Bytes, Problem>);

/// How much of a body that is too large is read and thrown away: a client that is still sending when the connection is
/// closed may never see the answer.
const DISCARD_BYTES: usize = 8 * MAX_BODY_BYTES;

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        let mut body = request.into_body().into_data_stream();
        let (mut bytes, mut total) = (BytesMut::new(), 0);
        while let Some(data) = body.next().await {
            let Ok(data) = data else {
                return Ok(Self(Err(Problem::invalid("the body could not be read"))));
            };
            total += data.len();
            if total <= MAX_BODY_BYTES {
                bytes.extend_from_slice(&data);
            } else if total > DISCARD_BYTES {
                break;
            }
        }
        let too_large = total > MAX_BODY_BYTES;
        Ok(Self(if too_large {
            Err(Problem::BodyTooLarge { limit: MAX_BODY_BYTES })
        } else {
            Ok(bytes.freeze())
        }))
    }
}

/// Parses a body; text that is no JSON is told apart from JSON that does not fit.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let full = error.to_string();
        let message = full.rsplit_once(" at line").map_or(full.as_str(), |(message, _)| message);
        if error.classify() != Category::Data {
            return Problem::MalformedJson {
                message: message.into(),
                line: error.line(),
                column: error.column(),
            };
        }
        // Serde names the field between backticks when it is missing, unknown or doubled.
        match message.split('`').nth(1).filter(|_| message.contains(" field `")) {
            Some(field) => Problem::field(field, message),
            None => Problem::invalid(message),
        }
    })
}

/// The parameters of a query.
pub(crate) fn query<T>(given: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    given.map(|Query(query)| query).map_err(|rejection| Problem::invalid(&rejection.body_text()))
}

/// What an answer of the engine must carry.
pub(crate) fn present<T>(carried: Option<T>) -> Result<T, Problem> {
    carried.ok_or_else(|| Status::internal("an answer without what was asked for").into())
}

/// The answer to a request that makes something unless it is there: what is there now, and where.
pub(crate) fn made(is_new: bool, place: &str, value: &impl Serialize) -> Result<Response, Problem> {
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let location = HeaderValue::from_str(place).map_err(|_| Problem::Internal)?;
    Ok((status, [(header::LOCATION, location)], json(value)).into_response())
}

/// A JSON response that is not to be stored: jobs change.
pub(crate) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, body).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a response could not be written as JSON");
            Problem::Internal.into_response()
        }
    }
}
