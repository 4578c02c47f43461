//! What depends on how a visitor came in: plain HTTP leads to HTTPS, and HTTPS is kept to what its certificate covers.
//!
//! **Invariant:** nobody is sent to HTTPS whose host has no certificate, and a certificate authority never is.

use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};

use super::Shared;
use super::body::Body;
use super::connection::Visitor;
use super::origin::Origin;
use super::pages::Problem;
use super::tls::Challenges;

/// The answer to a request for which nobody need be asked; `None` lets it pass.
pub(super) fn begin(
    shared: &Shared,
    visitor: &Visitor,
    origin: &Origin,
    host: &str,
    request: &Parts,
) -> Option<Result<Response<Body>, Problem>> {
    if let Some(secured) = &visitor.secured {
        return (!secured.covers(host)).then_some(Err(Problem::Misdirected));
    }
    if Challenges::is_asked_for(request.uri.path()) {
        let answer = shared.tls.challenges.answer_at(host, request.uri.path())?;
        return Some(Ok(challenge(answer)));
    }
    // Who came to a proxy by TLS need not come again.
    let port = shared.https.redirect_to.filter(|_| !origin.is_secure() && shared.tls.covers(host))?;
    Some(to_https(host, port, request))
}

/// The answer to http-01 (RFC 8555, section 8.3).
fn challenge(answer: String) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes::Bytes::from(answer)));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn to_https(host: &str, port: u16, request: &Parts) -> Result<Response<Body>, Problem> {
    let target = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let location = match port {
        443 => format!("https://{host}{target}"),
        port => format!("https://{host}:{port}{target}"),
    };
    // Older programs make a GET of everything that is answered by 301 (RFC 9110, section 15.4.2).
    let status = match request.method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let location = HeaderValue::from_bytes(location.as_bytes());
    let location = location.map_err(|_| Problem::BadRequest("The request's target holds a control character."))?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// Has browsers come by TLS the next time, too, if the operator wants it. What a service says of that counts more.
pub(super) fn mark(shared: &Shared, visitor: &Visitor, response: &mut Response<Body>) {
    let (Some(max_age), Some(_)) = (shared.https.hsts, &visitor.secured) else { return };
    let headers = response.headers_mut();
    if !headers.contains_key(header::STRICT_TRANSPORT_SECURITY) {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts(max_age));
    }
}

fn hsts(max_age: Duration) -> HeaderValue {
    let value = format!("max-age={}", max_age.as_secs());
    HeaderValue::from_str(&value).expect("digits are ASCII")
}
