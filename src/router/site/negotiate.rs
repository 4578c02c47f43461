//! What a visitor of a site wants and may get: kind of page, encoding, part, and for how long it may be kept.

use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{HeaderName, Method};

/// An encoding that a build may have prepared beside a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// What it adds to a file's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// The encodings a visitor understands, the preferred ones first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encodings(pub(super) Vec<Encoding>);

impl Encodings {
    /// Reads `Accept-Encoding` (RFC 9110, section 12.5.3).
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let mut any = 0.0;
        let mut weights = [None; 3];
        for (name, weight) in weighted(headers, &header::ACCEPT_ENCODING) {
            match Encoding::ALL.iter().position(|encoding| name.eq_ignore_ascii_case(encoding.name())) {
                Some(index) => weights[index] = Some(weight),
                None if name == "*" => any = weight,
                None => {}
            }
        }
        let mut accepted: Vec<(Encoding, f32)> = Encoding::ALL
            .into_iter()
            .zip(weights)
            .map(|(encoding, weight)| (encoding, weight.unwrap_or(any)))
            .collect();
        accepted.retain(|(_, weight)| *weight > 0.0);
        accepted.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Self(accepted.into_iter().map(|(encoding, _)| encoding).collect())
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
/// that [`content_type`] knows, HTML aside: so `/users/jane.doe` is a page.
pub(super) fn wants_page(request: &Parts) -> bool {
    let html = |(kind, weight): (&str, f32)| matches!(kind, "text/html" | "text/*" | "*/*") && weight > 0.0;
    let takes_html =
        !request.headers.contains_key(header::ACCEPT) || weighted(&request.headers, &header::ACCEPT).any(html);
    let kind = known_type(request.uri.path());
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

/// Reads `Range` and `If-Range` (RFC 9110, section 14): single ranges of a GET; anything else means the whole.
pub(super) fn span(request: &Parts, etag: &[u8], length: u64) -> Span {
    let (&Method::GET, Some(range)) = (&request.method, request.headers.get(header::RANGE)) else {
        return Span::Whole;
    };
    if request.headers.get(header::IF_RANGE).is_some_and(|condition| condition.as_bytes() != etag) {
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

/// How long a file may be kept without asking: for ever when its name changes with its content, else not at all.
pub(super) fn cache_control(path: &str) -> &'static str {
    if is_hashed(path) { "public, max-age=31536000, immutable" } else { "no-cache" }
}

/// Whether a file's name holds a hash of its content, as bundlers make them. In doubt it does not: asking again
/// costs little, and a stale page for a year a lot.
///
/// It does below `_next/static/` and `_app/immutable/`; when the last part of the stem, after `.`, `-` or `_`, is 8
/// to 64 lower-case hexadecimal digits, both numerals and letters (webpack, Parcel); or, for scripts, styles and
/// fonts, 8 letters and numerals with at least one numeral and one capital (Vite, Rollup, esbuild).
fn is_hashed(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some((stem, suffix)) = name.rsplit_once('.') else { return false };
    if suffix == "html" || suffix == "htm" {
        return false;
    }
    if path.starts_with("_next/static/") || path.starts_with("_app/immutable/") {
        return true;
    }
    // `app.0a1b2c3d.js.map`, `app.0a1b2c3d.chunk.js`
    let stem = ["js", "css", "mjs", "chunk", "min", "bundle"]
        .iter()
        .find_map(|part| stem.strip_suffix(part)?.strip_suffix('.'))
        .unwrap_or(stem);
    let Some(at) = stem.rfind(['.', '-', '_']) else { return false };
    let hash = &stem[at + 1..];
    let numeral = hash.bytes().any(|b| b.is_ascii_digit());
    let hex = hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if hex {
        return (8..=64).contains(&hash.len()) && numeral && hash.bytes().any(|b| b.is_ascii_lowercase());
    }
    matches!(suffix, "js" | "mjs" | "css" | "map" | "wasm" | "woff" | "woff2" | "ttf" | "otf")
        && hash.len() == 8
        && hash.bytes().all(|b| b.is_ascii_alphanumeric())
        && numeral
        && hash.bytes().any(|b| b.is_ascii_uppercase())
}

/// The content type of a file by its suffix.
pub(super) fn content_type(path: &str) -> &'static str {
    known_type(path).unwrap_or("application/octet-stream")
}

fn known_type(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next()?;
    let (_, suffix) = name.rsplit_once('.')?;
    Some(match suffix.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "xml" => "text/xml; charset=utf-8",
        "rss" => "application/rss+xml",
        "atom" => "application/atom+xml",
        "xhtml" => "application/xhtml+xml",
        "txt" | "log" => "text/plain; charset=utf-8",
        "md" => "text/markdown; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "ics" => "text/calendar; charset=utf-8",
        "vtt" => "text/vtt; charset=utf-8",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "bmp" => "image/bmp",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "mp3" => "audio/mpeg",
        "ogg" | "oga" => "audio/ogg",
        "opus" => "audio/opus",
        "wav" => "audio/wav",
        "flac" => "audio/flac",
        "m4a" => "audio/mp4",
        "mp4" | "m4v" => "video/mp4",
        "webm" => "video/webm",
        "ogv" => "video/ogg",
        "mov" => "video/quicktime",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "br" | "bin" | "exe" | "dmg" | "iso" | "deb" => "application/octet-stream",
        "zst" => "application/zstd",
        "xz" => "application/x-xz",
        "tar" => "application/x-tar",
        "7z" => "application/x-7z-compressed",
        "epub" => "application/epub+zip",
        _ => return None,
    })
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
    fn only_names_with_a_hash_are_kept_for_ever() {
        for path in [
            "app.0a1b2c3d.js",
            "main.0a1b2c3d4e5f6a7b8c9d.chunk.js",
            "assets/index-B4kX9Zq2.js",
            "main-5KXJQ2VL.css",
            "logo.d41d8cd98f00b204e9800998ecf8427e.png",
            "assets/index-B4kX9Zq2.js.map",
            "_app/immutable/start.js",
            "_next/static/abc/_buildManifest.js",
        ] {
            assert!(is_hashed(path), "{path}");
        }
        for path in [
            "index.html",
            "app.js",
            "report-20240101.pdf",
            "app.0a1b2c3d.html",
            "photo-IMG12345.jpg",
            "jquery-3.7.1.js",
            "bootstrap-deadbeef.js",
            "style.css",
            "feed-facade.xml",
            "robots.txt",
            "a/_next/static/x.js",
            "assets/x",
        ] {
            assert!(!is_hashed(path), "{path}");
        }
    }

    #[test]
    fn encodings_come_in_the_visitors_order() {
        use Encoding::{Brotli, Gzip, Zstd};
        for (value, order) in [
            ("gzip, deflate, br, zstd", vec![Brotli, Zstd, Gzip]),
            ("gzip", vec![Gzip]),
            ("br;q=0.5, gzip", vec![Gzip, Brotli]),
            ("br;q=0, *", vec![Zstd, Gzip]),
            ("identity", vec![]),
            ("", vec![]),
            ("GZIP;q=x", vec![]),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(Encodings::accepted(&headers).0, order, "{value}");
        }
    }
}
