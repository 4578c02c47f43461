//! The sandbox of a deployed service, and what each opt-out changes of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::model::confinement::OptOut;

/// What keeps a service from everything but its own data, its port and the network.
///
/// `systemd-analyze security` says 1.1 to it. `MemoryDenyWriteExecute=` is absent, since compilers at run
/// time (Node, Java, LuaJIT) need such memory, it is no wall between a service and the machine, and the score does not
/// change. `PrivatePIDs=` is absent, since a program that is process 1 ignores SIGTERM unless it handles it.
/// `IPAddressDeny=` is absent, since services talk to the internet. Calls that the filter refuses fail rather than end
/// the program (`SystemCallErrorNumber=`), since many programs try what they can do without.
const SANDBOX: [(&str, &str); 31] = [
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("DevicePolicy", "closed"),
    ("PrivateUsers", "yes"),
    ("PrivateIPC", "yes"),
    ("ProtectProc", "invisible"),
    ("ProcSubset", "pid"),
    ("ProtectHostname", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    ("SystemCallErrorNumber", "EPERM"),
    ("UMask", "0027"),
    ("LimitCORE", "0"),
];

/// One change to the sandbox.
enum Change {
    /// The directive has this value instead.
    Set(&'static str, &'static str),
    /// The directive's list is longer by this; one that may be given several times is given once more.
    Add(&'static str, &'static str),
}

use Change::{Add, Set};

fn changes(opt_out: OptOut) -> &'static [Change] {
    match opt_out {
        OptOut::Proc => &[Set("ProcSubset", "all")],
        OptOut::Netlink => &[Add("RestrictAddressFamilies", "AF_NETLINK")],
        OptOut::Resources => &[Add("SystemCallFilter", "@resources")],
        OptOut::Devices => &[Set("PrivateDevices", "no"), Set("DevicePolicy", "auto")],
        OptOut::Namespaces => &[Set("RestrictNamespaces", "no"), Add("SystemCallFilter", "@mount")],
        // A capability counts only in the user namespace that owns the network's.
        OptOut::NetworkRaw => &[
            Set("PrivateUsers", "no"),
            Set("CapabilityBoundingSet", "CAP_NET_RAW"),
            Set("AmbientCapabilities", "CAP_NET_RAW"),
            Add("RestrictAddressFamilies", "AF_PACKET"),
        ],
        OptOut::ForeignAbi => &[Set("SystemCallArchitectures", "")],
    }
}

/// The directives of a sandbox with these walls lowered, a line each.
pub(super) fn sandbox(opt_outs: &BTreeSet<OptOut>) -> String {
    let changes = || opt_outs.iter().flat_map(|opt_out| changes(*opt_out));
    let mut text = String::with_capacity(1024);
    for (at, (name, value)) in SANDBOX.iter().enumerate() {
        let set = changes().find_map(|change| match change {
            Set(directive, value) if directive == name => Some(*value),
            _ => None,
        });
        let _ = writeln!(text, "{name}={}", set.unwrap_or(value));
        let is_last = SANDBOX[at + 1..].iter().all(|(other, _)| other != name);
        for change in changes().filter(|_| is_last) {
            // What is allowed again stands after all that is not: the last word counts.
            if let Add(directive, more) = change
                && directive == name
            {
                let _ = writeln!(text, "{name}={more}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(opt_outs: &[OptOut]) -> Vec<String> {
        sandbox(&opt_outs.iter().copied().collect()).lines().map(str::to_owned).collect()
    }

    /// What is not in the whole sandbox, and what of that is missing.
    fn difference(opt_out: OptOut) -> (String, String) {
        let (whole, lowered) = (lines(&[]), lines(&[opt_out]));
        let without = |one: &[String], two: &[String]| {
            one.iter().filter(|line| !two.contains(line)).cloned().collect::<Vec<_>>().join(" ")
        };
        (without(&lowered, &whole), without(&whole, &lowered))
    }

    #[rstest::rstest]
    #[case(OptOut::Proc, "ProcSubset=all", "ProcSubset=pid")]
    #[case(OptOut::Netlink, "RestrictAddressFamilies=AF_NETLINK", "")]
    #[case(OptOut::Resources, "SystemCallFilter=@resources", "")]
    #[case(OptOut::Devices, "PrivateDevices=no DevicePolicy=auto", "PrivateDevices=yes DevicePolicy=closed")]
    #[case(OptOut::Namespaces, "RestrictNamespaces=no SystemCallFilter=@mount", "RestrictNamespaces=yes")]
    #[case(
        OptOut::NetworkRaw,
        "PrivateUsers=no CapabilityBoundingSet=CAP_NET_RAW AmbientCapabilities=CAP_NET_RAW \
         RestrictAddressFamilies=AF_PACKET",
        "PrivateUsers=yes CapabilityBoundingSet= AmbientCapabilities="
    )]
    #[case(OptOut::ForeignAbi, "SystemCallArchitectures=", "SystemCallArchitectures=native")]
    fn an_opt_out_changes_its_own_directives(#[case] opt_out: OptOut, #[case] more: &str, #[case] less: &str) {
        assert_eq!(difference(opt_out), (more.to_owned(), less.to_owned()));
        assert!(format!("{more} {less}").contains(opt_out.directive()), "{}", opt_out.directive());
    }

    #[test]
    fn what_is_allowed_again_comes_after_what_is_not() {
        let all = lines(OptOut::ALL);
        let filters: Vec<_> = all.iter().filter(|line| line.starts_with("SystemCallFilter=")).collect();
        let last =
            ["SystemCallFilter=~@privileged @resources", "SystemCallFilter=@resources", "SystemCallFilter=@mount"];
        assert_eq!(filters[1..], last);
    }
}
