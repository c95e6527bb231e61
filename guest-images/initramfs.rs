//! Builds the agent in `linux/` and the initramfs that has it as `/init`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use cpio::newc;

use super::compile::TARGET;

/// The package, and the name of its executable.
const AGENT: &str = "linux-agent";
/// The profile in the workspace's Cargo.toml.
const PROFILE: &str = "guest";
/// A regular file that anyone may execute.
const EXECUTABLE: u32 = 0o100_755;

/// Builds the archive, with `out` for what cargo writes; the error is a message to print.
pub fn build(sources: &Path, out: &Path) -> Result<Vec<u8>, String> {
    let target = out.join(AGENT);
    build_agent(&sources.join("linux"), &target)?;
    let agent = target.join(TARGET).join(PROFILE).join(AGENT);
    let agent = fs::read(&agent).map_err(|e| format!("cannot read {}: {e}", agent.display()))?;
    archive(&agent).map_err(|e| format!("cannot write the initramfs: {e}"))
}

/// Runs cargo in a target folder of its own, because the one that runs this has locked its own.
fn build_agent(folder: &Path, target: &Path) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    // The settings of this build are not those of the agent's.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_") && text != "CARGO_HOME" && text != "CARGO_MAKEFLAGS"
            || text.starts_with("RUSTC")
            || text.starts_with("RUSTDOC")
            || text == "RUSTFLAGS"
        {
            cargo.env_remove(&name);
        }
    }
    cargo
        .args(["build", "--locked", "--package", AGENT, "--profile", PROFILE, "--target", TARGET])
        .arg("--target-dir")
        .arg(target)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(folder))
        .env("CARGO_INCREMENTAL", "0")
        .current_dir(folder);
    let output = cargo.output().map_err(|e| format!("cannot run {cargo:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{AGENT} does not compile: {}\n{stderr}", output.status))
}

/// The flags for a static executable, without paths of this machine.
fn rustflags(folder: &Path) -> OsString {
    let mut flags = OsString::from("-Ctarget-feature=+crt-static\x1f-Crelocation-model=static");
    let home = env::var_os("CARGO_HOME").or_else(|| {
        env::var_os("HOME").map(|home| Path::new(&home).join(".cargo").into_os_string())
    });
    for (from, to) in [(Some(folder.as_os_str().to_owned()), "linux-agent"), (home, "cargo")] {
        if let Some(from) = from {
            flags.push("\x1f--remap-path-prefix=");
            flags.push(from);
            flags.push("=");
            flags.push(to);
        }
    }
    flags
}

/// The archive in the format that the kernel unpacks (Documentation/driver-api/early-userspace).
fn archive(agent: &[u8]) -> std::io::Result<Vec<u8>> {
    let entry = newc::Builder::new("init").mode(EXECUTABLE).ino(1).nlink(1);
    let mut writer =
        entry.write(Vec::new(), agent.len().try_into().map_err(std::io::Error::other)?);
    std::io::Write::write_all(&mut writer, agent)?;
    newc::trailer(writer.finish()?)
}
