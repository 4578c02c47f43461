//! The transient unit of one half of a build, as properties for `StartTransientUnit`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zbus::Variant;

use super::RenderError;
use crate::host::machine::layout::Layout;
use crate::host::{BuildPhase, BuildUnitSpec};

/// What all build units have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLimits {
    /// The kennel binary, whose `build-worker` command runs in the unit.
    pub exe: PathBuf,
    /// The unprivileged user it runs as.
    pub user: String,
    /// Variables it gets, such as the daemon's own `PATH` with `nix` and `git` in it.
    pub env: BTreeMap<String, String>,
    /// How much memory it may use.
    pub memory_max_bytes: u64,
    /// How many processes and threads it may have.
    pub tasks_max: u64,
}

/// One property of a transient unit: its name and its value, in the D-Bus type systemd wants.
pub type Property = (&'static str, Variant<'static>);

/// The slice of all builds. No project's can have this name: theirs hold no `_`.
pub const BUILD_SLICE: &str = "kennel-_builds.slice";
/// The largest file a build may write, such as a pack of a repository.
const FILE_MAX_BYTES: u64 = 16 << 30;

/// The properties of a build's unit.
///
/// `PrivatePIDs=` hides it from the unit of another build, which has the same user and could reach through
/// `/proc/<pid>/root` else; it also makes the worker process 1, whose end by SIGKILL ends all it started.
/// `ProcSubset=pid` is absent, since Nix looks at `/proc/stat`.
///
/// # Errors
/// When a path is not UTF-8.
pub fn build_unit(layout: &Layout, limits: &BuildLimits, spec: &BuildUnitSpec) -> Result<Vec<Property>, RenderError> {
    let work = text("work directory", &layout.work_dir(spec.build))?;
    let logs = text("log directory", &layout.log_dir(spec.build))?;
    let state = text("state directory", &layout.state_dir)?;
    let exe = text("kennel's own binary", &limits.exe)?;
    let phase = match spec.phase {
        BuildPhase::Fetch => "fetch",
        BuildPhase::Build => "build",
    };
    let arguments = [&exe, "build-worker", phase, &spec.build.to_string(), "--state-dir", &state];
    let command = (exe.clone(), arguments.map(str::to_owned).to_vec(), false);
    let mut env = limits.env.clone();
    for (name, value) in [("HOME", work.clone()), ("XDG_CACHE_HOME", format!("{work}/cache"))] {
        env.insert(name.to_owned(), value);
    }
    env.insert("NIX_REMOTE".to_owned(), "daemon".to_owned());
    let env: Vec<String> = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();

    let mut properties: Vec<Property> = vec![
        ("Description", format!("The {phase} of build {}", spec.build).into()),
        ("Type", "exec".into()),
        ("ExecStart", vec![command].into()),
        ("User", limits.user.clone().into()),
        ("Slice", BUILD_SLICE.into()),
        ("SyslogIdentifier", format!("kennel-{phase}").into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("Environment", env.into()),
        ("WorkingDirectory", work.clone().into()),
        // Of kennel's state it sees nothing but these two.
        ("TemporaryFileSystem", vec![(state, "ro,mode=0755".to_owned())].into()),
        ("BindPaths", vec![bind(work), bind(logs)].into()),
    ];
    let run = format!("-{}", text("run directory", &layout.run_dir)?);
    properties.push(("InaccessiblePaths", strings(&[&run, "-/run/dbus", "-/run/systemd/private"])));
    if !spec.credentials.is_empty() {
        let credentials: Result<Vec<_>, _> =
            spec.credentials.iter().map(|(name, path)| Ok(((*name).to_owned(), text(name, path)?))).collect();
        properties.push(("LoadCredential", credentials?.into()));
    }
    properties.extend(sandbox());
    properties.extend([
        ("MemoryMax", limits.memory_max_bytes.into()),
        ("MemorySwapMax", 0u64.into()),
        ("TasksMax", limits.tasks_max.into()),
        ("CPUWeight", 50u64.into()),
        ("OOMPolicy", "kill".into()),
        ("LimitCORE", 0u64.into()),
        ("LimitFSIZE", FILE_MAX_BYTES.into()),
        ("LimitNOFILE", 65_536u64.into()),
        ("RuntimeMaxUSec", spec.timeout_secs.saturating_mul(1_000_000).into()),
        ("KillMode", "control-group".into()),
        // Nix ignores SIGTERM while it evaluates, and nothing here needs a chance to tidy up.
        ("KillSignal", 9i32.into()),
        ("TimeoutStopUSec", 1_000_000u64.into()),
    ]);
    Ok(properties)
}

fn sandbox() -> Vec<Property> {
    let yes = [
        "PrivateTmp",
        "PrivateDevices",
        "PrivateIPC",
        "NoNewPrivileges",
        "RestrictSUIDSGID",
        "RestrictRealtime",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectClock",
        "ProtectHostname",
        "RemoveIPC",
    ];
    let mut properties: Vec<Property> = yes.map(|name| (name, true.into())).to_vec();
    let only = |names: &[&str]| Variant::from((true, names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()));
    properties.extend([
        ("ProtectSystem", "strict".into()),
        ("ProtectHome", "yes".into()),
        ("PrivatePIDs", "yes".into()),
        ("ProtectProc", "invisible".into()),
        ("DevicePolicy", "closed".into()),
        ("KeyringMode", "private".into()),
        ("UMask", 0o022u32.into()),
        ("RestrictNamespaces", 0u64.into()),
        ("CapabilityBoundingSet", 0u64.into()),
        ("AmbientCapabilities", 0u64.into()),
        ("SystemCallFilter", only(&["@system-service"])),
        ("SystemCallErrorNumber", 1i32.into()),
        ("SystemCallArchitectures", strings(&["native"])),
        ("RestrictAddressFamilies", only(&["AF_UNIX", "AF_INET", "AF_INET6"])),
    ]);
    properties
}

fn strings(values: &[&str]) -> Variant<'static> {
    values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>().into()
}

