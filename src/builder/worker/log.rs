//! Log files, and the readable form of what Nix says in its `internal-json` format.
//!
//! What is written is cleaned of terminal controls and bounded; Nix is read to the end all the same.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use nix::libc::O_NOFOLLOW;
use serde::Deserialize;

/// The longest line that is read; the rest of a longer one is dropped.
pub(super) const LINE_MAX: usize = 1 << 20;
/// How many times its limit a log may be long before what writes it is ended: what is not kept is still carried, and
/// Nix's daemon keeps a log of its own, which kennel cannot bound.
pub(super) const SAID_MAX: u64 = 64;
/// The most activities that are remembered at a time.
const ACTIVITIES_MAX: usize = 4096;
/// How much of an error goes into a reason.
const REASON_LINES: usize = 24;
const REASON_BYTES: usize = 3000;

/// One log, to be followed while it grows.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    left: u64,
    limit: u64,
    is_cut: bool,
}

impl LogFile {
    /// Opens the log, after what an earlier attempt at the same build left in it; `limit` is for this attempt.
    pub(super) fn open(path: &Path, limit: u64) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .custom_flags(O_NOFOLLOW)
            .open(path)
            .with_context(|| format!("cannot open the log `{}`", path.display()))?;
        Ok(Self { file, left: limit, limit, is_cut: false })
    }

    /// Adds lines, cleaned. Past the limit it adds one line that says so, and nothing more.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        for line in text.trim_end().split('\n') {
            if self.is_cut {
                return Ok(());
            }
            let mut line = plain(line);
            line.push('\n');
            if line.len() as u64 > self.left {
                self.is_cut = true;
                line = format!("[the log is cut here: its limit is {} bytes]\n", self.limit);
            } else {
                self.left -= line.len() as u64;
            }
            self.file.write_all(line.as_bytes())?;
        }
        Ok(())
    }
}

/// What one `nix` process says, on its way to the log.
#[derive(Debug)]
pub(super) struct NixLog {
    file: LogFile,
    said: u64,
    derivations: HashMap<u64, String>,
    error: Option<String>,
    other: VecDeque<String>,
}

impl NixLog {
    pub(super) fn new(file: LogFile) -> Self {
        Self { file, said: 0, derivations: HashMap::new(), error: None, other: VecDeque::new() }
    }

    /// Adds a line of kennel's own.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.file.say(text)
    }

    /// Takes one line of Nix's standard error; breaks off when it has said far more than is kept.
    pub(super) fn take(&mut self, line: &[u8]) -> io::Result<ControlFlow<()>> {
        self.said += line.len() as u64 + 1;
        if self.said > self.file.limit.saturating_mul(SAID_MAX) {
            return Ok(ControlFlow::Break(()));
        }
        self.write(line)?;
        Ok(ControlFlow::Continue(()))
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(line);
        let Some(json) = text.strip_prefix("@nix ") else {
            if self.other.len() == 8 {
                self.other.pop_front();
            }
            self.other.push_back(text.chars().take(400).collect());
            return self.file.say(&text);
        };
        match serde_json::from_str(json) {
            Ok(event) => match self.render(event) {
                Some(text) => self.file.say(&text),
                None => Ok(()),
            },
            Err(_) if line.len() >= LINE_MAX => self.file.say("[a line of more than 1 MiB is left out]"),
            Err(_) => self.file.say(json),
        }
    }

    /// Why it failed, as far as it said: its first error, else its last lines.
    pub(super) fn into_error(self) -> String {
        self.error.unwrap_or_else(|| {
            let lines: Vec<_> = self.other.into();
            if lines.is_empty() { "nix failed without a word".to_owned() } else { lines.join("\n") }
        })
    }

    /// The readable form of an event, if it is worth a line.
    fn render(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Start { id, kind: kind::BUILD, text, fields, .. } => {
                let path = fields.first().and_then(|field| field.as_str()).unwrap_or_default();
                if self.derivations.len() < ACTIVITIES_MAX {
                    self.derivations.insert(id, derivation_name(path).to_owned());
                }
                Some(text)
            }
            Event::Start { kind, level, text, .. } => {
                let is_transfer =
                    matches!(kind, kind::COPY_PATH | kind::DOWNLOAD | kind::SUBSTITUTE | kind::FETCH_TREE);
                (!text.is_empty() && (level <= level::INFO || is_transfer && level <= level::TALKATIVE)).then_some(text)
            }
            Event::Stop { id } => {
                self.derivations.remove(&id);
                None
            }
            Event::Result { id, kind, fields } => {
                let text = fields.first()?.as_str()?;
                let name = self.derivations.get(&id).map_or("build", String::as_str);
                match kind {
                    kind::BUILD_LINE | kind::POST_BUILD_LINE => Some(format!("{name}> {text}")),
                    kind::PHASE => Some(format!("{name}: {text}")),
                    _ => None,
                }
            }
            Event::Msg { level, msg, raw_msg, file } => {
                if level == level::ERROR && self.error.is_none() && !plain(&msg).starts_with("error (ignored)") {
                    self.error = Some(match (raw_msg, file) {
                        // What Nix itself evaluates has no file.
                        (Some(raw), Some(file)) if !file.starts_with('«') => {
                            format!("{raw}\nat {}", below_source(&file))
                        }
                        (Some(raw), _) => raw,
                        (None, _) => msg.clone(),
                    });
                }
                (level <= level::INFO).then_some(msg)
            }
            Event::Other => None,
        }
    }
}

