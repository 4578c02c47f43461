//! Where a command writes: data to stdout, talk to stderr, colours and cuts only for a terminal.
//!
//! **Invariant:** text from repositories reaches a terminal without control characters.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};

/// The longest text in a cell of a table on a terminal.
const CELL_MAX: usize = 48;

/// The two outputs of a command.
pub(super) struct Screen<'a> {
    out: &'a mut (dyn Write + Send),
    talk: &'a mut (dyn Write + Send),
    /// Whether people watch stdout as it is.
    pub(super) terminal: bool,
    /// Whether colours are welcome there.
    pub(super) colour: bool,
    /// Milliseconds since 1970: what ages are reckoned from.
    pub(super) now: i64,
}

/// How something is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Well.
    Good,
    /// Badly.
    Bad,
    /// It is under way.
    Busy,
    /// It is over.
    Past,
}

impl<'a> Screen<'a> {
    /// A screen that is a file.
    #[cfg(test)]
    pub(super) fn plain(out: &'a mut (dyn Write + Send), talk: &'a mut (dyn Write + Send), now: i64) -> Self {
        Self { out, talk, terminal: false, colour: false, now }
    }

    /// The process's own stdout and stderr, which must be locked for nobody else.
    pub(super) fn stdio(out: &'a mut io::Stdout, talk: &'a mut io::Stderr) -> Self {
        let terminal = out.is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { out, talk, terminal, colour, now: jiff::Timestamp::now().as_millisecond() }
    }

