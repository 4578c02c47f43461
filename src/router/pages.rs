//! What kennel itself says to a visitor: one small page for each thing that can go wrong.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};

use super::body::Body;
use super::replaced::Pages;

/// A request that gets no answer from a service or site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// The request is not one that everybody understands the same way; why, as a sentence.
    BadRequest(&'static str),
    /// CONNECT or TRACE.
    MethodRefused(Method),
    /// A transfer coding other than `chunked`.
    CodingRefused,
    /// An expectation other than `100-continue`.
    ExpectationRefused,
    /// More headers than are taken.
    HeadTooLarge,
    /// Nobody here speaks the protocol that was asked for.
    ProtocolRefused,
    /// The visitor stopped sending.
    VisitorSilent,
    /// The connection's certificate is not for the host asked for.
    Misdirected,
    /// No route.
    UnknownHost,
    /// The site has no such file.
    NoSuchFile,
    /// A site knows GET and HEAD only.
    NotForSites,
    /// None of the bytes asked for exist; the file's length.
    RangeRefused(u64),
    /// The precondition does not hold.
    PreconditionFailed,
    /// A file could not be read.
    SiteBroken,
    /// The service does not accept connections.
    Refused,
    /// The service broke off before answering, or answered with what is not HTTP.
    Broken,
    /// The service did not answer in time.
    Silent,
    /// The version asked for is on its way out, and no other is known yet.
    Switching,
    /// The service fails its health check.
    Unhealthy,
}

struct Words {
    status: StatusCode,
    title: &'static str,
    detail: &'static str,
    visitor: &'static str,
    operator: &'static str,
}

impl Problem {
    fn words(&self) -> Words {
        let words = |status, title, detail, visitor, operator| Words { status, title, detail, visitor, operator };
        const CLIENT: &str = "Nothing is wrong with the site. If a program of yours sent this, it needs correcting.";
        const NOTHING: &str = "Nothing to do: the request never reached a service.";
        match self {
            Self::BadRequest(why) => words(StatusCode::BAD_REQUEST, "Bad request", why, CLIENT, NOTHING),
            Self::MethodRefused(_) => words(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                "This method is not allowed on any host here.",
                CLIENT,
                NOTHING,
            ),
            Self::CodingRefused => words(
                StatusCode::NOT_IMPLEMENTED,
                "Not implemented",
                "The only transfer coding understood here is `chunked`.",
                CLIENT,
                NOTHING,
            ),
            Self::ExpectationRefused => words(
                StatusCode::EXPECTATION_FAILED,
                "Expectation failed",
                "The only expectation understood here is `100-continue`.",
                CLIENT,
                NOTHING,
            ),
            Self::HeadTooLarge => words(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "Request header fields too large",
                "The request has more headers than are taken here.",
                CLIENT,
                NOTHING,
            ),
            Self::ProtocolRefused => words(
                StatusCode::NOT_IMPLEMENTED,
                "Not implemented",
                "The protocol that this connection was to become is not spoken here.",
                CLIENT,
                "If it is a WebSocket: the service has answered as if it had not been asked for one.",
            ),
            Self::VisitorSilent => words(
                StatusCode::REQUEST_TIMEOUT,
                "Request timeout",
                "The rest of the request did not arrive in time.",
                "Check your connection and send it again.",
                NOTHING,
            ),
            Self::Misdirected => words(
                StatusCode::MISDIRECTED_REQUEST,
                "Misdirected request",
                "This connection was opened for another host, whose certificate does not cover this one.",
                "Open the address again: your browser will make a new connection.",
                NOTHING,
            ),
            Self::UnknownHost => words(
                StatusCode::NOT_FOUND,
                "No such host",
                "Nothing is deployed under this name.",
                "Check the address for typing errors. The site may have moved, or its preview may be over.",
                "`kennel status` lists every host that has a route. A name in DNS alone makes none.",
            ),
            Self::NoSuchFile => words(
                StatusCode::NOT_FOUND,
                "Page not found",
                "The site is up, but has no such page.",
                "Check the address, or start at the site's front page.",
                "The live build holds no such file. If paths are the site's own business, set `spa = true`.",
            ),
            Self::NotForSites => words(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                "This is a static site: it answers GET and HEAD only.",
                CLIENT,
                "If this path belongs to a service, the request was sent to the wrong host.",
            ),
            Self::RangeRefused(_) => words(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "Range not satisfiable",
                "The file has none of the bytes asked for.",
                "Ask for the whole file.",
                NOTHING,
            ),
            Self::PreconditionFailed => words(
                StatusCode::PRECONDITION_FAILED,
                "Precondition failed",
                "The file is not the version asked for.",
                "Ask again without the condition.",
                NOTHING,
            ),
            Self::SiteBroken => words(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Cannot read the page",
                "The page exists, but could not be read.",
                "Try again in a moment.",
                "The journal of kennel says why. Is the disk healthy?",
            ),
            Self::Refused => words(
                StatusCode::BAD_GATEWAY,
                "Service refused the connection",
                "There is a service for this host, but it does not accept connections.",
                "Try again in a moment.",
                "The service is down or restarting. `kennel status` and its journal say why.",
            ),
            Self::Broken => words(
                StatusCode::BAD_GATEWAY,
                "Service broke off",
                "The service took the request, but gave no proper answer.",
                "Try again in a moment. If you were sending something, check first whether it arrived.",
                "The service closed the connection or answered with what is not HTTP. See its journal.",
            ),
            Self::Silent => words(
                StatusCode::GATEWAY_TIMEOUT,
                "Service gave no answer",
                "The service took the request, but did not answer in time.",
                "Try again in a moment. If you were sending something, check first whether it arrived.",
                "The service is overloaded or stuck. See its journal.",
            ),
            Self::Switching => words(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service is being replaced",
                "The version behind this host is stopping, and no other has taken its place yet.",
                "Try again in a moment.",
                "`kennel status` shows the deployment in progress.",
            ),
            Self::Unhealthy => words(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service is not healthy",
                "The service behind this host keeps failing its health check, so nobody is sent to it.",
                "Try again in a minute.",
                "`kennel status` says what it answered. It is asked again and again, and one good answer brings it back.",
            ),
        }
    }