/// Nix's numbers for what it does (`ActivityType`) and what it tells about that (`ResultType`).
mod kind {
    pub(super) const COPY_PATH: u64 = 100;
    pub(super) const DOWNLOAD: u64 = 101;
    pub(super) const BUILD: u64 = 105;
    pub(super) const SUBSTITUTE: u64 = 108;
    pub(super) const FETCH_TREE: u64 = 112;

    pub(super) const BUILD_LINE: u64 = 101;
    pub(super) const PHASE: u64 = 104;
    pub(super) const POST_BUILD_LINE: u64 = 107;
}

/// Nix's numbers for how much a message matters (`Verbosity`).
mod level {
    pub(super) const ERROR: u64 = 0;
    pub(super) const INFO: u64 = 3;
    pub(super) const TALKATIVE: u64 = 4;
}

#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
enum Event {
    Start {
        id: u64,
        level: u64,
        #[serde(rename = "type")]
        kind: u64,
        text: String,
        #[serde(default)]
        fields: Vec<serde_json::Value>,
    },
    Stop {
        id: u64,
    },
    Result {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        #[serde(default)]
        fields: Vec<serde_json::Value>,
    },
    Msg {
        level: u64,
        msg: String,
        raw_msg: Option<String>,
        file: Option<String>,
    },
    #[serde(other)]
    Other,
}

/// `api-1.0` of `/nix/store/<hash>-api-1.0.drv`.
fn derivation_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let name = name.strip_suffix(".drv").unwrap_or(name);
    name.get(33..).unwrap_or(name)
}

/// `flake.nix:12:19` of `/nix/store/<hash>-source/flake.nix:12:19`.
fn below_source(path: &str) -> &str {
    path.strip_prefix("/nix/store/").and_then(|rest| rest.split_once('/')).map_or(path, |(_, rest)| rest)
}

/// One line without terminal escapes, control characters and what turns text around.
pub(super) fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.next() {
                // A control sequence, up to its final byte (ECMA-48, section 5.4).
                Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                // An operating system command, up to BEL or ESC and one more.
                Some(']') if chars.find(|c| matches!(c, '\u{7}' | '\u{1b}')) == Some('\u{1b}') => {
                    chars.next();
                }
                _ => {}
            },
            '\t' => out.push(c),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// [`plain`], line by line.
