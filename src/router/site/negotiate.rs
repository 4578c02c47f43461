//! What a visitor of a site wants: which encoding, which part of a file, and whether a page will do.

use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{HeaderName, Method};

use super::{condition, media};

/// An encoding that a build may have prepared beside a file, or kennel makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Encoding {
    /// `.br`
    Brotli,
    /// `.zst`
    Zstd,
    /// `.gz`
    Gzip,
}

impl Encoding {
    /// Every encoding, the smallest results first.
    pub(super) const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// Its name in `Content-Encoding`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// Whether `name` in `Accept-Encoding` means it.
    fn is_called(self, name: &str) -> bool {
        name.eq_ignore_ascii_case(self.name()) || (self == Self::Gzip && name.eq_ignore_ascii_case("x-gzip"))
    }

    /// What it adds to a file's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// How much a visitor likes each encoding; read without taking memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Liking {
    /// As in [`Encoding::ALL`].
    weights: [f32; 3],
    /// Of no encoding at all.
    plain: f32,
}

impl Liking {
    /// Reads `Accept-Encoding` (RFC 9110, section 12.5.3).
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut any = None;
        let mut weights = [None; 3];
        let mut plain = None;
        for (name, weight) in weighted(headers, &header::ACCEPT_ENCODING) {
            match Encoding::ALL.iter().position(|encoding| encoding.is_called(name)) {
                Some(index) => weights[index] = Some(weight),
                None if name == "*" => any = Some(weight),
                None if name.eq_ignore_ascii_case("identity") => plain = Some(weight),
                None => {}
            }
        }
        // No encoding is always acceptable, but liked only as much as said: else it would be sent to everybody.
        Self { weights: weights.map(|weight| weight.or(any).unwrap_or(0.0)), plain: plain.unwrap_or(0.0) }
    }

    /// The encoding he likes best of those there are, the first of [`Encoding::ALL`] where he likes several equally;
    /// `None` when he would rather have the file as it is.
    pub(super) fn best(self, there_is: impl Fn(Encoding) -> bool) -> Option<Encoding> {
        let mut best = None;
        let mut most = 0.0;
        for (encoding, weight) in Encoding::ALL.into_iter().zip(self.weights) {
            if weight > most && weight >= self.plain && there_is(encoding) {
                (best, most) = (Some(encoding), weight);
            }
        }
        best
    }
}

/// The elements of a header with their weights.
fn weighted<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = (&'a str, f32)> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|element| {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        (name, weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
    })
}

/// Whether a request that names no file may be answered by a single-page application's front page.
///
/// It may when the visitor takes HTML (or anything, or does not say), and the path does not look like an asset: a
/// missing `app.js` must be a 404, not a page that the browser tries to run. An asset is what ends in a suffix
/// that [`media::known_type`] knows, HTML aside: so `/users/jane.doe` is a page.
pub(super) fn wants_page(request: &Parts) -> bool {
    let html = |(kind, weight): (&str, f32)| matches!(kind, "text/html" | "text/*" | "*/*") && weight > 0.0;
    let takes_html =
        !request.headers.contains_key(header::ACCEPT) || weighted(&request.headers, &header::ACCEPT).any(html);
    let kind = media::known_type(request.uri.path());
    takes_html && kind.is_none_or(|kind| kind.starts_with("text/html"))
}

/// The part of a file to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    /// All of it.
    Whole,
    /// From the first byte up to but not including the second.
    Part(u64, u64),
    /// None of what was asked for exists.
    Nothing,
}

/// Reads `Range` and `If-Range` (RFC 9110, sections 14.2 and 13.1.5): single ranges of a GET; anything else means
/// the whole.
pub(super) fn span(request: &Parts, etag: &[u8], length: u64) -> Span {
    let (&Method::GET, Some(range)) = (&request.method, request.headers.get(header::RANGE)) else {
        return Span::Whole;
    };
    if !condition::range_holds(&request.headers, etag) {
        return Span::Whole;
    }
    range.to_str().ok().and_then(|range| parse_range(range, length)).unwrap_or(Span::Whole)
}

fn parse_range(range: &str, length: u64) -> Option<Span> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (start, end) = if first.is_empty() {
        let last = number(last)?;
        (length.saturating_sub(last), if last == 0 { 0 } else { length })
    } else {
        let first = number(first)?;
        let end = if last.is_empty() { length } else { number(last)?.saturating_add(1).min(length) };
        if !last.is_empty() && number(last)? < first {
            return None;
        }
        (first, end)
    };
    Some(if start < end { Span::Part(start, end) } else { Span::Nothing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_the_rfc_says() {
        for (range, span) in [
            ("bytes=0-0", Some(Span::Part(0, 1))),
            ("bytes=0-", Some(Span::Part(0, 10))),
            ("bytes=2-4", Some(Span::Part(2, 5))),
            ("bytes=2-400", Some(Span::Part(2, 10))),
            ("bytes=-3", Some(Span::Part(7, 10))),
            ("bytes=-30", Some(Span::Part(0, 10))),
            ("bytes=-0", Some(Span::Nothing)),
            ("bytes=10-", Some(Span::Nothing)),
            ("bytes=10-12", Some(Span::Nothing)),
            ("bytes=4-2", None),
            ("bytes=-", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
            ("bytes=+1-2", None),
            ("bytes", None),
            ("bytes=99999999999999999999-", None),
        ] {
            assert_eq!(parse_range(range, 10), span, "{range}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Some(Span::Nothing));
    }

    #[test]
    fn the_encoding_is_the_one_the_visitor_likes_best() {
        use Encoding::{Brotli, Gzip, Zstd};
        for (value, all, without_brotli) in [
            ("gzip, deflate, br, zstd", Some(Brotli), Some(Zstd)),
            ("gzip", Some(Gzip), Some(Gzip)),
            ("x-gzip", Some(Gzip), Some(Gzip)),
            ("br;q=0.5, gzip", Some(Gzip), Some(Gzip)),
            ("br, gzip;q=0.5", Some(Brotli), Some(Gzip)),
            ("br;q=0, *", Some(Zstd), Some(Zstd)),
            ("*;q=0, gzip;q=0.1", Some(Gzip), Some(Gzip)),
            ("identity, gzip;q=0.5", None, None),
            ("identity;q=0.5, gzip", Some(Gzip), Some(Gzip)),
            ("identity", None, None),
            ("", None, None),
            ("GZIP;q=x", None, None),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]);
            let liking = Liking::of(&headers);
            assert_eq!(liking.best(|_| true), all, "{value}");
            assert_eq!(liking.best(|encoding| encoding != Brotli), without_brotli, "{value}");
            assert_eq!(liking.best(|_| false), None, "{value}");
        }
        assert_eq!(Liking::of(&HeaderMap::new()).best(|_| true), None);
    }
}
