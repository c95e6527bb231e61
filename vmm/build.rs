//! Sets the revision that `--version` reports.

use std::env;
use std::path::PathBuf;

mod revision;

/// What the VMM is built from.
const SOURCES: [&str; 7] = [
    "Cargo.lock",
    "Cargo.toml",
    "vmm/Cargo.toml",
    "vmm/build.rs",
    "vmm/qmp",
    "vmm/revision.rs",
    "vmm/src",
];

fn main() {
    println!("cargo::rerun-if-changed=revision.rs");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    revision::set(&manifest.join(".."), &SOURCES);
}
