//! The transient unit of one half of a build, as properties for `StartTransientUnit`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zbus::Variant;

use super::RenderError;
use crate::host::machine::layout::Layout;
use crate::host::{BuildPhase, BuildUnitSpec, REPO_URL};

/// What all build units have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLimits {
    /// The kennel binary, whose `build-worker` command runs in the unit.
    pub exe: PathBuf,
    /// The unprivileged user it runs as.
    pub user: String,
    /// Variables it gets, such as the daemon's own `PATH` with `nix` and `git` in it.
    pub env: BTreeMap<String, String>,
    /// How much memory it may use; no process of it more than this by itself.
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
/// All a build sees of the machine besides its own directories, where it is there: programs, the store, and what
/// tells names, certificates and Nix's settings. A flake reads files with the rights of whoever evaluates it, and
/// what it reads may end in the store, where everybody can.
const VISIBLE: [&str; 30] = [
    "/nix",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/gai.conf",
    "/etc/gitconfig",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nix",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/static",
    "/run/current-system",
    "/run/nscd",
    "/run/systemd/resolve",
    "/var/run/nscd",
];
/// What of Nix's is no build's business: other builds' logs, and the list of all there is in the store.
const HIDDEN_OF_NIX: [&str; 2] = ["-/nix/var/log", "-/nix/var/nix/db"];
/// `MS_REC` of `mount(2)`: what is mounted below a bound directory is seen as well, such as NixOS's store.
const RECURSIVE: u64 = 1 << 14;

/// The properties of a build's unit.
///
/// `PrivatePIDs=` hides it from the unit of another build, which has the same user and could reach through
/// `/proc/<pid>/root` else; it also makes the worker process 1, whose end by SIGKILL ends all it started.
/// `ProcSubset=pid` is absent, since Nix looks at `/proc/stat`.
///
/// A fetch sees the machine read-only, since a repository may lie on it, and none of kennel's state but its own. What
/// evaluates sees `VISIBLE` and nothing else: there `ProtectSystem=` is absent, as it would show the rest again.
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
    if !spec.credentials.is_empty() {
        env.insert(REPO_URL.to_owned(), spec.repo_url.clone());
    }
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
        ("BindPaths", vec![bind(work), bind(logs)].into()),
    ];
    let empty = |at: String| Variant::from(vec![(at, "ro,mode=0755".to_owned())]);
    match spec.phase {
        BuildPhase::Fetch => {
            let run = format!("-{}", text("run directory", &layout.run_dir)?);
            properties.extend([
                ("ProtectSystem", "strict".into()),
                ("TemporaryFileSystem", empty(state)),
                ("InaccessiblePaths", strings(&[&run, "-/run/dbus", "-/run/systemd/private"])),
            ]);
        }
        BuildPhase::Build => {
            let programs = limits.env.get("PATH").map(String::as_str).unwrap_or_default();
            properties.extend([
                ("TemporaryFileSystem", empty("/".to_owned())),
                // `/proc`, `/sys` and an empty `/run`, which a root of one's own has not.
                ("MountAPIVFS", true.into()),
                ("BindReadOnlyPaths", visible(&exe, programs).into()),
                ("InaccessiblePaths", strings(&HIDDEN_OF_NIX)),
            ]);
        }
    }
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
        // The wall behind `MemoryMax=`, where that is not enforced: a process whose own writable memory reaches it is
        // told so, rather than killed. Not `LimitAS=`, which would count the packs that git maps.
        ("LimitDATA", limits.memory_max_bytes.into()),
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

/// A directory to be seen where it is: source, destination, whether it may be missing, and how.
type Bind = (String, String, bool, u64);

/// One that must exist, without what is mounted below.
fn bind(path: String) -> Bind {
    (path.clone(), path, false, 0)
}