pub(super) fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// A reason people can read: cleaned, its indentation taken off, cut to a few lines.
pub(super) fn reason(text: &str) -> String {
    let mut out = String::new();
    let mut lines = text.split('\n').map(plain);
    for line in lines.by_ref().take(REASON_LINES) {
        let line = line.strip_prefix("       ").unwrap_or(&line).trim_end();
        let line = line.strip_prefix("error: ").unwrap_or(line);
        if line.trim() == "For full logs, run:" {
            break;
        }
        if out.len() + line.len() > REASON_BYTES {
            out.extend(line.chars().take((REASON_BYTES.saturating_sub(out.len())) / 4));
            out.push('…');
            break;
        }
        out.push_str(line);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(limit: u64) -> (tempfile::TempDir, NixLog) {
        let dir = tempfile::tempdir().unwrap();
        let log = NixLog::new(LogFile::open(&dir.path().join("a.log"), limit).unwrap());
        (dir, log)
    }

    fn text(dir: &tempfile::TempDir) -> String {
        std::fs::read_to_string(dir.path().join("a.log")).unwrap()
    }

    /// Recorded from Nix 2.26.3: a package whose dependency fails.
    const FAILED_DEPENDENCY: &str = include_str!("testdata/failed-dependency.jsonl");
    /// Recorded from Nix 2.26.3: a flake that throws.
    const THROWS: &str = include_str!("testdata/throws.jsonl");

    #[test]
    fn what_nix_says_becomes_lines_people_can_read() {
        let (dir, mut log) = log(1 << 20);
        for line in FAILED_DEPENDENCY.lines() {
            assert!(log.take(line.as_bytes()).unwrap().is_continue());
        }
        insta::assert_snapshot!(text(&dir), @r#"
        these 2 derivations will be built:
          /nix/store/m911fzmzbvwjiifpjs401lxaxpvw0v3j-fail.drv
          /nix/store/45db0zih4f63yj7k2pxjbg10628f2r2l-dep.drv
        building '/nix/store/m911fzmzbvwjiifpjs401lxaxpvw0v3j-fail.drv'
        fail> one
        fail> two
        error: builder for '/nix/store/m911fzmzbvwjiifpjs401lxaxpvw0v3j-fail.drv' failed with exit code 3;
               last 2 log lines:
               > one
               > two
               For full logs, run:
                 nix log /nix/store/m911fzmzbvwjiifpjs401lxaxpvw0v3j-fail.drv
        error: 1 dependencies of derivation '/nix/store/45db0zih4f63yj7k2pxjbg10628f2r2l-dep.drv' failed to build
        "#);
        insta::assert_snapshot!(reason(&log.into_error()), @r#"
        builder for '/nix/store/m911fzmzbvwjiifpjs401lxaxpvw0v3j-fail.drv' failed with exit code 3;
        last 2 log lines:
        > one
        > two
        "#);
    }

    #[test]
    fn an_evaluation_error_is_told_without_its_trace() {
        let (dir, mut log) = log(1 << 20);
        for line in THROWS.lines() {
            assert!(log.take(line.as_bytes()).unwrap().is_continue());
        }
        assert!(text(&dir).contains("while calling"), "the log has all of it: {}", text(&dir));
        assert_eq!(reason(&log.into_error()), "broken on purpose");
    }

    #[test]
    fn a_log_ends_with_one_line_when_its_limit_is_reached() {
        let (dir, mut log) = log(100);
        let taken = (0..1000).take_while(|_| log.take(b"0123456789").unwrap().is_continue()).count();
        assert_eq!(taken, 64 * 100 / 11, "it has heard enough");
        let text = text(&dir);
        assert!(text.ends_with("[the log is cut here: its limit is 100 bytes]\n"), "{text}");
        assert_eq!(text.lines().count(), 10, "{text}");
    }

    #[test]
    fn terminal_controls_do_not_reach_a_log() {
        for (raw, clean) in [
            ("\u{1b}[31;1merror:\u{1b}[0m no", "error: no"),
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("a\r\u{8}\0b\tc", "ab\tc"),
            ("\u{202e}evil", "evil"),
            ("ends in \u{1b}", "ends in "),
            ("ends in \u{1b}[", "ends in "),
        ] {
            assert_eq!(plain(raw), clean, "{raw:?}");
        }
    }

    #[test]
    fn hostile_lines_are_only_lines() {
        let (dir, mut log) = log(1 << 20);
        for line in [
            &b"@nix {"[..],
            b"@nix {\"action\":\"start\"}",
            b"@nix {\"action\":\"new\"}",
            b"@nix {\"action\":\"result\",\"id\":1,\"type\":101,\"fields\":[7]}",
            b"@nix {\"action\":\"result\",\"id\":1,\"type\":101,\"fields\":[\"out of\\nthe blue\"]}",
            b"\xff\xfe",
        ] {
            assert!(log.take(line).unwrap().is_continue());
        }
        assert!(log.take(format!("@nix {{\"{}", "x".repeat(LINE_MAX)).as_bytes()).unwrap().is_continue());
        insta::assert_snapshot!(text(&dir), @r#"
        {
        {"action":"start"}
        build> out of
        the blue
        ��
        [a line of more than 1 MiB is left out]
        "#);
    }

    #[test]
    fn a_reason_is_short() {
        assert!(reason(&"x".repeat(100_000)).len() <= REASON_BYTES + 3);
        assert!(reason(&"é\n".repeat(100_000)).lines().count() <= REASON_LINES);
        assert_eq!(reason("error: a\n       b\n       For full logs, run:\n  nix log x"), "a\nb");
    }
}
