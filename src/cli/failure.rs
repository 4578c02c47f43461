//! What a command that did not do its work says, and the exit code that tells scripts the same.

use std::fmt;
use std::path::Path;

/// Why a command did not do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// What was asked for failed.
    Failed,
    /// The command line makes no sense.
    Misuse,
    /// There is no such build, deployment, project or log.
    NoSuch,
    /// The daemon cannot be reached.
    Unreachable,
    /// Whoever asks may not.
    NotAllowed,
}

impl Exit {
    /// The exit code: 1, or one of `sysexits.h`.
    #[must_use]
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Misuse => 64,
            Self::NoSuch => 66,
            Self::Unreachable => 69,
            Self::NotAllowed => 77,
        }
    }
}

/// A command that did not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// What kind it is.
    pub(super) exit: Exit,
    /// What is the matter; empty when it has been told already.
    pub(super) message: String,
    /// What helps.
    pub(super) hint: Option<String>,
}

impl Failure {
    /// A failure with nothing to be done about it.
    #[must_use]
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// The same, with what helps.
    #[must_use]
    pub(super) fn hint(self, hint: &str) -> Self {
        Self { hint: Some(hint.to_owned()), ..self }
    }

    pub(super) fn unreachable(socket: &Path, why: &str) -> Self {
        Self::new(Exit::Unreachable, format!("cannot reach kennel at {}: {why}", socket.display()))
            .hint("`systemctl status kennel` tells whether it runs")
    }

    pub(super) fn unexpected(err: &dyn fmt::Display) -> Self {
        Self::new(Exit::Failed, format!("kennel gave an answer this command does not understand: {err}"))
            .hint("the daemon may be of another version: `systemctl restart kennel` after an upgrade")
    }
}

impl From<std::io::Error> for Failure {
    /// Output that cannot be written.
    fn from(err: std::io::Error) -> Self {
        // A reader like `head` that has read enough is no reason to complain.
        let quiet = err.kind() == std::io::ErrorKind::BrokenPipe;
        Self::new(Exit::Failed, if quiet { String::new() } else { format!("cannot write the output: {err}") })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
