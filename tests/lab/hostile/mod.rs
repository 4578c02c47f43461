//! Repositories that mean harm: what they try fails with a reason, nothing of the host's is found where they can put
//! it, and the builds of others go on.

mod evaluation;
mod git;
mod limits;
mod links;
mod values;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::harness::app::system;
use crate::harness::{App, Lab, machine, write_secret};

/// Where the host's files lie that no repository may read.
const HOST_DIR: &str = "/srv/host";
/// Where what a repository reads could end: the store, Nix's logs, kennel's state.
const PLACES: [&str; 3] = ["/nix/store", "/nix/var/log", "/var/lib/kennel"];

/// Files of the host's, each with a word in it that must be found nowhere else.
struct Canaries {
    /// Root's alone.
    secret: PathBuf,
    /// Readable for everybody on the machine, which a store that everybody's builds share is not.
    readable: PathBuf,
    word: String,
}

impl Canaries {
    fn place() -> Self {
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("the clock is right").as_nanos();
        let word = format!("canary{nanos}");
        let dir = Path::new(HOST_DIR);
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir.join("dir")).unwrap();
        let canaries = Self { secret: dir.join("secret"), readable: dir.join("readable"), word };
        write_secret(&canaries.secret, &canaries.word);
        fs::write(&canaries.readable, &canaries.word).unwrap();
        fs::write(dir.join("dir/default.nix"), format!("\"{}\"", canaries.word)).unwrap();
        let flake = format!("{{ outputs = _: {{ word = \"{}\"; }}; }}", canaries.word);
        fs::write(dir.join("dir/flake.nix"), flake).unwrap();
        for open in [dir, &dir.join("dir")] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
        }
        canaries
    }

    /// Where on the machine a word can be found that a repository may have put there.
    async fn places_of(word: &str, lab: &Lab) -> Vec<String> {
        let places = PLACES.join(" ");
        // Nix compresses its logs.
        let find = format!(
            "grep -rlas -- {word} {places}; find /nix/var/log -name '*.bz2' -print0 | xargs -0 -r python3 -c \
             'import bz2, sys\nfor path in sys.argv[1:]:\n if b\"{word}\" in bz2.open(path).read(): print(path)'"
        );
        let found = machine::text(&machine::run("sh", &["-c", &find]).await.stdout);
        let mut found: Vec<_> = found.lines().map(str::to_owned).collect();
        if lab.everything_journalled().await.contains(word) {
            found.push("the journal".to_owned());
        }
        found
    }

    /// Nothing of the host's files has got anywhere.
    async fn expect_unread(&self, lab: &Lab) {
        let found = Self::places_of(&self.word, lab).await;
        assert!(found.is_empty(), "what only the host's files hold is in {found:?}");
    }
}

/// A name for each.
fn named(expressions: &[String]) -> Vec<(String, String)> {
    expressions.iter().enumerate().map(|(n, it)| (format!("try{n}"), it.clone())).collect()
}

/// A repository whose sites are these expressions, as text in a builder's environment.
fn expressions(of: &[(String, String)], inputs: &str) -> App {
    let (mut manifest, mut outputs) = (String::new(), String::new());
    for (name, expression) in of {
        manifest += &format!("[static_sites.{name}]\n");
        outputs += &format!("{name} = {expression};\n");
    }
    let flake = format!(
        "{{ {inputs} outputs = {{ self, ... }}@inputs: let system = \"{system}\"; \
         sh = script: derivation {{ name = \"sh\"; inherit system; builder = \"/bin/sh\"; args = [ \"-c\" script ]; }}; \
         say = found: derivation {{ name = \"say\"; inherit system found; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo $found; echo $found >$out\" ]; }}; in {{ packages.${{system}} = {{\n{outputs}}}; }}; }}",
        system = system()
    );
    App::default().file("flake.nix", flake).file("kennel.toml", manifest)
}