    /// The page, as JSON when `json`, else the operator's own of `pages` if there is one; `host` is the host it is about,
    /// if that is known.
    pub(super) fn page(&self, host: Option<&str>, json: bool, pages: &Pages) -> Response<Body> {
        const OWN: HeaderValue = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
        let words = self.words();
        let (kind, text, policy) = if json {
            let value = serde_json::json!({
                "status": words.status.as_u16(), "title": words.title, "detail": words.detail,
            });
            ("application/json", value.to_string().into(), Some(OWN))
        } else if let Some(page) = pages.of(words.status) {
            ("text/html; charset=utf-8", page, None)
        } else {
            ("text/html; charset=utf-8", html(&words, host).into(), Some(OWN))
        };
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = words.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(policy) = policy {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        match self {
            Self::NotForSites => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::MethodRefused(_) => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
            }
            Self::RangeRefused(length) => {
                let value = HeaderValue::from_str(&format!("bytes */{length}")).expect("digits are ASCII");
                headers.insert(header::CONTENT_RANGE, value);
            }
            Self::Switching => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Unhealthy => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
            }
            // Whoever sends such things may mean the rest of the connection differently than we read it.
            Self::BadRequest(_) | Self::CodingRefused | Self::VisitorSilent => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// Whether a visitor would rather read JSON than HTML.
pub(super) fn prefers_json(headers: &HeaderMap) -> bool {
    // Nearly nobody does.
    if !headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.as_bytes().windows(4).any(|four| four.eq_ignore_ascii_case(b"json")))
    {
        return false;
    }
    let (mut json, mut html) = (0.0_f32, 0.0_f32);
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in ranges.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        match kind.as_str() {
            "application/json" | "application/problem+json" => json = json.max(quality),
            "text/html" | "application/xhtml+xml" => html = html.max(quality),
            _ => {}
        }
    }
    json > html
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Escaped, with what stands between backticks set as code.
fn prose(text: &str) -> String {
    let mut html = String::new();
    for (index, part) in escape(text).split('`').enumerate() {
        if index % 2 == 1 {
            html.push_str("<code>");
            html.push_str(part);
            html.push_str("</code>");
        } else {
            html.push_str(part);
        }
    }
    html
}

fn html(words: &Words, host: Option<&str>) -> String {
    let host = host.map(|host| format!("<p class=\"host\">{}</p>\n", escape(host))).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex\">\n<title>{status} {title}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<main>\n<p class=\"status\">{status}</p>\n<h1>{title}</h1>\n{host}<p>{detail}</p>\n<dl>\n\
         <dt>If you are visiting</dt><dd>{visitor}</dd>\n<dt>If you run this site</dt><dd>{operator}</dd>\n</dl>\n\
         </main>\n<footer>kennel</footer>\n</body>\n</html>\n",
        status = words.status.as_u16(),
        title = escape(words.title),
        detail = prose(words.detail),
        visitor = prose(words.visitor),
        operator = prose(words.operator),
    )
}

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1d2330;--soft:#5c6577;--line:#dfe3ea;--paper:#fafbfc;--mark:#b4541e}\
@media(prefers-color-scheme:dark){:root{--ink:#e8eaf0;--soft:#9aa3b5;--line:#2c3340;--paper:#14181f;--mark:#f0935a}}\
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:flex;flex-direction:column;justify-content:center;\
align-items:center;padding:2rem;background:var(--paper);color:var(--ink);font:1.05rem/1.6 system-ui,sans-serif}\
main{width:100%;max-width:34rem}p{margin:.4rem 0}.status{font-size:.95rem;font-weight:600;letter-spacing:.12em;color:var(--mark)}\
h1{margin:0 0 .8rem;font-size:1.9rem;line-height:1.2}.host{color:var(--soft);overflow-wrap:anywhere;\
font-family:ui-monospace,monospace;font-size:.95rem}dl{margin:1.8rem 0 0;border-top:1px solid var(--line);padding-top:1.2rem}\
dt{font-weight:600;font-size:.9rem}dd{margin:.1rem 0 1rem;color:var(--soft)}code{font:.92em ui-monospace,monospace;color:var(--ink)}\
footer{margin-top:2.5rem;font-size:.8rem;color:var(--soft)}";

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn json_goes_to_who_asks_for_it_and_html_to_everybody_else() {
        for (value, json) in [
            ("application/json", true),
            ("application/json, text/plain, */*", true),
            ("application/problem+json;q=0.9, text/html;q=0.5", true),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
            ("text/html, application/json", false),
            ("*/*", false),
            ("application/json;q=0", false),
        ] {
            assert_eq!(prefers_json(&accept(value)), json, "{value}");
        }
        assert!(!prefers_json(&HeaderMap::new()));
    }

    #[test]
    fn a_host_is_escaped() {
        let page = html(&Problem::UnknownHost.words(), Some("<script>\"'&"));
        assert!(page.contains("&lt;script&gt;&quot;&#39;&amp;") && !page.contains("<script"));
    }
}
