//! What systemd is told, as pure functions of the specification.
//!
//! **Invariant:** no value reaches a unit or an environment file but through [`word`] or
//! [`env::env_file`]; no secret reaches a unit.

pub mod build;
pub mod env;
mod sandbox;
pub mod unit;

#[cfg(test)]
#[path = "../../../../tests/fuzz/bodies/systemd.rs"]
mod systemd;

/// A value that systemd cannot be given unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {problem}")]
pub struct RenderError {
    /// Which value: a variable's or setting's name, never the value itself.
    pub what: String,
    /// What is wrong with it, as the rest of a sentence.
    pub problem: &'static str,
}

/// One word of a unit file's setting, quoted so that systemd reads back just this text
/// (`systemd.syntax(7)`, "Quoting"): `%` doubled, `\` and `"` escaped.
///
/// Not for command lines, where `$` has a meaning as well.
///
/// # Errors
/// When the text holds a control character.
pub fn word(what: &str, text: &str) -> Result<String, RenderError> {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            c if c.is_control() => {
                return Err(RenderError { what: what.to_owned(), problem: "holds a control character" });
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::systemd::read_word;
    use super::*;

    proptest! {
        #[test]
        fn systemd_reads_back_the_word_that_was_written(text in "[^\\p{Cc}]*") {
            let line = word("x", &text).unwrap();
            prop_assert!(!line.contains('\n'));
            let odd_percent = line.split(|c| c != '%').any(|run| run.len() % 2 == 1);
            prop_assert!(!odd_percent);
            prop_assert_eq!(read_word(&line), Some((text, "")));
        }

        #[test]
        fn a_control_character_never_reaches_a_unit(before in ".*", bad in "\\p{Cc}", after in ".*") {
            let text = format!("{before}{bad}{after}");
            prop_assert!(word("x", &text).is_err());
        }
    }
}
