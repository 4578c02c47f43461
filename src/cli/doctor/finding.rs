//! What a check found.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// It is as it should be.
    Ok,
    /// kennel works; something is lost, or may be.
    Warning,
    /// kennel does not work, or does not keep a promise.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: String,
    /// How bad it is.
    pub(super) level: Level,
    /// What is the case.
    pub(super) found: String,
    /// What to change.
    pub(super) advice: Option<String>,
}

impl Finding {
    /// All is well.
    #[must_use]
    pub(super) fn ok(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level: Level::Ok, found: found.into(), advice: None }
    }

    /// Something is lost, or may be.
    #[must_use]
    pub(super) fn warning(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warning, advice: Some(advice.into()), ..Self::ok(check, found) }
    }

    /// Something does not work.
    #[must_use]
    pub(super) fn failure(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Failure, ..Self::warning(check, found, advice) }
    }
}
