//! Compiles every file in `guests/`, makes a firmware image of each, and writes the table of guests
//! that `src/lib.rs` includes. Builds the agent in `linux/` and an initramfs with it.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

mod bios;
mod compile;
mod initramfs;

use compile::{Compiler, TARGET};

fn main() -> Result<(), Box<dyn Error>> {
    for source in [
        "build.rs",
        "compile.rs",
        "bios.rs",
        "initramfs.rs",
        "runtime",
        "guests",
        "linux",
        "../Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={source}");
    }
    let sources = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // A linker that was chosen for another target cannot link the guests.
    let linker = (env::var("TARGET")? == TARGET).then(|| env::var_os("RUSTC_LINKER")).flatten();
    let rustc = env::var_os("RUSTC").ok_or("RUSTC is not set")?;
    // For the tests, which compile the guests again.
    println!("cargo::rustc-env=GUEST_RUSTC={}", rustc.display());
    if let Some(linker) = &linker {
        println!("cargo::rustc-env=GUEST_LINKER={}", linker.display());
    }
    let compiler = Compiler { rustc, linker, deny_warnings: false };

    let mut table = String::from("&[\n");
    for name in guest_names(&sources.join("guests"))? {
        if let Err(what) = compiler.compile(&sources, &name, &out.join(&name)) {
            for line in format!("guest `{name}` does not compile: {what}").lines() {
                println!("cargo::error={line}");
            }
            return Ok(());
        }
        let elf = fs::read(out.join(&name))?;
        let image = bios::image(&elf).ok_or("the compiler's output is not a guest")?;
        fs::write(out.join(format!("{name}.bios")), image)?;
        let summary = summary(&sources.join("guests").join(&name).with_extension("rs"))?;
        writeln!(
            table,
            "GuestImage {{ name: {name:?}, summary: {summary:?}, \
             elf: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\")), \
             bios: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.bios\")) }},"
        )?;
    }
    table.push_str("]\n");
    fs::write(out.join("guests.rs"), table)?;
    match initramfs::build(&sources, &out) {
        Ok(initramfs) => fs::write(out.join("linux.cpio"), initramfs)?,
        Err(what) => what.lines().for_each(|line| println!("cargo::error={line}")),
    }
    Ok(())
}

/// The names of the guests in `folder`, sorted.
fn guest_names(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|stem| stem.to_str());
            names.push(name.ok_or("the name of a guest is not UTF-8")?.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The first line of a guest's documentation.
fn summary(source: &Path) -> Result<String, Box<dyn Error>> {
    let text = fs::read_to_string(source)?;
    let line = text.lines().next().and_then(|line| line.strip_prefix("//! "));
    Ok(line.ok_or_else(|| format!("{} does not start with `//! `", source.display()))?.to_owned())
}
