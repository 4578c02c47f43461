//! A short run of every fuzz target: its corpus, then random bytes and changed files of the corpus.
//!
//! The targets themselves are for cargo-fuzz and a nightly compiler: see `tests/fuzz/Cargo.toml`.

#[path = "../fuzz/bodies/mod.rs"]
pub(crate) mod bodies;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

/// How many inputs are made for each target.
const CASES: u32 = 500;

macro_rules! targets {
    ($($test:ident: $target:ident),+ $(,)?) => {
        const TARGETS: &[&str] = &[$(stringify!($target)),+];
        $(
            #[test]
            fn $test() {
                short_run(stringify!($target), bodies::$target);
            }
        )+
    };
}

targets! {
    any_payload_is_read_or_refused: payloads,
    any_kennel_toml_is_read_or_refused_with_its_lines: kennel_toml,
    any_host_header_is_brought_into_one_form_or_refused: host_header,
    any_variable_arrives_whole_or_is_refused: env_file,
    any_names_make_a_unit_of_the_same_lines: unit_file,
    no_signature_passes_but_the_right_one: signature,
}

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = fuzz_dir().join("corpus").join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|err| panic!("{}: {err}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn short_run(target: &str, body: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 3, "the corpus of `{target}` is too small");
    corpus.iter().for_each(|file| body(file));
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let done = TestRunner::new(config).run(&inputs(corpus), |input| {
        body(&input);
        Ok(())
    });
    if let Err(failure) = done {
        panic!("`{target}`: {failure}");
    }
}

/// One change to a file of the corpus.
#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Splice(Index, Vec<u8>, Index),
}

impl Edit {
    fn apply(self, bytes: &mut Vec<u8>) {
        let place = |index: &Index, bytes: &Vec<u8>| index.index(bytes.len() + 1);
        match self {
            Self::Set(at, byte) => {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            Self::Insert(at, new) => {
                let at = place(&at, bytes);
                bytes.splice(at..at, new);
            }
            Self::Remove(at, length) => {
                let at = place(&at, bytes);
                bytes.drain(at..(at + length).min(bytes.len()));
            }
            Self::Repeat(at, length, times) => {
                let at = place(&at, bytes);
                let part = bytes[at..(at + length).min(bytes.len())].repeat(times);
                bytes.splice(at..at, part);
            }
            Self::Splice(at, other, from) => {
                let at = place(&at, bytes);
                bytes.truncate(at);
                bytes.extend(&other[from.index(other.len() + 1)..]);
            }
        }
    }
}

fn inputs(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let telling = select(&b"\n\r\0\x01\x1b\"'\\%$`=[]{}.:/-#,\x7f\xc2\x85\xff"[..]);
    let byte = || prop_oneof![telling.clone(), any::<u8>()];
    let edit = prop_oneof![
        (any::<Index>(), byte()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<Index>(), prop::collection::vec(byte(), 1..9)).prop_map(|(at, new)| Edit::Insert(at, new)),
        (any::<Index>(), 1..20_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<Index>(), 1..30_usize, 1..50_usize).prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        (any::<Index>(), select(corpus.clone()), any::<Index>())
            .prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
    ];
    let changed = (select(corpus), prop::collection::vec(edit, 1..6)).prop_map(|(mut bytes, edits)| {
        edits.into_iter().for_each(|edit| edit.apply(&mut bytes));
        bytes
    });
    prop_oneof![1 => prop::collection::vec(byte(), 0..300), 3 => changed]
}

#[test]
fn every_fuzz_target_has_a_short_run_and_a_corpus() {
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(fuzz_dir().join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = std::fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
    assert!(TARGETS.iter().all(|name| manifest.contains(&format!("name = \"{name}\""))));
}
