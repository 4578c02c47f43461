//! What is wrong with a file, all of it, in words for the person who wrote it.

use std::fmt;

use serde::Serialize;

/// More faults than this are counted, not listed.
const LISTED_MAX: usize = 100;

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The line, from 1; `None` when it concerns the file as a whole.
    pub line: Option<usize>,
    /// The key as one would write it, such as `services.api.health_check`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, as the rest of a sentence about the key.
    pub problem: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

/// Everything wrong with one file, in the order of its lines. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Faults(Vec<Fault>);

impl Fault {
    /// A fault of the file as a whole.
    pub(super) fn whole(problem: impl Into<String>) -> Self {
        Self { line: None, key: String::new(), problem: problem.into(), hint: None }
    }
}

impl Faults {
    /// Sorts what was found by line, and keeps the first hundred.
    pub(super) fn new(mut found: Vec<Fault>) -> Self {
        found.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
        if found.len() > LISTED_MAX {
            let more = found.len() - LISTED_MAX;
            found.truncate(LISTED_MAX);
            found.push(Fault::whole(format!("and {more} faults more")));
        }
        if found.is_empty() {
            found.push(Fault::whole("is not valid"));
        }
        Self(found)
    }

    /// The faults, in the order of their lines.
    #[must_use]
    pub fn as_slice(&self) -> &[Fault] {
        &self.0
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "`{}`: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Faults {
    /// One line per fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
