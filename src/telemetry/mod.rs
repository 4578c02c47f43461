//! Sets up the daemon's log, and prints an error with its causes.
//!
//! Under systemd each record goes to the journal with its fields (`journalctl KENNEL_PROJECT=hello`); anywhere else
//! it becomes one readable line on stderr.

mod journal;

use std::error::Error;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _};

use journal::Journal;

/// The variable that says what is logged, as `tracing_subscriber::EnvFilter` reads it: `debug`, `info,kennel=trace`.
pub const FILTER_VARIABLE: &str = "KENNEL_LOG";

/// A log that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// What `KENNEL_LOG` says is no filter.
    #[error("`KENNEL_LOG` is not a log filter, such as `info` or `info,kennel=debug`")]
    Filter(#[source] Box<dyn Error + Send + Sync>),
    /// There is a log already.
    #[error("cannot set up the log")]
    Twice(#[source] TryInitError),
}

/// Sets up the log of this process, once: to the journal when systemd says that stderr leads there
/// (`JOURNAL_STREAM`), to stderr otherwise. Default: `info` and above.
///
/// # Errors
/// When `KENNEL_LOG` is wrong, or there is a log already.
pub fn set_up() -> Result<(), SetUpError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.trim().is_empty() => {
            EnvFilter::try_new(text).map_err(|err| SetUpError::Filter(Box::new(err)))?
        }
        Err(std::env::VarError::NotUnicode(_)) => return Err(SetUpError::Filter("it is not UTF-8".into())),
        Ok(_) | Err(std::env::VarError::NotPresent) => EnvFilter::new("info"),
    };
    let journal = if stderr_is_the_journal() { Journal::connect().ok() } else { None };
    let output = match journal {
        Some(journal) => journal.boxed(),
        None => tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
    };
    tracing_subscriber::registry().with(output.with_filter(filter)).try_init().map_err(SetUpError::Twice)
}

/// Whether stderr is the stream that systemd made for it. That the variable is there is not enough: a shell that some
/// service started inherits it (`systemd.exec(5)`, `$JOURNAL_STREAM`).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    nix::sys::stat::fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// An error and its causes, `a: b: c`. A cause that says nothing new is left out.
#[must_use]
pub fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !said.is_empty() && !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layered {
        text: &'static str,
        source: Option<Box<Layered>>,
    }

    fn layered(texts: &[&'static str]) -> Option<Box<Layered>> {
        let (text, rest) = texts.split_first()?;
        Some(Box::new(Layered { text, source: layered(rest) }))
    }

    #[test]
    fn causes_follow_the_error_from_the_outside_in() {
        let said = |texts: &[&'static str]| chain(&*layered(texts).unwrap());
        assert_eq!(said(&["cannot start"]), "cannot start");
        assert_eq!(said(&["cannot start", "no bus", "refused"]), "cannot start: no bus: refused");
        assert_eq!(said(&["cannot start: refused", "refused", ""]), "cannot start: refused");
    }
}
