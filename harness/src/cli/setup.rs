//! What every command that runs VMs does first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CliError;
use crate::backend::Backend;
use crate::process::signals::Ending;
use crate::run::{self, Options};

/// Shows that this process may run VMs: evidence can be written, and the VMs end with it.
pub(super) struct Ready(());

impl Ready {
    /// Checks that evidence can be written to `evidence`, and has a signal end all VMs. Call it before
    /// a backend is created, which may start another build to query it.
    pub(super) fn new(evidence: &Path, ending: Ending) -> Result<Self, CliError> {
        let cannot = |e| format!("cannot write evidence to {}: {e}", evidence.display());
        let was_there = evidence.exists();
        fs::create_dir_all(evidence)
            .and_then(|()| tempfile::tempfile_in(evidence))
            .map_err(|e| CliError::usage(cannot(e)))?;
        // The next check may find that nothing can be run.
        if !was_there {
            let _ = fs::remove_dir(evidence);
        }
        run::guard_until(ending);
        Ok(Self(()))
    }

    /// Creates the options of a run; `vmm_option` selects `backend` on the command line.
    pub(super) fn options(
        &self,
        backend: Arc<dyn Backend>,
        evidence: PathBuf,
        vmm_option: String,
    ) -> Options {
        Options::new(backend, evidence, vmm_option)
    }
}

/// Checks that a file can be written, before a long run, and removes it: if this run is interrupted,
/// what an earlier run wrote must not be mistaken for its own.
pub(super) fn try_out(path: &Path) -> Result<(), CliError> {
    let is_ours = try_writing(path)?;
    // Do not remove a device, such as /dev/stdout.
    match is_ours.then(|| fs::remove_file(path)) {
        Some(Err(e)) => Err(cannot(path, &e)),
        _ => Ok(()),
    }
}

/// Checks that a file can be written, and leaves what is in it.
pub(super) fn writable(path: &Path) -> Result<(), CliError> {
    let was_there = path.exists();
    let is_ours = try_writing(path)?;
    match (is_ours && !was_there).then(|| fs::remove_file(path)) {
        Some(Err(e)) => Err(cannot(path, &e)),
        _ => Ok(()),
    }
}

/// Opens a file for writing; returns whether it is a regular one.
fn try_writing(path: &Path) -> Result<bool, CliError> {
    let open = |options: &mut fs::OpenOptions| options.append(true).open(path);
    let tried = match fs::metadata(path) {
        Ok(there) => open(&mut File::options()).map(|_| there.is_file()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            open(File::options().create_new(true)).map(|_| true)
        }
        Err(e) => Err(e),
    };
    tried.map_err(|e| cannot(path, &e))
}

fn cannot(path: &Path, why: &dyn std::fmt::Display) -> CliError {
    CliError::usage(format!("cannot write {}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn try_out_checks_the_path_and_removes_an_old_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let tried = |path: &Path| try_out(path).map_err(|CliError(why, _)| why);
        tried(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "of an earlier run").unwrap();
        tried(&path).unwrap();
        assert!(!path.exists());
        assert!(tried(&path.join("deeper")).is_err());
        assert!(tried(folder.path()).is_err());
        tried(Path::new("/dev/null")).unwrap();
        assert!(Path::new("/dev/null").exists());
    }

    #[test]
    fn writable_leaves_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.md");
        writable(&path).map_err(|CliError(why, _)| why).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "rows").unwrap();
        writable(&path).map_err(|CliError(why, _)| why).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "rows");
        assert!(writable(&path.join("deeper")).is_err());
    }
}
