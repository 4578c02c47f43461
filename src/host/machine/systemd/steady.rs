//! systemd for callers who need not know that a bus can go away: what fails because of that is asked again.
//!
//! **Invariant:** everything asked here may be asked twice.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use zbus::fdo;

use super::super::Fault;
use super::super::render::build::Property;
use super::{Listed, Systemd};
use crate::host::UnitState;
use crate::model::UnitName;

/// How long the bus, or systemd on it, may be away before callers are told.
const AWAY_MAX: Duration = Duration::from_secs(10);
/// How long until it is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// What the bus says when it cannot reach systemd, or systemd when it cannot reach the bus.
const AWAY: [&str; 4] = [
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.ServiceUnknown",
];

/// Asks until the answer has nothing to do with the bus.
macro_rules! steadily {
    ($ask:expr) => {{
        let deadline = Instant::now() + AWAY_MAX;
        loop {
            match $ask.await {
                Err(fault) if is_away(&fault) && Instant::now() < deadline => sleep(PAUSE).await,
                done => break done,
            }
        }
    }};
}

/// [`Systemd`], asked again while the bus is away.
#[derive(Debug)]
pub(in crate::host::machine) struct Steady(Systemd);

impl Steady {
    pub(in crate::host::machine) async fn connect() -> Result<Self, Fault> {
        Ok(Self(Systemd::connect().await?))
    }

    pub(in crate::host::machine) async fn start(&self, unit: &UnitName) -> Result<(), Fault> {
        steadily!(self.0.start(unit))
    }

    pub(in crate::host::machine) async fn start_transient(
        &self,
        unit: &UnitName,
        properties: &[Property],
    ) -> Result<(), Fault> {
        steadily!(self.0.start_transient(unit, properties))
    }

    pub(in crate::host::machine) async fn stop(&self, unit: &UnitName) -> Result<(), Fault> {
        steadily!(self.0.stop(unit))
    }

    pub(in crate::host::machine) async fn forget(&self, unit: &UnitName) -> Result<(), Fault> {
        steadily!(self.0.forget(unit))
    }

    pub(in crate::host::machine) async fn stop_empty_slices(&self, ours: fn(&str) -> bool) -> Result<(), Fault> {
        steadily!(self.0.stop_empty_slices(ours))
    }

    pub(in crate::host::machine) async fn state(&self, unit: &UnitName) -> Result<UnitState, Fault> {
        steadily!(self.0.state(unit))
    }

    pub(in crate::host::machine) async fn wait(&self, unit: &UnitName) -> Result<UnitState, Fault> {
        steadily!(self.0.wait(unit))
    }

    pub(in crate::host::machine) async fn list(&self, patterns: &[&str]) -> Result<Vec<Listed>, Fault> {
        steadily!(self.0.list(patterns))
    }
}

/// Whether something failed for want of a bus, or of systemd on it.
fn is_away(fault: &Fault) -> bool {
    match fault.downcast_ref::<zbus::Error>() {
        Some(zbus::Error::InputOutput(_) | zbus::Error::Handshake(_)) => true,
        Some(zbus::Error::MethodError(name, ..)) => AWAY.contains(&name.as_str()),
        Some(zbus::Error::FDO(error)) => matches!(
            **error,
            fdo::Error::Disconnected(_)
                | fdo::Error::NameHasNoOwner(_)
                | fdo::Error::NoReply(_)
                | fdo::Error::ServiceUnknown(_)
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_bus_that_is_away_is_told_from_a_refusal() {
        let away = |error: zbus::Error| is_away(&error.into());
        assert!(away(zbus::Error::InputOutput(Arc::new(io::ErrorKind::BrokenPipe.into()))));
        assert!(away(zbus::Error::from(fdo::Error::NoReply("the peer is gone".to_owned()))));
        assert!(!away(zbus::Error::from(fdo::Error::AccessDenied("no".to_owned()))));
        assert!(!is_away(&"no".into()));
    }
}
