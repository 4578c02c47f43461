//! What must hold for any kennel.toml that is written as one, and any that is one key away from it.

use std::collections::BTreeMap;

use kennel::config::project;
use kennel::model::confinement::{Confinement, Limits, OptOut};
use kennel::model::settings::{Manifest, ServiceSettings, SiteSettings};
use kennel::model::{FlakeOutput, HealthCheck, HostName, Protocol, ServiceName, Settings};
use proptest::collection::{btree_map, btree_set};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::fuzz::bodies::toml_of;

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>(
    pattern: &'static str,
) -> impl Strategy<Value = T> {
    pattern.prop_map(|text| text.parse().unwrap())
}

/// The name of a variable that is nobody else's.
fn variable() -> impl Strategy<Value = String> {
    "[A-JM-RT-Za-z_][A-Za-z0-9_]{0,12}".prop_filter("reserved", |name| {
        !matches!(name.as_str(), "PORT" | "HOST") && !name.starts_with("MONITOR_") && !name.starts_with("KENNEL_")
    })
}

fn flake_output() -> impl Strategy<Value = FlakeOutput> {
    parsed("[A-Za-z_][A-Za-z0-9_'-]{0,20}")
}

fn confinement() -> impl Strategy<Value = Confinement> {
    let limits = (option::of(16 << 20..=1_u64 << 40), option::of(1..=102_400_u64), option::of(4..=1_u64 << 20));
    (limits, btree_set(select(OptOut::ALL), 0..4)).prop_map(|((memory, cpu, tasks), opt_outs)| Confinement {
        limits: Limits { memory_max_bytes: memory, cpu_quota_percent: cpu, tasks_max: tasks },
        opt_outs,
    })
}

fn service() -> impl Strategy<Value = ServiceSettings> {
    let check = prop_oneof![
        Just(HealthCheck::Tcp),
        "/([a-z0-9._~!$&'()*+,;=:@%-][a-z0-9/?._-]{0,30})?".prop_map(HealthCheck::Http)
    ];
    let value = "([^\\p{Cc}\u{fdd0}-\u{fdef}\u{fffe}\u{ffff}]|[\n\t\"\\\\'$%`#=]){0,40}"
        .prop_filter("reserved", |text| text.chars().all(|c| c as u32 & 0xfffe != 0xfffe));
    let protocol = prop_oneof![Just(Protocol::Http1), Just(Protocol::H2c)];
    let names = (protocol, btree_map(variable(), value, 0..5), btree_set(variable(), 0..4));
    (flake_output(), check, 1..=600_u32, 0..=3_600_u32, any::<bool>(), names, confinement()).prop_map(
        |(
            flake_output,
            health_check,
            health_check_timeout_secs,
            drain_secs,
            preview_database,
            (protocol, env, secrets),
            confinement,
        )| {
            let secrets = secrets.into_iter().filter(|name| !env.contains_key(name)).collect();
            ServiceSettings {
                flake_output,
                protocol,
                health_check,
                health_check_timeout_secs,
                drain_secs,
                custom_domain: None,
                preview_database,
                secrets,
                env,
                confinement,
            }
        },
    )
}

fn target() -> impl Strategy<Value = Settings> {
    prop_oneof![
        service().prop_map(Settings::Service),
        (flake_output(), any::<bool>()).prop_map(|(flake_output, spa)| Settings::Site(SiteSettings {
            flake_output,
            spa,
            custom_domain: None
        })),
    ]
}

/// Any manifest that a kennel.toml can ask for.
fn manifest() -> impl Strategy<Value = Manifest> {
    let targets = btree_map(parsed::<ServiceName>("[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"), target(), 1..6);
    let domains = btree_set("[a-z0-9]{1,20}\\.[a-z]{2,9}", 0..6);
    (targets, domains, option::of("[A-Za-z0-9_][A-Za-z0-9_-]{0,20}")).prop_map(|(targets, domains, cachix)| {
        let mut domains = domains.into_iter().map(|text| text.parse::<HostName>().unwrap());
        let with_domain = |mut settings: Settings| {
            match &mut settings {
                Settings::Service(service) => service.custom_domain = domains.next(),
                Settings::Site(site) => site.custom_domain = domains.next(),
            }
            settings
        };
        let mut with_domain = with_domain;
        let targets: BTreeMap<_, _> = targets.into_iter().map(|(name, it)| (name, with_domain(it))).collect();
        Manifest { targets, cachix }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_into_a_kennel_toml_is_read_from_it(manifest in manifest()) {
        let text = toml_of(&manifest);
        prop_assert_eq!(project::parse(&text), Ok(manifest), "{}", text);
    }

    /// One value of a good file replaced by one that no key takes.
    #[test]
    fn a_fault_names_its_key_and_its_line(manifest in manifest(), at in any::<prop::sample::Index>()) {
        let text = toml_of(&manifest);
        let lines: Vec<&str> = text.lines().collect();
        let keys: Vec<usize> =
            (0..lines.len()).filter(|at| lines[*at].split_once(" = ").is_some_and(|(key, value)| {
                // A value of several lines goes on below.
                key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !value.starts_with("\"\"\"") && !value.starts_with("'''")
            })).collect();
        let inside = lines.iter().any(|line| line.contains("\"\"\"") || line.contains("'''"));
        prop_assume!(!keys.is_empty() && !inside);
        let at = keys[at.index(keys.len())];
        let (key, _) = lines[at].split_once(" = ").unwrap();
        let changed = format!("{key} = 1979-05-27");
        let mut changed_lines = lines.clone();
        changed_lines[at] = &changed;
        let faults = project::parse(&changed_lines.join("\n")).unwrap_err();
        let named = faults.as_slice().iter().any(|fault| fault.line == Some(at + 1) && fault.key.ends_with(key));
        prop_assert!(named, "line {}: {}\n{}", at + 1, faults, text);
    }
}
