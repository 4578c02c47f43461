//! `kennel manual`: man pages and shell completions, made from the definition of the command line.

use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Answer;

/// Where each shell looks for what completes `kennel`, below `share`.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/kennel"),
    (Shell::Fish, "fish/vendor_completions.d/kennel.fish"),
    (Shell::Zsh, "zsh/site-functions/_kennel"),
];

/// Write man pages and shell completions, for whoever packages kennel
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The directory for data of programs, such as /usr/local/share
    share: PathBuf,
}

/// Writes them.
pub(super) fn run(arguments: &Arguments) -> Answer {
    match write(&arguments.share) {
        Ok(()) => Answer { stdout: String::new(), stderr: String::new(), code: 0 },
        Err(err) => {
            let stderr = format!("error: cannot write below `{}`: {err}\n", arguments.share.display());
            Answer { stdout: String::new(), stderr, code: 1 }
        }
    }
}

fn write(share: &Path) -> io::Result<()> {
    let pages = share.join("man/man1");
    std::fs::create_dir_all(&pages)?;
    clap_mangen::generate_to(super::Arguments::command(), pages)?;
    for (shell, path) in COMPLETIONS {
        let path = share.join(path);
        std::fs::create_dir_all(path.parent().expect("it lies below `share`"))?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut super::Arguments::command(), "kennel", &mut script);
        std::fs::write(path, script)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        let command = super::super::Arguments::command();
        let (mut shown, mut pages) = (vec!["kennel.1".to_owned()], Vec::new());
        for name in command.get_subcommands().filter(|command| !command.is_hide_set()).map(clap::Command::get_name) {
            shown.push(format!("kennel-{name}.1"));
            for (_, path) in COMPLETIONS {
                assert!(read(path).contains(name), "{path} does not know `{name}`");
            }
        }
        for entry in std::fs::read_dir(dir.path().join("man/man1")).unwrap() {
            pages.push(entry.unwrap().file_name().into_string().unwrap());
        }
        shown.sort();
        pages.sort();
        pages.retain(|page| !page.starts_with("kennel-help"));
        assert_eq!(pages, shown);
        assert!(read("man/man1/kennel-deploy.1").contains("kennel"), "a page says what it is about");
    }
}
