//! The PID file: written once, kept over updates that do not change its path, removed at the end.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("--pid-file: cannot write {path}: {source}")]
pub struct PidFileError {
    path: PathBuf,
    source: io::Error,
}

/// A PID file that dropping this removes, if it is owned.
#[derive(Debug)]
pub struct PidFile {
    path: Option<PathBuf>,
    /// What an earlier binary wrote, where `path` is to take its place.
    earlier: Option<Option<PathBuf>>,
    owned: bool,
}

impl PidFile {
    /// Writes this process's ID to `path`.
    pub fn write(path: &Path) -> Result<Self, PidFileError> {
        write(path)?;
        Ok(Self { path: Some(path.to_owned()), earlier: None, owned: true })
    }

    /// Goes on where an earlier binary of this process wrote the file `earlier`, and may want it
    /// back: until it is owned nothing changes.
    pub fn adopt(path: Option<&Path>, earlier: Option<PathBuf>) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or(path.to_owned());
        let path = path.map(absolute);
        let earlier = (path != earlier).then_some(earlier);
        Self { path, earlier, owned: false }
    }

    /// Where it is, for the next binary.
    pub fn path(&self) -> Option<PathBuf> {
        let path = self.path.as_ref()?;
        Some(std::path::absolute(path).unwrap_or(path.to_owned()))
    }

    /// Nobody can want the earlier one back any more. If `path` is another, it is written, and the
    /// earlier one removed; if it cannot be written, the earlier one stays.
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
    // Nobody waits for a reader of a FIFO.
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(path).map_err(error)?;
    if let Err(source) = writeln!(file, "{}", std::process::id()) {
        let _ = std::fs::remove_file(path);
        return Err(error(source));
    }
    Ok(())
}

/// Somebody may have removed it already, or written another process's ID: that is left alone.
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
    fn it_is_removed_unless_it_is_anothers() {
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
    fn another_path_takes_the_place_of_the_earlier_one_once_it_is_owned() {
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
    fn the_earlier_one_stays_where_the_new_one_cannot_be_written_or_is_the_same() {
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
