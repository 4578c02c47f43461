//! How much of the machine a service may use, and which walls of its sandbox are lowered for it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::words;

/// The most a service may use at once. `None` is what systemd gives to everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory, in bytes: above it the kernel ends a process of the service (`systemd.resource-control(5)`,
    /// `MemoryMax=`).
    pub memory_max_bytes: Option<u64>,
    /// Time of processors, in percent of one: 200 is two of them (`CPUQuota=`).
    pub cpu_quota_percent: Option<u64>,
    /// Processes and threads (`TasksMax=`).
    pub tasks_max: Option<u64>,
}

words! {
    /// A wall of the sandbox that a service asks to have lowered.
    #[derive(PartialOrd, Ord)]
    OptOut {
        /// It sees `/proc/meminfo`, `/proc/cpuinfo` and their like.
        Proc = "proc",
        /// It may ask the kernel for addresses and routes, as `getifaddrs(3)` does.
        Netlink = "netlink",
        /// It may change its own priority, processors and limits.
        Resources = "resources",
        /// It sees the machine's devices; their permissions still hold.
        Devices = "devices",
        /// It may make namespaces and mount in them: Chromium, bubblewrap.
        Namespaces = "namespaces",
        /// It may send and receive whole packets: ping, traceroute.
        NetworkRaw = "network-raw",
        /// It may run programs for the machine's other architectures, such as 32-bit ones.
        ForeignAbi = "foreign-abi",
    }
}

impl OptOut {
    /// What lets nobody do harm: the service sees more of the machine, or spends what its limits leave it.
    pub const HARMLESS: [Self; 3] = [Self::Proc, Self::Netlink, Self::Resources];

    /// The directive of the sandbox that it loosens, first of all (`systemd.exec(5)`).
    #[must_use]
    pub fn directive(self) -> &'static str {
        match self {
            Self::Proc => "ProcSubset=",
            Self::Netlink => "RestrictAddressFamilies=",
            Self::Resources => "SystemCallFilter=",
            Self::Devices => "PrivateDevices=",
            Self::Namespaces => "RestrictNamespaces=",
            Self::NetworkRaw => "CapabilityBoundingSet=",
            Self::ForeignAbi => "SystemCallArchitectures=",
        }
    }
}

/// What a service is kept in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The most it may use.
    pub limits: Limits,
    /// The walls that are lowered.
    pub opt_outs: BTreeSet<OptOut>,
}

impl Confinement {
    /// Whether it is that of a service nobody says anything of.
    #[must_use]
    pub fn is_ordinary(&self) -> bool {
        *self == Self::default()
    }
}

impl Limits {
    /// These where they are set, and otherwise `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            memory_max_bytes: self.memory_max_bytes.or(other.memory_max_bytes),
            cpu_quota_percent: self.cpu_quota_percent.or(other.cpu_quota_percent),
            tasks_max: self.tasks_max.or(other.tasks_max),
        }
    }

    /// The smaller of each pair.
    #[must_use]
    pub fn at_most(self, ceiling: Self) -> Self {
        fn lower(one: Option<u64>, two: Option<u64>) -> Option<u64> {
            one.into_iter().chain(two).min()
        }
        Self {
            memory_max_bytes: lower(self.memory_max_bytes, ceiling.memory_max_bytes),
            cpu_quota_percent: lower(self.cpu_quota_percent, ceiling.cpu_quota_percent),
            tasks_max: lower(self.tasks_max, ceiling.tasks_max),
        }
    }

    /// Each limit that is above its ceiling: its key, itself and the ceiling, as one writes them.
    #[must_use]
    pub fn above(&self, ceiling: &Self) -> Vec<(&'static str, String, String)> {
        let memory = over(self.memory_max_bytes, ceiling.memory_max_bytes, size);
        let cpu = over(self.cpu_quota_percent, ceiling.cpu_quota_percent, |percent| format!("{percent}%"));
        let tasks = over(self.tasks_max, ceiling.tasks_max, |tasks| tasks.to_string());
        let all = [("memory_max", memory), ("cpu_quota", cpu), ("tasks_max", tasks)];
        all.into_iter().filter_map(|(key, over)| over.map(|(asked, most)| (key, asked, most))).collect()
    }
}

/// Both, as one writes them, if the first is above the second.
fn over(asked: Option<u64>, most: Option<u64>, show: impl Fn(u64) -> String) -> Option<(String, String)> {
    let (asked, most) = (asked?, most?);
    (asked > most).then(|| (show(asked), show(most)))
}

/// A number of bytes with the largest unit that leaves no rest: `512M`.
fn size(bytes: u64) -> String {
    let units = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];
    let whole = units.into_iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    whole.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory: impl Into<Option<u64>>, cpu: impl Into<Option<u64>>, tasks: impl Into<Option<u64>>) -> Limits {
        Limits { memory_max_bytes: memory.into(), cpu_quota_percent: cpu.into(), tasks_max: tasks.into() }
    }

    #[test]
    fn a_limit_that_is_not_set_is_the_other_and_the_smaller_wins() {
        let asked = limits(1 << 30, None, 20);
        assert_eq!(asked.or(limits(5, 50, 5)), limits(1 << 30, 50, 20));
        assert_eq!(asked.at_most(limits(512 << 20, 50, None)), limits(512 << 20, 50, 20));
    }

    #[test]
    fn what_is_above_its_ceiling_is_told_as_one_writes_it() {
        let asked = limits(1536 << 20, 150, 64);
        assert_eq!(asked.above(&limits(None, None, 64)), []);
        let above = asked.above(&limits(1 << 30, 100, 63));
        let above: Vec<_> = above.iter().map(|(key, asked, most)| format!("{key} {asked} {most}")).collect();
        assert_eq!(above, ["memory_max 1536M 1G", "cpu_quota 150% 100%", "tasks_max 64 63"]);
    }
}
