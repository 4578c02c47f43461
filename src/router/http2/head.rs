//! What a request's head of HTTP/2 says, as HTTP/1.1 would say it: the host, the cookies, and WebSockets (RFC 8441).

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode, Uri, Version};
use rustls::crypto::{CryptoProvider, ring};
use sha1::{Digest as _, Sha1};

use crate::router::body::Body;
use crate::router::headers::{host_of, is_allowed_expectation};
use crate::router::pages::{self, Problem};
use crate::router::{Limits, Shared};

/// A request for a WebSocket: what is needed to make of the service's answer one of HTTP/2.
#[derive(Debug)]
pub(super) struct Socket {
    host: Option<String>,
    json: bool,
    /// What the service has to answer to the key it was sent (RFC 6455, section 4.2.2).
    accept: String,
}

/// The host a request is for, as for HTTP/1.1; brings the head into the form it has there.
///
/// A head that is malformed (RFC 9113, section 8.1.1) has not come this far: its request was reset.
///
/// # Errors
/// Everything that two readers of the request could understand in two ways.
pub(super) fn admit(parts: &mut Parts, limits: &Limits) -> (Result<String, Problem>, Option<Socket>) {
    join_cookies(&mut parts.headers);
    let admitted = check(parts, limits);
    let socket = (parts.method == Method::CONNECT && admitted.is_ok()).then(|| {
        let key = key();
        open_socket(parts, &key);
        let json = pages::prefers_json(&parts.headers);
        Socket { host: admitted.as_ref().ok().cloned(), json, accept: accept(&key) }
    });
    (admitted, socket)
}

fn check(parts: &mut Parts, limits: &Limits) -> Result<String, Problem> {
    let protocol = parts.extensions.remove::<Protocol>();
    match (&parts.method, protocol) {
        (&Method::CONNECT, Some(protocol)) if protocol.as_str() == "websocket" => check_length(&parts.headers)?,
        (&Method::CONNECT, Some(_)) => return Err(Problem::ProtocolRefused),
        (&Method::CONNECT | &Method::TRACE, None) => return Err(Problem::MethodRefused(parts.method.clone())),
        _ => {}
    }
    if parts.headers.len() > limits.headers {
        return Err(Problem::HeadTooLarge);
    }
    let mut named = parts.headers.get_all(header::HOST).iter();
    let named = match (named.next(), named.next()) {
        (_, Some(_)) => return Err(Problem::BadRequest("The request names more than one host.")),
        (None, None) => None,
        (Some(host), None) => {
            Some(host_of(host.as_bytes()).ok_or(Problem::BadRequest("The Host header is not valid."))?)
        }
    };
    let authority = match parts.uri.authority() {
        None => None,
        Some(authority) => {
            let host = host_of(authority.as_str().as_bytes());
            Some(host.ok_or(Problem::BadRequest("The request's authority is not valid."))?)
        }
    };
    let host = match (authority, named) {
        (Some(authority), Some(named)) if authority != named => {
            return Err(Problem::BadRequest("The request's authority and its Host header name different hosts."));
        }
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return Err(Problem::BadRequest("The request names no host.")),
    };
    // Without an authority, the scheme is not told of here.
    if !matches!(parts.uri.scheme_str(), None | Some("http" | "https")) {
        return Err(Problem::BadRequest("The request's scheme is neither `http` nor `https`."));
    }
    if !parts.uri.path().starts_with('/') {
        return Err(Problem::BadRequest("The request's target is not a path."));
    }
    parts.uri = Uri::from(parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")));
    if !is_allowed_expectation(&parts.headers) {
        return Err(Problem::ExpectationRefused);
    }
    Ok(host)
}

/// What a WebSocket carries is no body, so it has no length.
fn check_length(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0") {
        return Ok(());
    }
    Err(Problem::BadRequest("A request for a WebSocket has no body."))
}

/// Makes one header of the crumbs that a cookie may come in (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    let joined = HeaderValue::from_bytes(&joined).expect("what may stand in headers may stand between `; ` in one");
    headers.insert(header::COOKIE, joined);
}

/// Makes a request for a WebSocket of HTTP/1.1 (RFC 6455, section 4.1) of one of HTTP/2.
fn open_socket(parts: &mut Parts, key: &str) {
    parts.method = Method::GET;
    parts.version = Version::HTTP_11;
    let headers = &mut parts.headers;
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(key).expect("base64 is ASCII"));
}

fn key() -> String {
    static PROVIDER: LazyLock<CryptoProvider> = LazyLock::new(ring::default_provider);
    let mut nonce = [0; 16];
    PROVIDER.secure_random.fill(&mut nonce).expect("the system has random numbers");
    BASE64_STANDARD.encode(nonce)
}

fn accept(key: &str) -> String {
    let hash = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    BASE64_STANDARD.encode(hash)
}

impl Socket {
    /// The answer for HTTP/2: a WebSocket is open after 2xx (RFC 8441, section 5), and then only.
    pub(super) fn answer(self, mut response: Response<Body>, shared: &Shared) -> Response<Body> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        let accepted = headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        if switched && accepted.is_some_and(|accepted| accepted.as_bytes() == self.accept.as_bytes()) {
            headers.remove(header::CONNECTION);
            headers.remove(header::UPGRADE);
            *response.status_mut() = StatusCode::OK;
            return response;
        }
        let problem = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => Problem::Broken,
            status if status.is_success() => Problem::ProtocolRefused,
            _ => return response,
        };
        problem.page(self.host.as_deref(), self.json, &shared.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_service_is_held_to_the_key_it_was_sent() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn crumbs_of_a_cookie_become_one_in_their_order() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2; c=3", "d=4"] {
            headers.append(header::COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3; d=4"]);
    }
}
