//! Reads what `tests/removals/run` takes away, and fails when the source has moved on from it.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// All entries, each with the file it stands in.
fn removals(root: &Path) -> Vec<(String, Table)> {
    let mut found = Vec::new();
    for path in files(&root.join("tests/removals"), "toml") {
        let table: Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let Some(Value::Array(entries)) = table.get("removal") else { panic!("{} removes nothing", path.display()) };
        let name = path.file_name().unwrap().to_string_lossy();
        found.extend(entries.iter().map(|entry| (name.to_string(), entry.as_table().unwrap().clone())));
    }
    found
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
    found
}

/// What is wrong with an entry, if anything; `source` is all of kennel.
fn fault(entry: &Table, file: &str, source: &str) -> Option<String> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    if ["line", "file", "old", "test"].iter().any(|key| text(key).is_empty()) || !entry.contains_key("new") {
        return Some("it has not all of `line`, `file`, `old`, `new`, `test`".to_owned());
    }
    let (times, test) = (file.matches(text("old")).count(), text("test").rsplit("::").next().unwrap_or_default());
    if times != 1 {
        return Some(format!("the `old` text is {times} times in `{}`, not once", text("file")));
    }
    if text("old") == text("new") {
        return Some("it removes nothing".to_owned());
    }
    (!source.contains(&format!("fn {test}("))).then(|| format!("there is no test `{test}`"))
}

#[test]
fn what_is_to_be_taken_away_is_there_and_so_is_the_test_that_fails_then() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let source: String = files(&root.join("src"), "rs").iter().map(|path| read(path)).collect();
    let removals = removals(root);
    let faults: Vec<String> = removals
        .iter()
        .filter_map(|(name, entry)| {
            let file = root.join(entry.get("file").and_then(Value::as_str).unwrap_or_default());
            Some(format!("{name}: {:?}: {}", entry.get("line"), fault(entry, &read(&file), &source)?))
        })
        .collect();
    assert!(removals.len() > 50, "only {} removals were found: the reader of this test is broken", removals.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn an_entry_that_the_source_has_moved_on_from_is_a_fault() {
    let said = |old: &str, new: &str, test: &str| {
        let entry = [("line", "a"), ("file", "b.rs"), ("old", old), ("new", new), ("test", test)];
        let entry = entry.into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
        fault(&entry, "one two two", "fn it_works() {}")
    };
    assert_eq!(said("one", "", "tests::it_works"), None);
    assert!(said("three", "", "tests::it_works").unwrap().contains("0 times"));
    assert!(said("two", "", "tests::it_works").unwrap().contains("2 times"));
    assert!(said("one", "one", "tests::it_works").unwrap().contains("removes nothing"));
    assert!(said("one", "", "tests::it").unwrap().contains("no test `it`"));
    assert!(said("", "", "tests::it_works").unwrap().contains("has not all"));
}
