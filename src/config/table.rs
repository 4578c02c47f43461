//! Reads a TOML document key by key, and collects everything that is wrong with it.
//!
//! serde stops at the first fault. Here each read that fails notes a fault and answers `None`, so that the caller
//! goes on reading; keys nobody asked for are faults when their [`Table`] goes out of scope.
//!
//! **Invariant:** whoever answers `None` has noted a fault.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Faults};
use super::words::{listed, nearest, quoted, with_article};

/// Faults noted beyond this number are dropped: a hostile file must not cost more than its size.
const NOTED_MAX: usize = 1_000;

/// A document being read.
pub(super) struct Document {
    line_starts: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
}

/// A table of which keys are being taken.
pub(super) struct Table<'d, 't> {
    doc: &'d Document,
    path: String,
    at: Option<usize>,
    left: BTreeMap<String, (Range<usize>, Range<usize>, DeValue<'t>)>,
    known: Vec<&'static str>,
}

/// A value, with where it stands.
pub(super) struct Item<'d, 't> {
    doc: &'d Document,
    path: String,
    at: usize,
    value: DeValue<'t>,
}

impl Document {
    /// Parses `text` and hands its top table to `build`.
    ///
    /// # Errors
    /// Every fault of the text; only those of its syntax when it is not TOML, as nothing else can be trusted then.
    pub(super) fn read<T>(text: &str, build: impl FnOnce(&mut Table<'_, '_>) -> Option<T>) -> Result<T, Faults> {
        let line_starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(n, _)| n + 1))
            .collect();
        let doc = Self { line_starts, faults: RefCell::default() };
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            for error in errors {
                let line = error.span().map(|span| doc.line(span.start));
                doc.note(Fault { line, key: String::new(), problem: error.message().replace('\n', ", "), hint: None });
            }
            return Err(Faults::new(doc.faults.into_inner()));
        }
        let value = build(&mut Table::new(&doc, String::new(), None, root.into_inner()));
        let faults = doc.faults.into_inner();
        match value {
            Some(value) if faults.is_empty() => Ok(value),
            _ => Err(Faults::new(faults)),
        }
    }

    /// The line, from 1, of a byte of the text.
    fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    fn note(&self, fault: Fault) {
        let mut faults = self.faults.borrow_mut();
        if faults.len() < NOTED_MAX {
            faults.push(fault);
        }
    }
}

impl<'d, 't> Table<'d, 't> {
    fn new(doc: &'d Document, path: String, at: Option<usize>, table: DeTable<'t>) -> Self {
        let left = table
            .into_iter()
            .map(|(key, value)| {
                let (key_span, value_span) = (key.span(), value.span());
                (key.into_inner().into_owned(), (key_span, value_span, value.into_inner()))
            })
            .collect();
        Self { doc, path, at, left, known: Vec::new() }
    }

