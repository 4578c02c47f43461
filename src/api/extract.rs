//! Takes requests apart, and says what is wrong with them in kennel's own words.

use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Deserializer};

use super::problem::{Advice, ApiError};
use crate::model::InvalidName;

/// The largest body of a request.
const BODY_MAX: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The variable segments of the path.
pub(super) struct Segments<T>(pub(super) T);

/// The query, whose keys are all known.
pub(super) struct Asked<T>(pub(super) T);

/// The body, as JSON.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(err) => Err(ApiError::Invalid(Advice::new(format!("the path is wrong: {}", err.body_text())))),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(err) => {
                let text = err.body_text();
                let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                Err(ApiError::Invalid(Advice::new(format!("the query is wrong: {text}"))))
            }
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::NotJson);
        }
        let body = read_body(request.into_body()).await?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|err| ApiError::Invalid(Advice::new(format!("the body is wrong: {err}"))))
    }
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_MAX).collect()).await;
    match collected {
        Err(_elapsed) => Err(ApiError::Slow),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(err)) if err.is::<http_body_util::LengthLimitError>() => Err(ApiError::TooLarge),
        Ok(Err(_)) => Err(ApiError::Invalid(Advice::new("the body ended before its end"))),
    }
}

/// A row's number. `thing` is what it numbers.
pub(super) fn id<T: From<i64>>(thing: &str, text: &str) -> Result<T, ApiError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<i64>() {
        Ok(id) if digits => Ok(id.into()),
        _ => {
            let shown: String = text.chars().take(80).collect();
            Err(ApiError::Invalid(Advice::new(format!("{shown:?} is not the number of a {thing}"))))
        }
    }
}

/// A name.
pub(super) fn name<T: FromStr<Err = InvalidName>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|err: InvalidName| ApiError::Invalid(Advice::new(err.to_string())))
}

/// `?follow`, `?follow=1` or `?follow=true`, and the contrary.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(serde::de::Error::custom(format!("{text:?} is neither 1 nor 0"))),
    }
}

/// How many rows to answer with: 1 to 10000.
pub(super) fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.parse() {
        Ok(limit @ 1..=10_000) => Ok(limit),
        _ => Err(serde::de::Error::custom(format!("{text:?} is not a number from 1 to 10000"))),
    }
}