/// [`VISIBLE`], and the directories of programs that lie elsewhere.
fn visible(exe: &str, programs: &str) -> Vec<Bind> {
    let below = |path: &str| VISIBLE.iter().any(|dir| Path::new(path).starts_with(dir));
    let elsewhere =
        std::iter::once(exe).chain(programs.split(':')).filter(|path| path.starts_with('/') && !below(path));
    let all = VISIBLE.into_iter().chain(elsewhere);
    all.map(|path| (path.to_owned(), path.to_owned(), true, RECURSIVE)).collect()
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
        let repo_url = "https://forge.example.com/me/p.git".to_owned();
        let project = "p".parse().unwrap();
        let spec = BuildUnitSpec { build: BuildId(17), phase, project, credentials, repo_url, timeout_secs: 3600 };
        let properties = build_unit(&layout(), &limits, &spec).unwrap();
        properties.iter().map(|(name, value)| format!("{name} {} {value}", value.value_signature())).collect()
    }

    #[test]
    fn a_build_unit_sees_its_own_directories_and_no_credential() {
        let mut build = rendered(BuildPhase::Build, Vec::new());
        build.retain(|line| !line.starts_with("BindReadOnlyPaths "));
        insta::assert_snapshot!(build.join("\n"), @r#"
        Description s "The build of build 17"
        Type s "exec"
        ExecStart a(sasb) [("/usr/bin/kennel", ["/usr/bin/kennel", "build-worker", "build", "17", "--state-dir", "/var/lib/kennel"], false)]
        User s "kennel-build"
        Slice s "kennel-_builds.slice"
        SyslogIdentifier s "kennel-build"
        CollectMode s "inactive-or-failed"
        Environment as ["HOME=/var/lib/kennel/work/17", "NIX_REMOTE=daemon", "PATH=/usr/bin", "XDG_CACHE_HOME=/var/lib/kennel/work/17/cache"]
        WorkingDirectory s "/var/lib/kennel/work/17"
        BindPaths a(ssbt) [("/var/lib/kennel/work/17", "/var/lib/kennel/work/17", false, uint64 0), ("/var/lib/kennel/logs/17", "/var/lib/kennel/logs/17", false, 0)]
        TemporaryFileSystem a(ss) [("/", "ro,mode=0755")]
        MountAPIVFS b true
        InaccessiblePaths as ["-/nix/var/log", "-/nix/var/nix/db"]
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
        LimitDATA t uint64 1073741824
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
    fn a_build_sees_where_programs_lie_and_no_data_of_the_machine() {
        let seen = |exe, programs| visible(exe, programs).into_iter().skip(VISIBLE.len()).map(|bind| bind.0);
        assert_eq!(seen("/usr/bin/kennel", "/usr/bin:/nix/store/x/bin").count(), 0);
        let elsewhere: Vec<_> = seen("/opt/kennel/kennel", "/usr/bin:/snap/bin:relative").collect();
        assert_eq!(elsewhere, ["/opt/kennel/kennel", "/snap/bin"]);
        for hidden in
            ["/etc", "/etc/kennel", "/home", "/root", "/srv", "/opt", "/var", "/var/lib", "/run", "/run/secrets"]
        {
            assert!(!VISIBLE.contains(&hidden), "{hidden}");
        }
    }

    #[test]
    fn a_fetch_unit_has_credentials_and_sees_repositories_on_the_machine() {
        let build = rendered(BuildPhase::Build, Vec::new());
        let mut fetch = rendered(BuildPhase::Fetch, vec![("git-token", "/run/secrets/git".into())]);
        fetch.retain(|line| !build.contains(line));
        insta::assert_snapshot!(fetch.join("\n"), @r#"
        Description s "The fetch of build 17"
        ExecStart a(sasb) [("/usr/bin/kennel", ["/usr/bin/kennel", "build-worker", "fetch", "17", "--state-dir", "/var/lib/kennel"], false)]
        SyslogIdentifier s "kennel-fetch"
        Environment as ["HOME=/var/lib/kennel/work/17", "KENNEL_REPO_URL=https://forge.example.com/me/p.git", "NIX_REMOTE=daemon", "PATH=/usr/bin", "XDG_CACHE_HOME=/var/lib/kennel/work/17/cache"]
        ProtectSystem s "strict"
        TemporaryFileSystem a(ss) [("/var/lib/kennel", "ro,mode=0755")]
        InaccessiblePaths as ["-/run/kennel", "-/run/dbus", "-/run/systemd/private"]
        LoadCredential a(ss) [("git-token", "/run/secrets/git")]
        "#);
    }
}
