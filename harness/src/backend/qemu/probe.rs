//! Queries a QEMU's version and features over QMP, because its `--version` does not prove what it
//! can do.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use cpr_qmp::message::{VersionInfo, VersionTriple};
use serde_json::Value;

use crate::backend::probe_process::ProbeProcess;
use crate::observe::process::Executable;
use crate::observe::qmp::{Command, QmpFault};

/// The first version with `cpr-exec`.
const FIRST: (u32, u32) = (10, 2);

/// How many lines of standard error a message has.
const LAST_LINES: usize = 5;

/// Why a file is not a usable QEMU.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be started, or the folder for its socket cannot be created.
    #[error("cannot start {path}: {source}")]
    Start {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It does not respond like QEMU.
    #[error("{path} does not respond like QEMU: {source}; its last words: {said}")]
    NotQemu {
        /// The file.
        path: PathBuf,
        /// The QMP error.
        #[source]
        source: Box<QmpFault>,
        /// The last lines of its standard error.
        said: String,
    },
    /// It is QEMU, but does not start with this machine, these arguments or this wrapper.
    #[error(
        "cannot start a VM in QEMU: {source}; check --machine, --accel, --qemu-arg and --wrap; command: {command}; its last words: {said}"
    )]
    Vm {
        /// Its command line, quoted for a shell.
        command: String,
        /// The QMP error.
        #[source]
        source: Box<QmpFault>,
        /// The last lines of its standard error.
        said: String,
    },
    /// It is older than QEMU 10.2.
    #[error(
        "{path} is QEMU {version}, which cannot update itself: 10.2 or newer is needed (ci/install-qemu)"
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// The version it reports.
        version: String,
    },
    /// Its version is new enough, but its schema lacks a feature.
    #[error("{path} is QEMU {version}, but its schema lacks {lacks}")]
    Lacks {
        /// The file.
        path: PathBuf,
        /// The version it reports.
        version: String,
        /// The missing feature.
        lacks: &'static str,
    },
}

/// The result of a probe.
pub(super) struct Probed {
    /// Its file, by a path that stays valid.
    pub binary: PathBuf,
    /// The file that is actually executed.
    pub executable: PathBuf,
    /// Its version.
    pub version: String,
}

/// Starts the QEMU at `binary` without a machine, and queries it.
pub(super) fn probe(binary: &Path) -> Result<Probed, ProbeError> {
    let start = |source| ProbeError::Start { path: binary.to_owned(), source };
    let binary = std::fs::canonicalize(binary).map_err(start)?;
    let folder = tempfile::tempdir().map_err(start)?;
    let socket = folder.path().join("qmp.sock");
    let mut command = Process::new(&binary);
    command
        .args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()));
    let errors = folder.path().join("stderr");
    let process = ProbeProcess::start(&mut command, &errors).map_err(start)?;
    let not_qemu = |source| {
        let (path, source) = (binary.clone(), Box::new(source));
        ProbeError::NotQemu { path, source, said: last_words(&errors) }
    };
    let mut qmp = process.qmp(&socket).map_err(not_qemu)?;
    let version_info: VersionInfo = qmp.query("query-version").map_err(not_qemu)?;
    let version = name(&version_info);
    if is_too_old(version_info.qemu) {
        return Err(ProbeError::TooOld { path: binary, version });
    }
    let schema = qmp.execute(Command::plain("query-qmp-schema")).map_err(not_qemu)?;
    if let Some(lacks) = lacks(&schema) {
        return Err(ProbeError::Lacks { path: binary, version, lacks });
    }
    let executable = Executable::of(process.pid()).map_err(|e| start(io::Error::other(e)))?.path;
    Ok(Probed { binary, executable, version })
}

/// The last lines of a file with standard error, for a message.
pub(super) fn last_words(errors: &Path) -> String {
    let text = std::fs::read(errors).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => "none".to_owned(),
        n => lines[n.saturating_sub(LAST_LINES)..].join("\n"),
    }
}

fn is_too_old(VersionTriple { major, minor, .. }: VersionTriple) -> bool {
    (major, minor) < FIRST
}

fn name(version: &VersionInfo) -> String {
    let VersionTriple { major, minor, micro } = version.qemu;
    let package = version.package.trim();
    let number = format!("{major}.{minor}.{micro}");
    if package.is_empty() { number } else { format!("{number} ({package})") }
}

/// The first feature that an update needs and this schema lacks.
fn lacks(schema: &Value) -> Option<&'static str> {
    let types = || schema.as_array().into_iter().flatten();
    let has_value = |value: &str| {
        types().any(|kind| {
            let values = kind["values"].as_array().into_iter().flatten();
            kind["meta-type"] == "enum" && values.into_iter().any(|v| v == value)
        })
    };
    let has_member = |name: &str| {
        types().any(|kind| {
            let members = kind["members"].as_array().into_iter().flatten();
            kind["meta-type"] == "object" && members.into_iter().any(|m| m["name"] == name)
        })
    };
    if !has_value("cpr-exec") {
        return Some("migration mode cpr-exec");
    }
    (!has_member("cpr-exec-command")).then_some("migration parameter cpr-exec-command")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[test]
    fn missing_feature_is_found_in_schema() {
        let mode = json!({ "meta-type": "enum", "name": "1", "values": ["normal", "cpr-exec"] });
        let members = json!([{ "name": "cpr-exec-command", "type": "2" }]);
        let parameters = json!({ "meta-type": "object", "name": "3", "members": members });
        assert_eq!(lacks(&json!([mode, parameters])), None);
        assert_eq!(lacks(&json!([mode])), Some("migration parameter cpr-exec-command"));
        assert_eq!(lacks(&json!([parameters])), Some("migration mode cpr-exec"));
    }

    #[rstest]
    #[case(9, 2, true)]
    #[case(10, 1, true)]
    #[case(10, 2, false)]
    #[case(11, 0, false)]
    fn versions_before_10_2_are_too_old(#[case] major: u32, #[case] minor: u32, #[case] old: bool) {
        let version = VersionTriple { major, minor, micro: 9 };
        assert_eq!(is_too_old(version), old);
        let version_info = VersionInfo { qemu: version, package: " Debian ".into() };
        assert_eq!(name(&version_info), format!("{major}.{minor}.9 (Debian)"));
    }

    #[test]
    fn error_names_the_path_of_a_non_qemu() {
        let error = probe(Path::new("/bin/true")).err().map(|e| e.to_string());
        let error = error.unwrap_or_default();
        assert!(error.contains("true does not respond like QEMU"), "{error}");
        assert!(error.contains("it has ended (exit status: 0)"), "{error}");
        let missing = probe(Path::new("/no/such/qemu")).err();
        assert!(matches!(missing, Some(ProbeError::Start { .. })), "{missing:?}");
    }
}
