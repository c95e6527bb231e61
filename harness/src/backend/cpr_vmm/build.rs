//! Queries the features of another build of the VMM, which may be older or newer than this harness.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use crate::backend::Channels;
use crate::backend::probe_process::{self, ProbeProcess};
use crate::carry;
use crate::observe::proc_error::ProcError;
use crate::observe::process::Executable;
use crate::observe::qmp::{Command as QmpCommand, Qmp, QmpFault};
use crate::scenario::{Channel, Inject, Migrate, Mode};

/// An error of a query over QMP.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Qmp(#[from] QmpFault),
    #[error(transparent)]
    Proc(#[from] ProcError),
}

impl From<AskError> for io::Error {
    fn from(error: AskError) -> Self {
        Self::other(error)
    }
}

/// A build in a separate file: `cpr-vmm`, or a harness that carries one.
#[derive(Clone, Debug)]
pub(super) struct Build {
    /// The file.
    pub binary: PathBuf,
    /// The file that is actually executed: another one if `binary` is a script.
    pub executable: PathBuf,
    /// Its first arguments.
    pub first: Vec<String>,
    /// The version it reports, if it is a `cpr-vmm`.
    pub version: Option<String>,
    /// The git revision it reports.
    pub revision: Option<String>,
    /// Whether it has fail points.
    pub fail_points: bool,
    /// Whether the test device needs an option; older builds always have it and reject the option.
    pub test_device_option: bool,
    /// Its migration parameters; none if the query failed, which counts as having all.
    parameters: OnceLock<Option<Vec<String>>>,
    /// Cache of whether it supports a fault, by `POINT=ACTION`.
    faults: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Build {
    /// Queries the build in `binary`.
    pub fn at(binary: &Path) -> io::Result<Self> {
        let binary = std::fs::canonicalize(binary)?;
        let carries = output_of(&binary, &[], &["--version"])?;
        let carries = carries.is_some_and(|output| output.starts_with("cpr-harness "));
        let first = if carries { vec![carry::VMM.to_owned()] } else { Vec::new() };
        let output = output_of(&binary, &first, &["--version"])?;
        let (version, revision) = output.as_deref().and_then(version_of).unzip();
        let revision = revision.flatten();
        // A build without fail points rejects the option.
        let fail_points = output_of(&binary, &first, &["--failpoint", "save=off", "--version"])?;
        let fail_points = fail_points.is_some();
        let test_device = output_of(&binary, &first, &["--test-device", "on", "--version"])?;
        let test_device_option = test_device.is_some();
        let executable = binary.clone();
        let parameters = OnceLock::new();
        let faults = Arc::default();
        let mut build = Self {
            binary,
            executable,
            first,
            version,
            revision,
            fail_points,
            test_device_option,
            parameters,
            faults,
        };
        if is_script(&build.binary)? {
            build.executable = build.ask(|_, pid| Ok(Executable::of(pid)?.path))?;
        }
        Ok(build)
    }

    /// Whether it has this migration parameter; true if the query failed.
    pub fn has_parameter(&self, name: &str) -> bool {
        let parameters = self.parameters.get_or_init(|| self.ask_parameters().ok());
        parameters.as_ref().is_none_or(|all| all.iter().any(|parameter| parameter == name))
    }

    /// Whether it has this fail point with this action; queried once.
    pub fn knows(&self, fault: &Inject) -> io::Result<bool> {
        let fault = format!("{}={}", fault.point, fault.action);
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = faults.get(&fault) {
            return Ok(*known);
        }
        let output = output_of(&self.binary, &self.first, &["--failpoint", &fault, "--version"])?;
        faults.insert(fault, output.is_some());
        Ok(output.is_some())
    }

    fn ask_parameters(&self) -> Result<Vec<String>, AskError> {
        let parameters: Value = self.ask(|qmp, _| Ok(qmp.query("query-migrate-parameters")?))?;
        Ok(parameters.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect())
    }

    fn ask<T>(
        &self,
        question: impl FnOnce(&mut Qmp, i32) -> Result<T, AskError>,
    ) -> Result<T, AskError> {
        ask(&self.binary, &self.first, |qmp, pid, _| question(qmp, pid))
    }
}

/// Starts a paused VM, and passes its QMP connection, its PID and its folder to `question`.
fn ask<T>(
    binary: &Path,
    first: &[String],
    question: impl FnOnce(&mut Qmp, i32, &Path) -> Result<T, AskError>,
) -> Result<T, AskError> {
    let folder = tempfile::tempdir()?;
    let (kernel, socket) = (folder.path().join("guest.elf"), folder.path().join("qmp.sock"));
    let guest = guest_images::guest("heartbeat").map_or(&[][..], |guest| guest.elf);
    std::fs::write(&kernel, guest)?;
    let mut command = Command::new(binary);
    command.args(first).args(["--memory", "16M", "--paused", "--kernel"]).arg(&kernel);
    command.arg("--qmp").arg(format!("unix:{}", socket.display()));
    let process = ProbeProcess::start(&mut command, Path::new("/dev/null"))?;
    question(&mut process.qmp(&socket)?, process.pid(), folder.path())
}

/// What a VMM answers that does not support a mode.
const UNSUPPORTED: &str = "not supported";

/// Asks a VMM to migrate in `mode` to a new VMM that does not exist. Returns its answer if it says
/// that it does not support the mode.
pub(super) fn refusal_of(
    mode: Mode,
    binary: &Path,
    first: &[String],
) -> io::Result<Option<String>> {
    let refused = |answer: Result<Value, QmpFault>| match answer {
        Err(QmpFault::Refused { error, .. }) => Ok(Some(error.desc)),
        Err(other) => Err(AskError::from(other)),
        Ok(_) => Ok(None),
    };
    let asked = ask(binary, first, |qmp, _, folder| {
        let name = json!({ "mode": mode.name() });
        if let Some(why) = refused(qmp.execute(QmpCommand::new("migrate-set-parameters", name)))? {
            return Ok(Some(why));
        }
        let nowhere = Migrate { mode, channel: Channel::Unix, ..Migrate::default() };
        let channels = Channels::waiting(&nowhere, folder, 0)?;
        let why = refused(qmp.execute(QmpCommand::new("migrate", channels.migrate())))?;
        Ok(why.filter(|why| why.contains(UNSUPPORTED)))
    });
    Ok(asked?)
}

/// Splits `cpr-vmm VERSION (REVISION)`; older builds report no revision.
fn version_of(told: &str) -> Option<(String, Option<String>)> {
    let told = told.trim().strip_prefix("cpr-vmm ")?;
    let (version, revision) = told.split_once(" (").unwrap_or((told, ""));
    let revision = revision.trim_end_matches(')');
    Some((version.to_owned(), (!revision.is_empty()).then(|| revision.to_owned())))
}

fn is_script(binary: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    std::fs::File::open(binary)?.take(2).read_to_end(&mut start)?;
    Ok(start == b"#!")
}

/// Whether it accepts these arguments; false if it cannot be started.
pub(super) fn accepts(binary: &Path, first: &[String], arguments: &[&str]) -> bool {
    let output = output_of(binary, first, &[arguments, &["--version"]].concat());
    output.is_ok_and(|output| output.is_some())
}

/// Its output; none if it fails.
fn output_of(binary: &Path, first: &[String], arguments: &[&str]) -> io::Result<Option<String>> {
    probe_process::output_of(Command::new(binary).args(first).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::program;

    #[test]
    fn reads_version_and_revision() {
        let of = |told: &str| version_of(told).unwrap();
        assert_eq!(of("cpr-vmm 0.1.0\n"), ("0.1.0".into(), None));
        let changed = of("cpr-vmm 0.1.0 (00c4a32636bd, modified)\n");
        assert_eq!(changed, ("0.1.0".into(), Some("00c4a32636bd, modified".into())));
        assert_eq!(version_of("QEMU emulator version 10.2"), None);
    }

    #[test]
    fn each_fault_is_queried_once_and_errors_are_not_cached() {
        let folder = tempfile::tempdir().unwrap();
        let (binary, asked) = (folder.path().join("vmm"), folder.path().join("asked"));
        let script = r#"echo "$2" >> "${0%/*}/asked"; test "$2" = save=off"#;
        program::write(&binary, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        let build = Build {
            binary: binary.clone(),
            executable: binary.clone(),
            first: Vec::new(),
            version: None,
            revision: None,
            fail_points: true,
            test_device_option: true,
            parameters: OnceLock::new(),
            faults: Arc::default(),
        };
        let knows = |point: &str| {
            build.knows(&Inject { point: point.into(), action: "off".into() }).map_err(|e| e.kind())
        };
        for _ in 0..2 {
            assert_eq!(knows("save"), Ok(true));
            assert_eq!(knows("other"), Ok(false));
        }
        assert_eq!(std::fs::read_to_string(asked).unwrap(), "save=off\nother=off\n");
        std::fs::remove_file(&binary).unwrap();
        assert_eq!(knows("new"), Err(io::ErrorKind::NotFound));
        assert_eq!(knows("save"), Ok(true));
    }
}
