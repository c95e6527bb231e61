//! The PID file: written once, kept over updates, removed at the end.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("--pid-file: cannot write {path}: {source}")]
pub struct PidFileError {
    path: PathBuf,
    source: std::io::Error,
}

/// A PID file that dropping this removes, if it is owned.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    owned: bool,
}

impl PidFile {
    /// Writes this process's ID to `path`.
    pub fn write(path: &Path) -> Result<Self, PidFileError> {
        let error = |source| PidFileError { path: path.to_owned(), source };
        let mut file = std::fs::File::create(path).map_err(error)?;
        let pid_file = Self { path: path.to_owned(), owned: true };
        writeln!(file, "{}", std::process::id()).map_err(error)?;
        Ok(pid_file)
    }

    /// Goes on with the file that an earlier binary of this process wrote, and may want back: it is
    /// not owned yet.
    pub fn adopt(path: &Path) -> Self {
        Self { path: path.to_owned(), owned: false }
    }

    /// Nobody can want it back any more.
    pub fn own(&mut self) {
        self.owned = true;
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        // Somebody may have removed it already, or written another process's ID: leave that.
        let ours = format!("{}\n", std::process::id());
        if std::fs::read_to_string(&self.path).is_ok_and(|text| text == ours) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_removed_unless_it_is_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(PidFile::adopt(&path));
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());
        let file = PidFile::write(&path).unwrap();
        std::fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