    /// Writes a line of data.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// Writes data as it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Writes a line of a log: as it is to a file, tamed to a terminal.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn log_line(&mut self, prefix: &str, line: &[u8]) -> io::Result<()> {
        let mut whole = prefix.as_bytes().to_vec();
        if self.terminal {
            whole.extend_from_slice(tame(&String::from_utf8_lossy(line), self.colour).as_bytes());
        } else {
            whole.extend_from_slice(line);
        }
        whole.push(b'\n');
        self.bytes(&whole)
    }

    /// Tells the person something that is not data.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn talk(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.talk, "{text}")
    }

    /// The text in the colour of its mood, where colours are welcome.
    #[must_use]
    pub(super) fn paint(&self, mood: Mood, text: &str) -> String {
        let code = match mood {
            Mood::Good => "32",
            Mood::Bad => "31",
            Mood::Busy => "33",
            Mood::Past => "2",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The text in bold, where that is welcome.
    #[must_use]
    pub(super) fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Writes rows under a heading, in aligned columns two spaces apart. The cells of the `mood` column are painted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn table(&mut self, heading: &[Column], rows: &[Row]) -> io::Result<()> {
        let cell = |text: &str| match self.terminal && text.chars().count() > CELL_MAX {
            true => text.chars().take(CELL_MAX - 1).chain(['…']).collect(),
            false => text.to_owned(),
        };
        let cut = |column: &Column, text: &str| if column.whole { text.to_owned() } else { cell(text) };
        let width = |at: usize, column: &Column| {
            let cells = rows.iter().filter_map(|row| row.cells.get(at)).map(|text| cut(column, text).chars().count());
            cells.chain([column.name.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = heading.iter().enumerate().map(|(at, column)| width(at, column)).collect();
        let names: Vec<String> = heading.iter().map(|column| column.name.to_owned()).collect();
        let mut lines = vec![self.bold(&self.aligned(heading, &widths, &names, None))];
        for row in rows {
            let cells: Vec<String> = heading.iter().zip(&row.cells).map(|(column, text)| cut(column, text)).collect();
            lines.push(self.aligned(heading, &widths, &cells, Some(row.mood)));
        }
        lines.iter().try_for_each(|line| self.line(line))
    }

    fn aligned(&self, heading: &[Column], widths: &[usize], cells: &[String], mood: Option<Mood>) -> String {
        let mut line = String::new();
        for (at, ((column, &width), text)) in heading.iter().zip(widths).zip(cells).enumerate() {
            let padding = " ".repeat(width - text.chars().count().min(width));
            let shown = match mood {
                Some(mood) if column.mood => self.paint(mood, text),
                _ => text.clone(),
            };
            let gap = if at == 0 { "" } else { "  " };
            line += gap;
            line += &(if column.number { padding + &shown } else { shown + &padding });
        }
        line.trim_end().to_owned()
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    name: &'static str,
    number: bool,
    mood: bool,
    whole: bool,
}

impl Column {
    /// A column of text.
    #[must_use]
    pub(super) const fn text(name: &'static str) -> Self {
        Self { name, number: false, mood: false, whole: false }
    }

    /// A column whose cells end below each other.
    #[must_use]
    pub(super) const fn number(name: &'static str) -> Self {
        Self { number: true, ..Self::text(name) }
    }

    /// A column that shows how the row is going.
    #[must_use]
    pub(super) const fn mood(name: &'static str) -> Self {
        Self { mood: true, ..Self::text(name) }
    }

    /// A column whose cells are of no use when cut.
    #[must_use]
    pub(super) const fn whole(name: &'static str) -> Self {
        Self { whole: true, ..Self::text(name) }
    }
}

/// A row of a table.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// How it is going.
    pub(super) mood: Mood,
    /// One text for each column.
    pub(super) cells: Vec<String>,
}

/// How long ago, or how long: the two largest units that tell something, such as `4s`, `1m32s`, `3h` or `12d`.
#[must_use]
pub(super) fn span(ms: i64) -> String {
    let secs = ms.max(0) / 1000;
    match secs {
        0..60 => format!("{secs}s"),
        60..600 if secs % 60 != 0 => format!("{}m{:02}s", secs / 60, secs % 60),
        60..3_600 => format!("{}m", secs / 60),
        3_600..36_000 if secs % 3_600 >= 60 => format!("{}h{:02}m", secs / 3_600, secs % 3_600 / 60),
        3_600..172_800 => format!("{}h", secs / 3_600),
        _ => format!("{}d", secs / 86_400),
    }
}

/// Text on one line, with nothing in it that a terminal would obey or be fooled by.
#[must_use]
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if is_treacherous(c) { '\u{fffd}' } else { c }).collect()
}

fn is_treacherous(c: char) -> bool {
    // Control characters, and those that change the direction of what follows.
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A line of a log without what a terminal would obey, except tabs and, if welcome, colours; of a line that was
/// overwritten, what was there last.
fn tame(line: &str, colour: bool) -> Cow<'_, str> {
    let line = line.trim_end_matches('\r');
    let line = line.rsplit_once('\r').map_or(line, |(_, last)| last);
    if !line.contains(|c| is_treacherous(c) && c != '\t') {
        return Cow::Borrowed(line);
    }
    let mut tamed = String::with_capacity(line.len());
    let mut coloured = false;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c == '\x1b' && rest.starts_with('[') {
            let end = rest[1..].find(|c: char| ('@'..='~').contains(&c)).map_or(rest.len(), |at| at + 2);
            let (sequence, after) = rest.split_at(end.min(rest.len()));
            let plain = sequence[1..].trim_end_matches('m').bytes().all(|b| b.is_ascii_digit() || b == b';');
            if colour && sequence.ends_with('m') && plain {
                tamed.push('\x1b');
                tamed.push_str(sequence);
                coloured = true;
            }
            rest = after;
        } else if !is_treacherous(c) || c == '\t' {
            tamed.push(c);
        }
    }
    if coloured {
        tamed.push_str("\x1b[0m");
    }
    Cow::Owned(tamed)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(-5, "0s")]
    #[case(999, "0s")]
    #[case(59_999, "59s")]
    #[case(60_000, "1m")]
    #[case(92_000, "1m32s")]
    #[case(600_000, "10m")]
    #[case(3_600_000, "1h")]
    #[case(3_900_000, "1h05m")]
    #[case(36_100_000, "10h")]
    #[case(86_400_000, "24h")]
    #[case(172_800_000, "2d")]
    fn spans_are_short(#[case] ms: i64, #[case] text: &str) {
        assert_eq!(span(ms), text);
    }

    #[rstest]
    #[case("plain\ttext", "plain\ttext")]
    #[case("10%\r50%\rdone", "done")]
    #[case("done\r", "done")]
    #[case("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m")]
    #[case("\x1b[2J\x1b[1;1Hgone", "gone")]
    #[case("\x1b]0;title\x07x", "]0;titlex")]
    #[case("cut \x1b[", "cut ")]
    #[case("cut \x1b[31", "cut ")]
    #[case("\u{202e}back", "back")]
    #[case("\x1b[31é", "")]
    fn a_terminal_is_not_commanded_by_a_log(#[case] line: &str, #[case] tamed: &str) {
        assert_eq!(tame(line, true), tamed);
        assert!(!tame(line, false).contains('\x1b'));
    }

    #[test]
    fn tables_are_aligned_and_cut_only_for_a_terminal() {
        let (mut out, mut talk) = (Vec::new(), Vec::new());
        let long = "x".repeat(60);
        let rows = [
            Row { mood: Mood::Good, cells: vec!["7".into(), "live".into(), "a".into()] },
            Row { mood: Mood::Bad, cells: vec!["12".into(), "failed".into(), long] },
        ];
        let heading = [Column::number("ID"), Column::mood("STATE"), Column::text("TITLE")];
        let mut screen = Screen::plain(&mut out, &mut talk, 0);
        screen.table(&heading, &rows).unwrap();
        screen.terminal = true;
        screen.colour = true;
        screen.table(&heading, &rows).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap().replace('\x1b', "^"), @r#"
        ID  STATE   TITLE
         7  live    a
        12  failed  xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
        ^[1mID  STATE   TITLE^[0m
         7  ^[32mlive^[0m    a
        12  ^[31mfailed^[0m  xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
        "#);
        assert!(talk.is_empty());
    }
}
