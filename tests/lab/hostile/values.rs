//! Names and values that systemd could take for something else: byte for byte where the program is, or refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use kennel::host::machine::layout::Layout;
use kennel::host::machine::render::env::env_file;
use kennel::host::machine::render::word;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::harness::{App, Lab, Service, machine};

/// How many values go through systemd at once.
const VALUES: usize = 400;
const UNIT: &str = "kennel-values.service";

/// Random texts, most of them of what is special to somebody on the way.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "([^\\p{Cc}]|[\n\t\"\\\\'$%`#=;~ {}]){0,60}",
        "[\"\\\\'$%`#=;\n\t ]{0,20}",
        "(%[a-zA-Z%]|\\$[{(]?[A-Z]+|\\\\[nstx0-7\\\\]){0,20}",
        ".{0,40}",
    ]
}

fn some<T: std::fmt::Debug>(strategy: &impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("it makes a value").current()).collect()
}

/// The environment a process was started with.
fn environ(pid: u32) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).expect("the process runs");
    let pairs = bytes.split(|byte| *byte == 0).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((String::from_utf8(pair[..at].to_vec()).expect("names are ASCII"), pair[at + 1..].to_vec()))
    });
    pairs.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_rendered_is_what_systemd_reads() {
    let mut values = BTreeMap::new();
    let mut refused = 0;
    for (n, text) in some(&texts(), VALUES).into_iter().enumerate() {
        let pair = BTreeMap::from([(format!("FILE_{n}"), text)]);
        if env_file(&pair).is_ok() {
            values.extend(pair);
        } else {
            refused += 1;
        }
    }
    values.insert("FILE_LONGEST".to_owned(), "\"\\$%`'\n\t".repeat(8 * 1024));
    let words: BTreeMap<String, String> = (0..).map(|n| format!("WORD_{n}")).zip(some(&texts(), VALUES)).collect();
    let words: BTreeMap<_, _> = words.into_iter().filter(|(name, text)| word(name, text).is_ok()).collect();
    println!("{} values and {} words; {refused} values refused", values.len(), words.len());
    assert!(values.len() > VALUES / 2 && words.len() > VALUES / 4);

    let file = "/run/kennel-values.env";
    crate::harness::write_secret(Path::new(file), &env_file(&values).unwrap());
    let mut unit = format!("[Service]\nType=exec\nExecStart=/bin/sleep 1000\nEnvironmentFile={file}\n");
    for (name, text) in &words {
        unit += &format!("Environment={}\n", word(name, &format!("{name}={text}")).unwrap());
    }
    let described = words.values().find(|text| text.len() > 20 && text.trim() == *text).expect("one is long");
    unit += &format!("LogExtraFields={}\n", word("field", &format!("FIELD={described}")).unwrap());
    let layout = Layout {
        state_dir: "/var/lib/kennel".into(),
        run_dir: "/run/kennel".into(),
        unit_dir: "/run/systemd/system".into(),
    };
    std::fs::write(layout.unit_dir.join(UNIT), unit).unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
    machine::ok("systemctl", &["start", UNIT]).await;

    let seen = environ(machine::main_pid(UNIT).await);
    for (name, text) in values.iter().chain(&words) {
        let arrived = seen.get(name).unwrap_or_else(|| panic!("{name} did not arrive: {text:?}"));
        assert_eq!(String::from_utf8_lossy(arrived), *text, "{name}");
    }
    let field = machine::ok("systemctl", &["show", "--value", "--property=LogExtraFields", UNIT]).await;
    assert_eq!(field.trim_end_matches('\n'), format!("FIELD={described}"));
    assert!(machine::property(UNIT, "User").await.is_empty());
    let complaints = machine::ok("journalctl", &["--quiet", "--output=cat", "_PID=1", &format!("UNIT={UNIT}")]).await;
    assert!(!complaints.contains("gnoring") && !complaints.contains("nvalid"), "{complaints}");

    machine::ok("systemctl", &["stop", UNIT]).await;
    std::fs::remove_file(layout.unit_dir.join(UNIT)).unwrap();
    std::fs::remove_file(file).unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_64_kib_arrives_and_one_byte_more_is_refused_by_name() {
    let lab = Lab::hello().await;
    let longest = "\"\\$%`'\n\t".repeat(8 * 1024);
    let service =
        Service::new("api", "one").env("LONGEST", &longest).env("NAMES", "a\nUser=root\n[Service]\nExecStart=x");
    let live = lab.deploy_api("hello", "main", &App::default().with(service)).await;
    let seen = environ(machine::main_pid(&live.unit()).await);
    assert_eq!(String::from_utf8_lossy(&seen["LONGEST"]), longest);
    assert_eq!(seen["NAMES"], b"a\nUser=root\n[Service]\nExecStart=x");

    let mut pushed = Vec::new();
    for (line, words) in [
        (format!("LONG = \"{}\"", "x".repeat((64 << 10) + 1)), ["LONG", "64 KiB"]),
        ("NUL = \"a\\u0000b\"".to_owned(), ["NUL", "U+0000"]),
        ("RETURN = \"a\\r\\nb\"".to_owned(), ["RETURN", "U+000D"]),
        ("ESCAPE = \"\\u001b[31m\"".to_owned(), ["ESCAPE", "U+001B"]),
        ("RESERVED = \"\\uFFFE\"".to_owned(), ["RESERVED", "U+FFFE"]),
        ("\"A\\nUser\" = \"root\"".to_owned(), ["A\\nUser", "variable's name"]),
        ("\"A=B\" = \"x\"".to_owned(), ["A=B", "variable's name"]),
        ("\"\" = \"x\"".to_owned(), ["services.api.env.\"\"", "variable's name"]),
        ("LD_PRELOAD = \"/tmp/x.so\"".to_owned(), ["LD_PRELOAD", "dynamic loader"]),
    ] {
        let app = App::api("two").file("kennel.toml", format!("[services.api]\n[services.api.env]\n{line}\n"));
        pushed.push((lab.push("hello", &format!("try{}", pushed.len()), &app).await.build, words));
    }
    for (build, words) in pushed {
        let reason = lab.ended_as(build, "failed").await.reason.unwrap_or_default();
        println!("{reason}");
        assert!(reason.contains("line 3") && words.iter().all(|word| reason.contains(word)), "{words:?}: {reason}");
        assert!(reason.len() < 1_000, "{reason}");
    }
    lab.finish().await;
}
