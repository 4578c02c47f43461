//! What of a message's head is refused, removed, and added on its way through (RFC 9110, sections 7.2 and 7.6).

use std::net::Ipv6Addr;
use std::str::FromStr as _;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};

use super::client::{Framing, HOP_BY_HOP};
use super::origin::Origin;
use super::pages::Problem;
use crate::model::HostName;

/// What a visitor may not tell a service about himself.
fn is_claim_of_origin(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip" | "proxy")
}

/// The host a request is for: lower case, without port and trailing dot.
///
/// Brings an absolute-form target, if it names the same host, into origin-form.
///
/// # Errors
/// Everything that two readers of the request could understand in two ways.
pub(super) fn admit(parts: &mut Parts) -> Result<String, Problem> {
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err(Problem::MethodRefused(parts.method.clone()));
    }
    if !matches!(parts.version, Version::HTTP_10 | Version::HTTP_11) {
        return Err(Problem::BadRequest("This version of HTTP is not spoken here."));
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host_of(host.as_bytes()).ok_or(Problem::BadRequest("The Host header is not valid."))?,
        (None, _) => return Err(Problem::BadRequest("The request names no host.")),
        (Some(_), Some(_)) => return Err(Problem::BadRequest("The request names more than one host.")),
    };
    if let Some(authority) = parts.uri.authority() {
        let scheme = parts.uri.scheme_str();
        if !matches!(scheme, Some("http" | "https")) || host_of(authority.as_str().as_bytes()).as_ref() != Some(&host) {
            return Err(Problem::BadRequest("The request's target and its Host header name different hosts."));
        }
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
    }
    if !parts.uri.path().starts_with('/') {
        return Err(Problem::BadRequest("The request's target is not a path."));
    }
    let codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    if codings.into_iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Problem::CodingRefused);
    }
    if !is_allowed_expectation(&parts.headers) {
        return Err(Problem::ExpectationRefused);
    }
    Ok(host)
}

