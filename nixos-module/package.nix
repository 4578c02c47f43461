# kennel, linked to the system's OpenSSL, libgit2, libssh2 and zlib; SQLite alone is its own.
{
  lib,
  stdenv,
  rustPlatform,
  rustc,
  pkg-config,
  libgit2,
  libssh2,
  openssl,
  zlib,
}:

let
  manifest = lib.importTOML ../Cargo.toml;
  # What `libgit2-sys` of Cargo.lock can be linked to.
  libgit2Fits = lib.versionAtLeast libgit2.version "1.9.7" && lib.versionOlder libgit2.version "1.10";
in
lib.throwIf (lib.versionOlder rustc.version manifest.package.rust-version)
  "kennel needs Rust ${manifest.package.rust-version}, and this nixpkgs has ${rustc.version}: take a newer one"
  rustPlatform.buildRustPackage
{
  pname = manifest.package.name;
  inherit (manifest.package) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../.clippy.toml
      ../.sqlx
      ../Cargo.lock
      ../Cargo.toml
      ../src
      ../systemd
      ../tests
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  buildNoDefaultFeatures = true;

  nativeBuildInputs = [ pkg-config ];
  buildInputs = [
    libgit2
    libssh2
    openssl
    zlib
  ];
  env = {
    SQLX_OFFLINE = "true";
    OPENSSL_NO_VENDOR = "1";
    LIBSSH2_SYS_USE_PKG_CONFIG = "1";
  }
  # Where nixpkgs has another libgit2, the sources that come with the crate are built.
  // lib.optionalAttrs libgit2Fits { LIBGIT2_NO_VENDOR = "1"; };

  # The tests are a check of the flake: a machine that installs kennel need not run them.
  doCheck = false;

  postInstall = ''
    install -D -m 444 -t $out/lib/systemd/system systemd/*.service systemd/*.socket
    for unit in $out/lib/systemd/system/*; do
      substituteInPlace $unit \
        --replace-quiet /usr/bin/kennel $out/bin/kennel
    done
    if grep -r /usr/ $out/lib/systemd/system; then
      echo "a unit names what NixOS has not" >&2
      exit 1
    fi
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/kennel manual $out/share
  '';

  meta = {
    inherit (manifest.package) description;
    license = lib.licenses.mit;
    mainProgram = "kennel";
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
}
