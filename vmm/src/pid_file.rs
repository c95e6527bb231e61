//! The PID file: written once, kept across updates that do not change its path, removed on exit.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The PID file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("--pid-file: cannot write {path}: {source}")]
pub struct PidFileError {
    path: PathBuf,
    source: io::Error,
}

/// A PID file, removed on drop if this process owns it.
#[derive(Debug)]
pub struct PidFile {
    path: Option<PathBuf>,
    /// The path that an earlier binary wrote, if `path` is to replace it.
    earlier: Option<Option<PathBuf>>,
    owned: bool,
}

impl PidFile {
    /// Writes this process's ID to `path`.
    pub fn write(path: &Path) -> Result<Self, PidFileError> {
        write(path)?;
        Ok(Self { path: Some(path.to_owned()), earlier: None, owned: true })
    }

    /// Continues the file `earlier`, which an earlier binary of this process wrote. A fallback may
    /// need it, so no file changes until [`own`](Self::own).
    pub fn adopt(path: Option<&Path>, earlier: Option<PathBuf>) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or(path.to_owned());
        let path = path.map(absolute);
        let earlier = (path != earlier).then_some(earlier);
        Self { path, earlier, owned: false }
    }

    /// Returns the absolute path, for the next binary.
    pub fn path(&self) -> Option<PathBuf> {
        let path = self.path.as_ref()?;
        Some(std::path::absolute(path).unwrap_or(path.to_owned()))
    }

    /// Takes ownership once no fallback can need the earlier file. If `path` differs, writes it and
    /// removes the earlier file; if it cannot be written, keeps the earlier one.
    pub fn own(&mut self) {
        self.owned = true;
        let Some(earlier) = self.earlier.take() else { return };
        match self.path.as_deref().map_or(Ok(()), write) {
            Ok(()) => {
                let same = |(a, b)| identity(a).is_some_and(|a| Some(a) == identity(b));
                if !earlier.as_deref().zip(self.path.as_deref()).is_some_and(same) {
                    earlier.iter().for_each(|earlier| remove(earlier));
                }
            }
            Err(error) => {
                tracing::error!(%error, "pid_file");
                self.path = earlier;
            }
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Some(path) = self.path.as_ref().filter(|_| self.owned) {
            remove(path);
        }
    }
}

fn write(path: &Path) -> Result<(), PidFileError> {
    let error = |source| PidFileError { path: path.to_owned(), source };
    let mut options = File::options();
    // Do not wait for the reader of a FIFO.
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(path).map_err(error)?;
    if let Err(source) = writeln!(file, "{}", std::process::id()) {
        let _ = std::fs::remove_file(path);
        return Err(error(source));
    }
    Ok(())
}

/// Removes the file if it still holds the ID of this process.
fn remove(path: &Path) {
    let ours = format!("{}\n", std::process::id());
    if std::fs::read_to_string(path).is_ok_and(|text| text == ours) {
        let _ = std::fs::remove_file(path);
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> String {
        format!("{}\n", std::process::id())
    }

    #[test]
    fn removed_unless_it_holds_another_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), ours());
        drop(PidFile::adopt(Some(&path), Some(path.clone())));
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());
        let file = PidFile::write(&path).unwrap();
        std::fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn owning_moves_the_file_to_its_new_path() {
        let dir = tempfile::tempdir().unwrap();
        let [earlier, path] = ["earlier", "path"].map(|name| dir.path().join(name));
        let first = PidFile::write(&earlier).unwrap();
        drop(PidFile::adopt(Some(&path), Some(earlier.clone())));
        assert!(earlier.exists() && !path.exists());
        let mut second = PidFile::adopt(Some(&path), Some(earlier.clone()));
        second.own();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), ours());
        assert!(!earlier.exists());
        second.own();
        drop(second);
        assert!(!path.exists());
        std::mem::forget(first);
    }

    #[test]
    fn earlier_file_stays_if_new_path_is_unwritable_or_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let earlier = dir.path().join("earlier");
        std::mem::forget(PidFile::write(&earlier).unwrap());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&earlier, &link).unwrap();
        for path in [dir.path().join("missing/pid"), link] {
            let mut file = PidFile::adopt(Some(&path), Some(earlier.clone()));
            file.own();
            assert_eq!(std::fs::read_to_string(&earlier).unwrap(), ours());
            std::mem::forget(file);
        }
        let mut none = PidFile::adopt(None, Some(earlier.clone()));
        none.own();
        assert!(!earlier.exists());
    }
}
