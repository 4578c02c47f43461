//! How a service ended, in words.

use std::collections::HashMap;

use zbus::{Message, OwnedVariant};

use crate::host::UnitState;

/// What the signals told of a unit that is on its way out. systemd tells of the service before it tells of the
/// unit (`unit_send_changed_signal`), and forgets both at once when the unit is collected.
#[derive(Debug, Default)]
pub(super) struct Seen {
    result: Option<String>,
    code: i32,
    status: i32,
}

impl Seen {
    /// The unit's last state, if this signal tells that it has ended.
    pub(super) fn take_in(&mut self, change: &Message) -> Option<UnitState> {
        let body = change.body();
        let (interface, changed, _): (String, HashMap<String, OwnedVariant>, Vec<String>) = body.deserialize().ok()?;
        let text = |name| changed.get(name).and_then(|value| String::try_from(value.clone()).ok());
        let number = |name| changed.get(name).and_then(|value| i32::try_from(value).ok());
        match interface.as_str() {
            "org.freedesktop.systemd1.Service" => {
                self.result = text("Result").or(self.result.take());
                self.code = number("ExecMainCode").unwrap_or(self.code);
                self.status = number("ExecMainStatus").unwrap_or(self.status);
                None
            }
            "org.freedesktop.systemd1.Unit" => {
                let restarts = text("SubState").is_some_and(|sub| sub.contains("auto-restart"));
                let ended = matches!(text("ActiveState").as_deref(), Some("inactive" | "failed"));
                (ended && !restarts).then(|| self.or(UnitState::Absent))
            }
            _ => None,
        }
    }

    /// How it ended, if that was told; else `state`.
    pub(super) fn or(&self, state: UnitState) -> UnitState {
        match &self.result {
            Some(result) => UnitState::Dead { result: ending(result, self.code, self.status) },
            None => state,
        }
    }
}

/// How a service ended, as `systemctl status` says it: `exit-code, status 1`.
pub(super) fn ending(result: &str, code: i32, status: i32) -> String {
    // `CLD_EXITED`, `CLD_KILLED` and `CLD_DUMPED` of `sigaction(2)`.
    match (code, status) {
        (1, 0) => result.to_owned(),
        (1, status) => match exit_status_name(status) {
            Some(name) => format!("{result}, status {status}/{name}"),
            None => format!("{result}, status {status}"),
        },
        (2 | 3, signal) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("{result}, {signal}"),
            Err(_) => format!("{result}, signal {signal}"),
        },
        _ => result.to_owned(),
    }
}

/// What systemd itself ends a process with before its program runs (`systemd.exec(5)`, "Process Exit Codes").
fn exit_status_name(status: i32) -> Option<&'static str> {
    match status {
        200 => Some("CHDIR"),
        203 => Some("EXEC"),
        217 => Some("USER"),
        219 => Some("CGROUP"),
        226 => Some("NAMESPACE"),
        228 => Some("SECCOMP"),
        238 => Some("STATE_DIRECTORY"),
        243 => Some("CREDENTIALS"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_read_as_systemctl_says_them() {
        assert_eq!(ending("success", 1, 0), "success");
        assert_eq!(ending("success", 0, 0), "success");
        assert_eq!(ending("exit-code", 1, 3), "exit-code, status 3");
        assert_eq!(ending("exit-code", 1, 203), "exit-code, status 203/EXEC");
        assert_eq!(ending("signal", 2, 9), "signal, SIGKILL");
        assert_eq!(ending("core-dump", 3, 11), "core-dump, SIGSEGV");
        assert_eq!(ending("timeout", 2, 15), "timeout, SIGTERM");
    }
}
