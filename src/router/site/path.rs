//! The path of a request, as names of files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::router::pages::Problem;

/// A path below a site's root: no `.`, `..`, empty part, slash within a part, or NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SitePath {
    /// Relative; empty for the root.
    pub(super) relative: PathBuf,
    /// Whether it ends in a slash (or is the root): a directory's.
    pub(super) directory: bool,
}

/// Parses a request's path, which begins with a slash.
///
/// # Errors
/// When its percent-encoding is broken, or it is one that servers read in different ways.
pub(super) fn parse(path: &str) -> Result<SitePath, Problem> {
    let rest = path.strip_prefix('/').ok_or(Problem::BadRequest("The request's target is not a path."))?;
    let (rest, directory) = match rest.strip_suffix('/') {
        Some(rest) => (rest, true),
        None => (rest, rest.is_empty()),
    };
    let mut relative = PathBuf::new();
    if path != "/" {
        for part in rest.split('/') {
            let name = decode(part).ok_or(Problem::BadRequest("The path's percent-encoding is not valid."))?;
            if name.contains(&0) {
                return Err(Problem::BadRequest("The path holds a NUL."));
            }
            if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
                return Err(Problem::NoSuchFile);
            }
            relative.push(OsString::from_vec(name));
        }
    }
    Ok(SitePath { relative, directory })
}

/// Percent-decodes once; `None` when a `%` is not followed by two hexadecimal digits.
fn decode(part: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut name = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            name.push(digit(bytes.next()?)? << 4 | digit(bytes.next()?)?);
        } else {
            name.push(byte);
        }
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[test]
    fn a_path_becomes_names_of_files() {
        for (path, relative, directory) in [
            ("/", "", true),
            ("/a", "a", false),
            ("/a/", "a", true),
            ("/a/b%20c.html", "a/b c.html", false),
            ("/%C3%A4", "ä", false),
            ("/%2561", "%61", false),
            ("/...", "...", false),
        ] {
            assert_eq!(parse(path), Ok(SitePath { relative: relative.into(), directory }), "{path}");
        }
    }

    #[test]
    fn a_path_that_leaves_its_place_names_nothing() {
        for path in [
            "/..",
            "/../a",
            "/a/../b",
            "/%2e%2e/a",
            "/%2E./a",
            "/a%2fb",
            "/..%2f",
            "//",
            "//a",
            "/a//b",
            "/./a",
            "/a//",
        ] {
            assert_eq!(parse(path), Err(Problem::NoSuchFile), "{path}");
        }
        for path in ["/%", "/%2", "/%zz", "/a%00", "a", "*"] {
            assert!(matches!(parse(path), Err(Problem::BadRequest(_))), "{path}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_path_stays_below_the_root(path in "/([a-z./%]|%2[eEfF]|%00|\\.\\.){0,24}") {
            if let Ok(parsed) = parse(&path) {
                prop_assert!(parsed.relative.components().all(|part| matches!(part, Component::Normal(_))));
            }
        }
    }
}
