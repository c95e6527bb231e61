//! The ports of a lab, from inside.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::InitError;
use crate::lab::messages::PORTS;
use crate::observe::poll::{self, Deadline};

/// Where the kernel lists them, each with its name.
const LIST: &str = "/sys/class/virtio-ports";

/// How long the kernel may take to find them.
const FOUND: Duration = Duration::from_secs(60);

/// The open ports.
pub(super) struct Ports {
    pub(super) control: File,
    pub(super) stdin: File,
    pub(super) stdout: File,
    pub(super) stderr: File,
}

/// Opens all ports.
pub(super) fn open() -> Result<Ports, InitError> {
    let deadline = Deadline::after(FOUND);
    let [control, stdin, stdout, stderr] = PORTS.map(|name| {
        let file = poll::until(deadline, || find(Path::new(LIST), name).ok().flatten());
        let what = || format!("open the port {name}");
        let late = || InitError::new(what(), format!("not in {LIST} after {FOUND:?}"));
        let file = file.ok_or_else(late)?;
        let open = File::options().read(true).write(true).open(&file);
        open.map_err(|e| InitError::new(format!("{} ({})", what(), file.display()), e))
    });
    Ok(Ports { control: control?, stdin: stdin?, stdout: stdout?, stderr: stderr? })
}

/// The device file of the port called `name`.
fn find(list: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(list)? {
        let entry = entry?;
        let named = fs::read_to_string(entry.path().join("name"))?;
        if named.trim_end() == name {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let list = tempfile::tempdir().unwrap();
        for (device, name) in [("vport0p1", "control"), ("vport0p2", "stdin")] {
            fs::create_dir(list.path().join(device)).unwrap();
            fs::write(list.path().join(device).join("name"), format!("{name}\n")).unwrap();
        }
        let device = |name| find(list.path(), name).unwrap();
        assert_eq!(device("stdin"), Some("/dev/vport0p2".into()));
        assert_eq!(device("std"), None);
    }
}
