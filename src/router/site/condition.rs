//! Conditions on a request, in the order in which they are to be looked at (RFC 9110, section 13.2.2).
//!
//! Files of the store have no date, so conditions on one are passed over, as section 13.1.3 and 13.1.4 say.

use http::header::{self, HeaderMap, HeaderName};

/// What the conditions of a GET or HEAD come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer as if there were none.
    Go,
    /// The visitor has it already: 304.
    NotModified,
    /// It is not what he wants to have: 412.
    Failed,
}

/// Looks at `If-Match`, then at `If-None-Match`; `etag` is the strong ETag of what would be sent.
pub(super) fn check(headers: &HeaderMap, etag: &[u8]) -> Verdict {
    // A weak ETag is never equal by the strong comparison (section 8.8.3.2).
    if headers.contains_key(header::IF_MATCH) && !any(headers, &header::IF_MATCH, |tag| tag == etag) {
        return Verdict::Failed;
    }
    if any(headers, &header::IF_NONE_MATCH, |tag| tag.strip_prefix(b"W/").unwrap_or(tag) == etag) {
        return Verdict::NotModified;
    }
    Verdict::Go
}

/// Whether a list of ETags is `*`, or `equal` holds for one of them.
fn any(headers: &HeaderMap, list: &HeaderName, equal: impl Fn(&[u8]) -> bool) -> bool {
    let mut tags = headers.get_all(list).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tags.any(|tag| {
        let tag = tag.trim_ascii();
        tag == b"*" || equal(tag)
    })
}

/// Whether a range may be sent: when `If-Range` is absent or, by the strong comparison, names what would be sent
/// (section 13.1.5). A date there never does.
pub(super) fn range_holds(headers: &HeaderMap, etag: &[u8]) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|condition| condition.as_bytes().trim_ascii() == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_looked_at_in_the_order_of_the_rfc() {
        use Verdict::{Failed, Go, NotModified};
        for (if_match, if_none_match, verdict) in [
            (None, None, Go),
            (Some("\"a\""), None, Go),
            (Some("*"), None, Go),
            (Some("\"x\", \"a\""), None, Go),
            (Some("W/\"a\""), None, Failed),
            (Some("\"x\""), None, Failed),
            (Some(""), None, Failed),
            (None, Some("\"a\""), NotModified),
            (None, Some("W/\"a\""), NotModified),
            (None, Some("\"x\",\"a\""), NotModified),
            (None, Some("*"), NotModified),
            (None, Some("\"x\""), Go),
            (Some("\"a\""), Some("\"a\""), NotModified),
            (Some("\"x\""), Some("\"a\""), Failed),
            (Some("\"a\""), Some("\"x\""), Go),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::IF_MATCH, if_match), (header::IF_NONE_MATCH, if_none_match)] {
                value.map(|value| headers.insert(name, value.parse().unwrap()));
            }
            // There is no date they could be compared with.
            headers.insert(header::IF_MODIFIED_SINCE, "Fri, 01 Jan 2100 00:00:00 GMT".parse().unwrap());
            headers.insert(header::IF_UNMODIFIED_SINCE, "Thu, 01 Jan 1970 00:00:00 GMT".parse().unwrap());
            assert_eq!(check(&headers, b"\"a\""), verdict, "{if_match:?} {if_none_match:?}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        let mut headers = HeaderMap::new();
        headers.append(header::IF_NONE_MATCH, "\"x\"".parse().unwrap());
        headers.append(header::IF_NONE_MATCH, "\"a\"".parse().unwrap());
        assert_eq!(check(&headers, b"\"a\""), Verdict::NotModified);
    }
}
