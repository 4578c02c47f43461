//! A failed call as it passes over the socket: what was tried, and why not, cause by cause.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::host::HostError;

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// It may not be asked for: why not.
    Refused(String),
    /// It did not succeed.
    Failed {
        /// What was to be done, as [`HostError::action`].
        action: String,
        /// Why not; each was caused by the next.
        causes: Vec<String>,
    },
}

impl Refusal {
    /// A call that may not be made.
    pub(super) fn refused(why: impl fmt::Display) -> Self {
        Self::Refused(why.to_string())
    }

    /// The error of a caller who wanted something done.
    pub(super) fn into_error(self) -> HostError {
        match self {
            Self::Refused(why) => HostError::new("have that done by `kennel host`, which refuses it", why),
            Self::Failed { action, causes } => HostError { action, source: Box::new(Told::of(causes)) },
        }
    }
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        let mut causes = Vec::new();
        let mut next: Option<&(dyn Error + 'static)> = Some(&*error.source);
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        Self::Failed { action: error.action, causes }
    }
}

/// A cause that was told by the other side.
#[derive(Debug)]
struct Told {
    text: String,
    source: Option<Box<Told>>,
}

impl Told {
    fn of(causes: Vec<String>) -> Self {
        let chain = |source: Option<Box<Self>>, text| Some(Box::new(Self { text, source }));
        let first = causes.into_iter().rev().fold(None, chain);
        first.map_or_else(|| Self { text: "it did not say why".to_owned(), source: None }, |first| *first)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Told {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    #[test]
    fn an_error_says_the_same_on_both_sides() {
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = HostError::new("start the unit `x`", HostError::new("ask", io));
        let text = chain(&error);
        let told = serde_json::to_string(&Refusal::from(error)).unwrap();
        assert_eq!(chain(&serde_json::from_str::<Refusal>(&told).unwrap().into_error()), text);
    }
}
