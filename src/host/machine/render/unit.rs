//! The unit of one deployment of a service: a whole file, since two versions differ in more than a name.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::sandbox::sandbox;
use super::{RenderError, word};
use crate::host::UnitSpec;
use crate::host::machine::layout::Layout;
use crate::model::ProjectName;
use crate::model::confinement::Limits;

/// The slice of a project's services: `-` escaped, since a bare one would mean a slice below a slice
/// (`systemd.slice(5)`).
#[must_use]
pub fn slice(project: &ProjectName) -> String {
    format!("kennel-{}.slice", project.as_str().replace('-', "\\x2d"))
}

/// Whether the slice is one that [`slice()`] makes.
#[must_use]
pub fn is_project_slice(name: &str) -> bool {
    let stem = name.strip_prefix("kennel-").and_then(|name| name.strip_suffix(".slice"));
    stem.is_some_and(|stem| {
        stem.replace("\\x2d", "-").parse::<ProjectName>().is_ok_and(|project| slice(&project) == name)
    })
}

/// The unit file of a deployment. Its variables are not in it: they may be secret, and units are not. Of its secrets
/// it holds names and paths; systemd reads the files when it starts the unit.
///
/// # Errors
/// When a name holds what a unit cannot; the types of `spec` rule that out.
pub fn unit_file(layout: &Layout, spec: &UnitSpec) -> Result<String, RenderError> {
    let UnitSpec {
        project, slug, service, tag, user, deployment, port, store_path, program, secrets, confinement, ..
    } = spec;
    let description = format!("Deployment {deployment} of {service} ({project}, {slug})");
    let state = layout.state_directory(project, slug, service);
    let data = layout.data_dir(project, slug, service);
    let env_file = layout.env_file(&spec.unit());
    let mut text = String::with_capacity(2048);
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name}={value}");
    };
    line("# Written by kennel; changes are lost.\n[Unit]\nDescription", &plain("Description", &description)?);
    // The back-off below is what limits restarts; by default the sixth in 10 s would be the last.
    line("StartLimitIntervalSec", "0");
    line("\n[Service]\nType", "exec");
    line("ExecStart", &plain("ExecStart", &format!("{store_path}/bin/{program}"))?);
    line("DynamicUser", "yes");
    line("User", &plain("User", user.as_str())?);
    line("Slice", &slice(project));
    line("EnvironmentFile", &plain("EnvironmentFile", &env_file.to_string_lossy())?);
    for (name, path) in secrets {
        line("LoadCredential", &format!("{}:{}", plain("LoadCredential", name)?, credential_path(name, path)?));
    }
    line("StateDirectory", &plain("StateDirectory", &state.to_string_lossy())?);
    line("StateDirectoryMode", "0700");
    line("WorkingDirectory", &plain("WorkingDirectory", &data.to_string_lossy())?);
    line("SyslogIdentifier", &plain("SyslogIdentifier", tag.as_str())?);
    // A program that finds the journal by itself would write under a name of its own.
    line("UnsetEnvironment", "JOURNAL_STREAM");
    let fields = [
        ("PROJECT", project.to_string()),
        ("BRANCH", slug.to_string()),
        ("SERVICE", service.to_string()),
        ("DEPLOYMENT", deployment.to_string()),
    ];
    for (name, value) in fields {
        line("LogExtraFields", &word("LogExtraFields", &format!("KENNEL_{name}={value}"))?);
    }
    line("Restart", "on-failure");
    line("RestartSec", "1s");
    line("RestartSteps", "5");
    // systemd never counts down again, so the longest delay is what an old service gets for each crash.
    line("RestartMaxDelaySec", "10s");
    line("TimeoutStartSec", "30s");
    line("TimeoutStopSec", "10s");
    line("KillMode", "mixed");
    line("SocketBindDeny", "any");
    line("SocketBindAllow", &format!("tcp:{port}"));
    // Hides the database, other services' data and all builds; its own data directory is put back by systemd.
    line("TemporaryFileSystem", &plain("TemporaryFileSystem", &format!("{}:ro", layout.state_dir.display()))?);
    let hidden = format!("-{} -/nix/var/nix/daemon-socket -/run/dbus -/run/systemd/private", layout.run_dir.display());
    line("InaccessiblePaths", &plain("InaccessiblePaths", &hidden)?);
    let Limits { memory_max_bytes, cpu_quota_percent, tasks_max } = confinement.limits;
    for (name, limit, unit) in
        [("MemoryMax", memory_max_bytes, ""), ("CPUQuota", cpu_quota_percent, "%"), ("TasksMax", tasks_max, "")]
    {
        if let Some(limit) = limit {
            line(name, &format!("{limit}{unit}"));
        }
    }
    text.push_str(&sandbox(&confinement.opt_outs));
    Ok(text)
}