/// A directory to be seen where it is: source, destination, must exist, nothing mounted below.
fn bind(path: String) -> (String, String, bool, u64) {
    (path.clone(), path, false, 0)
}

fn text(what: &str, path: &Path) -> Result<String, RenderError> {
    let fault = || RenderError { what: format!("the path of {what}"), problem: "is not UTF-8" };
    Ok(path.to_str().ok_or_else(fault)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::unit::tests::layout;
    use super::*;
    use crate::model::BuildId;

    fn rendered(phase: BuildPhase, credentials: Vec<(&'static str, PathBuf)>) -> Vec<String> {
        let limits = BuildLimits {
            exe: "/usr/bin/kennel".into(),
            user: "kennel-build".into(),
            env: [("PATH".to_owned(), "/usr/bin".to_owned())].into(),
            memory_max_bytes: 1 << 30,
            tasks_max: 512,
        };
        let spec = BuildUnitSpec { build: BuildId(17), phase, credentials, timeout_secs: 3600 };
        let properties = build_unit(&layout(), &limits, &spec).unwrap();
        properties.iter().map(|(name, value)| format!("{name} {} {value}", value.value_signature())).collect()
    }

    #[test]
    fn a_build_unit_sees_its_own_directories_and_no_credential() {
        insta::assert_snapshot!(rendered(BuildPhase::Build, Vec::new()).join("\n"), @r#"
        Description s "The build of build 17"
        Type s "exec"
        ExecStart a(sasb) [("/usr/bin/kennel", ["/usr/bin/kennel", "build-worker", "build", "17", "--state-dir", "/var/lib/kennel"], false)]
        User s "kennel-build"
        Slice s "kennel-_builds.slice"
        SyslogIdentifier s "kennel-build"
        CollectMode s "inactive-or-failed"
        Environment as ["HOME=/var/lib/kennel/work/17", "NIX_REMOTE=daemon", "PATH=/usr/bin", "XDG_CACHE_HOME=/var/lib/kennel/work/17/cache"]
        WorkingDirectory s "/var/lib/kennel/work/17"
        TemporaryFileSystem a(ss) [("/var/lib/kennel", "ro,mode=0755")]
        BindPaths a(ssbt) [("/var/lib/kennel/work/17", "/var/lib/kennel/work/17", false, uint64 0), ("/var/lib/kennel/logs/17", "/var/lib/kennel/logs/17", false, 0)]
        InaccessiblePaths as ["-/run/kennel", "-/run/dbus", "-/run/systemd/private"]
        PrivateTmp b true
        PrivateDevices b true
        PrivateIPC b true
        NoNewPrivileges b true
        RestrictSUIDSGID b true
        RestrictRealtime b true
        LockPersonality b true
        MemoryDenyWriteExecute b true
        ProtectKernelTunables b true
        ProtectKernelModules b true
        ProtectKernelLogs b true
        ProtectControlGroups b true
        ProtectClock b true
        ProtectHostname b true
        RemoveIPC b true
        ProtectSystem s "strict"
        ProtectHome s "yes"
        PrivatePIDs s "yes"
        ProtectProc s "invisible"
        DevicePolicy s "closed"
        KeyringMode s "private"
        UMask u uint32 18
        RestrictNamespaces t uint64 0
        CapabilityBoundingSet t uint64 0
        AmbientCapabilities t uint64 0
        SystemCallFilter (bas) (true, ["@system-service"])
        SystemCallErrorNumber i 1
        SystemCallArchitectures as ["native"]
        RestrictAddressFamilies (bas) (true, ["AF_UNIX", "AF_INET", "AF_INET6"])
        MemoryMax t uint64 1073741824
        MemorySwapMax t uint64 0
        TasksMax t uint64 512
        CPUWeight t uint64 50
        OOMPolicy s "kill"
        LimitCORE t uint64 0
        LimitFSIZE t uint64 17179869184
        LimitNOFILE t uint64 65536
        RuntimeMaxUSec t uint64 3600000000
        KillMode s "control-group"
        KillSignal i 9
        TimeoutStopUSec t uint64 1000000
        "#);
    }

    #[test]
    fn a_fetch_unit_differs_by_its_command_and_credentials_only() {
        let build = rendered(BuildPhase::Build, Vec::new());
        let mut fetch = rendered(BuildPhase::Fetch, vec![("git-token", "/run/secrets/git".into())]);
        fetch.retain(|line| !build.contains(line));
        insta::assert_snapshot!(fetch.join("\n"), @r#"
        Description s "The fetch of build 17"
        ExecStart a(sasb) [("/usr/bin/kennel", ["/usr/bin/kennel", "build-worker", "fetch", "17", "--state-dir", "/var/lib/kennel"], false)]
        SyslogIdentifier s "kennel-fetch"
        LoadCredential a(ss) [("git-token", "/run/secrets/git")]
        "#);
    }
}
