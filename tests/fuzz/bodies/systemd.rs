//! How systemd reads what kennel renders: a model of its parsers, which the lab compares with the real ones.

/// systemd's `parse_env_file_internal`, state by state, for what it says of quotes and escapes.
pub(crate) fn read_env_file(text: &str) -> Vec<(String, String)> {
    enum State {
        Key,
        Plain,
        Escape,
        Double,
        DoubleEscape,
    }
    let (mut state, mut key, mut value, mut all) = (State::Key, String::new(), String::new(), Vec::new());
    for c in text.chars() {
        match state {
            State::Key => match c {
                '=' => state = State::Plain,
                '\n' | '\r' => key.clear(),
                c => key.push(c),
            },
            State::Plain => match c {
                '\n' | '\r' => {
                    all.push((std::mem::take(&mut key), std::mem::take(&mut value)));
                    state = State::Key;
                }
                '"' => state = State::Double,
                '\\' => state = State::Escape,
                c => value.push(c),
            },
            State::Escape => {
                value.push(c);
                state = State::Plain;
            }
            State::Double => match c {
                '"' => state = State::Plain,
                '\\' => state = State::DoubleEscape,
                c => value.push(c),
            },
            State::DoubleEscape => {
                match c {
                    '"' | '\\' | '`' | '$' => value.push(c),
                    '\n' => {}
                    c => value.extend(['\\', c]),
                }
                state = State::Double;
            }
        }
    }
    all
}

/// What systemd makes of a quoted word: `extract_first_word` with `EXTRACT_UNQUOTE | EXTRACT_CUNESCAPE`,
/// then specifiers. Returns the word and what follows it.
pub(crate) fn read_word(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.char_indices();
    let mut word = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((word.replace("%%", "%"), &text[at + 2..])),
            '\\' => match chars.next()?.1 {
                c @ ('"' | '\\') => word.push(c),
                _ => return None,
            },
            c => word.push(c),
        }
    }
    None
}
