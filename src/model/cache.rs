//! Binary caches that a build's results are pushed to.

use super::words;

words! {
    /// Which of a build's caches.
    Cache {
        /// The operator's: `[builder.cache]` of the daemon's file.
        Store = "store",
        /// The repository's: `[cachix]` of its kennel.toml.
        Cachix = "cachix",
    }
}
