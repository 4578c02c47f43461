//! Patterns of the operator's: which branches deploy, which hostnames a project may claim.

use std::fmt;
use std::str::FromStr;

use super::words::quoted;
use crate::model::{BranchRef, HostName};

/// Which branches are meant: `main`, `release/*`, `feature/**`.
///
/// `*` stands for any characters of one part of the name, also none; `**` for any characters, `/` included.
/// Everything else stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchPattern(String);

/// Which hostnames are meant: `example.org` itself, or `*.example.org`, where `*` stands for exactly one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    any_label: bool,
    host: HostName,
}

impl BranchPattern {
    /// Whether a branch, such as `release/1.0`, is meant.
    #[must_use]
    pub fn matches(&self, branch: &str) -> bool {
        matches(self.0.as_bytes(), branch.as_bytes())
    }
}

/// Compares byte by byte, and goes back to the last star (of either kind) when that fails: at most quadratic.
///
/// Going back to the last `*` alone is not enough once a `**` stands before it, since `*` stops at `/`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on from when the comparison fails: behind the star, and at the text it does not yet cover.
    let (mut part, mut deep) = (None::<(usize, usize)>, None::<(usize, usize)>);
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            (deep, part) = (Some((p, t)), None);
        } else if pattern[p..].starts_with(b"*") {
            p += 1;
            part = Some((p, t));
        } else if p < pattern.len() && t < text.len() && pattern[p] == text[t] {
            (p, t) = (p + 1, t + 1);
        } else if p == pattern.len() && t == text.len() {
            return true;
        } else if let Some((behind, from)) = part.filter(|(_, from)| text.get(*from).is_some_and(|b| *b != b'/')) {
            part = Some((behind, from + 1));
            (p, t) = (behind, from + 1);
        } else if let Some((behind, from)) = deep.filter(|(_, from)| *from < text.len()) {
            (deep, part) = (Some((behind, from + 1)), None);
            (p, t) = (behind, from + 1);
        } else {
            return false;
        }
    }
}

impl HostPattern {
    /// Whether `host` is meant.
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        if !self.any_label {
            return *host == self.host;
        }
        host.as_str().split_once('.').is_some_and(|(_, rest)| rest == self.host.as_str())
    }

    /// The hostname below which, or at which, it matches.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }
}

impl FromStr for BranchPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // With its stars replaced by letters, a pattern must be a branch's name itself.
        match BranchRef::head(&text.replace('*', "x")) {
            Ok(_) if text.contains("***") => Err(format!("{} holds `***`", quoted(text))),
            Ok(_) => Ok(Self(text.to_owned())),
            Err(err) => Err(format!("{} is not a branch pattern: it {}", quoted(text), err.problem)),
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (any_label, host) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let host: HostName = host.parse().map_err(|err| format!("{err}"))?;
        Ok(Self { any_label, host })
    }
}

impl fmt::Display for BranchPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.any_label { "*." } else { "" }, self.host)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("main", "main", true)]
    #[case("main", "main2", false)]
    #[case("main", "feature/main", false)]
    #[case("release/*", "release/1.0", true)]
    #[case("release/*", "release/1.0/hotfix", false)]
    #[case("release/*", "release", false)]
    #[case("release/**", "release/1.0/hotfix", true)]
    #[case("*", "main", true)]
    #[case("*", "feature/x", false)]
    #[case("**", "feature/x", true)]
    #[case("*-fix", "a-fix", true)]
    #[case("*-fix", "a-fix-b", false)]
    #[case("*/v*", "a/v1", true)]
    #[case("*/v*", "a/w1", false)]
    #[case("**/x*", "a/x/xy", true)]
    #[case("**/x*", "a/x/yx", false)]
    #[case("a**b*c", "a/b/bc", true)]
    #[case("a**b*c", "ab/c", false)]
    #[case("a.c", "abc", false)]
    fn a_pattern_means_what_its_doc_says(#[case] pattern: &str, #[case] branch: &str, #[case] matches: bool) {
        let pattern: BranchPattern = pattern.parse().unwrap();
        assert_eq!(pattern.matches(branch), matches);
    }

    #[rstest]
    #[case("")]
    #[case("a b")]
    #[case("a..b")]
    #[case("release/")]
    #[case("[a-z]")]
    #[case("feat?")]
    #[case("a***")]
    #[case("a\nb")]
    fn what_could_match_no_branch_is_refused(#[case] pattern: &str) {
        assert!(pattern.parse::<BranchPattern>().is_err());
    }

    #[rstest]
    #[case("example.org", "example.org", true)]
    #[case("example.org", "a.example.org", false)]
    #[case("*.example.org", "a.example.org", true)]
    #[case("*.example.org", "b.a.example.org", false)]
    #[case("*.example.org", "example.org", false)]
    #[case("*.example.org", "evilexample.org", false)]
    fn a_star_stands_for_one_label(#[case] pattern: &str, #[case] host: &str, #[case] matches: bool) {
        let pattern: HostPattern = pattern.parse().unwrap();
        assert_eq!(pattern.matches(&host.parse().unwrap()), matches);
    }

    /// The plainest possible matcher, to compare with.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=text.len()).any(|n| slow(rest, &text[n..])),
            [b'*', rest @ ..] => {
                let part = text.iter().take_while(|b| **b != b'/').count();
                (0..=part).any(|n| slow(rest, &text[n..]))
            }
            [letter, rest @ ..] => text.first() == Some(letter) && slow(rest, &text[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn the_matcher_agrees_with_the_plain_one(pattern in "([ab/]|\\*|\\*\\*){0,7}", text in "[ab/]{0,9}") {
            let mut pattern = pattern;
            while pattern.contains("***") {
                pattern = pattern.replace("***", "**");
            }
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
