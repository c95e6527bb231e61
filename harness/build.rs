//! Embeds the scenario files into the binary, and sets the revision that it reports.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

#[path = "../vmm/revision.rs"]
mod revision;

/// What the harness, with all that it carries, is built from.
const SOURCES: [&str; 17] = [
    "Cargo.lock",
    "Cargo.toml",
    "guest-images/Cargo.toml",
    "guest-images/bios.rs",
    "guest-images/build.rs",
    "guest-images/compile.rs",
    "guest-images/guests",
    "guest-images/runtime",
    "guest-images/src",
    "harness/Cargo.toml",
    "harness/build.rs",
    "harness/src",
    "scenarios",
    "vmm/Cargo.toml",
    "vmm/qmp",
    "vmm/revision.rs",
    "vmm/src",
];

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let folder = manifest.join("../scenarios");
    println!("cargo::rerun-if-changed=../vmm/revision.rs");
    revision::set(&manifest.join(".."), &SOURCES);
    let mut source = String::from(
        "/// `theme/scenario` and text of every embedded scenario file.\n\
         pub(super) const EMBEDDED: &[(&str, &str)] = &[\n",
    );
    for theme in sorted(&folder)?.into_iter().filter(|path| path.is_dir()) {
        for file in
            sorted(&theme)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "toml"))
        {
            println!("cargo::rerun-if-changed={}", file.display());
            let part = |p: &Path| p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let name = format!("{}/{}", part(&theme), part(&file));
            // Writing to a String cannot fail.
            let _ =
                writeln!(source, "    ({name:?}, include_str!({:?})),", file.display().to_string());
        }
    }
    source.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("embedded_scenarios.rs"), source)
}

fn sorted(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
