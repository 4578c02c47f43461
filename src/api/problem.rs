//! What a client gets when it does not get what it asked for: RFC 9457 problems whose sentences one can act on.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::error;

use super::wire::Problem;
use crate::host::HostError;
use crate::store::StoreError;
use crate::telemetry::chain;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Something in the request is not what it must be.
    #[error("{0}")]
    Invalid(Advice),
    /// The body took too long to arrive.
    #[error("the body did not arrive within 10 s")]
    Slow,
    /// The body is over the limit.
    #[error("the body is larger than 64 KiB")]
    TooLarge,
    /// The body does not say that it is JSON.
    #[error("the body must be JSON and say so")]
    NotJson,
    /// Without a token, nothing.
    #[error("this needs a bearer token")]
    TokenNeeded,
    /// The token is another.
    #[error("this is not the token of `token_file`")]
    WrongToken,
    /// Whoever asks may not.
    #[error("{0}")]
    Refused(Advice),
    /// There is no such thing.
    #[error("{0}")]
    NoSuch(Advice),
    /// There is no such page.
    #[error("there is nothing at {0}")]
    NoPage(String),
    /// The page is there, but not for this method.
    #[error("this cannot be done with {0}")]
    WrongMethod(String),
    /// It is too late, or too early, for that.
    #[error("{0}")]
    Conflict(Advice),
    /// The database did not do its part.
    #[error("{}", if .0.is_out_of_room() { "there is no room on disk to record that" } else { "the database did not answer" })]
    Store(#[from] StoreError),
    /// The machine did not do its part.
    #[error("{0}")]
    Machine(#[from] HostError),
    /// A log file cannot be read.
    #[error("cannot read {log}")]
    Log {
        /// Which: `the log of api of build 7`.
        log: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// A sentence, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What is the matter.
    pub detail: String,
    /// What helps.
    pub hint: Option<String>,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Advice {
    /// A sentence alone.
    pub(super) fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), hint: None }
    }

    /// The same, with what helps.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::TokenNeeded | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::NoSuch(_) | Self::NoPage(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Store(err) if err.is_out_of_room() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(_) | Self::Machine(_) | Self::Log { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn hint(&self) -> Option<String> {
        let fixed = match self {
            Self::Invalid(advice) | Self::Refused(advice) | Self::NoSuch(advice) | Self::Conflict(advice) => {
                return advice.hint.clone();
            }
            Self::NotJson => "send `Content-Type: application/json`",
            Self::TokenNeeded => "send `Authorization: Bearer <the content of token_file>`",
            Self::WrongToken => "a new token is read when kennel starts",
            Self::NoPage(_) => "there are /builds, /deployments, /projects, /gc and /healthz",
            Self::Store(err) if err.is_out_of_room() => {
                "make room on disk, and ask again; `kennel gc` frees what it can"
            }
            Self::Store(_) | Self::Machine(_) | Self::Log { .. } => "`journalctl -u kennel` says more",
            Self::WrongMethod(_) | Self::Slow | Self::TooLarge => return None,
        };
        Some(fixed.to_owned())
    }

    /// What the client is told.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let status = self.status();
        Problem {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: sentence(&self.to_string()),
            hint: self.hint(),
        }
    }
}

/// The same with a capital, except for kennel's own name, and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    if text.starts_with("kennel ") {
        return format!("{text}.");
    }
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let stop = if text.ends_with(['.', '?', '!']) { "" } else { "." };
    format!("{first}{}{stop}", chars.as_str())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match &self {
            Self::Store(err) => error!(error = %chain(err), "Could not answer an operator's request"),
            Self::Machine(_) | Self::Log { .. } => {
                error!(error = %chain(&self), "Could not answer an operator's request")
            }
            _ => {}
        }
        let problem = self.problem();
        let body = serde_json::to_vec(&problem).expect("a problem holds only strings and a number");
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
        }
        if matches!(self, Self::TokenNeeded | Self::WrongToken) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kennel\""));
        }
        response
    }
}
