//! Puts what somebody wrote into a fault: quoted, cut, and compared with what they may have meant.

use std::fmt::Write as _;

/// A text in quotes, with control characters escaped, cut to 80 characters.
pub(super) fn quoted(text: &str) -> String {
    let mut cut = text.chars().take(80).collect::<String>();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// Words in backticks, with commas between.
pub(super) fn listed(words: &[&str]) -> String {
    let mut text = String::new();
    for (n, word) in words.iter().enumerate() {
        let _ = write!(text, "{}`{word}`", if n == 0 { "" } else { ", " });
    }
    text
}

/// `an array`, `a string`.
pub(super) fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// The word that was probably meant.
pub(super) fn nearest<'w>(given: &str, words: &[&'w str]) -> Option<&'w str> {
    if given.len() > 60 {
        return None;
    }
    let given = given.to_lowercase().replace('-', "_");
    words
        .iter()
        .map(|word| (distance(&given, &word.replace('-', "_")), *word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// How many letters must be put in, left out, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.chars().collect::<Vec<_>>(), b.chars().collect::<Vec<_>>());
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("helth_check", Some("health_check"))]
    #[case("Health-Check", Some("health_check"))]
    #[case("heatlh_check", Some("health_check"))]
    #[case("secret", Some("secrets"))]
    #[case("evn", Some("env"))]
    #[case("port", None)]
    #[case("colour", None)]
    #[case("", None)]
    fn a_slip_is_told_from_another_word(#[case] given: &str, #[case] meant: Option<&str>) {
        assert_eq!(nearest(given, &["env", "health_check", "health_check_timeout_secs", "secrets", "spa"]), meant);
    }

    #[test]
    fn what_is_quoted_is_harmless_and_short() {
        assert_eq!(quoted("a\n\u{1b}[0m\""), r#""a\n\u{1b}[0m\"""#);
        assert_eq!(quoted(&"ä".repeat(500)).chars().count(), 83);
    }
}