/// Whether nothing is expected but `100-continue` (RFC 9110, section 10.1.1).
pub(super) fn is_allowed_expectation(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_none_or(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The canonical form of a Host header's value; `None` unless it is a DNS name or an address, maybe with a port.
#[must_use]
pub fn host_of(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?;
    let digits = value.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (before, port) = value.split_at(value.len() - digits);
    let host = match before.strip_suffix(':') {
        Some(_) if !port.is_empty() && port.parse::<u16>().is_err() => return None,
        Some(host) => host,
        None => value,
    };
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return Ipv6Addr::from_str(address).ok().map(|address| format!("[{address}]"));
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    HostName::try_from(host).ok().map(String::from)
}

/// The protocol a request asks to switch to, if it asks properly and kennel goes along.
///
/// h2c is not gone along with: behind it, requests would pass that nothing here has looked at.
pub(super) fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    let mut wanted = parts.headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (wanted.next(), wanted.next()) else { return None };
    let asked = tokens(&parts.headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let h2c = protocol.to_str().ok()?.split(',').any(|token| token.trim().eq_ignore_ascii_case("h2c"));
    (asked && !h2c && parts.version == Version::HTTP_11).then(|| protocol.clone())
}

/// Whether `protocol` is the WebSocket protocol (RFC 6455).
pub(super) fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// Whether a visitor's header is nothing a service may see, or is written anew.
fn is_dropped(name: &str) -> bool {
    let fixed = matches!(
        name,
        "host"
            | "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "content-length"
            | "upgrade"
            | "expect"
    );
    // To many services `X_Real_IP` and `X-Real-IP` are one variable.
    fixed || is_claim_of_origin(name) || name.contains('_')
}

/// A request's head as a service is to see it, in bytes.
pub(super) fn request_head(
    parts: &Parts,
    host: &str,
    origin: &Origin,
    framing: Framing,
    upgrade: Option<&HeaderValue>,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(1024);
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    for part in [parts.method.as_str(), " ", target, " HTTP/1.1\r\nhost: ", host, "\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    let mut line = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    };
    let named: Vec<&str> = tokens(&parts.headers, &header::CONNECTION).filter(|token| !is_dropped(token)).collect();
    for (name, value) in &parts.headers {
        let name = name.as_str();
        if !is_dropped(name) && !named.iter().any(|token| token.eq_ignore_ascii_case(name)) {
            line(name, value.as_bytes());
        }
    }
    match framing {
        Framing::None => {}
        Framing::Length(length) => line("content-length", length.to_string().as_bytes()),
        Framing::Chunked => line("transfer-encoding", b"chunked"),
    }
    if let Some(protocol) = upgrade {
        line("connection", b"upgrade");
        line("upgrade", protocol.as_bytes());
    } else if takes_trailers(&parts.headers) {
        line("connection", b"te");
        line("te", b"trailers");
    }
    origin.write(&mut head, host);
    head.extend_from_slice(b"\r\n");
    head
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

/// The fields that may follow a request's body: announced, and such as may stand there (RFC 9110, section 6.5.1).
pub(super) fn announced_trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    let announced = tokens(headers, &header::TRAILER).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
    announced.filter(|name| !is_dropped(name.as_str()) && !is_control(name)).collect()
}

/// Whether a field is about how the message is read or handled, which its end is too late for.
fn is_control(name: &HeaderName) -> bool {
    [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TRAILER,
    ]
    .contains(name)
}

/// Leaves in a request's head what the control service may see, and adds what kennel knows of the visitor.
pub(super) fn clean_request(headers: &mut HeaderMap, host: &str, origin: &Origin) {
    remove_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    let unwanted = |name: &&HeaderName| name.as_str().contains('_') || is_claim_of_origin(name.as_str());
    let unwanted: Vec<HeaderName> = headers.keys().filter(unwanted).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
    let host = HeaderValue::from_str(host).expect("a canonical host is ASCII");
    origin.insert_into(headers);
    headers.insert("x-forwarded-host", host.clone());
    headers.insert(header::HOST, host);
}

/// Leaves in a request's head what a service that speaks HTTP/2 may see, and adds what kennel knows of the visitor.
pub(super) fn to_http2(headers: &mut HeaderMap, host: &str, origin: &Origin) {
    let trailers = takes_trailers(headers);
    clean_request(headers, host, origin);
    origin.insert_rest(headers, host);
    // It is named by the request's target.
    headers.remove(header::HOST);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Leaves in a request's trailers what may stand there (RFC 9110, section 6.5.1).
pub(super) fn clean_trailers(trailers: HeaderMap) -> HeaderMap {
    let mut name = None;
    let mut clean = HeaderMap::new();
    for (next, value) in trailers {
        name = next.or(name);
        let Some(name) = name.as_ref().filter(|name| !is_dropped(name.as_str()) && !is_control(name)) else { continue };
        clean.append(name, value);
    }
    clean
}

/// Leaves in an answer's head what a visitor may see.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // The length that counts is the one the chunks add up to (RFC 9112, section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The elements of a comma-separated header, parameters included.
pub(super) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_lower_case_without_port_and_trailing_dot() {
        for (value, host) in [
            ("a.example", "a.example"),
            ("A.Example.", "a.example"),
            ("a.example:8080", "a.example"),
            ("a.example.:80", "a.example"),
            ("a.example:", "a.example"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[0:0::1]", "[::1]"),
        ] {
            assert_eq!(host_of(value.as_bytes()).as_deref(), Some(host), "{value}");
        }
    }

    #[test]
    fn what_is_not_a_host_is_refused() {
        for value in [
            "",
            ".",
            "a..b",
            "a@evil",
            "a.example:x",
            "a.example:+80",
            "a.example:99999",
            "a b",
            "a/b",
            "a,b",
            "::1",
            "[::1",
            "[x]",
            "a.example..",
            "a_b.example",
            "ä.example",
        ] {
            assert_eq!(host_of(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn what_connection_names_is_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("connection", "x-other"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("x-kept", "3"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        clean_response(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }
}
