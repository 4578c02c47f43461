//! What a file's name says of it: its content type, whether compressing it pays, and for how long it may be kept.

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
    let stem = without_kind(stem);
    let Some(at) = stem.rfind(['.', '-', '_']) else { return false };
    let hash = &stem[at + 1..];
    let numeral = hash.bytes().any(|b| b.is_ascii_digit());
    let hex = hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if hex {
        return (8..=64).contains(&hash.len()) && numeral && hash.bytes().any(|b| b.is_ascii_lowercase());
    }
    is_code(suffix)
        && hash.len() == 8
        && hash.bytes().all(|b| b.is_ascii_alphanumeric())
        && numeral
        && hash.bytes().any(|b| b.is_ascii_uppercase())
}

/// Scripts, styles, fonts, and what belongs to them.
fn is_code(suffix: &str) -> bool {
    matches!(suffix, "js" | "mjs" | "css" | "map" | "wasm" | "woff" | "woff2" | "ttf" | "otf")
}

/// `app.0a1b2c3d` of `app.0a1b2c3d.js` (`.map`) and `app.0a1b2c3d.chunk` (`.js`).
fn without_kind(stem: &str) -> &str {
    ["js", "css", "mjs", "chunk", "min", "bundle"]
        .iter()
        .find_map(|part| stem.strip_suffix(part)?.strip_suffix('.'))
        .unwrap_or(stem)
}

/// Whether a page of an earlier version that is still open may ask for this path of its own.
///
/// In doubt about scripts, styles and fonts it may, unlike in [`cache_control`]: answering costs nothing, and a 404
/// breaks the page. Then a hash is also a last part of at least six letters and numerals that is no plain word, or
/// the eight characters, `-` and `_` among them, that Vite puts behind a `-`. What people may have meant to take
/// away (pages, documents, pictures) is given only under a name that certainly holds a hash.
pub(super) fn outlives_its_version(path: &str) -> bool {
    if is_hashed(path) {
        return true;
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some((stem, _)) = name.rsplit_once('.').filter(|(_, suffix)| is_code(suffix)) else { return false };
    let stem = without_kind(stem).as_bytes();
    let no_word = |hash: &[u8]| {
        let hex = hash.iter().all(u8::is_ascii_hexdigit);
        let mixed = hash.iter().any(u8::is_ascii_digit) || hash.iter().skip(1).any(u8::is_ascii_uppercase);
        hex || mixed
    };
    let last = stem.rsplit(|byte| matches!(byte, b'.' | b'-' | b'_')).next().unwrap_or_default();
    if last.len() < stem.len() && last.len() >= 6 && last.iter().all(u8::is_ascii_alphanumeric) && no_word(last) {
        return true;
    }
    let Some((rest, vite)) = stem.split_last_chunk::<8>() else { return false };
    matches!(rest.last(), Some(b'-' | b'.'))
        && vite.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && no_word(vite)
}

/// Whether a file of this content type gets notably smaller by compressing.
pub(super) fn is_compressible(content_type: &str) -> bool {
    let (kind, _) = content_type.split_once(';').unwrap_or((content_type, ""));
    kind.starts_with("text/")
        || kind.ends_with("+xml")
        || kind.ends_with("+json")
        || matches!(kind, "application/json" | "application/wasm" | "font/ttf" | "font/otf" | "image/bmp")
}

/// The content type of a file by its suffix.
pub(super) fn content_type(path: &str) -> &'static str {
    known_type(path).unwrap_or("application/octet-stream")
}

/// The content type of a file by its suffix, if that is a known one.
pub(super) fn known_type(path: &str) -> Option<&'static str> {
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
    fn an_open_page_may_ask_for_parts_of_its_own_version() {
        for path in [
            "app.0a1b2c3d.js",
            "_next/static/abc/_buildManifest.js",
            "assets/About-BxKdQweR.js",
            "assets/About-Bx_K-2wQ.js",
            "chunk-deadbeef.js",
            "assets/index-B4kX9Zq2.js.map",
            "123.abc123.chunk.js",
            "logo.d41d8cd98f00b204e9800998ecf8427e.png",
        ] {
            assert!(outlives_its_version(path), "{path}");
        }
        for path in [
            "",
            "about",
            "about.html",
            "about.0a1b2c3d.html",
            "app.js",
            "my-component.js",
            "react-dropdown.js",
            "jquery-3.7.1.js",
            "style.css",
            "photo-IMG12345.jpg",
            "report-20240101.pdf",
        ] {
            assert!(!outlives_its_version(path), "{path}");
        }
    }

    #[test]
    fn text_is_compressed_and_pictures_are_not() {
        for (path, compressible) in [
            ("index.html", true),
            ("a.js", true),
            ("a.json", true),
            ("a.svg", true),
            ("a.webmanifest", true),
            ("a.wasm", true),
            ("a.png", false),
            ("a.woff2", false),
            ("a.js.gz", false),
            ("a.bin", false),
            ("a", false),
        ] {
            assert_eq!(is_compressible(content_type(path)), compressible, "{path}");
        }
    }
}
