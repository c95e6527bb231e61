//! Starts the QEMU under test as cases will, to find out whether it starts at all.

use std::fs;
use std::path::Path;
use std::process::Command as Process;

use cpr_qmp::run_state::StatusInfo;

use super::Qemu;
use super::probe::{ProbeError, last_words};
use crate::backend::probe_process::ProbeProcess;
use crate::backend::{Backend, Launch};
use crate::observe::files::Files;
use crate::observe::qmp::{Qmp, QmpFault};
use crate::scenario::Vm;

/// The guest whose image the trial has; it does not run.
const GUEST: &str = "heartbeat";

/// Starts a paused VM with the machine, accelerator, arguments and wrapper of `qemu`.
pub(super) fn start(qemu: &Qemu) -> Result<(), ProbeError> {
    let binary = qemu.binary();
    let cannot = |source| ProbeError::Start { path: binary.to_owned(), source };
    let folder = tempfile::tempdir().map_err(cannot)?;
    let files = files(folder.path());
    let image = guest_images::guest(GUEST).map(|guest| qemu.image(guest).bytes);
    fs::write(&files.kernel, image.unwrap_or_default()).map_err(cannot)?;
    let vm = Vm { paused: true, ..Vm::default() };
    let arguments = qemu.arguments(Launch { vm: &vm, seed: 0, name: "trial", files: &files });
    let words = [qemu.wrapper(), &[binary.display().to_string()], &arguments].concat();
    // As in a case, a relative path in an argument is one in a folder of the VM's own.
    let mut command = Process::new(&words[0]);
    command.args(&words[1..]).current_dir(folder.path());
    let errors = folder.path().join("stderr");
    let process = ProbeProcess::start(&mut command, &errors)
        .map_err(|source| ProbeError::Start { path: (&words[0]).into(), source })?;
    let ask = |mut qmp: Qmp| qmp.query::<StatusInfo>("query-status").map(drop);
    let answered = process.qmp(Path::new(&files.qmp)).and_then(ask);
    answered.map_err(|source: QmpFault| ProbeError::Vm {
        command: shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default(),
        source: Box::new(source),
        said: last_words(&errors),
    })
}

fn files(folder: &Path) -> Files {
    let file = |name: &str| folder.join(name).display().to_string();
    Files {
        kernel: file("guest.bios"),
        initrd: None,
        ram: file("ram"),
        qmp: file("qmp.sock"),
        serial: file("serial.log"),
        serial_socket: file("serial.sock"),
        log: file("vmm.log"),
        pid_file: file("pid"),
        suffix: String::new(),
    }
}