    /// The value of `key`, if it is there.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'d, 't>> {
        self.known.push(key);
        let (key_span, value_span, value) = self.left.remove(key)?;
        Some(self.item(key, key_span, value_span, value))
    }

    /// The value of `key`, which must be there.
    pub(super) fn required(&mut self, key: &'static str) -> Option<Item<'d, 't>> {
        let item = self.take(key);
        if item.is_none() {
            self.fault(key, "is missing", None);
        }
        item
    }

    /// `key` read by `read`, or `default` when it is not there.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(Item<'d, 't>) -> Option<T>,
    ) -> Option<T> {
        self.take(key).map_or(Some(default), read)
    }

    /// `key` read by `read`, or `Some(None)` when it is not there.
    #[expect(clippy::option_option, reason = "`None` is a fault that was noted, `Some(None)` a key that is absent")]
    pub(super) fn maybe<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Item<'d, 't>) -> Option<T>,
    ) -> Option<Option<T>> {
        self.take(key).map_or(Some(None), |item| read(item).map(Some))
    }

    /// The table below `key`; an empty one when it is not there, for tables of which every key has a default.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Table<'d, 't>> {
        match self.take(key) {
            Some(item) => item.table(),
            None => Some(Self::new(self.doc, join(&self.path, key), self.at, DeTable::new())),
        }
    }

    /// Every entry not yet taken: for tables whose keys are names.
    pub(super) fn entries(&mut self) -> Vec<(String, Item<'d, 't>)> {
        std::mem::take(&mut self.left)
            .into_iter()
            .map(|(key, (key_span, value_span, value))| {
                let item = self.item(&key, key_span, value_span, value);
                (key, item)
            })
            .collect()
    }

    /// Notes a fault of one of this table's keys (of the table itself when `key` is empty).
    pub(super) fn fault(&self, key: &str, problem: impl Into<String>, hint: Option<String>) {
        let key = if key.is_empty() { self.path.clone() } else { join(&self.path, key) };
        let line = self.at.map(|at| self.doc.line(at));
        self.doc.note(Fault { line, key, problem: problem.into(), hint });
    }

    fn item(&self, key: &str, key_span: Range<usize>, value_span: Range<usize>, value: DeValue<'t>) -> Item<'d, 't> {
        // A `[header]` table's span covers its body or nothing of use: its key is where people look.
        let at = if value.is_table() { key_span.start } else { value_span.start };
        Item { doc: self.doc, path: join(&self.path, key), at, value }
    }
}

impl Drop for Table<'_, '_> {
    /// Notes every key that nobody asked for.
    fn drop(&mut self) {
        for (key, (span, ..)) in std::mem::take(&mut self.left) {
            let hint = match nearest(&key, &self.known) {
                Some(near) => Some(format!("did you mean `{near}`?")),
                None if self.known.is_empty() => None,
                None => Some(format!("known here: {}", listed(&self.known))),
            };
            let line = Some(self.doc.line(span.start));
            self.doc.note(Fault { line, key: join(&self.path, &key), problem: "unknown key".to_owned(), hint });
        }
    }
}

impl<'d, 't> Item<'d, 't> {
    /// Notes a fault of this value and answers `None`.
    pub(super) fn fault<T>(&self, problem: impl Into<String>, hint: Option<&str>) -> Option<T> {
        let line = Some(self.doc.line(self.at));
        let hint = hint.map(str::to_owned);
        self.doc.note(Fault { line, key: self.path.clone(), problem: problem.into(), hint });
        None
    }

    /// The key as one would write it.
    pub(super) fn key(&self) -> &str {
        &self.path
    }

