//! The machine as an operator sees it: commands, units, processes, sockets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Runs a command, whatever comes of it.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    timeout(COMMAND_MAX, command.output())
        .await
        .unwrap_or_else(|_| panic!("`{program} {}` takes too long", arguments.join(" ")))
        .unwrap_or_else(|err| panic!("cannot run `{program}`: {err}"))
}

/// Runs a command that must succeed. Tells what it printed.
pub(crate) async fn ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments).await;
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "`{program} {}`: {}\n{out}{err}", arguments.join(" "), output.status);
    out
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A property of a unit, as systemd shows it.
pub(crate) async fn property(unit: &str, name: &str) -> String {
    ok("systemctl", &["show", "--value", "--property", name, "--", unit]).await.trim().to_owned()
}

/// The main process of a unit that runs.
pub(crate) async fn main_pid(unit: &str) -> u32 {
    let pid = property(unit, "MainPID").await.parse().expect("systemd tells a number");
    assert_ne!(pid, 0, "`{unit}` does not run");
    pid
}

/// Units of builds and deployments that systemd knows, or of which a file is left.
pub(crate) async fn own_units() -> BTreeSet<String> {
    let listed = ok("systemctl", &["list-units", "--all", "--plain", "--no-legend", "kennel-*.service"]).await;
    let mut units: BTreeSet<_> = listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    units.extend(names(Path::new("/run/systemd/system")).into_iter().filter(|name| name.starts_with("kennel-")));
    units.remove("kennel-host.service");
    units
}

/// The names in a directory; none when there is no such directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A process of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) command: String,
}

pub(crate) fn processes() -> Vec<Process> {
    let process = |name: String| {
        let pid = name.parse().ok()?;
        let dir = Path::new("/proc").join(name);
        let status = fs::read_to_string(dir.join("status")).ok()?;
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()?;
        let command = text(&fs::read(dir.join("cmdline")).ok()?).replace('\0', " ");
        // A zombie has no command line, and is nobody's problem but its parent's.
        (!command.is_empty()).then_some(Process { pid, uid, command })
    };
    names(Path::new("/proc")).into_iter().filter_map(process).collect()
}

/// The processes of users with such a uid.
pub(crate) fn processes_of(is_theirs: impl Fn(u32) -> bool) -> Vec<Process> {
    processes().into_iter().filter(|process| is_theirs(process.uid)).collect()
}

/// What Nix's daemon runs to build something.
pub(crate) fn nix_builders() -> Vec<Process> {
    let group = fs::read_to_string("/etc/passwd").expect("there are users");
    let uids: BTreeSet<u32> = group
        .lines()
        .filter(|line| line.starts_with("nixbld"))
        .filter_map(|line| line.split(':').nth(2)?.parse().ok())
        .collect();
    assert!(!uids.is_empty(), "Nix has no users to build as");
    processes_of(|uid| uids.contains(&uid))
}

/// The uid of a user.
pub(crate) async fn uid_of(user: &str) -> u32 {
    ok("id", &["-u", user]).await.trim().parse().expect("`id` tells a number")
}

/// systemd gives dynamic users these (`systemd.exec(5)`, `DynamicUser=`).
pub(crate) fn is_dynamic(uid: u32) -> bool {
    (61184..=65519).contains(&uid)
}

/// Ports on which somebody listens for TCP.
pub(crate) fn listening_ports() -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(table).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let port = fields[1].rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            // 0A is LISTEN.
            if fields[3] == "0A" {
                ports.extend(port);
            }
        }
    }
    ports
}

/// What was written to the journal by or about kennel itself after a cursor, as far as it has these fields.
pub(crate) async fn kennel_journal(cursor: &str, fields: &[&str]) -> String {
    ok("journalctl", &["--sync"]).await;
    let after = format!("--after-cursor={cursor}");
    let mut arguments =
        vec!["--quiet", "--no-pager", "--output=cat", "--unit=kennel.service", "--unit=kennel-host.service", &after];
    arguments.extend(fields);
    ok("journalctl", &arguments).await
}

/// A resident set, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
