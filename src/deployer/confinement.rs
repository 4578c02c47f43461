//! What a service is kept in: as it asks, within what the operator allows; and what to change when it died of that.

use std::collections::BTreeSet;

use super::{Context, StepError};
use crate::model::confinement::{Confinement, OptOut};
use crate::model::settings::ServiceSettings;
use crate::model::{Ending, ProjectName, Settings};
use crate::store::Target;

/// Refuses a service that asks for more than the operator allows, by name.
pub(super) fn check(ctx: &Context, target: &Target, settings: &Settings) -> Result<(), StepError> {
    let Settings::Service(service) = settings else { return Ok(()) };
    let config = ctx.config.load();
    let project = &target.project;
    let mut refused = Vec::new();
    for (key, asked, most) in service.confinement.limits.above(&config.limits_of(project).max) {
        refused.push(format!("it asks for `{key}` of {asked}, and the operator allows {most}"));
    }
    if !refused.is_empty() {
        refused.push(format!(
            "hint: ask for less in kennel.toml, or raise it in `[projects.{project}.limits]` of the daemon's file"
        ));
    }
    let allowed = config.projects.get(project).map_or(OptOut::HARMLESS.into(), |project| project.sandbox_allow.clone());
    for opt_out in service.confinement.opt_outs.difference(&allowed) {
        refused.push(format!(
            "it asks for `sandbox.allow = [\"{opt_out}\"]`, which the operator does not allow\n\
             hint: add it to `sandbox_allow` of `[projects.{project}]` in the daemon's file, `systemctl reload kennel`, \
             deploy again"
        ));
    }
    if refused.is_empty() { Ok(()) } else { Err(StepError::Unfit(Ending::Failed, refused.join("\n"))) }
}

/// What the service gets now: where the operator has taken something back since, it counts from the next start.
pub(super) fn of(ctx: &Context, project: &ProjectName, service: &ServiceSettings) -> Confinement {
    let config = ctx.config.load();
    let asked = &service.confinement;
    // A project that is no longer configured serves on as it is.
    let opt_outs = match config.projects.get(project) {
        Some(project) => asked.opt_outs.intersection(&project.sandbox_allow).copied().collect(),
        None => asked.opt_outs.clone(),
    };
    Confinement { limits: config.limits_of(project).grant(asked.limits), opt_outs }
}

/// The reason of a failure, with what to change where the sandbox or a limit may have been the cause.
///
/// systemd tells of a few endings for certain. Beyond them there is what the program said: most refusals of the sandbox
/// are errors that a program gets and writes down, in the words of `strerror(3)` or its language.
pub(super) fn explained(mut reason: String, confinement: &Confinement) -> String {
    for hint in hints(&reason, &confinement.opt_outs) {
        reason.push_str("\nhint: ");
        reason.push_str(&hint);
    }
    reason
}

fn hints(reason: &str, given: &BTreeSet<OptOut>) -> Vec<String> {
    let mut hints = Vec::new();
    let head = reason.lines().next().unwrap_or_default();
    if head.contains("oom-kill") {
        hints.push("it used more memory than `MemoryMax=` allows; raise `memory_max` in kennel.toml".to_owned());
    }
    if head.contains("SIGSYS") && !given.contains(&OptOut::ForeignAbi) {
        hints.push(refused(OptOut::ForeignAbi, "a system call of another architecture, such as a 32-bit program's"));
    }
    for (status, directive, what) in ENDINGS {
        if head.contains(status) {
            hints.push(format!("the sandbox (`{directive}`) could not be set up on this machine: {what}"));
        }
    }
    let lowered: Vec<String> = reason.lines().skip(1).map(str::to_lowercase).collect();
    let mut named = given.clone();
    for symptom in SYMPTOMS {
        let shown = |line: &String| {
            symptom.error.iter().any(|word| line.contains(word)) && symptom.about.iter().any(|word| line.contains(word))
        };
        if named.contains(&symptom.opt_out) || !(0..lowered.len()).any(|at| shown(&near(&lowered, at))) {
            continue;
        }
        named.insert(symptom.opt_out);
        hints.push(refused(symptom.opt_out, symptom.what));
    }
    hints
}

fn refused(opt_out: OptOut, what: &str) -> String {
    let directive = opt_out.directive();
    format!("the sandbox (`{directive}`) refuses {what}; `sandbox.allow = [\"{opt_out}\"]` in kennel.toml allows it")
}

/// A line with the few before it: a traceback names the call, and then the error.
fn near(lines: &[String], at: usize) -> String {
    if EPERM.iter().chain(EAFNOSUPPORT).chain(ENOENT).any(|word| lines[at].contains(word)) {
        lines[at.saturating_sub(NEAR)..=at].join("\n")
    } else {
        String::new()
    }
}

/// How many lines before an error may say what it was about.
const NEAR: usize = 8;

/// Endings before the program runs (`systemd.exec(5)`, "Process Exit Codes").
const ENDINGS: [(&str, &str, &str); 3] = [
    ("226/NAMESPACE", "PrivateUsers=, ProtectSystem= and their like", "`journalctl -u` of its unit says why"),
    ("228/SECCOMP", "SystemCallFilter=", "the kernel has no seccomp filters"),
    ("218/CAPABILITIES", "CapabilityBoundingSet=", "kennel itself may lack the capability"),
];