    /// TOML's word for what it is.
    pub(super) fn kind(&self) -> &'static str {
        self.value.type_str()
    }

    fn wrong<T>(&self, wanted: &str) -> Option<T> {
        self.fault(format!("must be {wanted}, not {}", with_article(self.kind())), None)
    }

    /// A number or truth value as it was written, to be shown in a hint.
    pub(super) fn as_written(&self) -> Option<String> {
        match &self.value {
            DeValue::Integer(number) => Some(number.to_string()),
            DeValue::Float(number) => Some(number.to_string()),
            DeValue::Boolean(truth) => Some(truth.to_string()),
            _ => None,
        }
    }

    /// A string.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            DeValue::String(text) => Some(text),
            _ => self.wrong("a string"),
        }
    }

    /// A string that parses as `T`, whose own error says what is wrong.
    pub(super) fn parse<T: FromStr<Err: Display>>(self) -> Option<T> {
        match self.text()?.parse() {
            Ok(value) => Some(value),
            Err(err) => self.fault(format!("{err}"), None),
        }
    }

    /// A string that is one of `words`.
    pub(super) fn one_of<T: Copy>(self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => {
                let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
                self.fault(format!("{} is not one of {}", quoted(text), listed(&known)), None)
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(self) -> Option<bool> {
        match &self.value {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong("`true` or `false`"),
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer(self, range: RangeInclusive<u64>) -> Option<u64> {
        let DeValue::Integer(number) = &self.value else { return self.wrong("a whole number") };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => self.fault(format!("{number} is not between {} and {}", range.start(), range.end()), None),
        }
    }

    /// A time such as `"1h"`, `"30m"`, `"90s"` or `"1h30m"`, within `range`.
    pub(super) fn duration(self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text()?;
        match duration(text) {
            None => {
                self.fault(format!("{} is not a time", quoted(text)), Some("write it like \"1h\", \"30m\" or \"90s\""))
            }
            Some(value) if range.contains(&value) => Some(value),
            Some(_) => {
                let (from, to) = (range.start().as_secs(), range.end().as_secs());
                self.fault(format!("{} is not between {from} s and {to} s", quoted(text)), None)
            }
        }
    }

    /// A number of bytes such as `"512M"`, `"4G"`, `"2GB"` or `"0"`, within `range`.
    pub(super) fn size(self, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text()?;
        match size(text) {
            None => {
                self.fault(format!("{} is not a size", quoted(text)), Some("write it like \"512M\", \"4G\" or \"2GB\""))
            }
            Some(value) if range.contains(&value) => Some(value),
            Some(_) => {
                let (from, to) = (range.start() >> 20, range.end() >> 20);
                self.fault(format!("{} is not between {from}M and {to}M", quoted(text)), None)
            }
        }
    }

    /// An absolute path. A bad one is not repeated in the fault: it may be a secret put in the wrong place.
    pub(super) fn path(self) -> Option<PathBuf> {
        let text = self.text()?;
        if text.chars().any(char::is_control) {
            return self.fault("holds a control character", None);
        }
        if !text.starts_with('/') {
            let secret = self.path.ends_with("file").then_some("secrets are paths, never values");
            return self.fault("is not an absolute path: it does not begin with `/`", secret);
        }
        if text.len() > 4_000 || text.split('/').any(|part| part == "..") {
            return self.fault("is too long or holds `..`", None);
        }
        Some(PathBuf::from(text))
    }

    /// The members of an array.
    pub(super) fn list(self) -> Option<Vec<Item<'d, 't>>> {
        let DeValue::Array(_) = &self.value else { return self.wrong("a list") };
        let DeValue::Array(members) = self.value else { return None };
        let item = |(n, member): (usize, toml::Spanned<DeValue<'t>>)| Item {
            doc: self.doc,
            path: format!("{}[{n}]", self.path),
            at: member.span().start,
            value: member.into_inner(),
        };
        Some(members.into_iter().enumerate().map(item).collect())
    }

    /// The members of an array, each read by `read`; all are read, also after a fault.
    pub(super) fn each<T>(self, mut read: impl FnMut(Item<'d, 't>) -> Option<T>) -> Option<Vec<T>> {
        let read = self.list()?.into_iter().map(&mut read).collect::<Vec<_>>();
        read.into_iter().collect()
    }

    /// A table.
    pub(super) fn table(self) -> Option<Table<'d, 't>> {
        let DeValue::Table(_) = &self.value else { return self.wrong("a table") };
        let DeValue::Table(table) = self.value else { return None };
        Some(Table::new(self.doc, self.path, Some(self.at), table))
    }
}

/// `<n>d`, `<n>h`, `<n>m`, `<n>s`, or several of them.
fn duration(text: &str) -> Option<Duration> {
    let mut secs = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = match rest[digits..].chars().next()? {
            'd' => 86_400,
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        secs = secs.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(secs))
}

/// `<n>`, or `<n>` with a unit: `K`, `M`, `G` and `T` are powers of 1024, as systemd has them, and so are `KiB` and its
/// like; `KB` and its like are powers of 1000.
fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A key below a path, quoted where TOML wants it to be.
fn join(path: &str, key: &str) -> String {
    let mut joined = path.to_owned();
    if !joined.is_empty() {
        joined.push('.');
    }
    if !key.is_empty() && key.len() <= 80 && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    {
        joined.push_str(key);
    } else {
        joined.push_str(&quoted(key));
    }
    joined
}
