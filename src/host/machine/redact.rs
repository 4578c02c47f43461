//! Takes the values of a deployment's secrets out of lines that it wrote, before they are copied anywhere.
//!
//! A service that prints a secret and dies has it in the journal, for root; its deployment's reason is read by others.
//! The values are those the unit was given, read from its own files. A service that disguises what it prints is not
//! found out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use secrecy::ExposeSecret as _;

use super::Fault;
use super::layout::{Layout, OwnUnit};
use super::render::env::read_env_file;
use crate::config::read_service_secret;
use crate::model::UnitName;

/// The shortest value that is looked for, in characters. A shorter one is part of ordinary words and numbers: taken out
/// of those, it would leave lines that nobody can read, and tell by its gaps what it is.
const SHORTEST: usize = 4;
/// Variables whose URL holds a password that kennel made.
const URLS: [&str; 2] = ["DATABASE_URL", "VALKEY_URL"];

/// What is not to be shown, each with what is shown instead.
#[derive(Default)]
pub(super) struct Redactions(BTreeSet<(String, String)>);

impl Redactions {
    /// Those of a deployment's unit; none of another unit. Blocks.
    ///
    /// # Errors
    /// When the unit's files cannot be read: without them its lines are not to be shown.
    pub(super) fn of_unit(layout: &Layout, unit: &UnitName) -> Result<Self, Fault> {
        let Some(OwnUnit::Deployment(_)) = OwnUnit::of(unit) else { return Ok(Self::default()) };
        let read = |path: PathBuf| {
            std::fs::read_to_string(&path).map_err(|err| format!("`{}` cannot be read: {err}", path.display()))
        };
        Ok(Self::of(&read(layout.unit_file(unit))?, &read(layout.env_file(unit))?))
    }

    /// Those of a unit with this unit file and this environment.
    fn of(unit_file: &str, env_file: &str) -> Self {
        let mut all = Self::default();
        let credentials = unit_file.lines().filter_map(|line| line.strip_prefix("LoadCredential=")?.split_once(':'));
        let credentials: Vec<_> =
            credentials.map(|(name, path)| (name, PathBuf::from(path.replace("%%", "%")))).collect();
        for (name, path) in &credentials {
            // What the service found at its last start; the environment may hold what was there before.
            if let Ok(now) = read_service_secret(path) {
                all.add(name, now.whole.expose_secret());
            }
        }
        for (name, value) in read_env_file(env_file) {
            if credentials.iter().any(|(secret, _)| *secret == name) {
                all.add(&name, &value);
            } else if URLS.contains(&name.as_str())
                && let Some(password) = password(&value)
            {
                all.add(&name, password);
            }
        }
        all
    }

    /// A value, its lines, and how each reads in JSON.
    fn add(&mut self, name: &str, value: &str) {
        for part in value.lines().chain([value]) {
            let part = part.trim();
            let quoted = serde_json::Value::from(part).to_string();
            for written in [part, &quoted[1..quoted.len() - 1]] {
                if written.chars().count() >= SHORTEST {
                    self.0.insert((written.to_owned(), name.to_owned()));
                }
            }
        }
    }

    /// The line with `[NAME]` in the place of each value, and of values that overlap.
    pub(super) fn apply(&self, line: &str) -> String {
        let mut hidden: Vec<(usize, usize, &str)> = Vec::new();
        for (value, name) in &self.0 {
            let mut from = 0;
            while let Some(at) = line[from..].find(value.as_str()).map(|at| from + at) {
                hidden.push((at, at + value.len(), name));
                from = at + value.chars().next().map_or(1, char::len_utf8);
            }
        }
        // The longest of those that begin together gives its name.
        hidden.sort_unstable_by_key(|(from, to, _)| (*from, usize::MAX - to));
        let (mut shown, mut end) = (String::with_capacity(line.len()), 0);
        for (from, to, name) in hidden {
            if from >= end {
                shown.push_str(&line[end..from]);
                shown.push_str(&format!("[{name}]"));
            }
            end = end.max(to);
        }
        shown.push_str(&line[end..]);
        shown
    }
}

/// The password of `scheme://user:password@host`.
fn password(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let (user, _) = rest.rsplit_once('@')?;
    Some(user.split_once(':')?.1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::render::env::env_file;
    use super::*;

    fn given(secrets: &[(&str, &str)], others: &[(&str, &str)]) -> Redactions {
        let unit: String = secrets.iter().map(|(name, _)| format!("LoadCredential={name}:/nowhere/{name}\n")).collect();
        let env = secrets.iter().chain(others).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Redactions::of(&unit, &env_file(&env.collect()).unwrap())
    }

    #[rstest::rstest]
    #[case("the token hush-hush is bad", "the token [TOKEN] is bad")]
    #[case("hush-hushhush-hush", "[TOKEN][TOKEN]")]
    #[case("hush-hush-hush!", "[TOKEN]!")]
    #[case("at redis://u:0123abcd@127.0.0.1:6379/3", "at redis://u:[VALKEY_URL]@127.0.0.1:6379/3")]
    #[case("LEVEL=debug PIN=123", "LEVEL=debug PIN=123")]
    #[case("  YWJj \"q\" 100%", "  [KEY]")]
    #[case(r#"{"key":"-----BEGIN-----\nYWJj \"q\" 100%\n"}"#, r#"{"key":"[KEY]\n[KEY]\n"}"#)]
    #[case("naïve ☃ hush-hush ☃", "naïve ☃ [TOKEN] ☃")]
    fn a_value_is_shown_by_its_name(#[case] line: &str, #[case] shown: &str) {
        let redactions = given(
            &[("TOKEN", "hush-hush"), ("KEY", "-----BEGIN-----\n\tYWJj \"q\" 100%\n"), ("PIN", "123")],
            &[("LEVEL", "debug"), ("VALKEY_URL", "redis://u:0123abcd@127.0.0.1:6379/3")],
        );
        assert_eq!(redactions.apply(line), shown);
    }

    #[test]
    fn what_the_file_holds_by_now_is_hidden_beside_what_the_environment_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("100%");
        std::fs::write(&path, "rotated\n").unwrap();
        let unit = format!("LoadCredential=TOKEN:{}\n", path.display().to_string().replace('%', "%%"));
        let env = BTreeMap::from([("TOKEN".to_owned(), "before".to_owned())]);
        let redactions = Redactions::of(&unit, &env_file(&env).unwrap());
        assert_eq!(redactions.apply("before and rotated"), "[TOKEN] and [TOKEN]");
    }

    proptest! {
        #[test]
        fn no_value_is_left_in_a_line(
            before in "[a-z☃\"\\\\]{0,8}", one in "[a-z☃\"\\\\]{4,9}", two in "[a-z☃]{4,9}", after in "[a-z☃]{0,8}",
        ) {
            let redactions = given(&[("ONE", &one), ("TWO", &two)], &[]);
            for line in [format!("{before}{one}{after}{two}"), format!("{one}{two}{before}{one}")] {
                let shown = redactions.apply(&line);
                prop_assert!(!shown.contains(&one) && !shown.contains(&two), "{}", shown);
            }
        }
    }
}
