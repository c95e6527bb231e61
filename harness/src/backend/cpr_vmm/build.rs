//! Asking another build of the VMM what it has: it may be older or newer than this harness.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::backend::asked::Asked;
use crate::carry;
use crate::observe::qmp::QmpFault;
use crate::scenario::Inject;

/// Why it could not be asked over QMP.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Qmp(#[from] QmpFault),
}

/// A build in a file of its own: `cpr-vmm`, or a harness that carries one.
#[derive(Clone, Debug)]
pub(super) struct Build {
    /// The file.
    pub binary: PathBuf,
    /// Its first arguments.
    pub first: Vec<String>,
    /// What it has told, where it is a VMM of ours.
    pub version: Option<String>,
    /// It has fail points.
    pub fail_points: bool,
    /// Its migration parameters; none: it did not tell, and what cannot be told is not judged.
    parameters: OnceLock<Option<Vec<String>>>,
}

impl Build {
    /// The one in `binary`.
    pub fn at(binary: &Path) -> io::Result<Self> {
        let binary = std::fs::canonicalize(binary)?;
        let carries = said(&binary, &[], &["--version"])?;
        let carries = carries.is_some_and(|told| told.starts_with("cpr-harness "));
        let first = if carries { vec![carry::VMM.to_owned()] } else { Vec::new() };
        let told = said(&binary, &first, &["--version"])?;
        let version = told.as_deref().and_then(|told| told.trim().strip_prefix("cpr-vmm "));
        let version = version.map(str::to_owned);
        // A build without them does not know the option.
        let fail_points = said(&binary, &first, &["--failpoint", "save=off", "--version"])?;
        let fail_points = fail_points.is_some();
        Ok(Self { binary, first, version, fail_points, parameters: OnceLock::new() })
    }

    /// True unless it has told that it has no such migration parameter.
    pub fn has_parameter(&self, name: &str) -> bool {
        let parameters = self.parameters.get_or_init(|| self.ask_parameters().ok());
        parameters.as_ref().is_none_or(|all| all.iter().any(|parameter| parameter == name))
    }

    /// It knows this fail point, and this action there.
    pub fn knows(&self, fault: &Inject) -> bool {
        let fault = format!("{}={}", fault.point, fault.action);
        let told = said(&self.binary, &self.first, &["--failpoint", &fault, "--version"]);
        told.is_ok_and(|told| told.is_some())
    }

    /// Starts a VM that never runs, and asks.
    fn ask_parameters(&self) -> Result<Vec<String>, AskError> {
        let folder = tempfile::tempdir()?;
        let (kernel, socket) = (folder.path().join("guest.elf"), folder.path().join("qmp.sock"));
        let guest = guest_images::guest("heartbeat").map_or(&[][..], |guest| guest.elf);
        std::fs::write(&kernel, guest)?;
        let mut command = Command::new(&self.binary);
        command.args(&self.first).args(["--memory", "16M", "--paused", "--kernel"]).arg(&kernel);
        let asked = Asked::start(command.arg("--qmp").arg(format!("unix:{}", socket.display())))?;
        let parameters: Value = asked.qmp(&socket)?.query("query-migrate-parameters")?;
        Ok(parameters.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect())
    }
}

/// What a command that succeeds prints.
fn said(binary: &Path, first: &[String], arguments: &[&str]) -> io::Result<Option<String>> {
    let mut command = Command::new(binary);
    let told = command.args(first).args(arguments).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    Ok(told.status.success().then_some(text))
}
