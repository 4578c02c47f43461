//! A deployment's environment file, in the one form of quoting that keeps every byte.

use std::collections::BTreeMap;

use super::RenderError;

/// The longest `NAME=value` the kernel hands to a program, its final NUL included (`execve(2)`, `MAX_ARG_STRLEN`).
const VARIABLE_MAX: usize = 128 * 1024;

/// The environment as `EnvironmentFile=` wants it: `NAME="value"` with `\ " $` and the backtick escaped,
/// line breaks and tabs as they are (`systemd.exec(5)`).
///
/// # Errors
/// When a name or value would not arrive as it is, or keep the unit from starting; it names the variable, never
/// the value.
pub fn env_file(env: &BTreeMap<String, String>) -> Result<String, RenderError> {
    let mut file = String::new();
    for (name, value) in env {
        check(name, value)?;
        file.push_str(name);
        file.push_str("=\"");
        for c in value.chars() {
            if matches!(c, '\\' | '"' | '$' | '`') {
                file.push('\\');
            }
            file.push(c);
        }
        file.push_str("\"\n");
    }
    Ok(file)
}

/// The environment that [`env_file`] wrote.
pub(in crate::host::machine) fn read_env_file(file: &str) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut rest = file;
    while let Some((name, quoted)) = rest.split_once("=\"") {
        let (mut value, mut chars) = (String::new(), quoted.chars());
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => value.extend(chars.next()),
                c => value.push(c),
            }
        }
        env.insert(name.to_owned(), value);
        rest = chars.as_str().strip_prefix('\n').unwrap_or_default();
    }
    env
}

/// systemd's `env_name_is_valid`, `env_value_is_valid` and `unichar_is_valid`, and the kernel's limit.
///
/// systemd 257 was measured to hand on control characters but NUL, though its manual says otherwise, and to refuse
/// the whole file for one of Unicode's reserved characters.
fn check(name: &str, value: &str) -> Result<(), RenderError> {
    let fault = |problem| Err(RenderError { what: format!("variable {name:?}"), problem });
    let mut bytes = name.bytes();
    if !bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        return fault("does not have a name of letters, digits and `_`, beginning with no digit");
    }
    if value.bytes().any(|b| matches!(b, 0..=8 | 11..=31 | 127)) {
        return fault("holds a control character other than line break and tab");
    }
    if value.chars().any(|c| matches!(c as u32, 0xfdd0..=0xfdef) || c as u32 & 0xfffe == 0xfffe) {
        return fault("holds a character that Unicode reserves, such as U+FFFE");
    }
    if name.len() + value.len() + 2 > VARIABLE_MAX {
        return fault("is longer than 128 KiB");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::systemd;
    use super::*;

    #[test]
    fn values_are_quoted_and_keep_their_line_breaks() {
        let env = [
            ("EMPTY", ""),
            ("PEM", "-----BEGIN-----\nabc\n\tdef\n"),
            ("QUOTES", r#"a "b" 'c' \ $HOME `id` %h #x"#),
            ("TRAP", "ends in \\"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        insta::assert_snapshot!(env_file(&env).unwrap(), @r##"
        EMPTY=""
        PEM="-----BEGIN-----
        abc
        	def
        "
        QUOTES="a \"b\" 'c' \\ \$HOME \`id\` %h #x"
        TRAP="ends in \\"
        "##);
    }

    #[test]
    fn what_would_not_arrive_is_refused_by_name_and_never_shown() {
        for value in ["hush\0", "hush\r\n", "hush\u{7f}", "hush\u{1b}[0m", "hush\u{fdd0}", "hush\u{1fffe}"] {
            let env = BTreeMap::from([("TOKEN".to_owned(), value.to_owned())]);
            let error = env_file(&env).unwrap_err().to_string();
            assert!(error.contains("\"TOKEN\"") && !error.contains("hush"), "{error}");
        }
        for name in ["", "1A", "A B", "A\nB", "A=B", "É", "A-B"] {
            let env = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
            assert!(env_file(&env).is_err(), "{name:?}");
        }
        let long = BTreeMap::from([("A".to_owned(), "x".repeat(VARIABLE_MAX))]);
        assert_eq!(env_file(&long).unwrap_err().to_string(), "variable \"A\" is longer than 128 KiB");
    }

    proptest! {
        #[test]
        fn systemd_reads_back_every_value(
            env in proptest::collection::btree_map("[A-Za-z_][A-Za-z0-9_]{0,8}", "([^\\p{C}]|[\n\t\\\\\"$`'#; =])*", 0..5)
        ) {
            let file = env_file(&env).unwrap();
            let read: BTreeMap<_, _> = systemd::read_env_file(&file).into_iter().collect();
            prop_assert_eq!(&read, &env);
            prop_assert_eq!(read_env_file(&file), env);
        }

        #[test]
        fn a_value_is_kept_whole_or_refused(value in any::<String>()) {
            let env = BTreeMap::from([("A".to_owned(), value), ("B".to_owned(), "after".to_owned())]);
            if let Ok(file) = env_file(&env) {
                let read: BTreeMap<_, _> = systemd::read_env_file(&file).into_iter().collect();
                prop_assert_eq!(read, env);
            }
        }
    }
}