const EPERM: &[&str] = &["operation not permitted", "eperm", "[errno 1]", "os error 1)"];
const EAFNOSUPPORT: &[&str] = &["address family not supported", "eafnosupport", "[errno 97]", "os error 97)"];
const ENOENT: &[&str] = &["no such file or directory", "enoent", "[errno 2]", "os error 2)"];

/// What a program writes when a wall of the sandbox stops it: an error, and what it was about.
struct Symptom {
    opt_out: OptOut,
    error: &'static [&'static str],
    about: &'static [&'static str],
    what: &'static str,
}

const SYMPTOMS: [Symptom; 7] = [
    Symptom {
        opt_out: OptOut::NetworkRaw,
        error: EAFNOSUPPORT,
        about: &["packet", "pcap"],
        what: "sockets for whole packets",
    },
    Symptom {
        opt_out: OptOut::Netlink,
        error: EAFNOSUPPORT,
        about: &["netlink", "getifaddrs", "interface", "route"],
        what: "netlink sockets, by which programs ask for addresses and routes",
    },
    Symptom {
        opt_out: OptOut::NetworkRaw,
        error: EPERM,
        about: &["raw", "icmp", "ping", "packet"],
        what: "sockets for whole packets",
    },
    Symptom {
        opt_out: OptOut::Namespaces,
        error: EPERM,
        about: &["unshare", "namespace", "clone", "clone_new", "bwrap", "setns", "mount"],
        what: "new namespaces",
    },
    Symptom {
        opt_out: OptOut::Resources,
        error: EPERM,
        about: &["priority", "nice", "affinity", "sched_", "setrlimit", "rlimit", "mempolicy", "mbind"],
        what: "changes to priority, processors and limits",
    },
    Symptom {
        opt_out: OptOut::Proc,
        error: ENOENT,
        about: &[
            "/proc/meminfo",
            "/proc/cpuinfo",
            "/proc/stat",
            "/proc/loadavg",
            "/proc/uptime",
            "/proc/sys/",
            "/proc/vmstat",
            "/proc/mounts",
            "/proc/net",
        ],
        what: "the machine's own part of `/proc`",
    },
    Symptom { opt_out: OptOut::Devices, error: ENOENT, about: &["/dev/"], what: "the machine's devices" },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ending: &str, lines: &str, given: &[OptOut]) -> String {
        let reason = format!("it exited before it was healthy ({ending})\nits last lines:\n{lines}");
        let confinement = Confinement { opt_outs: given.iter().copied().collect(), ..Confinement::default() };
        let whole = explained(reason.clone(), &confinement);
        whole.strip_prefix(&reason).unwrap().to_owned()
    }

    #[rstest::rstest]
    #[case("core-dump, SIGSYS", "", "foreign-abi")]
    #[case("exit-code, status 1", "  socket(AF_PACKET): Address family not supported by protocol", "network-raw")]
    #[case("exit-code, status 1", "  ping: socket: Operation not permitted", "network-raw")]
    #[case("exit-code, status 1", "  getifaddrs: EAFNOSUPPORT", "netlink")]
    #[case("exit-code, status 1", "  bwrap: No permissions to create new namespace: EPERM", "namespaces")]
    #[case("exit-code, status 1", "  os.setpriority(0, 0, 5)\n  PermissionError: [Errno 1] no", "resources")]
    #[case("exit-code, status 1", "  open /proc/meminfo: No such file or directory", "proc")]
    #[case("exit-code, status 1", "  Error: ENOENT, open '/dev/dri/card0'", "devices")]
    fn a_refusal_names_its_directive_and_the_opt_out(#[case] ending: &str, #[case] lines: &str, #[case] word: &str) {
        let opt_out = *OptOut::ALL.iter().find(|opt_out| opt_out.word() == word).unwrap();
        let hint = told(ending, lines, &[]);
        assert_eq!(hint.matches("\nhint: ").count(), 1, "{hint}");
        assert!(
            hint.contains(&format!("sandbox.allow = [\"{word}\"]")) && hint.contains(opt_out.directive()),
            "{hint}"
        );
        // What it has already cannot be what it lacks.
        assert_eq!(told(ending, lines, &[opt_out]), "");
    }

    #[test]
    fn an_ordinary_failure_is_left_as_it_is() {
        for lines in
            ["  cannot go on: the table `dogs` is missing", "  open config.json: No such file or directory", ""]
        {
            assert_eq!(told("exit-code, status 1", lines, &[]), "");
        }
        assert_eq!(told("signal, SIGKILL", "  EPERM", &[]), "");
    }

    #[test]
    fn what_systemd_knows_for_certain_is_told() {
        assert!(told("oom-kill, SIGKILL", "", &[]).contains("`memory_max`"));
        assert!(told("exit-code, status 226/NAMESPACE", "", &[]).contains("`PrivateUsers="));
    }
}
