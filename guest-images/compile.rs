//! Compiles a guest with `rustc` alone, from sources that belong to no cargo target.
//!
//! Used by `build.rs`, and by the tests, which compile the guests again elsewhere and compare.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that guests are compiled for: the host's own, so that no other need be installed.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The compiler of the guests.
pub struct Compiler {
    /// The path of `rustc`.
    pub rustc: OsString,
    /// The linker to use instead of the compiler's default.
    pub linker: Option<OsString>,
    /// Whether a warning is an error. A build must not set it, because a newer compiler may warn
    /// about more.
    pub deny_warnings: bool,
}

impl Compiler {
    /// Compiles `sources/guests/NAME.rs` into the ELF file `elf`; the error is a message to print.
    ///
    /// The result depends only on the sources and the toolchain, not on their paths.
    pub fn compile(&self, sources: &Path, name: &str, elf: &Path) -> Result<(), String> {
        let script = sources.join("runtime/guest.ld");
        let mut rustc = Command::new(&self.rustc);
        // Cargo's settings reach `rustc` only through this command line.
        rustc
            .arg(sources.join("guests").join(name).with_extension("rs"))
            .args(["--edition=2024", "--crate-type=bin"])
            .args(["--crate-name", &name.replace('-', "_")])
            .args(["--target", TARGET])
            .args(["-Copt-level=2", "-Ccodegen-units=1", "-Cpanic=abort"])
            .args(["-Cforce-unwind-tables=no", "-Crelocation-model=static"])
            .args(["-Cdebuginfo=0", "-Cstrip=debuginfo"])
            .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-static", "-Clink-arg=-no-pie"])
            .arg("-Clink-arg=-Wl,--build-id=none")
            .arg(concat_os("-Clink-arg=-T", script.as_os_str()))
            .arg("-o")
            .arg(elf)
            .env("GUEST_NAME", name);
        // The last matching prefix applies.
        for (from, to) in [
            (self.sysroot()?, "=rust"),
            (sources.to_path_buf(), "=guest-images"),
            (sources.join("guests/.."), "=guest-images"),
        ] {
            rustc.arg(concat_os("--remap-path-prefix=", concat_os(&from, to)));
        }
        if self.deny_warnings {
            rustc.arg("-Dwarnings");
        }
        if let Some(linker) = &self.linker {
            rustc.arg(concat_os("-Clinker=", linker));
        }
        run(&mut rustc).map(drop)
    }

    /// The folder that contains the sources of `core`, if they are installed.
    fn sysroot(&self) -> Result<PathBuf, String> {
        let out = run(Command::new(&self.rustc).args(["--print", "sysroot"]))?;
        Ok(PathBuf::from(out.trim_end()))
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}: {}\n{stderr}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn concat_os(a: impl AsRef<OsStr>, b: impl AsRef<OsStr>) -> OsString {
    let mut both = a.as_ref().to_os_string();
    both.push(b);
    both
}