/// Text that means the same in every setting, quoted or not. All of kennel's names are of this kind.
fn plain<'a>(what: &str, text: &'a str) -> Result<std::borrow::Cow<'a, str>, RenderError> {
    let ordinary = |b: u8| b.is_ascii_alphanumeric() || b" /@:._,+=?()-".contains(&b);
    if text.bytes().all(ordinary) {
        return Ok(text.into());
    }
    Err(RenderError { what: what.to_owned(), problem: "holds a character that units may read as something else" })
}

/// The path of a secret's file as `LoadCredential=` takes it: `%` doubled and nothing quoted, since systemd 257 takes
/// all that follows the colon as it is. It passes over a path with an empty part or a `.` in it, so these are taken
/// out; one with a space or `\` it takes, and then starts nothing.
fn credential_path(name: &str, path: &Path) -> Result<String, RenderError> {
    let fault = |problem| RenderError { what: format!("the path of the secret `{name}`"), problem };
    let tidy: PathBuf = path.components().collect();
    let text = tidy.to_str().ok_or_else(|| fault("is not UTF-8"))?;
    if !text.starts_with('/') {
        return Err(fault("does not begin with `/`"));
    }
    if text.chars().any(|c| c.is_control() || matches!(c, ' ' | '\\')) {
        return Err(fault("holds a space, a backslash or a control character"));
    }
    Ok(text.replace('%', "%%"))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::SecretFiles;
    use crate::model::confinement::Confinement;
    use crate::model::{DeploymentId, Port};

    pub(crate) fn layout() -> Layout {
        Layout {
            state_dir: "/var/lib/kennel".into(),
            run_dir: "/run/kennel".into(),
            unit_dir: "/run/systemd/system".into(),
        }
    }

    pub(crate) fn spec() -> UnitSpec {
        UnitSpec {
            project: "my-project".parse().unwrap(),
            branch: "heads/main".parse().unwrap(),
            environment: crate::model::Environment::Prod,
            slug: "main".parse().unwrap(),
            service: "api".parse().unwrap(),
            tag: "kennel-my-project-main-api".parse().unwrap(),
            user: "kennel-my-project-main-api".parse().unwrap(),
            deployment: DeploymentId(42),
            port: Port::try_from(18005).unwrap(),
            store_path: "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-api-1.0".parse().unwrap(),
            program: "api".parse().unwrap(),
            env: [("TOKEN".to_owned(), "hush".to_owned())].into(),
            secrets: SecretFiles::new(),
            confinement: Confinement::default(),
        }
    }

    #[test]
    fn a_unit_holds_the_sandbox_and_no_variable() {
        let secrets = [("JWT_SECRET".to_owned(), "/run/secrets/x-jwt".into())].into();
        let text = unit_file(&layout(), &UnitSpec { secrets, ..spec() }).unwrap();
        let (own, sandbox) = text.split_once("NoNewPrivileges").unwrap();
        assert!(super::sandbox(&Confinement::default().opt_outs).ends_with(sandbox));
        assert!(!text.contains("TOKEN") && !text.contains("hush"));
        insta::assert_snapshot!(own, @r#"
        # Written by kennel; changes are lost.
        [Unit]
        Description=Deployment 42 of api (my-project, main)
        StartLimitIntervalSec=0

        [Service]
        Type=exec
        ExecStart=/nix/store/0123456789abcdfghijklmnpqrsvwxyz-api-1.0/bin/api
        DynamicUser=yes
        User=kennel-my-project-main-api
        Slice=kennel-my\x2dproject.slice
        EnvironmentFile=/run/kennel/secrets/my-project-main-api@42.env
        LoadCredential=JWT_SECRET:/run/secrets/x-jwt
        StateDirectory=kennel/services/my-project/main/api
        StateDirectoryMode=0700
        WorkingDirectory=/var/lib/kennel/services/my-project/main/api
        SyslogIdentifier=kennel-my-project-main-api
        UnsetEnvironment=JOURNAL_STREAM
        LogExtraFields="KENNEL_PROJECT=my-project"
        LogExtraFields="KENNEL_BRANCH=main"
        LogExtraFields="KENNEL_SERVICE=api"
        LogExtraFields="KENNEL_DEPLOYMENT=42"
        Restart=on-failure
        RestartSec=1s
        RestartSteps=5
        RestartMaxDelaySec=10s
        TimeoutStartSec=30s
        TimeoutStopSec=10s
        KillMode=mixed
        SocketBindDeny=any
        SocketBindAllow=tcp:18005
        TemporaryFileSystem=/var/lib/kennel:ro
        InaccessiblePaths=-/run/kennel -/nix/var/nix/daemon-socket -/run/dbus -/run/systemd/private
        "#);
    }

    proptest! {
        #[test]
        fn limits_stand_before_the_sandbox_as_they_were_given(
            memory_max_bytes in proptest::option::of(any::<u64>()),
            cpu_quota_percent in proptest::option::of(1..=102_400_u64),
            tasks_max in proptest::option::of(any::<u64>()),
        ) {
            let limits = Limits { memory_max_bytes, cpu_quota_percent, tasks_max };
            let confinement = Confinement { limits, ..Confinement::default() };
            let text = unit_file(&layout(), &UnitSpec { confinement, ..spec() }).unwrap();
            let read = |name: &str| {
                let values: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(name)).collect();
                assert!(values.len() <= 1);
                values.first().map(|value| value.trim_end_matches('%').parse::<u64>().unwrap())
            };
            let again = Limits {
                memory_max_bytes: read("MemoryMax="),
                cpu_quota_percent: read("CPUQuota="),
                tasks_max: read("TasksMax="),
            };
            prop_assert_eq!(again, limits);
        }
    }

    #[test]
    fn a_projects_slice_is_known_by_its_name() {
        for project in ["p", "my-project", "a-b-c"] {
            assert!(is_project_slice(&slice(&project.parse().unwrap())), "{project}");
        }
        for other in ["kennel.slice", "kennel-_builds.slice", "kennel-a-b.slice", "kennel-.slice", "user-1.slice"] {
            assert!(!is_project_slice(other), "{other}");
        }
    }

    #[rstest::rstest]
    #[case("/run/secrets/x", Ok("/run/secrets/x"))]
    #[case("/run//secrets/./x/", Ok("/run/secrets/x"))]
    #[case("/run/100%/a\"b:'c';#d", Ok("/run/100%%/a\"b:'c';#d"))]
    #[case("/run/x\nUser=root", Err("holds a space, a backslash or a control character"))]
    #[case("/run/a b", Err("holds a space, a backslash or a control character"))]
    #[case("/run/x\\", Err("holds a space, a backslash or a control character"))]
    #[case("run/x", Err("does not begin with `/`"))]
    fn the_path_of_a_secret_means_itself(#[case] path: &str, #[case] rendered: Result<&str, &str>) {
        let got = credential_path("A", Path::new(path)).map_err(|err| err.to_string());
        let problem = |problem: &str| format!("the path of the secret `A` {problem}");
        assert_eq!(got, rendered.map(str::to_owned).map_err(problem));
    }

    fn keys(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split('=').next().unwrap_or_default().to_owned()).collect()
    }

    proptest! {
        #[test]
        fn no_name_adds_a_line_or_has_to_be_refused(
            project in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?",
            service in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?",
            tag in "kennel-[a-z0-9-]{1,190}",
            user in "[a-z][a-z0-9-]{0,30}",
            name in "[A-Za-z0-9+._?=-]{1,200}",
            program in "[A-Za-z0-9+_][A-Za-z0-9+._-]{0,90}",
            value in any::<String>(),
            path in "/[^\\p{C}\\p{Z}\\\\%$]{0,30}",
        ) {
            let spec = UnitSpec {
                project: project.parse().unwrap(),
                service: service.parse().unwrap(),
                tag: tag.parse().unwrap(),
                user: user.parse().unwrap(),
                store_path: format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{name}").parse().unwrap(),
                program: program.parse().unwrap(),
                env: [("SECRET_NAME".to_owned(), value)].into(),
                secrets: [("JWT_SECRET".to_owned(), path.into())].into(),
                ..spec()
            };
            let text = unit_file(&layout(), &spec).unwrap();
            let secrets = [("JWT_SECRET".to_owned(), "/x".into())].into();
            prop_assert_eq!(keys(&text), keys(&unit_file(&layout(), &UnitSpec { secrets, ..super::tests::spec() }).unwrap()));
            prop_assert!(!text.contains("SECRET_NAME"));
            prop_assert!(!text.contains('%') && !text.contains('$') && !text.lines().any(|line| line.ends_with('\\')));
        }
    }
}
