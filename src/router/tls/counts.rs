//! What is counted of handshakes, and until when the certificates are good that visitors are shown.
//!
//! **Invariant:** labels are words of this file and names for which there is a certificate: nothing that a visitor sends.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::model::CertificateName;
use crate::router::metrics::Page;

/// As many certificates as are shown, those that end first.
const CERTIFICATES_MAX: usize = 1_000;

/// How a handshake ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Requests may come.
    Done,
    /// A certificate authority has seen its proof.
    Proven,
    /// The visitor asks for no host.
    NoName,
    /// There is no certificate for the host.
    UnknownName,
    /// The visitor does not like what it is shown, or cannot make anything of it.
    Rejected,
    /// There is no version, cipher or protocol that both sides know.
    NothingInCommon,
    /// What came is not TLS.
    Malformed,
    /// The connection broke off.
    BrokenOff,
    /// It took too long.
    TooSlow,
}

impl Ended {
    const ALL: [Self; 9] = [
        Self::Done,
        Self::Proven,
        Self::NoName,
        Self::UnknownName,
        Self::Rejected,
        Self::NothingInCommon,
        Self::Malformed,
        Self::BrokenOff,
        Self::TooSlow,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Proven => "challenge",
            Self::NoName => "no_name",
            Self::UnknownName => "unknown_name",
            Self::Rejected => "rejected",
            Self::NothingInCommon => "nothing_in_common",
            Self::Malformed => "malformed",
            Self::BrokenOff => "broken_off",
            Self::TooSlow => "too_slow",
        }
    }

    /// How one ended that failed.
    pub(super) fn of(err: &io::Error) -> Self {
        match err.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(_)) => Self::Rejected,
            Some(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) => Self::NothingInCommon,
            Some(_) => Self::Malformed,
            None => Self::BrokenOff,
        }
    }
}

/// The counts.
#[derive(Debug, Default)]
pub(in crate::router) struct Counts {
    ended: [AtomicU64; Ended::ALL.len()],
    certificates: Mutex<Vec<(Timestamp, CertificateName)>>,
}

impl Counts {
    pub(super) fn note(&self, ended: Ended) {
        self.ended[ended as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// These are shown from now on, each until its time. Names that are no host's are left out.
    pub(super) fn note_certificates(&self, all: impl Iterator<Item = (String, Timestamp)>) {
        let mut known: Vec<_> = all.filter_map(|(name, ends)| Some((ends, name.parse().ok()?))).collect();
        known.sort();
        known.truncate(CERTIFICATES_MAX);
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Everything, as text.
    pub(in crate::router) fn render(&self, page: &mut Page) {
        page.begin("kennel_tls_handshakes_total", "counter", "TLS handshakes, by how they ended.");
        for ended in Ended::ALL {
            let count = self.ended[ended as usize].load(Ordering::Relaxed);
            page.line("", &format!("result=\"{}\"", ended.word()), count);
        }
        let help = "Until when the certificate is valid that visitors are shown, in seconds since 1970.";
        page.begin("kennel_certificate_expiry_timestamp_seconds", "gauge", help);
        for (ends, name) in self.certificates.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            page.line("", &format!("name=\"{name}\""), ends.as_second());
        }
    }
}
